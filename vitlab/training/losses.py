"""What a training step minimises, and what each remedy for imbalance does to it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.config import Recipe
from vitlab.errors import LabError
from vitlab.machine import width_of
from vitlab.models.heads import COSINE_SCALE, CosineHead

LDAM_MARGIN = 0.5  # the rarest class's, between cosines (Cao et al. 2019, their code)
DEFERRED = ("drw", "ldam_drw")  # remedies whose weights wait
SWITCH = 0.8  # share of training that they wait for: 160 of 200 epochs in Cao et al. 2019


def sampling_weights(remedy: str, labels: Tensor, counts: Tensor) -> Tensor | None:
    """(N,) weights with which the sampler draws images, so that every class is as likely; None: no sampler."""
    return (1 / counts.double())[labels] if remedy in ("sampler", "both") else None


def class_weights(remedy: str, counts: Tensor) -> Tensor | None:
    """(C,) factors of the loss, of mean 1 over the images that are drawn; None: no weights.

    class_weights and both: 1/n. effective_number: (1 − β)/(1 − βⁿ), Cui et al. 2019, with β = 1 − 1/N; for N, which
    they read as the number of different images a class could have, we take the mean class size. drw and ldam_drw: the
    same with β = 0.9999, as Cao et al. 2019 have it, from `SWITCH` on; nearly 1/n for classes of up to some thousand.
    """
    n = counts.double()
    if remedy in ("class_weights", "both"):
        weights = 1 / n
    elif remedy in ("effective_number", *DEFERRED):
        beta = 0.9999 if remedy in DEFERRED else 1 - 1 / max(n.mean(), 2)
        weights = (1 - beta) / (1 - beta**n)
    else:
        return None
    drawn = torch.ones_like(counts) if remedy == "both" else counts  # its sampler draws every class as often
    return (weights * drawn.sum() / (weights * drawn).sum()).float()


def logit_shift(remedy: str, counts: Tensor) -> Tensor | None:
    """(C,) added to the logits in training only: log of the class's share (Menon et al. 2021, eq. 10, τ = 1).

    With τ = 1 it is the balanced softmax of Ren et al. 2020.
    """
    return (counts / counts.sum()).log() if remedy == "logit_adjustment" else None


def post_hoc(logits: Tensor, counts: Tensor) -> Tensor:
    """Logits (N, C) of a model that was trained without a remedy, adjusted: minus log of each class's share.

    Menon et al. 2021, eq. 9, with τ = 1: p(x | y) in place of p(y | x), as if all classes were equally frequent.
    Nothing is trained, and nothing is chosen by validation or test images.
    """
    return logits - (counts / counts.sum()).log()


def margins(remedy: str, counts: Tensor) -> Tensor | None:
    """(C,) by which the logit of an image's own class is lowered in training: s · Δ, with Δ = K / n^(1/4).

    LDAM (Cao et al. 2019, eq. 11 and 13). K makes the largest Δ, the rarest class's, `LDAM_MARGIN`; s is the factor
    of the cosines that such a model's logits are.
    """
    if remedy != "ldam_drw":
        return None
    return (COSINE_SCALE * LDAM_MARGIN * (counts / counts.min()) ** -0.25).float()


class Objective(nn.Module):
    """Loss of one batch: cross-entropy shaped by the remedy, and the terms that a model adds itself.

    A model with such terms, as DynamicViT, has a method `terms(images, teacher)`, which returns logits and terms by
    name, and as `term_weights` what they weigh, if not 1. class_counts (C,): training images of each class. LabError
    for LDAM with a model whose logits are no cosines.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, class_counts: Tensor, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        if recipe.remedy == "ldam_drw" and not any(isinstance(part, CosineHead) for part in model.modules()):
            raise LabError(
                "remedy ldam_drw asks for margins between cosines: give your model such a head first, with "
                "vitlab.models.heads.with_cosine_head(model)"
            )
        self.model = model
        self.dim = width_of(model)
        self.teacher = teacher.requires_grad_(False) if teacher is not None else None
        self.label_smoothing = recipe.label_smoothing
        self.deferred = recipe.remedy in DEFERRED
        final = class_weights(recipe.remedy, class_counts)
        self.register_buffer("final_weights", final)
        self.register_buffer("weights", torch.ones_like(final) if self.deferred else final)
        self.register_buffer("shift", logit_shift(recipe.remedy, class_counts))
        self.register_buffer("margins", margins(recipe.remedy, class_counts))

    def reach(self, done: float) -> None:
        """The share `done` of training is over: deferred weights count from `SWITCH` on, and the model is told.

        The weights change in place, so that a step which was recorded or compiled sees it.
        """
        if hasattr(self.model, "at"):  # a model that changes on the way
            self.model.at(done)
        if self.deferred:
            self.weights.copy_(self.final_weights if done >= SWITCH else torch.ones_like(self.final_weights))

    def classify(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch of weight · cross-entropy; logits and targets (B, C), targets sum to 1 a row.

        The weight is that of the image's class. torch's own `weight` would be that of each class in the smoothed
        target, and an image of the commonest class would train the rarest ones most. An image mixed of two classes is
        asked for a part of each one's margin.
        """
        logits = logits.float() if self.shift is None else logits.float() + self.shift
        logits = logits if self.margins is None else logits - self.margins * targets
        smoothing = self.label_smoothing
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        nll = -logits.log_softmax(1)
        of_class = (1 - smoothing) * nll + smoothing * nll.mean(1, keepdim=True)  # loss, were this the class
        return (self.weights * targets * of_class).sum(1).mean()

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise; and without a gradient the loss, the accuracy and each part of the loss by name."""
        own_terms = hasattr(self.model, "terms")
        logits, terms = self.model.terms(images, self.teacher) if own_terms else (self.model(images), {})
        if logits.shape != targets.shape:
            told, wanted = (tuple(one.shape) for one in (logits, targets))
            raise LabError(f"{type(self.model).__name__} answers with {told}, and {wanted} is wanted: images, classes")
        loss = classification = self.classify(logits, targets)
        weights = getattr(self.model, "term_weights", {})
        for name, term in terms.items():
            loss = loss + weights.get(name, 1.0) * term
        accuracy = (logits.argmax(1) == targets.argmax(1)).float().mean()
        parts = {"loss": loss, "accuracy": accuracy, "cls": classification, **terms}
        return loss, {name: part.detach() for name, part in parts.items()}
