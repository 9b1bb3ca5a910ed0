"""A picture of one's own as a model takes it: converted as the training images were."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from vitlab.data.decode import Rule, draft, reason, require_memory, upright
from vitlab.data.folders import missing_plugin, register_plugins, unlimited_pixels
from vitlab.errors import LabError
from vitlab.texts import listed

GREY, RGB = 1, 3  # channels
OTHER_COLOURS = {"CMYK", "YCbCr", "LAB", "HSV"}  # modes of which RGB is a conversion


@unlimited_pixels()
def as_pixels(picture: Any, channels: int, size: int, kept: Mapping[str, Any] | None = None) -> tuple[Tensor, str]:
    """A picture as (channels, size, size) uint8, and in a sentence what had to be changed, "" if nothing.

    picture: a path, a file, a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W) of bytes, or of
    numbers in [0, 1]. Turned as its EXIF says, its range and what is transparent shown by the `Rule` of the images that
    the model learned from, `kept`, or by its own; cropped to a square in the middle and scaled; made grey or RGB.
    LabError for what is no picture.
    """
    if channels not in (GREY, RGB):
        raise LabError(f"the model takes {channels} channels, and pictures have one or three: pass it tensors yourself")
    if isinstance(picture, np.ndarray | Tensor):
        picture = _from_numbers(np.asarray(picture.cpu() if isinstance(picture, Tensor) else picture))
    image, (width, height), changed, rule = _learnt(picture, size, kept or {})
    changed += _changed(rule)
    if (width, height) != (size, size):
        cropped = "" if width == height else "cropped and "
        changed.append(f"{cropped}resized from {width}×{height} to {size}×{size}")
    if channels == GREY and image.getbands()[0] not in ("1", "L", "I", "F"):
        changed.append("made grey")
    if channels == RGB and image.mode in OTHER_COLOURS:
        changed.append(f"made RGB from {image.mode}")
    image = rule.rgb(image).convert("L" if channels == GREY else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).reshape(size, size, channels).permute(2, 0, 1)
    return pixels.contiguous(), f"The picture was {listed(changed)}." if changed else ""


def _learnt(picture: Any, size: int, kept: Mapping[str, Any]) -> tuple[Image.Image, tuple[int, int], list[str], Rule]:
    """An image as `upright` gives it, width and height that it had, what was done for it, the rule that has learnt of
    it alone.
    """
    name, rule = "the picture" if isinstance(picture, Image.Image) else picture, Rule(kept)
    try:
        register_plugins()
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        whole, several = image.size, 1 if image is picture else getattr(image, "n_frames", 1)
        if image is not picture:
            draft(image, size)
        require_memory(image)
        lying = image
        image, wide = upright(lying)
        rule.learn(image, wide)
        turned = lying.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)  # asked before, a PNG would be loaded
    except FileNotFoundError:
        raise LabError(f"there is no picture {name}: check its path") from None
    except Exception as error:  # Pillow's decoders raise all kinds
        plugin = missing_plugin(os.fspath(picture)) if isinstance(picture, str | os.PathLike) else ""
        cure = f"pip install {plugin}, or convert it to PNG or JPEG" if plugin else "name a JPEG, PNG or the like"
        raise LabError(f"{name} is not a readable image ({reason(error)}): {cure}") from None
    if rule.dark:
        raise LabError(
            f"{name} has 16 bits a colour and fills less than half of that range; Pillow reads only the upper 8 bits, "
            "which would leave it dark: save it with 8 bits a colour"
        )
    done = [f"taken as the first of {several}"] if several > 1 else []
    return image, whole, done + (["turned as its EXIF says"] if turned else []), rule


def _changed(rule: Rule) -> list[str]:
    """What a rule that has learnt of one picture does to it."""
    changed = []
    for kind in rule.lowest:
        low, high = rule.bounds(kind)
        changed.append(f"scaled from {low:g} – {high:g} to black – white")
    if rule.counts["16-bit colour"]:
        changed.append("read by the upper 8 of its 16 bits a colour")
    if rule.counts["transparent"]:
        changed.append(f"put on {rule.ground}")
    return changed


def _from_numbers(numbers: np.ndarray) -> Image.Image:
    if numbers.ndim == 3 and numbers.shape[0] in (GREY, RGB) and numbers.shape[2] not in (GREY, RGB):
        numbers = numbers.transpose(1, 2, 0)  # (C, H, W), as torch has it
    if numbers.ndim not in (2, 3) or (numbers.ndim == 3 and numbers.shape[2] not in (GREY, RGB, 4)) or not numbers.size:
        raise LabError(f"an array of shape {numbers.shape} is no picture: pass (H, W), (H, W, 3) or (3, H, W)")
    if numbers.dtype.kind == "f" and not (numbers.min() >= 0 and numbers.max() <= 1):
        raise LabError("a picture of floating-point numbers has values from 0 to 1: scale it, or pass bytes (uint8)")
    if numbers.dtype.kind in "fb":
        numbers = (255 * numbers).round()
    if numbers.min() < 0 or numbers.max() > 255:
        raise LabError(f"a picture's whole numbers go from 0 to 255, these from {numbers.min()} to {numbers.max()}")
    numbers = numbers.astype(np.uint8)
    return Image.fromarray(numbers[..., 0] if numbers.ndim == 3 and numbers.shape[2] == GREY else numbers)
