"""Batches: which images each step sees, in which order and at which size; a function of seed and step alone."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import numpy as np
import torch
from torch import Tensor

from vitlab.config import Recipe
from vitlab.data.splits import Split


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [−1, 1]: what the models take."""
    return images.float().div_(127.5).sub_(1)


def mixed_seed(*numbers: int) -> int:
    """A seed made of run seed, step and so on; torch's CPU generator reads 32 bits, so these must be well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def epoch_order(labels: Tensor, weights: Tensor | None, seed: int, epoch: int) -> Tensor:
    """(N,) positions in the order of an epoch: a permutation, or with (N,) weights N draws with replacement."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    if weights is None:
        return torch.randperm(len(labels), generator=generator)
    return torch.multinomial(weights, len(labels), replacement=True, generator=generator)


def size_at(done: float, recipe: Recipe, full_size: int) -> int:
    """Pixels a side of the images when the share `done` of training is over: they grow, from `start_size`.

    Small images first cost little and teach much (progressive resizing; Tan & Le 2021, section 4).
    """
    if not recipe.start_size or done >= recipe.grow:
        return full_size
    units = (full_size - recipe.start_size) // recipe.size_unit
    return recipe.start_size + int(units * done / recipe.grow) * recipe.size_unit


def training_batches(
    train: Split, recipe: Recipe, device: torch.device, weights: Tensor | None = None, step: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, H, W) uint8 and labels (B,) on the device, from step `step` on, epoch after epoch without end.

    weights: (N,) of a sampler. An epoch's last images that fill no batch are left out.
    """
    size = min(recipe.batch_size, len(train))
    steps = len(train) // size
    resident = train.to(device) if train.fits(device) else None
    for epoch in count(step // steps):
        first = step % steps if epoch == step // steps else 0
        order = epoch_order(train.labels, weights, recipe.seed, epoch)[first * size : steps * size]
        yield from batches(train, resident, order, recipe, device)


def batches(
    split: Split, resident: tuple[Tensor, Tensor] | None, order: Tensor, recipe: Recipe, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels on the device, batch after batch in `order`; all of (N,) positions in the split.

    `resident` is the whole split on the device; without it threads read ahead from the disk. Processes would need
    shared memory, of which a container has little, and the one that finds none dies while its reader waits.
    """
    size = min(recipe.batch_size, len(split))
    if resident is not None:
        images, labels = resident
        yield from ((images[part], labels[part]) for part in order.to(device).split(size))  # one copy an epoch
        return
    pinned = recipe.pin_memory and device.type == "cuda"

    def read(part: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = split.images_at(part), split.labels[part]
        return (images.pin_memory(), labels.pin_memory()) if pinned else (images, labels)

    for images, labels in _read_ahead(read, order.split(size), recipe.num_workers):
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _read_ahead(
    read: Callable[[Tensor], tuple[Tensor, Tensor]], parts: Sequence[Tensor], threads: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `read` makes of each part, in order, by threads that are at most two parts each ahead."""
    if not threads:
        yield from map(read, parts)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future] = deque()
        for part in parts:
            waiting.append(pool.submit(read, part))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
