"""Data sets as uint8 tensors: CIFAR-10, class folders, digits; splits, and imbalance made to measure.

What fits lies in memory, decoded once; of what does not, batches are read from the cache file by a loader.
"""

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vitlab.config import ROOT, Common, LabError, RunConfig, absolute
from vitlab.files import require_writable, reserve, writing

TEST_FRACTION = 0.2  # held out where a source brings no test part
FEW = 20  # test images of a class that are too few to tell models apart


@dataclass(frozen=True)
class Split:
    """Some images of a part of a source: labels (N,) int64 and index (N,), their places in `pool`.

    `pool` (M, C, H, W) uint8 is that part as a whole, in memory or mapped from the cache file.
    """

    pool: Tensor
    labels: Tensor
    index: Tensor

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8, in memory."""
        return self.pool[self.index]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels on the device; on the way to a GPU the main memory needs no room for all of them."""
        parts = [self.pool[part].to(device) for part in self.index.split(10_000)]
        return torch.cat(parts), self.labels.to(device)

    def some(self, places: Tensor | list[int] | slice) -> Tensor:
        """(n, C, H, W) uint8: the images at these positions alone, read from the disk where the whole is."""
        return self.pool[self.index[places]]

    def fits(self, device: torch.device) -> bool:
        """Whether the images take less than half of the memory that is free on the device: `to` needs them twice."""
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        return len(self) * self.pool[0].nbytes < free / 2

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, num_classes: int) -> Tensor:
        """(num_classes,) images of each class."""
        return torch.bincount(self.labels, minlength=num_classes)

    @cached_property
    def digest(self) -> str:
        """Of the images and labels."""
        return _digest(hashlib.sha256(), self)

    def take(self, index: Tensor) -> "Split":
        return Split(self.pool, self.labels[index], self.index[index])


@dataclass(frozen=True)
class Source:
    """A data set as it comes: its train and test part, its classes, a digest of its content, remarks for the reader."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]

    @property
    def imbalanced(self) -> bool:
        """Whether a class is twice as large as another, or more: then the imbalance is used as it comes."""
        counts = self.train.counts(len(self.classes))
        return bool(counts.max() >= 2 * counts.min())


@dataclass(frozen=True)
class Data:
    """What a run sees: train (shaped by the imbalance), validation and test (balanced where the source is)."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def counts(self) -> Tensor:
        """(num_classes,) training images of each class."""
        return self.train.counts(len(self.classes))


def load_source(config: Common) -> Source:
    """The configured data set at `config.image_size`, from the cache where it has been decoded before."""
    if config.dataset == "digits":
        return _digits(config.image_size)
    if config.dataset == "cifar10":
        return _cifar10(absolute(config.data_dir or "data/cifar10"), config.image_size)
    return _folder(absolute(config.data_dir), config.image_size)


def split(source: Source, config: RunConfig) -> Data:
    """Take the validation images out of train, the same number from each class, then shape what is left."""
    rng = np.random.default_rng(config.seed)
    counts = source.train.counts(len(source.classes))
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


def batches(
    split: Split, resident: tuple[Tensor, Tensor] | None, order: Tensor, config: RunConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels on the device, batch after batch in `order`; all of (N,) positions in the split.

    `resident` is the whole split on the device; without it a loader's processes read ahead from the disk.
    """
    size = min(config.batch_size, len(split))
    if resident is not None:
        images, labels = resident
        yield from ((images[part], labels[part]) for part in order.to(device).split(size))  # one copy an epoch
        return
    loader = DataLoader(
        _Rows(split),
        batch_sampler=[part.tolist() for part in order.split(size)],
        collate_fn=lambda rows: rows,
        num_workers=config.num_workers,
        pin_memory=config.pin_memory and device.type == "cuda",
        # forked processes share the mapped file; others would be sent a copy of it
        multiprocessing_context="fork" if config.num_workers else None,
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class _Rows(Dataset):
    """Whole batches of a split by their positions."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitems__(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        return self.split.some(positions), self.split.labels[positions]


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [−1, 1]: what the models take."""
    return images.float().div_(127.5).sub_(1)


# ---------------------------------------------------------------- sources


def _digits(image_size: int) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).float()[:, None]  # (1797, 1, 8, 8)
    images = _resized(images, image_size)
    train, test = _hold_out(_whole(images, torch.from_numpy(digits.target).long()))
    notes = [] if image_size == 8 else [f"The scans have 8×8 pixels and are drawn at {image_size}×{image_size}."]
    return _source(train, test, [str(digit) for digit in range(10)], notes)


def _cifar10(root: Path, image_size: int) -> Source:
    from torchvision.datasets import CIFAR10

    cache = absolute("data/cache") / f"cifar10-{image_size}.pt"  # not in root, which may be a shared copy
    if cache.exists():
        return _load(cache)
    try:
        parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]  # checks every file's checksum
    except (OSError, RuntimeError) as error:  # no network, no space, or a damaged archive
        raise LabError(
            f"CIFAR-10 is not in {root} and could not be downloaded ({error}): put cifar-10-batches-py there, or "
            "choose dataset=folder with data_dir=<class folders>, or dataset=digits, which needs no download"
        ) from None
    splits = []
    for part in parts:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
        splits.append(_whole(_resized(images, image_size), torch.tensor(part.targets)))
    notes = [] if image_size == 32 else [f"All images were resized from 32×32 to {image_size}×{image_size}."]
    return _save(cache, _source(*splits, parts[0].classes, notes))


def _resized(images: Tensor, size: int) -> Tensor:
    """(N, C, S, S) images to uint8 (N, C, size, size)."""
    if images.shape[-1] == size:
        return images.round().to(torch.uint8)
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True).round().to(torch.uint8)


def _folder(root: Path, image_size: int) -> Source:
    """The class folders of `_parts(root)`, decoded once into a cache tied to names, sizes and times."""
    if not root.is_dir():
        raise LabError(f"there is no folder {root}: name an existing one (relative paths start at {ROOT})")
    parts = _parts(root)
    listings = [_listing(part) for part in parts]
    classes = sorted(listings[0], key=_natural)
    if len(classes) < 2:
        have = f"only the class folder {classes[0]}" if classes else "no class folders with images"
        raise LabError(
            f"{root} holds {have}: put at least two class folders with images into it, or into train/ and test/"
        )
    if any(sorted(listing, key=_natural) != classes for listing in listings):
        raise LabError(f"{parts[0]} and {parts[1]} hold different classes: give both the same class folders")
    lone = [name for name in classes if len(listings) == 1 and len(listings[0][name]) == 1]  # none left to learn from
    if lone:
        raise LabError(f"class {lone[0]} of {root} has a single image: add some, or remove its folder")
    key = hashlib.sha256(repr((image_size, listings)).encode()).hexdigest()[:16]
    cache = absolute("data/cache") / f"{root.name}-{key}.pt"
    if cache.exists():
        return _load(cache)
    notes, splits = [], []
    for listing in listings:
        images, resized = _decode([path for name in classes for path, *_ in listing[name]], image_size)
        splits.append(_whole(images, torch.tensor([k for k, name in enumerate(classes) for _ in listing[name]])))
        if all(path.lower().endswith((".jpg", ".jpeg")) for rows in listing.values() for path, *_ in rows):
            notes.append(f"The {len(images):,} files are JPEG, a lossy format.")
        if resized:
            notes.append(
                f"{resized:,} of {len(images):,} images were cropped and resized to {image_size}×{image_size}."
            )
    if len(splits) == 1:
        splits = _hold_out(splits[0])
        each = len(splits[1]) // len(classes)
        held = f"{len(splits[1]):,} images were held out for it, {each:,} of each class"
        notes.append(f"The folder brings no test part: {held}.")
        if each < FEW:
            notes.append("So few can show great differences only; the smallest class allows no more.")
    elif root in parts:
        seen = {image.numpy().tobytes() for image in splits[0].pool}
        known = sum(image.numpy().tobytes() in seen for image in splits[1].pool)  # both may be cut from one set
        notes.append(
            f"The test images are those of {parts[1].name}, the folder beside it"
            + (f"; {known:,} of them are training images as well, so scores are too good." if known else ".")
        )
    return _save(cache, _source(*splits, classes, notes))


def _parts(root: Path) -> list[Path]:
    """Where the training and the test part lie: in `train` and `test`, or together in `root`.

    A folder whose name holds "imbalanced" is tested on its balanced sibling, named with "balance" or "balanced"
    instead: `CIFAR10_imbalanced/<class>/*` on `CIFAR10_balance/<class>/*`.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        return [root / "train", root / "test"]
    siblings = [root.with_name(root.name.replace("imbalanced", word)) for word in ("balance", "balanced")]
    return [root, *(path for path in siblings if path != root and path.is_dir())][:2]


def _listing(folder: Path) -> dict[str, list[tuple[str, int, int]]]:
    """Class name -> (path, bytes, time of change) of its images, sorted; classes without images are passed over."""
    extensions = Image.registered_extensions()
    listing = {}
    try:
        for entry in os.scandir(folder):
            if entry.is_dir() and not entry.name.startswith("."):
                files = [f for f in os.scandir(entry) if os.path.splitext(f.name)[1].lower() in extensions]
                rows = sorted((f.path, stat.st_size, stat.st_mtime_ns) for f in files for stat in [f.stat()])
                listing |= {entry.name: rows} if rows else {}
    except OSError as error:  # a link to nowhere, a folder that may not be read
        raise LabError(f"cannot read {error.filename} ({error.strerror}): repair it or remove it") from None
    return listing


def _natural(name: str) -> tuple[int, str]:
    """Sort key that puts class 10 after class 9."""
    return (int(name), "") if name.isdecimal() else (2**63, name)


def _decode(paths: list[str], size: int) -> tuple[Tensor, int]:
    """(N, 3, size, size) uint8, and how many had another size; in a file that is never seen if memory is too small."""
    shape = (len(paths), 3, size, size)
    if math.prod(shape) < psutil.virtual_memory().available / 2:
        images = np.empty(shape, np.uint8)
    else:
        folder = absolute("data/cache")
        require_writable(folder, megabytes=1)
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, math.prod(shape), folder)
            images = np.memmap(file, np.uint8, shape=shape)
    resized = 0
    for i, content in enumerate(tqdm(_contents(paths), "decode images", len(paths), leave=False, mininterval=2)):
        try:
            if isinstance(content, OSError):
                raise content
            with Image.open(io.BytesIO(content)) as image:
                fits = image.size == (size, size)
                image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at no more than it needs
                rgb = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")  # photographs may lie on their side
        except Exception as error:  # Pillow's decoders raise all kinds
            reason = str(error).split(" <_io")[0]
            raise LabError(f"{paths[i]} is not a readable image ({reason}): repair it or remove it") from None
        rgb = rgb if fits else ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
        images[i] = np.asarray(rgb).transpose(2, 0, 1)
        resized += not fits
    return torch.from_numpy(images), resized


def _contents(paths: list[str], ahead: int = 256) -> Iterator[bytes | OSError]:
    """The files' bytes in order, read in parallel: small files on a slow disk wait for it, not for the processor."""
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(paths), ahead):
            yield from pool.map(_read, paths[start : start + ahead])


def _read(path: str) -> bytes | OSError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return error  # for the place that knows what to tell the user


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 or 32 bits, which convert() would clip, scaled to 8; floats are taken to lie in [0, 1]."""
    if not image.mode.startswith(("I", "F")):
        return image
    grey = np.asarray(image, np.float32) * (255 if image.mode == "F" else 1 / 257)
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def _hold_out(whole: Split) -> list[Split]:
    """Train and test, stratified with the same number of test images from each class; the same for every seed."""
    rng = np.random.default_rng(0)
    labels = whole.labels
    members = [rng.permutation(np.flatnonzero(labels == k)) for k in range(int(labels.max()) + 1)]
    per_class = max(1, min(round(TEST_FRACTION * len(labels) / len(members)), min(map(len, members)) // 2))
    parts = [np.sort(np.concatenate([m[s] for m in members])) for s in (slice(per_class, None), slice(per_class))]
    return [whole.take(torch.from_numpy(part)) for part in parts]


def _whole(images: Tensor, labels: Tensor) -> Split:
    return Split(images.contiguous(), labels, torch.arange(len(labels)))


def _source(train: Split, test: Split, classes: list[str], notes: list[str]) -> Source:
    digest = _digest(hashlib.sha256(repr(classes).encode()), train, test)
    return Source(train, test, tuple(classes), digest, tuple(notes))


def _digest(content: "hashlib._Hash", *parts: Split) -> str:
    for part in parts:
        for some in part.index.split(10_000):
            content.update(part.pool[some].numpy())
        content.update(part.labels.numpy())
    return content.hexdigest()[:12]


def _save(path: Path, source: Source) -> Source:
    names = [field.name for field in fields(Split)]
    parts = {part: {name: getattr(getattr(source, part), name) for name in names} for part in ("train", "test")}
    with writing(path) as temporary:
        torch.save(parts | {"classes": source.classes, "digest": source.digest, "notes": source.notes}, temporary)
    return source


def _load(path: Path) -> Source:
    stored = torch.load(path, weights_only=True, mmap=path.stat().st_size > psutil.virtual_memory().available / 2)
    return Source(**(stored | {name: Split(**stored[name]) for name in ("train", "test")}))
