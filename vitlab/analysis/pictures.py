"""One function a picture: images, and what a model sees in them. Each returns a matplotlib Figure without a title."""

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vitlab.analysis.chart_parts import drawable, own_names
from vitlab.analysis.theme import PALETTE, SEQUENTIAL, SMALLEST, WIDTH, canvas, use_theme


def _row_name(row: np.ndarray, name: str) -> None:
    row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=SMALLEST)


def _picture(axis: plt.Axes, image: Tensor, title: str = "") -> None:
    """Draw a uint8 (C, S, S) image without axes."""
    pixels = image.permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze() if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=SMALLEST)
    axis.set_axis_off()


def _tokens(axis: plt.Axes, image: Tensor, token: Tensor, title: str = "") -> None:
    """Draw an image by the token (G, G) that each patch is part of, -1 for none.

    Patches of one token have their mean colour and a border around them; what was dropped is hatched.
    """
    scale = image.shape[-1] // len(token)
    _picture(axis, _in_mean_colours(image, token, scale), title)
    for r, c in (token < 0).nonzero() * scale - 0.5:  # hatched, as parts of an image may be white too
        axis.add_patch(plt.Rectangle((c, r), scale, scale, fill=False, hatch="//////", linewidth=0))
    upright = [((c + 1, r), (c + 1, r + 1)) for r, c in (token[:, 1:] != token[:, :-1]).nonzero().tolist()]
    level = [((c, r + 1), (c + 1, r + 1)) for r, c in (token[1:] != token[:-1]).nonzero().tolist()]
    borders = np.array(upright + level).reshape(-1, 2, 2) * scale - 0.5
    axis.add_collection(LineCollection(borders, colors=PALETTE[1], linewidths=0.5))


def _in_mean_colours(image: Tensor, token: Tensor, scale: int) -> Tensor:
    """(C, S, S) uint8 with the pixels of patches that share a token averaged; token (grid, grid), -1: white."""
    large = token.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    shown = torch.full_like(image, 255)
    for one in token.unique():
        if one >= 0:
            inside, alone = large == one, int((token == one).sum()) == 1
            pixels = image[:, inside]
            shown[:, inside] = pixels if alone else pixels.float().mean(1, keepdim=True).to(image.dtype)
    return shown


def _mosaic(axis: plt.Axes, rows: Sequence[Tensor], names: Sequence[str] = ()) -> None:
    """Draw rows of uint8 (N, C, S, S) images, a name before each, as one image: axes apart take seconds to lay out."""
    size = rows[0].shape[-1]
    cell = size + size // 10 + 1  # with the gap to the next one, which is transparent
    grid = torch.zeros(len(rows), max(map(len, rows)), cell, cell, 4, dtype=torch.uint8)
    for row, images in zip(grid, rows, strict=True):
        row[: len(images), :size, :size, :3] = images.permute(0, 2, 3, 1)
        row[: len(images), :size, :size, 3] = 255
    axis.imshow(grid.transpose(1, 2).reshape(len(rows) * cell, -1, 4).numpy())
    middles = [size / 2 + i * cell for i in range(len(names))]
    axis.set(xticks=[], yticks=middles, yticklabels=names, frame_on=False)
    axis.tick_params(length=0, labelsize=SMALLEST)
    axis.grid(visible=False)


def sample_grid(images: Tensor, labels: Tensor, classes: tuple[str, ...], columns: int = 10) -> Figure:
    """Images (N, C, S, S) of every class, a row of `columns` a class; the first ten classes."""
    shown = drawable(classes[:10])
    figure, [[axis]] = canvas(height=0.52 * len(shown))
    _mosaic(axis, [images[labels == k][:columns] for k in range(len(shown))], shown)
    return figure


def augmentation_grid(original: Tensor, variants: dict[str, Tensor]) -> Figure:
    """A row of (N, C, S, S) uint8 originals above a row for each augmentation: name -> images."""
    figure, [[axis]] = canvas(height=0.8 * (1 + len(variants)))
    _mosaic(axis, [original, *variants.values()], ["original", *variants])
    return figure


def patches_as_tokens(image: Tensor, patch_size: int) -> Figure:
    """One uint8 (C, S, S) image, and the N patches it is cut into in the order of the tokens; the first 256 of more."""
    size = image.shape[-1] // patch_size
    cut = image.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)  # (C, size, size, P, P)
    cut = cut.flatten(1, 2).transpose(0, 1)  # (N, C, P, P)
    per_row = 8 if len(cut) <= 32 else 16
    shown = cut[:256].split(per_row)
    use_theme()
    figure = plt.figure(figsize=(WIDTH, max(1.6, 0.3 * len(shown) + 0.4)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.6])
    whole = left.subplots()
    _picture(whole, image, "image")
    for place in range(1, size):
        whole.axhline(place * patch_size - 0.5, color=PALETTE[1], linewidth=0.6)
        whole.axvline(place * patch_size - 0.5, color=PALETTE[1], linewidth=0.6)
    ends = [(per_row * row + 1, per_row * row + len(some)) for row, some in enumerate(shown)]
    patches = right.subplots()
    _mosaic(patches, shown, [f"{first} – {last}" for first, last in ends])
    patches.set_title(f"tokens 1 – {ends[-1][1]} of {len(cut):,}", fontsize=SMALLEST)
    return figure


def filters_and_positions(filters: Tensor, positions: Tensor, grid: int) -> Figure:
    """The strongest filters (D, C, k, k) of the first layer, and how similar the positions (N, D) of patches are.

    Each filter is drawn from its least to its largest weight; cosines of one patch's position to all others, a map a
    patch.
    """
    use_theme()
    figure = plt.figure(figsize=(WIDTH, 3.0), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25])
    strongest = filters[filters.flatten(1).norm(dim=1).argsort(descending=True)[:36]]
    low, high = strongest.amin((1, 2, 3), keepdim=True), strongest.amax((1, 2, 3), keepdim=True)
    scaled = (255 * (strongest - low) / (high - low + 1e-9)).round().to(torch.uint8)
    _mosaic(left.subplots(), scaled.split(math.ceil(len(scaled) ** 0.5)))
    left.suptitle("filters of the first layer", fontsize=9)
    unit = positions / positions.norm(dim=-1, keepdim=True)
    maps = (unit @ unit.T).view(grid, grid, grid, grid).numpy()
    step = -(-grid // 4)  # more than 4×4 maps are too small to read
    picks = range(step // 2, grid, step)
    axes = right.subplots(len(picks), len(picks), squeeze=False)
    for row, i in zip(axes, picks, strict=True):
        for axis, j in zip(row, picks, strict=True):
            shown = axis.imshow(maps[i, j], vmin=-1, vmax=1, cmap=SEQUENTIAL)
            axis.set_title(f"{i + 1}, {j + 1}", fontsize=SMALLEST)
            axis.set_axis_off()
    right.suptitle("similarity of positions, by row and column", fontsize=9)
    right.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.8)
    return figure


def attention_maps(images: Tensor, heads: Tensor, rolled: Tensor, titles: list[str]) -> Figure:
    """Images (M, C, S, S); heads (M, H, G, G) attention to each patch in the last block; rolled (M, G, G) rollout."""
    columns = 2 + heads.shape[1]
    figure, axes = canvas(len(images), columns, height=len(images) * min(1.05, 0.9 * WIDTH / columns + 0.1))
    for i, (row, title) in enumerate(zip(axes, drawable(titles, 16), strict=True)):
        _picture(row[0], images[i])
        _row_name(row, title)
        for axis, values, name in zip(
            row[1:], [rolled[i], *heads[i]], ["rollout", *(f"head {h + 1}" for h in range(heads.shape[1]))], strict=True
        ):
            _picture(axis, images[i], name if i == 0 else "")
            over = torch.nn.functional.interpolate(values[None, None], size=images.shape[-1], mode="nearest")[0, 0]
            axis.imshow(over, norm=PowerNorm(0.5, vmin=0), cmap=SEQUENTIAL, alpha=0.7)  # the few largest hide no others
    return figure


def attention_side_by_side(images: Tensor, maps: dict[str, Tensor], titles: list[str]) -> Figure:
    """Images (M, C, S, S), a row each, and what each model's attention gives to the patches: name -> (M, G, G).

    All on one scale, where 1 is a patch's share if all were weighted alike; below 0 it takes away.
    """
    figure, axes = canvas(len(images), 1 + len(maps), height=1.1 * len(images) + 0.4)
    titles = drawable(titles, 16)
    relative = {name: values * values.shape[-1] ** 2 for name, values in maps.items()}
    low = min(0.0, *(float(values.min()) for values in relative.values()))
    high = max(float(values.max()) for values in relative.values())
    for i, row in enumerate(axes):
        _picture(row[0], images[i], titles[i])
        for axis, (name, values) in zip(row[1:], relative.items(), strict=True):
            shown = axis.imshow(values[i], cmap=SEQUENTIAL, vmin=low, vmax=high)
            axis.set_title("\n".join(textwrap.wrap(name, 16)) if i == 0 else "", fontsize=SMALLEST)
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes, label="weight over the mean weight", shrink=0.8)
    return figure


def _alone(names: Sequence[str]) -> list[str]:
    """Names over pictures that stand side by side: short, and each whatever the others are."""
    return [drawable([name], 12)[0] for name in names]


def mistakes(images: Tensor, truth: list[str], guess: list[str], confidence: list[float]) -> Figure:
    """Up to twelve wrongly classified images (M, C, S, S) with truth, answer and confidence."""
    columns = 6
    rows = max(1, -(-len(images) // columns))
    figure, axes = canvas(rows, columns, height=1.65 * rows)
    for axis in axes.flat:
        axis.set_axis_off()
    truth, guess = map(_alone, (truth, guess))
    for axis, image, right, wrong, sure in zip(axes.flat, images, truth, guess, confidence, strict=False):
        _picture(axis, image, f"{right}\n→ {wrong}\n{sure:.0%} sure")  # in a line names would meet those beside them
    return figure


def token_groups(images: Tensor, methods: dict[str, Tensor], grid: int, titles: list[str]) -> Figure:
    """Images (M, C, S, S), and below what each method makes of them: name -> (M, grid²) token of each patch, -1: none.

    Patches of one token have their mean colour and a border around them; what was dropped is hatched.
    """
    figure, axes = canvas(1 + len(methods), len(images), height=0.95 * (1 + len(methods)))
    for i, title in enumerate(drawable(titles, 12)):
        _picture(axes[0, i], images[i], title)
        for row, where in enumerate(methods.values(), 1):
            _tokens(axes[row, i], images[i], where[i].view(grid, grid))
    for row, name in zip(axes, ["input", *methods], strict=True):
        _row_name(row, name)
    return figure


def broken(images: Tensor, tokens: Tensor, truth: list[str], guess: list[str]) -> Figure:
    """Images (M, C, S, S) with truth → answer above, and below what the tokens stood for, (M, grid, grid), -1: none."""
    figure, axes = canvas(2, max(len(images), 1), height=2.3)
    for axis in axes.flat:
        axis.set_axis_off()
    truth, guess = map(_alone, (truth, guess))
    for image, token, right, wrong, column in zip(images, tokens, truth, guess, axes.T, strict=False):
        _picture(column[0], image, f"{right}\n→ {wrong}")
        _tokens(column[1], image, token)
    return figure


def places_held(methods: dict[str, Tensor]) -> Figure:
    """Maps of the part of a token that each place of the image has on average: name -> (grid, grid), 0 to 1."""
    figure, [axes] = canvas(1, len(methods), height=1.9)
    for axis, (name, values) in zip(axes, methods.items(), strict=True):
        shown = axis.imshow(values, vmin=0, vmax=1, cmap=SEQUENTIAL)
        axis.set_title(name, fontsize=SMALLEST)
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes, label="tokens a patch", shrink=0.8)
    return figure


def attention_matrices(weights: dict[str, Tensor]) -> Figure:
    """Maps of the attention that each query token (row) pays to each key token (column): name -> (T, T)."""
    figure, [axes] = canvas(1, len(weights), height=2.9, sharey=True)
    least = min(0.0, *(float(matrix.min()) for matrix in weights.values()))  # InLine's may be negative
    most = max(float(matrix.max()) for matrix in weights.values())  # one scale, so that flat looks flat
    for axis, (name, matrix) in zip(axes, weights.items(), strict=True):
        shown = axis.imshow(matrix, cmap=SEQUENTIAL, vmin=least, vmax=most)
        axis.set(title=name, xlabel="key token")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(integer=True))
        axis.grid(visible=False)
    axes[0].set_ylabel("query token")
    figure.colorbar(shown, ax=list(axes), shrink=0.75, label="weight")
    return figure


def explored(image: Tensor, name: str, probabilities: pd.Series, maps: dict[str, Tensor]) -> Figure:
    """One uint8 (C, S, S) image, the answer's likeliest classes, and maps over it: always as large, whatever is seen.

    maps: title -> (G, G) weights, drawn over the image; or whole numbers, the token that each patch is part of, -1
    for none.
    """
    columns = 4
    rows = max(1, -(-len(maps) // columns))
    use_theme()
    figure = plt.figure(figsize=(WIDTH, 0.6 + 1.35 * rows), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.4, 2])
    picture, bars = left.subplots(1, 2)
    _picture(picture, image, *drawable([name], 30))
    first = probabilities.sort_values(ascending=False)[:5]
    bars.barh(range(len(first)), first, color=PALETTE[0])
    bars.set(xlim=(0, 1), xticks=[0, 1], xticklabels=["0", "1"])
    bars.set_yticks(range(len(first)), drawable(first.index, 16))
    bars.set_title("probability", fontsize=SMALLEST)
    bars.tick_params(labelsize=SMALLEST)
    bars.invert_yaxis()
    for axis in (axes := right.subplots(rows, columns, squeeze=False)).flat:
        axis.set_axis_off()
    for axis, (title, values) in zip(axes.flat, maps.items(), strict=False):
        if not values.is_floating_point():
            _tokens(axis, image, values, title)
        else:
            scale = image.shape[-1] // len(values)
            _picture(axis, image, title)
            axis.imshow(values.repeat_interleave(scale, 0).repeat_interleave(scale, 1), cmap=SEQUENTIAL, alpha=0.7)
    return figure


__all__ = own_names(globals())


def __dir__() -> list[str]:
    return __all__
