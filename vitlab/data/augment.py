"""Augmentation, vectorised over the batch with a draw per sample.

Everything random here comes from torch's global generator, which `fit` seeds anew for every step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.config import Recipe
from vitlab.data.batches import to_float


def augment(images: Tensor, labels: Tensor, num_classes: int, recipe: Recipe, size: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 (B, C, S, S) and int64 (B,) to float images in [−1, 1] and targets (B, num_classes) that sum to 1.

    `size`: pixels a side that the images are scaled down to; 0 leaves them as they are.
    """
    images = to_float(shift_and_flip(images, recipe.crop, recipe.flip))
    if size and size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    targets = F.one_hot(labels, num_classes).float()
    if recipe.cutout:
        images = images * ~_boxes(images, torch.full((len(images),), recipe.cutout, device=images.device))
    if recipe.mixup or recipe.cutmix:
        images, targets = _mix(images, targets, recipe.mixup, recipe.cutmix)
    return images, targets


def shift_and_flip(images: Tensor, crop: int, flip: bool) -> Tensor:
    """Shift each image by up to `crop` pixels either way, its border reflected, and flip half of them left to right."""
    if not crop and not flip:
        return images
    batch, _, size, _ = images.shape
    shift = torch.randint(-crop, crop + 1, (2, batch, 1), device=images.device)
    rows, columns = (torch.arange(size, device=images.device) + shift).abs()  # (B, S) each, reflected at 0 ...
    rows, columns = (torch.minimum(axis, 2 * (size - 1) - axis) for axis in (rows, columns))  # ... and at the far edge
    if flip:
        mirrored = torch.rand(batch, 1, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(batch, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _boxes(images: Tensor, side: Tensor) -> Tensor:
    """(B, 1, S, S) bool, true in a square around a random centre, `side` (B,) times as wide as the image."""
    size = images.shape[-1]
    centre = torch.rand(2, len(images), 1, device=images.device) * size
    away = (torch.arange(size, device=images.device) + 0.5 - centre).abs()  # (2, B, S): distance by row and by column
    rows, columns = away < side[:, None] * size / 2
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _mix(images: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) with a shuffled copy; of both, each sample draws one."""
    partner = torch.randperm(len(images), device=images.device)
    cut = torch.rand(len(images), device=images.device) < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = torch.full_like(cut, mixup, dtype=torch.float32).masked_fill(cut, cutmix)  # no scalar that a GPU waits for
    share = torch._sample_dirichlet(torch.stack([alpha, alpha], -1))[:, 0]  # Beta(α, α), on the device
    box = _boxes(images, (1 - share).sqrt())
    weight = torch.where(cut[:, None, None, None], (~box).float(), share[:, None, None, None])  # of the image itself
    own = weight.mean((1, 2, 3))[:, None]  # for CutMix the share of the pixels that were really left
    return weight * images + (1 - weight) * images[partner], own * targets + (1 - own) * targets[partner]
