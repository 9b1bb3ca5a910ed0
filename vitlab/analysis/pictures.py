"""One function a picture: images, and what a model sees in them. Each returns a matplotlib Figure without a title."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vitlab.analysis.theme import PALETTE, SEQUENTIAL, SMALLEST, WIDTH, canvas, use_theme


def _row_name(row: np.ndarray, name: str) -> None:
    row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=SMALLEST)


def _picture(axis: plt.Axes, image: Tensor, title: str = "", size: float = SMALLEST) -> None:
    """Draw a uint8 (C, S, S) image without axes."""
    pixels = image.permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze() if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=size)
    axis.set_axis_off()


def sample_grid(images: Tensor, labels: Tensor, classes: tuple[str, ...], columns: int = 10) -> Figure:
    """Images (N, C, S, S) of every class, a row of `columns` a class; the first ten classes."""
    shown = classes[:10]
    figure, axes = canvas(len(shown), columns, height=0.52 * len(shown))
    for k, row in enumerate(axes):
        members = images[labels == k][:columns]
        for axis in row:
            axis.set_axis_off()
        for axis, image in zip(row, members, strict=False):
            _picture(axis, image)
        _row_name(row, shown[k])
    return figure


def augmentation_grid(original: Tensor, variants: dict[str, Tensor]) -> Figure:
    """A row of (N, C, S, S) uint8 originals above a row for each augmentation: name -> images."""
    rows = {"original": original} | variants
    figure, axes = canvas(len(rows), len(original), height=0.8 * len(rows))
    for (name, images), row in zip(rows.items(), axes, strict=True):
        for axis, image in zip(row, images, strict=True):
            _picture(axis, image)
        _row_name(row, name)
    return figure


def patches_as_tokens(image: Tensor, patch_size: int) -> Figure:
    """One uint8 (C, S, S) image, and the N patches it is cut into in the order of the tokens."""
    size = image.shape[-1] // patch_size
    cut = image.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)  # (C, size, size, P, P)
    cut = cut.flatten(1, 2).transpose(0, 1)  # (N, C, P, P)
    per_row = min(16, len(cut))
    rows = -(-len(cut) // per_row)
    use_theme()
    figure = plt.figure(figsize=(WIDTH, max(1.6, 0.42 * rows + 0.2)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.6])
    whole = left.subplots()
    _picture(whole, image, "image")
    for place in range(1, size):
        whole.axhline(place * patch_size - 0.5, color=PALETTE[1], linewidth=0.6)
        whole.axvline(place * patch_size - 0.5, color=PALETTE[1], linewidth=0.6)
    for axis, i in zip(right.subplots(rows, per_row).flat, range(rows * per_row), strict=True):
        axis.set_axis_off()
        if i < len(cut):
            _picture(axis, cut[i], str(i + 1), size=5)
    return figure


def position_similarity(positions: Tensor, grid: int) -> Figure:
    """Cosine similarity of each patch's position embedding (N, D) to all others, a small map a patch."""
    unit = positions / positions.norm(dim=-1, keepdim=True)
    maps = (unit @ unit.T).view(grid, grid, grid, grid).numpy()
    step = -(-grid // 4)  # more than 4×4 maps are too small to read
    picks = range(step // 2, grid, step)
    figure, axes = canvas(len(picks), len(picks), height=4.2)
    for row, i in zip(axes, picks, strict=True):
        for axis, j in zip(row, picks, strict=True):
            shown = axis.imshow(maps[i, j], vmin=-1, vmax=1, cmap=SEQUENTIAL)
            axis.set_title(f"row {i + 1}, column {j + 1}", fontsize=SMALLEST)
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.7)
    return figure


def attention_maps(images: Tensor, heads: Tensor, rolled: Tensor, titles: list[str]) -> Figure:
    """Images (M, C, S, S); heads (M, H, G, G) attention to each patch in the last block; rolled (M, G, G) rollout."""
    figure, axes = canvas(len(images), 2 + heads.shape[1], height=1.15 * len(images))
    names = ["rollout", *(f"head {h + 1}" for h in range(heads.shape[1]))]
    for i, row in enumerate(axes):
        _picture(row[0], images[i], titles[i])
        for axis, values, name in zip(row[1:], [rolled[i], *heads[i]], names, strict=True):
            _picture(axis, images[i], name if i == 0 else "")
            over = torch.nn.functional.interpolate(values[None, None], size=images.shape[-1], mode="nearest")[0, 0]
            axis.imshow(over, norm=PowerNorm(0.5, vmin=0), cmap=SEQUENTIAL, alpha=0.7)  # the few largest hide no others
    return figure


def mistakes(images: Tensor, truth: list[str], guess: list[str], confidence: list[float]) -> Figure:
    """Up to twelve wrongly classified images (M, C, S, S) with truth, answer and confidence."""
    columns = 6
    rows = max(1, -(-len(images) // columns))
    figure, axes = canvas(rows, columns, height=1.75 * rows)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, right, wrong, sure in zip(axes.flat, images, truth, guess, confidence, strict=False):
        _picture(axis, image, f"{right} → {wrong}\n{sure:.0%} sure")
    return figure


def pruning_stages(images: Tensor, kept: list[Tensor], grid: int, titles: list[str]) -> Figure:
    """Images (M, C, S, S), and what a list of (M, n) kept patch indices leaves of them; dropped is hatched."""
    figure, axes = canvas(1 + len(kept), len(images), height=0.95 * (1 + len(kept)))
    scale = images.shape[-1] // grid
    for i, title in enumerate(titles):
        _picture(axes[0, i], images[i], title)
        for stage, index in enumerate(kept):
            mask = torch.zeros(grid * grid, dtype=torch.bool)
            mask[index[i]] = True
            mask = mask.view(grid, grid)
            axis = axes[stage + 1, i]
            _picture(axis, torch.where(mask.repeat_interleave(scale, 0).repeat_interleave(scale, 1), images[i], 255))
            for row, column in (~mask).nonzero() * scale - 0.5:  # hatched, as parts of an image may be white too
                axis.add_patch(plt.Rectangle((column, row), scale, scale, fill=False, hatch="//////", linewidth=0))
    names = ["input", *(f"stage {s + 1}:\n{index.shape[1]} of {grid * grid}" for s, index in enumerate(kept))]
    for row, name in zip(axes, names, strict=True):
        _row_name(row, name)
    return figure


def attention_matrices(weights: dict[str, Tensor]) -> Figure:
    """Maps of the attention that each query token (row) pays to each key token (column): name -> (T, T)."""
    figure, [axes] = canvas(1, len(weights), height=2.9, sharey=True)
    most = max(float(matrix.max()) for matrix in weights.values())  # one scale, so that flat looks flat
    for axis, (name, matrix) in zip(axes, weights.items(), strict=True):
        shown = axis.imshow(matrix, cmap=SEQUENTIAL, vmin=0, vmax=most)
        axis.set(title=name, xlabel="key token")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(integer=True))
        axis.grid(visible=False)
    axes[0].set_ylabel("query token")
    figure.colorbar(shown, ax=list(axes), shrink=0.75, label="weight")
    return figure
