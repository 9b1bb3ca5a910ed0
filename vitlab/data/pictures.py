"""A picture of one's own as a model takes it: converted as the training images were."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitlab.data.decode import Rule, upright
from vitlab.errors import LabError

GREY, RGB = 1, 3  # channels


def as_pixels(picture: Any, channels: int, size: int) -> tuple[Tensor, str]:
    """A picture as (channels, size, size) uint8, and in a sentence what had to be changed, "" if nothing.

    picture: a path, a file, a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W) of bytes, or of
    numbers in [0, 1]. Turned as its EXIF says, cropped to a square in the middle and scaled, made grey or RGB.
    LabError for what is no picture.
    """
    image = _opened(picture)
    width, height = image.size
    cropped = "" if width == height else "cropped and "
    changed = [] if width == height == size else [f"{cropped}resized from {width}×{height} to {size}×{size}"]
    (image, wide), rule = upright(image), Rule()
    grey = image.getbands()[0] in ("1", "L", "I", "F")
    try:
        rule.learn(image, wide)
    except ValueError as error:
        raise LabError(f"the picture cannot be shown: {error}") from None
    image = rule.rgb(image)
    if channels not in (GREY, RGB):
        raise LabError(f"the model takes {channels} channels, and pictures have one or three: pass it tensors yourself")
    if channels == GREY and not grey:
        changed.append("made grey")
    image = image.convert("L" if channels == GREY else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).reshape(size, size, channels).permute(2, 0, 1)
    return pixels.contiguous(), f"The picture was {' and '.join(changed)}." if changed else ""


def _opened(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray | Tensor):
        return _from_numbers(np.asarray(picture.cpu() if isinstance(picture, Tensor) else picture))
    try:
        image = Image.open(Path(picture) if isinstance(picture, str) else picture)
        image.load()
    except FileNotFoundError:
        raise LabError(f"there is no picture {picture}: check its path") from None
    except Exception as error:  # Pillow's decoders raise all kinds
        reason = str(error).split(" <_io")[0]
        raise LabError(f"{picture} is not a readable image ({reason}): name a JPEG, PNG or the like") from None
    return image


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
