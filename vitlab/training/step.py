"""One training step, and what it draws."""

import torch
from torch import Tensor, nn

from vitlab.config import Recipe
from vitlab.data.batches import mixed_seed
from vitlab.machine import autocast, precision


def step(
    objective: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """One training step: forward, backward, clip, update; returns the loss, its parts and the accuracy, means a batch.

    images (B, C, S, S), float and augmented; targets (B, classes), which sum to 1 a row. The batch is taken in
    `accumulate` pieces. `scaler` keeps the small gradients of fp16 from vanishing; the others need none.
    """
    scaler = scaler or torch.amp.GradScaler(images.device.type, enabled=False)
    dtype = precision(recipe.precision, objective, images.device)
    means: dict[str, Tensor] = {}
    for piece, wanted in zip(images.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True):
        with autocast(images.device, dtype):
            loss, parts = objective(piece, wanted)
        share = len(piece) / len(images)
        scaler.scale(loss * share).backward()
        for name, value in parts.items():
            means[name] = means.get(name, 0.0) + value.float() * share

    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(objective.parameters(), recipe.clip)
    if scaler.is_enabled() and not norm.isfinite():  # fp16 overflowed: the step is left out, for all optimisers
        objective.zero_grad()
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return means


def seed_step(seed: int, step: int, device: torch.device, process: int = 0) -> None:
    """Seed what step `step` draws: augmentation, dropout, stochastic depth, Gumbel noise."""
    mixed = mixed_seed(seed, step, process)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed would queue calls for absent devices in every step
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)
