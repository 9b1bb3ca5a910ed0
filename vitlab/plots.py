"""One function a figure. Each takes plain arrays or tables and returns a matplotlib Figure, titled by its caption."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from vitlab.metrics import LEVEL, on_frontier

WIDTH = 7.2  # inches: the text width of the report
PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vPX*"  # so that lines differ in grey print as well


def use_theme() -> None:
    """Set the look of all figures of this process: one family, colours that colour-blind readers can tell apart."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette=PALETTE,
        rc={
            "axes.grid": True,
            "grid.color": "0.9",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "hatch.color": "0.7",
            "hatch.linewidth": 0.5,
        },
    )


def _canvas(rows: int = 1, columns: int = 1, height: float = 2.6, **options) -> tuple[Figure, np.ndarray]:
    use_theme()
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **options)
    return figure, axes


def _legend_above(axis: plt.Axes, columns: int) -> None:
    """A legend over the axes, where it hides no data."""
    axis.legend(frameon=False, fontsize=7, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _legend_outside(figure: Figure, axis: plt.Axes, columns: int, place: str = "upper") -> None:
    """One legend for all panels, of what `axis` shows, above or below them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc=f"outside {place} center", ncols=columns, frameon=False, fontsize=7)


def _row_name(row: np.ndarray, name: str) -> None:
    row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=8)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _class_axis(axis: plt.Axes, classes: tuple[str, ...]) -> None:
    axis.tick_params(axis="x", rotation=30 if max(map(len, classes)) > 3 else 0)


def _picture(axis: plt.Axes, image: Tensor, title: str = "", size: float = 8) -> None:
    """Draw a uint8 (C, S, S) image without axes."""
    pixels = image.permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze() if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=size)
    axis.set_axis_off()


# ---------------------------------------------------------------- 01 data and imbalance


def class_counts(counts: dict[str, Tensor], classes: tuple[str, ...]) -> Figure:
    """Bars of images per class, one group of bars a data set: name -> (C,) counts."""
    figure, [[axis]] = _canvas(height=2.7)
    frame = pd.DataFrame({name: values.numpy() for name, values in counts.items()}, index=list(classes))
    frame.plot.bar(ax=axis, width=0.8, color=PALETTE[: len(counts)], edgecolor="white")
    few = len(frame.columns) * len(frame) <= 20
    for container in axis.containers if few else []:
        axis.bar_label(container, fontsize=6, padding=1)
    axis.set(xlabel="class", ylabel="training images")
    _class_axis(axis, classes)
    axis.grid(visible=False, axis="x")
    _legend_above(axis, len(counts))
    return figure


def sample_grid(images: Tensor, labels: Tensor, classes: tuple[str, ...], columns: int = 10) -> Figure:
    """Images (N, C, S, S) of every class, a row of `columns` a class; the first ten classes."""
    shown = classes[:10]
    figure, axes = _canvas(len(shown), columns, height=0.62 * len(shown))
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
    figure, axes = _canvas(len(rows), len(original), height=0.8 * len(rows))
    for (name, images), row in zip(rows.items(), axes, strict=True):
        for axis, image in zip(row, images, strict=True):
            _picture(axis, image)
        _row_name(row, name)
    return figure


def remedy_effects(frame: pd.DataFrame) -> Figure:
    """What each remedy does to each class, the commonest first; columns as `tables.remedy_effects` makes them."""
    figure, [axes] = _canvas(1, 3, height=3.0)
    panels = {"drawn": "share of the images drawn", "weight": "weight in the loss", "share": "share of the loss"}
    classes = frame["class"].unique()
    places = np.arange(0, len(classes), -(-len(classes) // 20))
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for i, ((remedy, rows), marker) in enumerate(zip(frame.groupby("remedy", sort=False), cycle(MARKERS))):
            size = max(3, 9 - i)  # equal ones lie on top of each other: the larger show behind the smaller
            axis.plot(range(len(rows)), rows[column], marker=marker, markersize=size, linewidth=1, label=_words(remedy))
        axis.set(xlabel="class, commonest first", ylabel=label, yscale="log")
        axis.set_xticks(places, classes[places], fontsize=7, rotation=90 if max(map(len, classes)) > 3 else 0)
    axes[0].sharey(axes[2])
    _legend_outside(figure, axes[0], 6)
    return figure


def remedy_scores(frame: pd.DataFrame) -> Figure:
    """Macro F1, recall of the commonest and of the rarest classes by remedy: a dot a seed, a bar at the mean.

    Of a single seed the line is the bootstrap's 95% interval; columns as `tables.study_scores` makes them.
    """
    columns = {"macro_f1": "macro F1", "recall_common": "recall, commonest", "recall_rare": "recall, rarest"}
    figure, [axes] = _canvas(1, 3, height=2.6, sharey=True)
    order = list(dict.fromkeys(frame["remedy"]))
    places = frame["remedy"].map(order.index)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        if len(frame) == len(order):
            axis.hlines(places, frame[f"{column}_low"], frame[f"{column}_high"], color="0.5", label="95% interval")
        else:
            means = frame.groupby("remedy")[column].mean()
            axis.scatter(means[order], range(len(order)), marker="|", s=140, color="black", label="mean")
        axis.scatter(frame[column], places, s=14, color=PALETTE[0], alpha=0.6, label="one seed")
        axis.set(xlabel=label)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_yticks(range(len(order)), [_words(name) for name in order])
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    _legend_above(axes[1], 2)
    return figure


def recall_by_class(recalls: dict[str, np.ndarray], classes: tuple[str, ...]) -> Figure:
    """From the recall of each class under the first name to that under each other one: name -> (C,) recall."""
    (first, base), *others = recalls.items()
    columns = min(3, len(others))
    rows = -(-len(others) // columns)
    height = rows * (0.13 * min(len(classes), 30) + 0.7) + 0.3
    figure, axes = _canvas(rows, columns, height=height, sharex=True, sharey=True)
    places = np.arange(len(classes))
    for axis, (name, values) in zip(axes.flat, others, strict=False):
        axis.hlines(places, base, values, color="0.6")
        axis.plot(base, places, "o", color="black", fillstyle="none", markersize=4, label=_words(first))
        axis.plot(values, places, "D", color=PALETTE[0], markersize=4, label="as titled")
        axis.set_title(_words(name), fontsize=8)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis in axes.flat[len(others) :]:
        axis.set_axis_off()
    every = -(-len(classes) // 30)
    axes[0, 0].set_yticks(places[::every], classes[::every])
    axes[0, 0].invert_yaxis()
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
    figure.supxlabel("test recall", fontsize=9)
    _legend_outside(figure, axes[0, 0], 2)
    return figure


# ---------------------------------------------------------------- 02 ViT


def patches_as_tokens(image: Tensor, patch_size: int) -> Figure:
    """One uint8 (C, S, S) image, and the N patches it is cut into in the order of the tokens."""
    size = image.shape[-1] // patch_size
    cut = image.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)  # (C, size, size, P, P)
    cut = cut.flatten(1, 2).transpose(0, 1)  # (N, C, P, P)
    per_row = min(16, len(cut))
    rows = -(-len(cut) // per_row)
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
    figure, axes = _canvas(len(picks), len(picks), height=4.2)
    for row, i in zip(axes, picks, strict=True):
        for axis, j in zip(row, picks, strict=True):
            shown = axis.imshow(maps[i, j], vmin=-1, vmax=1, cmap="cividis")
            axis.set_title(f"row {i + 1}, column {j + 1}", fontsize=7)
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.7)
    return figure


def training_curves(histories: dict[str, pd.DataFrame], chosen: dict[str, int]) -> Figure:
    """Training loss and validation accuracy by epoch; a ring marks the epoch whose weights were kept."""
    figure, [[loss, accuracy]] = _canvas(1, 2, height=2.6)
    for (name, history), marker in zip(histories.items(), cycle(MARKERS), strict=False):
        every = max(1, len(history) // 8)
        style = {"marker": marker, "markevery": every, "markersize": 4, "linewidth": 1.2}
        loss.plot(history["epoch"], history["cls"], label=name, **style)
        if "val_accuracy" in history:
            [line] = accuracy.plot(history["epoch"], history["val_accuracy"], **style)
            row = history[history["epoch"] == chosen[name]]
            accuracy.plot(
                row["epoch"], row["val_accuracy"], "o", markersize=9, fillstyle="none", color=line.get_color()
            )
    for axis in (loss, accuracy):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set(xlabel="epoch", ylabel="training cross-entropy")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    loss.legend(frameon=False, fontsize=7)
    return figure


def confusion(matrix: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Confusion matrix (C, C), rows = truth: colour is the share of the row, numbers are counts."""
    figure, [[axis]] = _canvas(height=4.2)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    sns.heatmap(
        shares,
        annot=matrix if len(classes) <= 20 else None,
        fmt="d",
        cmap="Blues",
        vmin=0,
        vmax=1,
        square=True,
        ax=axis,
        xticklabels=classes,
        yticklabels=classes,
        annot_kws={"fontsize": 7},
        cbar_kws={"label": "share of the true class", "shrink": 0.8},
    )
    axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def reliability(frames: dict[str, pd.DataFrame], errors: dict[str, float]) -> Figure:
    """Accuracy over confidence, and how many images are how sure: name -> `metrics.reliability`; errors: their ECE."""
    figure, [[axis, sizes]] = _canvas(1, 2, height=2.8, width_ratios=[1.3, 1])
    axis.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="calibrated")
    for (name, rows), marker in zip(frames.items(), cycle(MARKERS), strict=False):
        bars = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
        label = f"{name}, ECE {errors[name]:.3f}"
        axis.errorbar(rows["confidence"], rows["accuracy"], bars, fmt=marker, markersize=4, capsize=2, label=label)
        sizes.plot(rows["confidence"], rows["images"] / rows["images"].sum(), marker=marker, markersize=4)
    axis.set(xlabel="confidence", ylabel="test accuracy")
    sizes.set(xlabel="confidence", ylabel="share of the test images", xlim=axis.get_xlim())
    for formatted in (axis.xaxis, axis.yaxis, sizes.xaxis, sizes.yaxis):
        formatted.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend_outside(figure, axis, 3)
    return figure


def attention_maps(images: Tensor, heads: Tensor, rolled: Tensor, titles: list[str]) -> Figure:
    """Images (M, C, S, S); heads (M, H, G, G) attention to each patch in the last block; rolled (M, G, G) rollout."""
    figure, axes = _canvas(len(images), 2 + heads.shape[1], height=1.15 * len(images))
    for i, row in enumerate(axes):
        _picture(row[0], images[i], titles[i])
        for axis, values, name in zip(
            row[1:], [rolled[i], *heads[i]], ["rollout", *(f"head {h + 1}" for h in range(heads.shape[1]))], strict=True
        ):
            _picture(axis, images[i], name if i == 0 else "")
            over = torch.nn.functional.interpolate(values[None, None], size=images.shape[-1], mode="nearest")[0, 0]
            axis.imshow(over, cmap="magma", alpha=0.75)
    return figure


def mistakes(images: Tensor, truth: list[str], guess: list[str], confidence: list[float]) -> Figure:
    """Up to twelve wrongly classified images (M, C, S, S) with truth, answer and confidence."""
    columns = 6
    rows = max(1, -(-len(images) // columns))
    figure, axes = _canvas(rows, columns, height=1.75 * rows)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, right, wrong, sure in zip(axes.flat, images, truth, guess, confidence, strict=False):
        _picture(axis, image, f"{right} → {wrong}\n{sure:.0%} sure", size=7)
    return figure


# ---------------------------------------------------------------- 03 DynamicViT


def pruning_stages(images: Tensor, kept: list[Tensor], grid: int, titles: list[str]) -> Figure:
    """Images (M, C, S, S), and what a list of (M, n) kept patch indices leaves of them; dropped is hatched."""
    figure, axes = _canvas(1 + len(kept), len(images), height=0.95 * (1 + len(kept)))
    scale = images.shape[-1] // grid
    for i, title in enumerate(titles):
        _picture(axes[0, i], images[i], title, size=7)
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


def keep_ratio_curve(frame: pd.DataFrame, teacher: float, trained_at: float) -> Figure:
    """Accuracy and throughput over the keep ratio; columns keep_ratio, accuracy, low, high, images_per_second."""
    figure, [[accuracy, speed]] = _canvas(1, 2, height=2.6)
    bars = [frame["accuracy"] - frame["low"], frame["high"] - frame["accuracy"]]
    accuracy.errorbar(frame["keep_ratio"], frame["accuracy"], yerr=bars, marker="o", capsize=2, label="DynamicViT")
    accuracy.axhline(teacher, color="black", linestyle="--", linewidth=1, label="its teacher")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.set(xlabel="keep ratio ρ", ylabel="accuracy")
    speed.plot(frame["keep_ratio"], frame["images_per_second"], marker="s", color=PALETTE[1])
    speed.set(xlabel="keep ratio ρ", ylabel="images per second", ylim=(0, None))
    for axis in (accuracy, speed):
        axis.axvline(trained_at, color="0.6", linestyle=":", label="trained at")
    accuracy.legend(frameon=False, fontsize=7)
    return figure


# ---------------------------------------------------------------- 04 and 05 cost


def attention_matrices(weights: dict[str, Tensor]) -> Figure:
    """Maps of the attention that each query token (row) pays to each key token (column): name -> (T, T)."""
    figure, [axes] = _canvas(1, len(weights), height=2.7)
    for axis, (name, matrix) in zip(axes, weights.items(), strict=True):
        shown = axis.imshow(matrix, cmap="magma", vmin=0)
        axis.set(title=name, xlabel="key token", ylabel="query token")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(integer=True))
        axis.grid(visible=False)
        figure.colorbar(shown, ax=axis, shrink=0.75, label="weight")
    return figure


def macs_by_component(rows: dict[str, dict[str, int]]) -> Figure:
    """Stacked bars of MACs: model -> component -> MACs."""
    figure, [[axis]] = _canvas(height=0.34 * len(rows) + 1.1)
    frame = pd.DataFrame(rows).T / 1e6
    parts = frame.loc[::-1, frame.sum() > 0]
    colours = sns.color_palette("cividis", len(parts.columns))  # lighter and lighter: they differ in grey as well
    parts.plot.barh(stacked=True, ax=axis, width=0.75, color=colours, edgecolor="white", linewidth=0.5)
    axis.set(xlabel="million MACs per image", ylabel="")
    axis.grid(visible=False, axis="y")
    _legend_above(axis, 3)
    return figure


def growth(frame: pd.DataFrame, crossovers: dict[str, float]) -> Figure:
    """MACs, time and memory of one attention layer over tokens; columns as `complexity.growth` makes them.

    A dotted line in the panel of time marks the tokens from which a kind is faster than softmax, if they are in sight.
    """
    figure, [axes] = _canvas(1, 3, height=2.7)
    for (kind, rows), marker in zip(frame.groupby("attention", sort=False), cycle(MARKERS), strict=False):
        for axis, values in zip(axes, (rows["macs"] / 1e6, rows["seconds"] * 1e3, rows["bytes"] / 2**20), strict=True):
            [line] = axis.loglog(rows["tokens"], values, marker=marker, markersize=4, label=kind)
        if rows["tokens"].min() < crossovers.get(kind, 0) < rows["tokens"].max():
            axes[1].axvline(crossovers[kind], linestyle=":", color=line.get_color())
    for axis, label in zip(axes, ("million MACs", "milliseconds", "MiB at the peak"), strict=True):
        axis.set(xlabel="tokens", ylabel=label)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def cost_by_keep_ratio(frame: pd.DataFrame) -> Figure:
    """MACs, latency and throughput over the keep ratio, each relative to keep ratio 1."""
    figure, [[axis]] = _canvas(height=2.6)
    whole = frame.loc[frame["keep_ratio"].idxmax()]
    columns = {"macs": "MACs", "latency_ms": "latency, batch 1", "images_per_second": "throughput"}
    for (column, label), marker in zip(columns.items(), cycle(MARKERS), strict=False):
        axis.plot(frame["keep_ratio"], frame[column] / whole[column], marker=marker, label=label)
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set(xlabel="keep ratio ρ", ylabel="relative to ρ = 1")
    axis.legend(frameon=False)
    return figure


# ---------------------------------------------------------------- 06 comparison


def accuracy_against_cost(frame: pd.DataFrame) -> Figure:
    """Test accuracy with its 95% interval over MACs, latency and training time; a point a model, and the frontier."""
    figure, [axes] = _canvas(1, 3, height=3.2, sharey=True)
    costs = (
        ("macs", 1e6, "million MACs"),
        ("latency_ms", 1, "latency, batch 1 (ms)"),
        ("training_seconds", 60, "training (minutes)"),
    )
    aside = np.linspace(0.97, 1.03, len(frame))  # models of the same cost stand beside each other
    for axis, (column, unit, label) in zip(axes, costs, strict=True):
        places = frame[column] / unit * aside
        for i, marker, colour in zip(frame.index, cycle(MARKERS), cycle(PALETTE), strict=False):
            row = frame.loc[i]
            bars = [[row["accuracy"] - row["accuracy_low"]], [row["accuracy_high"] - row["accuracy"]]]
            name = row["model"]
            axis.errorbar(places[i], row["accuracy"], yerr=bars, fmt=marker, color=colour, capsize=2, label=name)
        best = (frame[column] / unit)[on_frontier(frame, column)].sort_values()  # not aside, or it could turn back
        axis.step(best, frame["accuracy"][best.index], color="0.5", ls=":", where="post", zorder=0, label="frontier")
        axis.set(xlabel=label, xlim=(0, 1.1 * places.max()))
    axes[0].set_ylabel("test accuracy")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    _legend_outside(figure, axes[0], 4, "lower")
    return figure


def recall_differences(frame: pd.DataFrame, reference: pd.Series) -> Figure:
    """Map of each model's recall minus the reference's by class, * where p < LEVEL: model, class, difference, p.

    reference: class -> recall of the model that the others are compared with, written below the classes.
    """
    points = frame.pivot(index="model", columns="class", values="difference") * 100
    points = points.loc[frame["model"].unique(), frame["class"].unique()]
    clear = frame.pivot(index="model", columns="class", values="p").loc[points.index, points.columns] < LEVEL
    few = points.shape[1] <= 20
    figure, [[axis]] = _canvas(height=0.36 * len(points) + 1.4)
    sns.heatmap(
        points,
        annot=points.map("{:+z.0f}".format) + clear.map({True: "*", False: ""}.get) if few else False,
        fmt="",
        cmap="RdBu",
        vmin=-points.abs().to_numpy().max(),
        vmax=points.abs().to_numpy().max(),
        ax=axis,
        annot_kws={"fontsize": 7},
        cbar_kws={"label": "difference (points)"},
    )
    if few:
        axis.set_xticklabels([f"{name}\n{reference[name]:.0%}" for name in points.columns], fontsize=7)
    axis.set(xlabel=f"class, and its recall by {reference.name}", ylabel="")
    _class_axis(axis, tuple(points.columns))
    return figure
