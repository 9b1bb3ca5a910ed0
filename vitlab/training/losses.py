"""What a training step minimises, and what each remedy for imbalance does to it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.config import Recipe
from vitlab.machine import width_of


def sampling_weights(remedy: str, labels: Tensor, counts: Tensor) -> Tensor | None:
    """(N,) weights with which the sampler draws images, so that every class is as likely; None: no sampler."""
    return (1 / counts.double())[labels] if remedy in ("sampler", "both") else None


def class_weights(remedy: str, counts: Tensor) -> Tensor | None:
    """(C,) factors of the loss, of mean 1 over the images that are drawn; None: no weights.

    class_weights and both: 1/n. effective_number: (1 − β)/(1 − βⁿ), Cui et al. 2019, with β = 1 − 1/N; for N, which
    they read as the number of different images a class could have, we take the mean class size.
    """
    if remedy in ("class_weights", "both"):
        weights = 1 / counts.double()
    elif remedy == "effective_number":
        beta = 1 - 1 / max(counts.double().mean(), 2)
        weights = (1 - beta) / (1 - beta ** counts.double())
    else:
        return None
    drawn = torch.ones_like(counts) if remedy == "both" else counts  # its sampler draws every class as often
    return (weights * drawn.sum() / (weights * drawn).sum()).float()


def logit_shift(remedy: str, counts: Tensor) -> Tensor | None:
    """(C,) added to the logits in training only: log of the class's share (Menon et al. 2021, eq. 10, τ = 1)."""
    return (counts / counts.sum()).log() if remedy == "logit_adjustment" else None


class Objective(nn.Module):
    """Loss of one batch: cross-entropy shaped by the remedy, and the terms that a model adds itself.

    A model with such terms, as DynamicViT, has a method `terms(images, teacher)`, which returns logits and terms by
    name, and their weights as `term_weights`. class_counts (C,): training images of each class.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, class_counts: Tensor, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.dim = width_of(model)
        self.teacher = teacher.requires_grad_(False) if teacher else None
        self.label_smoothing = recipe.label_smoothing
        self.register_buffer("weights", class_weights(recipe.remedy, class_counts))
        self.register_buffer("shift", logit_shift(recipe.remedy, class_counts))

    def at(self, done: float) -> None:
        """A step begins, with the share `done` of training behind it: a model that changes on the way is told."""
        if hasattr(self.model, "at"):
            self.model.at(done)

    def classify(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch of weight · cross-entropy; logits and targets (B, C), targets sum to 1 a row.

        The weight is that of the image's class. torch's own `weight` would be that of each class in the smoothed
        target, and an image of the commonest class would train the rarest ones most.
        """
        logits = logits.float() if self.shift is None else logits.float() + self.shift
        smoothing = self.label_smoothing
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        surprise = -logits.log_softmax(1)
        of_class = (1 - smoothing) * surprise + smoothing * surprise.mean(1, keepdim=True)  # loss, were this the class
        return (self.weights * targets * of_class).sum(1).mean()

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise; and without a gradient the loss, the accuracy and each part of the loss by name."""
        own_terms = hasattr(self.model, "terms")
        logits, terms = self.model.terms(images, self.teacher) if own_terms else (self.model(images), {})
        loss = classification = self.classify(logits, targets)
        for name, term in terms.items():
            loss = loss + self.model.term_weights[name] * term
        accuracy = (logits.argmax(1) == targets.argmax(1)).float().mean()
        parts = {"loss": loss, "accuracy": accuracy, "cls": classification, **terms}
        return loss, {name: part.detach() for name, part in parts.items()}
