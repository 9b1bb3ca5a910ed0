"""Splits of a data set: train, validation and test, stratified and seeded; and imbalance made to measure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitlab.config import RunConfig
from vitlab.errors import LabError
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
    """A data set as it comes: its parts, its classes, a digest of its content, remarks for the reader."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]
    val: Split | None = None  # a validation part that came with it; None: some of train are taken
    copies: Tensor | None = None  # (N,) of train: equal for copies of one picture, −1 for what lies in two classes
    rule: Mapping[str, Any] | None = None  # by which pictures of more than 8 bits, and transparent ones, were read

    def __repr__(self) -> str:
        return f"Source({self.digest}: train {self.train}, test {self.test}, {len(self.classes)} classes)"

    @property
    def imbalanced(self) -> bool:
        """Whether the imbalance is used as it comes."""
        return uneven(self.train.class_counts(len(self.classes)))


@dataclass(frozen=True, repr=False)
class Data:
    """What a run sees: train (shaped by the imbalance), validation and test (balanced where the source is).

    digest, rule: of the source that they were taken from.
    """

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    rule: Mapping[str, Any] | None = None

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
    """Take the validation images out of train, the same number from each class, then shape what is left.

    A source that brings a validation part keeps all of train. Copies of one picture are not parted.
    """
    rng = np.random.default_rng(config.seed)
    counts = source.train.class_counts(len(source.classes))
    order = [rng.permutation(np.flatnonzero(source.train.labels == k)) for k in range(len(counts))]
    held_out = source.val is None and config.val_fraction > 0 and all(_divisible(part, source.copies) for part in order)
    # a share of the rarest class, so that validation hardly changes the ratio of a source which comes imbalanced
    per_class = max(round(config.val_fraction * int(counts.min())), 1) if held_out else 0
    parted = [_part(members, per_class, source.copies) for members in order]
    val = np.sort(np.concatenate([held for held, _ in parted]))
    rest = [members for _, members in parted]
    wanted = imbalanced_counts([len(members) for members in rest], config.imbalance, config.imbalance_ratio)
    if config.imbalance != "none" and config.imbalance_order == "random":
        wanted = rng.permutation(wanted).tolist()
    train = np.sort(np.concatenate([members[:n] for members, n in zip(rest, wanted, strict=True)]))
    return Data(
        train=source.train.take(torch.from_numpy(train)),
        val=source.val if source.val is not None and config.val_fraction else source.train.take(torch.from_numpy(val)),
        test=source.test,
        classes=source.classes,
        digest=source.digest,
        rule=source.rule,
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


def uneven(counts: Tensor) -> bool:
    """Whether a class is twice as large as another, or more; counts (C,) images of each."""
    return bool(counts.max() >= 2 * counts.min())


def hold_out(whole: Split, copies: Tensor | None = None, classes: tuple[str, ...] = ()) -> list[Split]:
    """Train and test, stratified, the same for every seed.

    Each class gives as many test images as another; where that would leave the training images uneven, the same share
    of its images, so that what comes imbalanced stays as imbalanced as it is. copies: as those of a `Source`; what they
    keep together can make the numbers differ. LabError for one of `classes` that has a single picture.
    """
    rng = np.random.default_rng(0)
    labels = whole.labels
    members = [rng.permutation(np.flatnonzero(labels == k)) for k in range(int(labels.max()) + 1)]
    if single := [name for name, places in zip(classes, members, strict=False) if not _divisible(places, copies)]:
        raise LabError(
            f"class {single[0]} has no two pictures of its own, of which one could be held out for testing: add some, "
            "or remove its folder"
        )
    sizes = torch.tensor([len(places) for places in members])
    equal = max(1, min(round(TEST_FRACTION * len(labels) / len(members)), int(sizes.min()) // 2))
    shares = [max(1, round(TEST_FRACTION * n)) for n in sizes.tolist()]
    wanted = shares if uneven(sizes - equal) else [equal] * len(members)
    parted = [_part(places, n, copies) for places, n in zip(members, wanted, strict=True)]
    test, train = (np.sort(np.concatenate(part)) for part in zip(*parted, strict=True))
    return [whole.take(torch.from_numpy(part)) for part in (train, test)]


def _divisible(members: np.ndarray, copies: Tensor | None) -> bool:
    """Whether `_part` can take some of a class and leave some."""
    if copies is None:
        return len(members) > 1
    pictures = copies[members].unique()
    return len(pictures) > 1 and bool((pictures >= 0).any())


def _part(members: np.ndarray, wanted: int, copies: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """The first `wanted` of `members`, and the others. Copies go together, so that the number may be missed.

    What lies in several classes, −1 in `copies`, is never taken: a copy of it would stay.
    """
    if copies is None or not wanted:
        return members[:wanted], members[wanted:]
    groups: dict[int, list[int]] = {}
    for place in members:
        groups.setdefault(int(copies[place]), []).append(place)
    groups.pop(-1, None)
    taken: list[int] = []
    for group in groups.values():
        taken += group if len(taken) + len(group) <= wanted else []
    if not taken:
        taken = min(groups.values(), key=len)
    return np.array(taken), members[~np.isin(members, taken)]


def content_digest(content: "hashlib._Hash", *parts: Split) -> str:
    for part in parts:
        for some in part.index.split(10_000):
            content.update(part.pool[some].numpy())
        content.update(part.labels.numpy())
    return content.hexdigest()[:12]
