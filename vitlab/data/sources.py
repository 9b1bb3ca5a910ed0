"""Data sets as uint8 tensors: CIFAR-10, class folders, digits.

What fits lies in memory, decoded once; of what does not, batches are read from the cache file by a loader.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.config import Common
from vitlab.data.decode import CACHE_PLACE, decode
from vitlab.data.folders import Folder, look_into
from vitlab.data.splits import Source, Split, content_digest, hold_out
from vitlab.errors import LabError
from vitlab.files import DAMAGE, absolute, writing
from vitlab.machine import cache_folder, free_memory
from vitlab.texts import listed, shown

CPU = torch.device("cpu")
FEW = 20  # test images of a class that are too few to tell models apart
DECODING = 5  # counted up when the same files would be decoded otherwise
CIFAR10_BATCHES = "cifar-10-batches-py"  # as its archive calls the folder, and torchvision looks for it


def load_source(config: Common) -> Source:
    """The configured data set at `config.image_size`, from the cache where it has been decoded before."""
    config = recognised(config)
    if config.dataset == "digits":
        return _digits(config.image_size)
    if config.dataset == "cifar10":
        return _cifar10(absolute(config.data_dir or "data/cifar10"), config.image_size)
    return _folder(absolute(config.data_dir), config.image_size)


def recognised(config: Common) -> Common:
    """The same configuration, but a folder that turns out to be CIFAR-10's own is taken as CIFAR-10."""
    if config.dataset == "folder" and _batches(absolute(config.data_dir)):
        return config.replace(dataset="cifar10")
    return config


def _batches(root: Path) -> Path | None:
    """The folder of CIFAR-10's batches: this one, or the one in it."""
    return next((place for place in (root, root / CIFAR10_BATCHES) if (place / "data_batch_1").is_file()), None)


def _digits(image_size: int) -> Source:
    # scikit-learn's file, which has eight times eight grey values up to 16 and the digit in each row; `load_digits`
    # reads it too, but importing it takes two seconds, in every notebook and every process that trains
    package = Path(find_spec("sklearn").origin).parent
    rows = torch.from_numpy(np.loadtxt(package / "datasets/data/digits.csv.gz", delimiter=","))
    images = _resized((rows[:, :64] / 16 * 255).float().reshape(-1, 1, 8, 8), image_size)
    train, test = hold_out(Split.whole(images, rows[:, 64].long()))
    notes = [] if image_size == 8 else [f"The scans have 8×8 pixels and are drawn at {image_size}×{image_size}."]
    notes.append("The same 13 people wrote the digits of all parts: what other hands write may be harder.")
    return _source(train, test, [str(digit) for digit in range(10)], notes)


def _cifar10(root: Path, image_size: int) -> Source:
    from torchvision.datasets import CIFAR10

    cache = cache_folder() / f"cifar10-{image_size}.pt"  # not in root, which may be a shared copy
    if stored := _load(cache):
        return stored
    place = _batches(root) or root / CIFAR10_BATCHES
    if root.is_dir() and not place.is_dir() and (have := _class_folders(root)):
        raise LabError(
            f"dataset is cifar10, but {shown(root)} holds the class folders {listed(have.classes[:3])} …: choose "
            "dataset=folder, or the folder that cifar-10-batches-py lies in"
        )
    here = CIFAR10
    if place.name != CIFAR10_BATCHES:  # torchvision looks for this name alone
        here = type("Here", (CIFAR10,), {"base_folder": place.name})
    try:
        parts = [here(place.parent, train=train, download=True) for train in (True, False)]  # checks every checksum
    except (OSError, RuntimeError) as error:  # no network, no space, or a damaged archive
        raise LabError(
            f"CIFAR-10 is not in {shown(root)} and could not be downloaded ({error}): put cifar-10-batches-py there, "
            "or choose dataset=folder with data_dir=<class folders>, or dataset=digits, which needs no download"
        ) from None
    splits = []
    for part in parts:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
        splits.append(Split.whole(_resized(images, image_size), torch.tensor(part.targets)))
    notes = [] if image_size == 32 else [f"All images were resized from 32×32 to {image_size}×{image_size}."]
    return _save(cache, _source(*splits, parts[0].classes, notes))


def _class_folders(root: Path) -> Folder | None:
    try:
        return look_into(root)
    except LabError:  # it holds none
        return None


def _resized(images: Tensor, size: int) -> Tensor:
    """(N, C, S, S) images to uint8 (N, C, size, size)."""
    if images.shape[-1] == size:
        return images.round().to(torch.uint8)
    if (needed := 5 * len(images) * images.shape[1] * size**2) > free_memory(CPU):  # a byte a pixel, and its float
        raise LabError(
            f"image_size {size} would need {needed / 2**30:,.0f} GiB of memory for {len(images):,} images: lower it"
        )
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True).round().to(torch.uint8)


def _folder(root: Path, image_size: int) -> Source:
    """The class folders that `look_into(root)` finds, decoded once into a cache tied to names, sizes and times."""
    found = look_into(root)
    alone = [name for name, rows in found.rows["train"].items() if len(rows) == 1 and "test" not in found.parts]
    if alone:  # none would be left to learn from
        raise LabError(f"class {alone[0]} of {shown(root)} has a single image: add some, or remove its folder")
    key = hashlib.sha256(repr((DECODING, image_size, found.classes, found.rows)).encode()).hexdigest()[:16]
    cache = cache_folder() / f"{shown(root.name)[:32]}-{key}.pt"
    source = _load(cache) or _save(cache, _decoded(found, image_size))
    return replace(source, notes=(*found.notes, *source.notes))


def _decoded(found: Folder, image_size: int) -> Source:
    paths = {
        part: [path for name in found.classes for path, *_ in rows[name]] for part, rows in found.rows.items()
    }  # by class, in their order
    pools, notes, rule = decode(paths, image_size, found.unreadable)
    parts = {}
    for part, rows in found.rows.items():
        labels = torch.tensor([k for k, name in enumerate(found.classes) for _ in rows[name]])
        parts[part] = Split.whole(pools[part], labels)
    pictures = _numbered(parts)
    notes += _part_company(parts, pictures, found.classes)
    notes += _of_copies(parts["train"], pictures)
    train, copies, test = parts["train"], pictures["train"], parts.get("test")
    if test is None:
        whole = train
        train, test = hold_out(whole, copies, found.classes)
        copies = copies[torch.searchsorted(whole.index, train.index)]
        notes += _notes_of_hold_out(test, found.classes)
    elif found.root in found.parts.values():
        notes.insert(0, f"The test images are those of {shown(found.parts['test'].name)}, the folder beside it.")
    return replace(_source(train, test, list(found.classes), notes, parts.get("val"), copies), rule=rule)


def _notes_of_hold_out(test: Split, classes: tuple[str, ...]) -> list[str]:
    counts = test.class_counts(len(classes))
    least, most = int(counts.min()), int(counts.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    notes = [f"The folder brings no test part: {len(test):,} images were held out for it, {each} of each class."]
    return notes + (
        ["So few can show great differences only; the smallest class allows no more."] if least < FEW else []
    )


def digests_of(images: Tensor) -> np.ndarray:
    """(N, C, H, W) uint8 -> (N,) a number for each image, equal where all pixels are."""
    return np.array([hashlib.blake2b(image.numpy(), digest_size=8).digest() for image in images]).view(np.uint64)


def at_hand(config: Common) -> bool:
    """Whether the configured data set is on this machine: nothing has to be downloaded for it."""
    root = absolute(config.data_dir or "data/cifar10")
    return config.dataset == "digits" or (root.is_dir() if config.dataset == "folder" else _batches(root) is not None)


def _numbered(parts: dict[str, Split]) -> dict[str, Tensor]:
    """Part -> (N,) a number for each picture; equal where all pixels are, as the models see them."""
    digests = np.concatenate([digests_of(part.pool) for part in parts.values()])
    numbers = torch.from_numpy(np.unique(digests, return_inverse=True)[1]).split([len(part) for part in parts.values()])
    return dict(zip(parts, numbers, strict=True))


def _part_company(parts: dict[str, Split], pictures: dict[str, Tensor], classes: Sequence[str]) -> list[str]:
    """Take out of train what validation or test have as well, and out of validation what test has; notes of it.

    Otherwise scores would be too good, and the epoch chosen by images that were learned, or are to be tested.
    LabError where nothing of a class is left to learn from.
    """
    notes = []
    for part, name, further in (("train", "training", ("val", "test")), ("val", "validation", ("test",))):
        others = [pictures[other] for other in further if other in pictures]
        if part not in parts or not others:
            continue
        known = torch.isin(pictures[part], torch.cat(others))
        if known.any():
            whose = " or ".join("validation" if other == "val" else other for other in further if other in pictures)
            few = f"{int(known.sum()):,} of the {len(known):,} {name} images"
            notes.append(f"{few} are {whose} images as well and were left out.")
            left = (~known).nonzero().flatten()
            parts[part], pictures[part] = parts[part].take(left), pictures[part][left]
    counts = parts["train"].class_counts(len(classes))
    if not counts.all():
        raise LabError(
            f"no training image of class {classes[int(counts.argmin())]} is left, as all of them are for testing or "
            "validation as well: add others, or take these out of the other part"
        )
    if "val" in parts and not len(parts["val"]):
        del parts["val"]
    return notes


def _of_copies(of_train: Split, pictures: dict[str, Tensor]) -> list[str]:
    """Notes of pictures that train has more than once; those that lie in several classes get the number −1."""
    notes, train, labels = [], pictures["train"], of_train.labels
    if copies := len(train) - len(train.unique()):
        notes.append(
            f"{copies:,} of the {len(train):,} images are copies of others; wherever we split, copies stay together."
        )
    pairs = torch.stack([train, labels]).unique(dim=1)[0]  # picture and class
    several, times = pairs.unique(return_counts=True)
    if len(several := several[times > 1]):
        notes.append(f"{len(several):,} pictures lie in more than one class: no model can be right about all of them.")
        pictures["train"] = train.masked_fill(torch.isin(train, several), -1)
    return notes


def _source(
    train: Split,
    test: Split,
    classes: list[str],
    notes: list[str],
    val: Split | None = None,
    copies: Tensor | None = None,
) -> Source:
    parts = (train, test) if val is None else (train, test, val)
    digest = content_digest(hashlib.sha256(repr(classes).encode()), *parts)
    return Source(train, test, tuple(classes), digest, tuple(notes), val, copies)


def _save(path: Path, source: Source) -> Source:
    names = [field.name for field in fields(Split)]
    stored = {field.name: getattr(source, field.name) for field in fields(Source)}
    for part in ("train", "test", "val"):
        split = stored[part]
        stored[part] = split and {name: getattr(split, name) for name in names}
    with writing(path, CACHE_PLACE) as temporary:
        torch.save(stored, temporary)
    return source


def _load(path: Path) -> Source | None:
    """What was stored; None where nothing was, or where the file is damaged: then it is made again."""
    if not path.exists():
        return None
    try:
        stored = torch.load(path, weights_only=True, mmap=path.stat().st_size > free_memory(CPU) / 2)
        parts = {name: stored[name] and Split(**stored[name]) for name in ("train", "test", "val")}
        return Source(**(stored | parts))
    except (OSError, *DAMAGE):
        return None
