"""Image files to uint8 RGB of one size, by one rule for the whole folder: what each pixel means must not differ.

Most files hold three bytes a pixel. Of others the first pass only learns what the folder as a whole holds, its range
and what is drawn in its transparent images; the second one then reads them.
"""

import io
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from vitlab.data.folders import unlimited_pixels
from vitlab.errors import LabError
from vitlab.files import require_writable, reserve
from vitlab.kernel import meanwhile
from vitlab.machine import cache_folder, free_memory
from vitlab.texts import shown

CACHE_PLACE = "VITLAB_CACHE=<folder>"  # where else the cache may go
LISTED = 20  # broken images that are named, of however many
RANGES = ((0, 1), (0, 255), (0, 65535))  # taken by convention, where the pixels fill half of one at least
READ_AHEAD = 64  # files
SIXTEEN_BITS = re.compile(r"[A-Z]+;16[BLN]")  # a colour; the "BGR;16" of BMP is 16 bits for all three
KEYS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}  # Pillow takes a PNG's pixels times this, but not its clear colour
DARK = 16  # of 255: images nowhere brighter are told of


@dataclass
class Rule:
    """What the images of a folder that are no three bytes a pixel hold, and how they are therefore shown.

    kept: what another rule has come to (`to_keep`), that of the images which a model has learned from.
    """

    kept: Mapping[str, Any] = field(default_factory=dict)
    lowest: dict[str, float] = field(default_factory=dict)  # of pixels of more than 8 bits: their kind -> value
    highest: dict[str, float] = field(default_factory=dict)
    light: float = 0.0  # of what is drawn on a transparent ground: sum of grey times opacity, and of opacity
    opacity: float = 0.0
    drawn: dict[str, tuple[float, int]] = field(default_factory=dict)  # the same of a kind in `lowest`: sum, and number
    upper_byte: int = 0  # the highest there is in colours of 16 bits, of which Pillow reads the upper byte
    counts: Counter[str] = field(default_factory=Counter)

    def learn(self, image: Image.Image, wide: bool) -> bool:
        """Look at an image as `upright` gives it; returns whether it has to wait until all have been looked at."""
        alpha = _alpha(image)
        if kind := _kind(image):
            pixels = np.asarray(image)
            if not np.isfinite(pixels).all():
                raise ValueError("some of its pixels are no finite numbers")
            self.counts[kind] += 1
            if alpha is not None:
                total, number = self.drawn.get(kind, (0.0, 0))
                seen = pixels[alpha > 0]
                self.drawn[kind] = total + float(seen.sum(dtype=np.float64)), number + len(seen)
                pixels = seen if len(seen) else pixels
            self.lowest[kind] = min(float(pixels.min()), self.lowest.get(kind, math.inf))
            self.highest[kind] = max(float(pixels.max()), self.highest.get(kind, -math.inf))
        elif alpha is not None:
            grey = np.asarray(image.convert("RGBA").convert("RGB").convert("L"), np.float64)
            self.light += float((grey * alpha).sum())
            self.opacity += float(alpha.sum(dtype=np.float64))
        if wide and not kind:
            self.counts["16-bit colour"] += 1
            self.counts["16-bit key"] += alpha is not None and "transparency" in image.info
            colours = np.asarray(image.convert("RGB"))
            if alpha is not None:  # black ink fills the range where it is opaque
                colours = np.append(colours[alpha > 0], alpha)
            self.upper_byte = max(self.upper_byte, int(colours.max()))
        self.counts["transparent"] += alpha is not None
        return bool(kind) or alpha is not None

    def to_keep(self) -> dict[str, Any]:
        """What it has come to: kind -> the values that become black and white, and the ground, where one was needed."""
        found = {"bounds": {kind: self.bounds(kind) for kind in self.lowest}} if self.lowest else {}
        return found | ({"ground": self.ground} if self.counts["transparent"] else {})

    def bounds(self, kind: str) -> tuple[float, float]:
        """The values that become black and white: a customary range if the pixels fill half of it, else their own."""
        if kind in (kept := self.kept.get("bounds", {})):
            return tuple(kept[kind])
        low, high = self.lowest[kind], self.highest[kind]
        for first, last in RANGES:
            if first <= low and high <= last and high - low > (last - first) / 2:
                return first, last
        return low, high

    @property
    def ground(self) -> str:
        """Behind transparent images: what stands out from what they show."""
        if "ground" in self.kept:
            return self.kept["ground"]
        light, opacity = self.light, self.opacity
        for kind, (total, number) in self.drawn.items():
            low, high = self.bounds(kind)
            light += 255 * 255 * (total - number * low) / max(high - low, 1e-30)
            opacity += 255 * number
        return "white" if light <= 127.5 * opacity else "black"

    def rgb(self, image: Image.Image) -> Image.Image:
        """RGB of an image as `upright` gives it, by what has been learnt of all."""
        if kind := _kind(image):
            low, high = self.bounds(kind)
            share = (np.asarray(image, np.float64) - low) / max(high - low, 1e-30)
            alpha = _alpha(image)
            image = Image.fromarray((255 * share).round().clip(0, 255).astype(np.uint8)).convert("RGB")
            if alpha is not None:
                image.putalpha(Image.fromarray(alpha))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, self.ground)
            return Image.alpha_composite(ground, image).convert("RGB")
        return image.convert("RGB")

    @property
    def dark(self) -> bool:
        """Whether colours of 16 bits fill less than half of their range: of what Pillow gives little can be seen."""
        return self.counts["16-bit colour"] > 0 and self.upper_byte < 128

    def notes(self) -> list[str]:
        """The rules that were needed; LabError where what Pillow gives of the images is not what they hold."""
        notes = []
        if self.dark:
            raise LabError(
                f"{self.counts['16-bit colour']:,} images have 16 bits a colour and fill less than half of that range; "
                "Pillow reads only the upper 8 bits, which would leave them dark: save them with 8 bits a colour"
            )
        for kind in self.lowest:
            low, high = self.bounds(kind)
            notes.append(f"{self.counts[kind]:,} {kind} images were scaled from {low:g} – {high:g} to black – white.")
        if clear := self.counts["transparent"]:
            notes.append(f"{clear:,} images are transparent in places and stand on {self.ground}.")
        if keys := self.counts["16-bit key"]:
            notes.append(f"{keys:,} of them name a transparent colour of 16 bits, of which the upper 8 are compared.")
        return notes


def draft(image: Image.Image, size: int) -> None:
    """Have a large JPEG, not loaded yet, decoded at no more than it needs."""
    image.draft("RGB", (2 * size, 2 * size))


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """An opened image, not loaded yet, turned as its EXIF says, and whether it has 16 bits a colour.

    Its transparent colour, if it names one, is put into the values that Pillow gives its pixels.
    """
    raw = [tile[3] for tile in getattr(image, "tile", ())]
    wide = any(SIXTEEN_BITS.search(str(mode)) for mode in raw)
    image = ImageOps.exif_transpose(image)  # photographs may lie on their side
    times = next((KEYS[mode] for mode in KEYS if mode in raw), 1)
    if times != 1 and (key := image.info.get("transparency")) is not None:
        image.info["transparency"] = tuple(int(v * times) for v in key) if isinstance(key, tuple) else int(key * times)
    return image, wide


def _kind(image: Image.Image) -> str:
    """Of pixels of more than 8 bits; "" for others."""
    if image.mode == "F":
        return "floating-point"
    return "16-bit or 32-bit" if image.mode.startswith("I") else ""


def _alpha(image: Image.Image) -> np.ndarray | None:
    """(H, W) opacity, 0 to 255; None where all of an image is opaque."""
    if not image.has_transparency_data:
        return None
    if _kind(image):  # Pillow makes no RGBA of these
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    else:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return None if alpha.min() == 255 else alpha


def decode(
    parts: Mapping[str, Sequence[str]], size: int, unreadable: Mapping[str, str], kept: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Paths of each part to (N, 3, size, size) uint8 each, notes on what was done to them, and `Rule.to_keep`.

    kept: the rule by which to read them, if not by their own. unreadable: images that are known to be, and why;
    LabError names them with all that turn out to be.
    The images lie in memory, or in a file that is never seen if it is too small.
    """
    paths = [path for part in parts.values() for path in part]
    images, rule, broken = _room((len(paths), 3, size, size)), Rule(kept or {}), dict(unreadable)
    resized, several, waiting = np.zeros(len(paths), bool), 0, []
    bar = {"leave": False, "mininterval": 2, "disable": None}  # in a terminal alone
    with unlimited_pixels(), meanwhile(f"{len(paths):,} images are decoded, once …"):
        for i, content in enumerate(tqdm(_contents(paths), "decode images", len(paths), **bar)):
            try:
                with _opened(content) as image:
                    resized[i] = image.size != (size, size)
                    several += getattr(image, "is_animated", False)
                    draft(image, size)
                    require_memory(image)
                    image, wide = upright(image)
                    if rule.learn(image, wide):
                        waiting.append(i)
                    else:
                        images[i] = _fitted(rule.rgb(image), size)
            except Exception as error:  # Pillow's decoders raise all kinds
                broken.setdefault(paths[i], reason(error))
        _refuse(broken)
        notes = rule.notes()
        for i, content in zip(waiting, _contents([paths[i] for i in waiting]), strict=True):
            with _opened(content) as image:
                images[i] = _fitted(rule.rgb(upright(image)[0]), size)
    notes += [f"Of {several:,} files that hold several pictures the first is used."] if several else []
    if len(paths) and (brightest := int(images.max())) < DARK:
        notes.append(f"The images are dark: no pixel is brighter than {brightest} of 255.")
    pools, first = {}, 0
    for name, part in parts.items():
        pools[name] = torch.from_numpy(images[first : first + len(part)])
        notes += _notes_of_part(part, int(resized[first : first + len(part)].sum()), size)
        first += len(part)
    return pools, notes, rule.to_keep()


def _notes_of_part(paths: Sequence[str], resized: int, size: int) -> list[str]:
    jpeg = all(path.lower().endswith((".jpg", ".jpeg")) for path in paths)
    notes = [f"The {len(paths):,} files are JPEG, a lossy format."] if jpeg else []
    if resized:
        notes.append(f"{resized:,} of {len(paths):,} images were cropped and resized to {size}×{size}.")
    return notes


def _room(shape: tuple[int, ...]) -> np.ndarray:
    if math.prod(shape) < free_memory(torch.device("cpu")) / 2:
        return np.empty(shape, np.uint8)
    folder = cache_folder()
    require_writable(folder, 1, CACHE_PLACE)
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, math.prod(shape), folder, CACHE_PLACE)
        return np.memmap(file, np.uint8, shape=shape)


def _opened(content: bytes | OSError) -> Image.Image:
    if isinstance(content, OSError):
        raise content
    return Image.open(io.BytesIO(content))


def require_memory(image: Image.Image) -> None:
    """ValueError for an image, not loaded yet, that would not fit."""
    needed = 16 * image.width * image.height  # as RGBA, and while that is turned and resized
    if needed > max(free_memory(torch.device("cpu")), 2**24):
        raise ValueError(f"{image.width:,}×{image.height:,} pixels need more memory than is free: make it smaller")


def _fitted(rgb: Image.Image, size: int) -> np.ndarray:
    """(3, size, size): cropped to a square in the middle, then resized."""
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


def reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(text.split(" <_io")[0].splitlines()[0])


def _refuse(broken: Mapping[str, str]) -> None:
    """LabError that names all images that cannot be read, with the reason of each."""
    if not broken:
        return
    first = [f"{shown(path)} ({reason})" for path, reason in list(broken.items())[:LISTED]]
    more = f" and {len(broken) - LISTED:,} more" if len(broken) > LISTED else ""
    if len(broken) == 1:
        raise LabError(f"cannot read {first[0]}: repair this image or remove it")
    raise LabError(f"cannot read {len(broken):,} images: {'; '.join(first)}{more}; repair them or remove them")


def _contents(paths: Sequence[str]) -> Iterator[bytes | OSError]:
    """The files' bytes in order, read in parallel: small files on a slow disk wait for it, not for the processor."""
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(paths), READ_AHEAD):
            yield from pool.map(_read, paths[start : start + READ_AHEAD])


def _read(path: str) -> bytes | OSError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return error  # for the place that knows what to tell the user
