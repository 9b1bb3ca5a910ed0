"""Data sets as uint8 tensors: CIFAR-10, class folders, digits.

What fits lies in memory, decoded once; of what does not, batches are read from the cache file by a loader.
"""

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from vitlab.config import ROOT, Common, absolute
from vitlab.data.splits import Source, Split, content_digest, hold_out
from vitlab.errors import LabError
from vitlab.files import require_writable, reserve, writing
from vitlab.machine import free_memory

CPU = torch.device("cpu")
FEW = 20  # test images of a class that are too few to tell models apart


def load_source(config: Common) -> Source:
    """The configured data set at `config.image_size`, from the cache where it has been decoded before."""
    if config.dataset == "digits":
        return _digits(config.image_size)
    if config.dataset == "cifar10":
        return _cifar10(absolute(config.data_dir or "data/cifar10"), config.image_size)
    return _folder(absolute(config.data_dir), config.image_size)


def _digits(image_size: int) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).float()[:, None]  # (1797, 1, 8, 8)
    images = _resized(images, image_size)
    train, test = hold_out(Split.whole(images, torch.from_numpy(digits.target).long()))
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
        splits.append(Split.whole(_resized(images, image_size), torch.tensor(part.targets)))
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
        splits.append(Split.whole(images, torch.tensor([k for k, name in enumerate(classes) for _ in listing[name]])))
        if all(path.lower().endswith((".jpg", ".jpeg")) for rows in listing.values() for path, *_ in rows):
            notes.append(f"The {len(images):,} files are JPEG, a lossy format.")
        if resized:
            notes.append(
                f"{resized:,} of {len(images):,} images were cropped and resized to {image_size}×{image_size}."
            )
    if len(splits) == 1:
        splits = hold_out(splits[0])
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


def class_files(root: Path) -> dict[str, list[str]]:
    """Class name -> paths of its images: of the test part, where the folder has one."""
    if not root.is_dir():
        raise LabError(f"there is no folder {root}: name one that holds class folders")
    listing = _listing(root / "test" if (root / "test").is_dir() else root)
    if not listing:
        raise LabError(f"{root} holds no class folders with images: sort the images into a folder a class")
    return {name: [path for path, *_ in listing[name]] for name in sorted(listing, key=_natural)}


def _natural(name: str) -> tuple[int, str]:
    """Sort key that puts class 10 after class 9."""
    return (int(name), "") if name.isdecimal() else (2**63, name)


def _decode(paths: list[str], size: int) -> tuple[Tensor, int]:
    """(N, 3, size, size) uint8, and how many had another size; in a file that is never seen if memory is too small."""
    shape = (len(paths), 3, size, size)
    if math.prod(shape) < free_memory(CPU) / 2:
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
                rgb = eight_bits(ImageOps.exif_transpose(image)).convert("RGB")  # photographs may lie on their side
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


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 or 32 bits, which convert() would clip, scaled to 8; floats are taken to lie in [0, 1]."""
    if not image.mode.startswith(("I", "F")):
        return image
    grey = np.asarray(image, np.float32) * (255 if image.mode == "F" else 1 / 257)
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def _source(train: Split, test: Split, classes: list[str], notes: list[str]) -> Source:
    digest = content_digest(hashlib.sha256(repr(classes).encode()), train, test)
    return Source(train, test, tuple(classes), digest, tuple(notes))


def _save(path: Path, source: Source) -> Source:
    names = [field.name for field in fields(Split)]
    parts = {part: {name: getattr(getattr(source, part), name) for name in names} for part in ("train", "test")}
    with writing(path) as temporary:
        torch.save(parts | {"classes": source.classes, "digest": source.digest, "notes": source.notes}, temporary)
    return source


def _load(path: Path) -> Source:
    stored = torch.load(path, weights_only=True, mmap=path.stat().st_size > free_memory(CPU) / 2)
    return Source(**(stored | {name: Split(**stored[name]) for name in ("train", "test")}))
