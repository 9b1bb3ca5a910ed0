"""Splits of a data set: train, validation and test, stratified and seeded; and imbalance made to measure."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vitlab.config import RunConfig
from vitlab.machine import free_memory

TEST_FRACTION = 0.2  # held out where a source brings no test part


@dataclass(frozen=True, repr=False)
class Split:
    """Some images of a part of a source: labels (N,) int64 and index (N,), their places in `pool`.

    `pool` (M, C, H, W) uint8 is that part as a whole, in memory or mapped from the cache file.
    """

    pool: Tensor
    labels: Tensor
    index: Tensor

    @classmethod
    def whole(cls, images: Tensor, labels: Tensor) -> "Split":
        """All of (N, C, H, W) uint8 images."""
        return cls(images.contiguous(), labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self):,} images, {'×'.join(map(str, self.pool.shape[1:]))})"

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8, in memory."""
        return self.pool[self.index]

    def images_at(self, places: Tensor | list[int] | slice) -> Tensor:
        """(n, C, H, W) uint8: the images at these positions alone, read from the disk where the whole is."""
        return self.pool[self.index[places]]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels on the device; on the way to a GPU the main memory needs no room for all of them."""
        parts = [self.pool[part].to(device) for part in self.index.split(10_000)]
        return torch.cat(parts), self.labels.to(device)

    def fits(self, device: torch.device) -> bool:
        """Whether the images take less than half of the memory that is free on the device: `to` needs them twice."""
        return len(self) * self.pool[0].nbytes < free_memory(device) / 2

    def class_counts(self, num_classes: int) -> Tensor:
        """(num_classes,) images of each class."""
        return torch.bincount(self.labels, minlength=num_classes)

    @cached_property
    def digest(self) -> str:
        """Of the content: images and labels in their order."""
        return content_digest(hashlib.sha256(), self)

    def take(self, places: Tensor) -> "Split":
        """The part of these positions."""
        return Split(self.pool, self.labels[places], self.index[places])


@dataclass(frozen=True, repr=False)
class Source:
    """A data set as it comes: its train and test part, its classes, a digest of its content, remarks for the reader."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Source({self.digest}: train {self.train}, test {self.test}, {len(self.classes)} classes)"

    @property
    def imbalanced(self) -> bool:
        """Whether a class is twice as large as another, or more: then the imbalance is used as it comes."""
        counts = self.train.class_counts(len(self.classes))
        return bool(counts.max() >= 2 * counts.min())


@dataclass(frozen=True, repr=False)
class Data:
    """What a run sees: train (shaped by the imbalance), validation and test (balanced where the source is).

    digest: of the source that they were taken from.
    """

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    digest: str

    def __repr__(self) -> str:
        parts = f"train {self.train}, validation {self.val}, test {self.test}"
        return f"Data({parts}, {len(self.classes)} classes)"

    @property
    def channels(self) -> int:
        return self.train.pool.shape[1]

    @property
    def class_counts(self) -> Tensor:
        """(num_classes,) training images of each class."""
        return self.train.class_counts(len(self.classes))


def split(source: Source, config: RunConfig) -> Data:
    """Take the validation images out of train, the same number from each class, then shape what is left."""
    rng = np.random.default_rng(config.seed)
    counts = source.train.class_counts(len(source.classes))
    # a share of the rarest class, so that validation hardly changes the ratio of a source which comes imbalanced
    least = int(config.val_fraction > 0 and counts.min() > 1)
    per_class = max(round(config.val_fraction * int(counts.min())), least)
    order = [rng.permutation(np.flatnonzero(source.train.labels == k)) for k in range(len(counts))]
    val = np.sort(np.concatenate([members[:per_class] for members in order]))
    rest = [members[per_class:] for members in order]
    wanted = imbalanced_counts([len(members) for members in rest], config.imbalance, config.imbalance_ratio)
    if config.imbalance != "none" and config.imbalance_order == "random":
        wanted = rng.permutation(wanted).tolist()
    train = np.sort(np.concatenate([members[:n] for members, n in zip(rest, wanted, strict=True)]))
    return Data(
        train=source.train.take(torch.from_numpy(train)),
        val=source.train.take(torch.from_numpy(val)),
        test=source.test,
        classes=source.classes,
        digest=source.digest,
    )


def imbalanced_counts(available: list[int], profile: str, ratio: float) -> list[int]:
    """Images per class: linear n (1 − (1 − 1/ratio) k / (C−1)), exponential n ratio^(−k / (C−1)) for k = 0 … C−1.

    n is the number that the scarcest class could give, so that the counts fall from n to n / ratio, rounded.
    """
    if profile == "none":
        return list(available)
    most, last = min(available), max(len(available) - 1, 1)
    if profile == "linear":
        shares = [1 - (1 - 1 / ratio) * k / last for k in range(len(available))]
    else:
        shares = [ratio ** (-k / last) for k in range(len(available))]
    return [max(1, round(most * share)) for share in shares]


def hold_out(whole: Split) -> list[Split]:
    """Train and test, stratified with the same number of test images from each class; the same for every seed."""
    rng = np.random.default_rng(0)
    labels = whole.labels
    members = [rng.permutation(np.flatnonzero(labels == k)) for k in range(int(labels.max()) + 1)]
    per_class = max(1, min(round(TEST_FRACTION * len(labels) / len(members)), min(map(len, members)) // 2))
    parts = [np.sort(np.concatenate([m[s] for m in members])) for s in (slice(per_class, None), slice(per_class))]
    return [whole.take(torch.from_numpy(part)) for part in parts]


def content_digest(content: "hashlib._Hash", *parts: Split) -> str:
    for part in parts:
        for some in part.index.split(10_000):
            content.update(part.pool[some].numpy())
        content.update(part.labels.numpy())
    return content.hexdigest()[:12]
