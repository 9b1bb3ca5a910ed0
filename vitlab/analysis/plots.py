"""One function a chart; `pictures` has those that show images.

Each takes plain arrays or tables and returns a matplotlib Figure, titled by its caption.
"""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

from vitlab.analysis.metrics import LEVEL, on_frontier
from vitlab.analysis.theme import DIVERGING, INK, MARKERS, MUTED, PALETTE, canvas, looks

# a part of a model has the same colour in every figure
COMPONENTS = {
    "tokenizer": PALETTE[7],
    "projections": PALETTE[0],
    "attention": PALETTE[1],
    "mlp": PALETTE[4],
    "predictors": PALETTE[3],
    "head": PALETTE[6],
}


def _legend_above(axis: plt.Axes, columns: int) -> None:
    """A legend over the axes, where it hides no data."""
    axis.legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _legend_outside(figure: Figure, axis: plt.Axes, columns: int, place: str = "upper") -> None:
    """One legend for all panels, of what `axis` shows, above or below them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc=f"outside {place} center", ncols=columns)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _class_axis(axis: plt.Axes, classes: tuple[str, ...]) -> None:
    axis.tick_params(axis="x", rotation=30 if max(map(len, classes)) > 3 else 0)


# ---------------------------------------------------------------- 01 data and imbalance


def class_counts(counts: dict[str, Tensor], classes: tuple[str, ...]) -> Figure:
    """Bars of images per class, one group of bars a data set: name -> (C,) counts."""
    figure, [[axis]] = canvas(height=2.7)
    frame = pd.DataFrame({name: values.numpy() for name, values in counts.items()}, index=list(classes))
    frame.plot.bar(ax=axis, width=0.8, color=PALETTE[: len(counts)], edgecolor="white")
    few = len(frame.columns) * len(frame) <= 20
    for container in axis.containers if few else []:
        axis.bar_label(container, fontsize=8, padding=1)
    axis.set(xlabel="class", ylabel="training images")
    _class_axis(axis, classes)
    axis.grid(visible=False, axis="x")
    _legend_above(axis, len(counts))
    return figure


def remedy_effects(frame: pd.DataFrame) -> Figure:
    """What each remedy does to each class, the commonest first; columns as `tables.remedy_effects` makes them."""
    figure, [axes] = canvas(1, 3, height=3.0)
    panels = {"drawn": "share of the images drawn", "weight": "weight in the loss", "share": "share of the loss"}
    classes = frame["class"].unique()
    places = np.arange(0, len(classes), -(-len(classes) // 20))
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for i, ((remedy, rows), marker) in enumerate(zip(frame.groupby("remedy", sort=False), cycle(MARKERS))):
            size = max(3, 9 - i)  # equal ones lie on top of each other: the larger show behind the smaller
            axis.plot(range(len(rows)), rows[column], marker=marker, markersize=size, linewidth=1, label=_words(remedy))
        axis.set(xlabel="class, commonest first", ylabel=label, yscale="log")
        axis.set_xticks(places, classes[places], rotation=90 if max(map(len, classes)) > 3 else 0)
    axes[0].sharey(axes[2])
    _legend_outside(figure, axes[0], 6)
    return figure


def remedy_scores(frame: pd.DataFrame) -> Figure:
    """Macro F1, recall of the commonest and of the rarest classes by remedy: a dot a seed, a bar at the mean.

    Of a single seed the line is the bootstrap's 95% interval; columns as `tables.study_scores` makes them.
    """
    columns = {"macro_f1": "macro F1", "recall_common": "recall, commonest", "recall_rare": "recall, rarest"}
    figure, [axes] = canvas(1, 3, height=2.6, sharey=True)
    order = list(dict.fromkeys(frame["remedy"]))
    places = frame["remedy"].map(order.index)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        if len(frame) == len(order):
            axis.hlines(places, frame[f"{column}_low"], frame[f"{column}_high"], color=MUTED, label="95% interval")
        else:
            means = frame.groupby("remedy")[column].mean()
            axis.scatter(means[order], range(len(order)), marker="|", s=140, color=INK, label="mean")
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
    height = rows * (0.15 * min(len(classes), 30) + 0.7) + 0.3
    figure, axes = canvas(rows, columns, height=height, sharex=True, sharey=True)
    places = np.arange(len(classes))
    for axis, (name, values) in zip(axes.flat, others, strict=False):
        axis.hlines(places, base, values, color=MUTED)
        axis.plot(base, places, "o", color=INK, fillstyle="none", markersize=4, label=_words(first))
        axis.plot(values, places, "D", color=PALETTE[0], markersize=4, label="as titled")
        axis.set_title(_words(name))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis in axes.flat[len(others) :]:
        axis.set_axis_off()
    every = -(-len(classes) // 30)
    axes[0, 0].set_yticks(places[::every], classes[::every])
    axes[0, 0].invert_yaxis()
    figure.supxlabel("test recall", fontsize=9)
    _legend_outside(figure, axes[0, 0], 2)
    return figure


# ---------------------------------------------------------------- 02 ViT


def training_curves(histories: dict[str, pd.DataFrame], chosen: dict[str, int]) -> Figure:
    """Training loss and validation accuracy by epoch; a ring marks the epoch whose weights were kept."""
    figure, [[loss, accuracy]] = canvas(1, 2, height=2.6)
    look = looks(histories)
    for name, history in histories.items():
        every = max(1, len(history) // 8)
        style = {"marker": look[name].marker, "color": look[name].colour}
        style |= {"markevery": every, "markersize": 4, "linewidth": 1.2}
        loss.plot(history["epoch"], history["cls"], label=name, **style)
        if "val_accuracy" in history:
            accuracy.plot(history["epoch"], history["val_accuracy"], **style)
            row = history[history["epoch"] == chosen[name]]
            ring = {"markersize": 9, "fillstyle": "none", "color": look[name].colour}
            accuracy.plot(row["epoch"], row["val_accuracy"], "o", **ring)
    for axis in (loss, accuracy):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set(xlabel="epoch", ylabel="training cross-entropy")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    _legend_outside(figure, loss, 3)
    return figure


def confusion(matrix: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Confusion matrix (C, C), rows = truth: colour is the share of the row, numbers are counts."""
    figure, [[axis]] = canvas(height=4.2)
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
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "share of the true class", "shrink": 0.8},
    )
    axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def reliability(frames: dict[str, pd.DataFrame], errors: dict[str, float]) -> Figure:
    """Accuracy over confidence, and how many images are how sure: name -> `metrics.reliability`; errors: their ECE."""
    figure, [[axis, sizes]] = canvas(1, 2, height=2.8, width_ratios=[1.3, 1])
    axis.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="calibrated")
    for (name, rows), look in zip(frames.items(), looks(frames).values(), strict=True):
        bars = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
        label = f"{name}, ECE {errors[name]:.3f}"
        style = {"color": look.colour, "marker": look.marker, "markersize": 4}
        axis.errorbar(rows["confidence"], rows["accuracy"], bars, linestyle="none", capsize=2, label=label, **style)
        sizes.plot(rows["confidence"], rows["images"] / rows["images"].sum(), label=name, **style)
    axis.set(xlabel="confidence", ylabel="test accuracy")
    sizes.set(xlabel="confidence", ylabel="share of the test images", xlim=axis.get_xlim())
    for formatted in (axis.xaxis, axis.yaxis, sizes.xaxis, sizes.yaxis):
        formatted.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend_outside(figure, axis, 3)
    return figure


# ---------------------------------------------------------------- 03 DynamicViT


def keep_ratio_curve(frame: pd.DataFrame, teacher: float, trained_at: float) -> Figure:
    """Accuracy and throughput over the keep ratio; columns keep_ratio, accuracy, low, high, images_per_second."""
    figure, [[accuracy, speed]] = canvas(1, 2, height=2.6)
    bars = [frame["accuracy"] - frame["low"], frame["high"] - frame["accuracy"]]
    look = looks(["DynamicViT"])["DynamicViT"]
    style = {"color": look.colour, "marker": look.marker, "markersize": 4}
    accuracy.errorbar(frame["keep_ratio"], frame["accuracy"], yerr=bars, capsize=2, label="DynamicViT", **style)
    accuracy.axhline(teacher, color=INK, linestyle="--", linewidth=1, label="its teacher")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.set(xlabel="keep ratio ρ", ylabel="accuracy")
    speed.plot(frame["keep_ratio"], frame["images_per_second"], label="DynamicViT", **style)
    speed.set(xlabel="keep ratio ρ", ylabel="images per second", ylim=(0, None))
    for axis in (accuracy, speed):
        axis.axvline(trained_at, color=MUTED, linestyle=":", label="trained at")
    accuracy.legend()
    return figure


# ---------------------------------------------------------------- 04 and 05 cost


def macs_by_component(rows: dict[str, dict[str, int]]) -> Figure:
    """Stacked bars of MACs: model -> component -> MACs."""
    figure, [[axis]] = canvas(height=0.34 * len(rows) + 1.1)
    frame = pd.DataFrame(rows).T / 1e6
    parts = frame.loc[::-1, frame.sum() > 0]
    colours = [COMPONENTS.get(name, PALETTE[-1]) for name in parts.columns]
    parts.plot.barh(stacked=True, ax=axis, width=0.75, color=colours, edgecolor="white", linewidth=0.5)
    axis.set(xlabel="million MACs per image", ylabel="")
    axis.grid(visible=False, axis="y")
    _legend_above(axis, 3)
    return figure


def growth(frame: pd.DataFrame, crossovers: dict[str, float]) -> Figure:
    """MACs, time and memory of one attention layer over tokens; columns as `complexity.growth` makes them.

    A dotted line in the panel of time marks the tokens from which a kind is faster than softmax, if they are in sight.
    """
    figure, [axes] = canvas(1, 3, height=2.7)
    look = looks(frame["attention"].unique())
    for kind, rows in frame.groupby("attention", sort=False):
        style = {"color": look[kind].colour, "marker": look[kind].marker, "markersize": 4}
        for axis, values in zip(axes, (rows["macs"] / 1e6, rows["seconds"] * 1e3, rows["bytes"] / 2**20), strict=True):
            axis.loglog(rows["tokens"], values, label=kind, **style)
        if rows["tokens"].min() < crossovers.get(kind, 0) < rows["tokens"].max():
            axes[1].axvline(crossovers[kind], linestyle=":", color=look[kind].colour)
    for axis, label in zip(axes, ("million MACs", "milliseconds", "MiB at the peak"), strict=True):
        axis.set(xlabel="tokens", ylabel=label)
    _legend_outside(figure, axes[0], 4)
    return figure


def cost_by_keep_ratio(frame: pd.DataFrame) -> Figure:
    """MACs, latency and throughput over the keep ratio, each relative to keep ratio 1."""
    figure, [[axis]] = canvas(height=2.6)
    whole = frame.loc[frame["keep_ratio"].idxmax()]
    columns = {"macs": "MACs", "latency_ms": "latency, batch 1", "images_per_second": "throughput"}
    for (column, label), marker in zip(columns.items(), cycle(MARKERS), strict=False):
        axis.plot(frame["keep_ratio"], frame[column] / whole[column], marker=marker, label=label)
    axis.axhline(1, color=MUTED, linewidth=0.8)
    axis.set(xlabel="keep ratio ρ", ylabel="relative to ρ = 1")
    axis.legend()
    return figure


# ---------------------------------------------------------------- 06 comparison


def hero(frame: pd.DataFrame) -> Figure:
    """The whole lab in a picture: test accuracy with its 95% interval over measured throughput and over MACs.

    Columns as `tables.results` makes them. Models are named beside their points; those that no other beats are joined.
    """
    figure, [axes] = canvas(1, 2, height=3.4, sharey=True)
    for axis, (column, unit, label) in zip(
        axes,
        (("images_per_second", 1, "images per second, in batches"), ("macs", 1e6, "million multiply-adds")),
        strict=True,
    ):
        known = frame.dropna(subset=[column])
        _points(axis, known, known[column] / unit)
        costs = known.assign(cost=1 / known[column] if column == "images_per_second" else known[column])
        best = costs[on_frontier(costs, "cost")].sort_values(column)
        axis.plot(
            best[column] / unit, best["accuracy"], color=MUTED, linewidth=1, linestyle=":", zorder=0, label="frontier"
        )
        axis.set(xlabel=label, xscale="log")
        wide = known[column].max() > 30 * known[column].min()
        axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.1)
    axes[0].set_ylabel("test accuracy")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend_outside(figure, axes[0], 3, "lower")
    return figure


def _points(axis: plt.Axes, frame: pd.DataFrame, places: pd.Series) -> None:
    """A marker with its interval for each model of a frame, the wider intervals behind."""
    look = looks(frame["model"])
    for row, place in zip(frame.itertuples(), places, strict=True):
        bars = [[row.accuracy - row.accuracy_low], [row.accuracy_high - row.accuracy]]
        style = {"color": look[row.model].colour, "marker": look[row.model].marker, "elinewidth": 1, "capsize": 2}
        axis.errorbar(place, row.accuracy, yerr=bars, linestyle="none", markersize=5.5, label=row.model, **style)


def accuracy_against_cost(frame: pd.DataFrame) -> Figure:
    """Test accuracy with its 95% interval over MACs, latency and training time; a point a model, and the frontier."""
    figure, [axes] = canvas(1, 3, height=3.4, sharey=True)
    costs = (
        ("macs", 1e6, "million MACs"),
        ("latency_ms", 1, "latency, batch 1 (ms)"),
        ("training_seconds", 60, "training (minutes)"),
    )
    for axis, (column, unit, label) in zip(axes, costs, strict=True):
        _points(axis, frame, frame[column] / unit)
        best = (frame[column] / unit)[on_frontier(frame, column)].sort_values()
        axis.step(best, frame["accuracy"][best.index], color=MUTED, ls=":", where="post", zorder=0, label="frontier")
        axis.set(xlabel=label, xlim=(0, 1.1 * frame[column].max() / unit))
    axes[0].set_ylabel("test accuracy")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    _legend_outside(figure, axes[0], 3, "lower")
    return figure


def recall_differences(frame: pd.DataFrame, reference: pd.Series) -> Figure:
    """Map of each model's recall minus the reference's by class, * where p < LEVEL: model, class, difference, p.

    reference: class -> recall of the model that the others are compared with, written below the classes.
    """
    points = frame.pivot(index="model", columns="class", values="difference") * 100
    points = points.loc[frame["model"].unique(), frame["class"].unique()]
    clear = frame.pivot(index="model", columns="class", values="p").loc[points.index, points.columns] < LEVEL
    few = points.shape[1] <= 20
    figure, [[axis]] = canvas(height=0.36 * len(points) + 1.4)
    sns.heatmap(
        points,
        annot=points.map("{:+z.0f}".format) + clear.map({True: "*", False: ""}.get) if few else False,
        fmt="",
        cmap=DIVERGING,
        vmin=-points.abs().to_numpy().max(),
        vmax=points.abs().to_numpy().max(),
        ax=axis,
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "difference (points)"},
    )
    if few:
        axis.set_xticklabels([f"{name}\n{reference[name]:.0%}" for name in points.columns])
    axis.set(xlabel=f"class, and its recall by {reference.name}", ylabel="")
    _class_axis(axis, tuple(points.columns))
    return figure
