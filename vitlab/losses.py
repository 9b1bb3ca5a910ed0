"""What a training step minimises, and what each remedy for imbalance does to it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.config import RunConfig
from vitlab.dynamic_vit import distill_loss, ratio_loss


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
    """Loss of one batch: cross-entropy shaped by the remedy, and for DynamicViT its ratio and distillation terms.

    forward(images, targets) returns the loss to minimise and, without a gradient, its parts by name and the logits.
    """

    def __init__(self, config: RunConfig, counts: Tensor, model: nn.Module, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.teacher = teacher.requires_grad_(False) if teacher else None
        self.register_buffer("weights", class_weights(config.remedy, counts))
        self.register_buffer("shift", logit_shift(config.remedy, counts))

    def classify(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch of weight · cross-entropy; targets (B, C) sum to 1 a row.

        The weight is that of the image's class. torch's own `weight` would be that of each class in the smoothed
        target, and an image of the commonest class would train the rarest ones most.
        """
        logits = logits.float() if self.shift is None else logits.float() + self.shift
        smoothing = self.config.label_smoothing
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        surprise = -logits.log_softmax(1)
        of_class = (1 - smoothing) * surprise + smoothing * surprise.mean(1, keepdim=True)  # loss, were this the class
        return (self.weights * targets * of_class).sum(1).mean()

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        model = self.model
        if self.config.model != "dynamic_vit":
            logits = model(images)
            loss = self.classify(logits, targets)
            return loss, {"cls": loss.detach()}, logits.detach()
        trace: dict = {}
        logits = model(images, trace)
        parts = {"cls": self.classify(logits, targets), "ratio": ratio_loss(trace["keep"], model.targets())}
        loss = parts["cls"] + self.config.ratio_weight * parts["ratio"]
        if self.teacher is not None:
            with torch.no_grad():
                seen = self.teacher.encode(images)
                teacher_logits = self.teacher.head(self.teacher.pool_tokens(seen))
            patches = slice(-trace["keep"][-1].shape[1], None)  # the class token's distance is in the logits already
            parts["kl"] = F.kl_div(
                logits.float().log_softmax(-1),
                teacher_logits.float().log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            )
            parts["distill"] = distill_loss(trace["final"][:, patches], seen[:, patches], trace["keep"][-1])
            loss = loss + self.config.distill_weight * (parts["kl"] + parts["distill"])
        return loss, {name: part.detach() for name, part in parts.items()}, logits.detach()
