"""One function a chart; `study_plots` has those of the imbalance study, `pictures` those that show images.

Each takes plain arrays or tables and returns a matplotlib Figure, titled by its caption.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from vitlab.analysis.chart_parts import (
    MOST_LABELS,
    ONE_SEED,
    class_axis,
    drawable,
    heatmap,
    in_percent,
    legend_above,
    legend_outside,
    name_places,
    own_names,
)
from vitlab.analysis.metrics import on_frontier, shown
from vitlab.analysis.theme import DIVERGING, INK, MARKERS, MUTED, PALETTE, canvas, looks
from vitlab.texts import signed, unit_of_time

FINE = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)  # marks of a logarithmic axis of little more than an octave
HIGHEST = 5.3  # inches: no higher than the paper has a figure unscaled
# a part of a model has the same colour in every figure
COMPONENTS = {
    "tokenizer": PALETTE[7],
    "projections": PALETTE[0],
    "attention": PALETTE[1],
    "mlp": PALETTE[4],
    "predictors": PALETTE[3],
    "head": PALETTE[6],
    "E K, F V": PALETTE[2],  # Linformer's projections
    "local term": PALETTE[5],  # InLine's
}


# ---------------------------------------------------------------- 01 data and imbalance


def class_counts(counts: dict[str, Tensor], classes: tuple[str, ...]) -> Figure:
    """Bars of images per class, one group of bars a data set: name -> (C,) counts."""
    figure, [[axis]] = canvas(height=2.7)
    classes = drawable(classes)
    frame = pd.DataFrame({name: values.numpy() for name, values in counts.items()}, index=classes)
    frame.plot.bar(ax=axis, width=0.8, color=PALETTE[: len(counts)], edgecolor="white")
    few = len(frame.columns) * len(frame) <= MOST_LABELS
    for container in axis.containers if few else []:
        axis.bar_label(container, fontsize=8, padding=1)
    axis.set(xlabel="class", ylabel="training images")
    name_places(axis.xaxis, range(len(classes)), classes)
    class_axis(axis, classes)
    axis.grid(visible=False, axis="x")
    legend_above(axis, len(counts))
    return figure


# ---------------------------------------------------------------- 02 ViT


def training_curves(
    histories: dict[str, pd.DataFrame], chosen: dict[str, int], others: dict[str, list[pd.DataFrame]] | None = None
) -> Figure:
    """Training loss by epoch, validation accuracy by epoch and by minutes; a ring marks the weights that were kept.

    others: name -> histories of further seeds, drawn thin in the same colour by epoch, not by minutes, which depend on
    what else the machine did. Without validation the loss stands for the accuracy by minutes.
    """
    validated = any("val_accuracy" in history for history in histories.values())
    score = "val_accuracy" if validated else "cls"
    figure, [[loss, *between, clock]] = canvas(1, 3 if validated else 2, height=2.9)
    look = looks(histories)
    for name, history in histories.items():
        colour, every = look[name].colour, max(1, len(history) // 8)
        style = {"marker": look[name].marker, "markevery": every, "markersize": 4, "linewidth": 1.2, "color": colour}
        style["label"] = name
        loss.plot(history["epoch"], history["cls"], **style)
        panels = dict.fromkeys(between, lambda rows: rows["epoch"]) | {clock: lambda rows: rows["seconds"] / 60}
        for axis, along in panels.items() if score in history else ():
            axis.plot(along(history), history[score], **style)
            thin = {"color": colour, "linewidth": 0.6, "alpha": 0.5, "label": f"{name}, another seed"}
            for other in (others or {}).get(name, []) if axis is not clock or not validated else []:
                axis.plot(along(other), other[score], **thin)
            row = history[history["epoch"] == chosen[name]]
            axis.plot(along(row), row[score], "o", markersize=9, fillstyle="none", color=colour)
    for axis in (loss, *between):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # one epoch is one tick
        axis.set_xlabel("epoch")
    loss.set_ylabel("training cross-entropy")
    clock.set_xlabel("minutes of training")
    clock.sharey((between or [loss])[0])
    for axis in between:
        axis.set_ylabel("validation accuracy")
        in_percent(axis.yaxis)
    legend_outside(figure, loss, 3, "lower")
    return figure


def confusion(matrix: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Confusion matrix (C, C), rows = truth: colour is the share of the row, numbers are counts."""
    figure, [[axis]] = canvas(height=4.2)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names, counts = drawable(classes), matrix if len(classes) <= MOST_LABELS else None
    mesh = heatmap(axis, shares, counts, (names, names), cmap="Blues", limits=(0, 1))
    figure.colorbar(mesh, ax=axis, label="share of the true class", shrink=0.8)
    axis.set(xlabel="predicted class", ylabel="true class", aspect="equal")
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
    in_percent(axis.xaxis, axis.yaxis, sizes.xaxis, sizes.yaxis)
    legend_outside(figure, axis, 3)
    return figure


# ---------------------------------------------------------------- 03 fewer tokens


def accuracy_over_tokens(panels: dict[str, pd.DataFrame], unreduced: dict[str, float], speed_up: pd.Series) -> Figure:
    """Accuracy over the tokens a block sees, a panel a ViT, a line a method; to the right the throughput.

    panels: columns method, tokens, accuracy, low, high; unreduced: the accuracy with all tokens, by panel; speed_up:
    images a second over the unreduced ViT's, by method.
    """
    figure, [axes] = canvas(1, len(panels) + 1, height=3.0, width_ratios=[1.3] * len(panels) + [1])
    style = {n: {"color": look.colour, "marker": look.marker} for n, look in looks(speed_up.index).items()}
    small = {"markersize": 4, "capsize": 2, "linewidth": 1}
    for axis, (title, frame) in zip(axes, panels.items(), strict=False):
        for name, rows in frame.groupby("method", sort=False):
            bars = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
            axis.errorbar(rows["tokens"], rows["accuracy"], bars, label=name, **style[name], **small)
        axis.axhline(unreduced[title], color=INK, linestyle="--", linewidth=1)
        axis.set_title(title)
        axis.set(xlabel="tokens a block, mean")
        in_percent(axis.yaxis)
    axes[0].set_ylabel("accuracy")
    for place, name in enumerate(speed_up.index):
        axes[-1].barh(place, speed_up[name], color=style[name]["color"], label=name)
        axes[-1].plot(speed_up[name], place, color=INK, marker=style[name]["marker"], markersize=4)
        axes[-1].plot([], [], label=name, markersize=4, **style[name])  # the legend's: two bars may have one colour
    axes[-1].axvline(1, color=INK, linestyle="--", linewidth=1)
    axes[-1].set(xlabel="throughput over\nthe unreduced ViT's", yticks=[])
    axes[-1].invert_yaxis()
    legend_outside(figure, axes[-1], 4)
    return figure


# ---------------------------------------------------------------- 04 and 05 linear attention, cost


def recall_by_class(recalls: dict[str, np.ndarray], classes: tuple[str, ...]) -> Figure:
    """From the recall of each class under the first name to that under each other one: name -> (C,) recall."""
    (first, base), *others = recalls.items()
    columns = min(3, len(others))
    rows = -(-len(others) // columns)
    height = rows * (0.15 * min(len(classes), MOST_LABELS) + 0.7) + 0.3
    figure, axes = canvas(rows, columns, height=min(height, HIGHEST), sharex=True, sharey=True)
    places = np.arange(len(classes))
    for axis, (name, values) in zip(axes.flat, others, strict=False):
        axis.hlines(places, base, values, color=MUTED)
        axis.plot(base, places, "o", color=INK, fillstyle="none", markersize=4, label=first.replace("_", " "))
        axis.plot(values, places, "D", color=PALETTE[0], markersize=4, label="as titled")
        axis.set_title(name.replace("_", " "))
        in_percent(axis.xaxis)
    for axis in axes.flat[len(others) :]:
        axis.set_axis_off()
    for column in range(columns):  # the lowest panel of each has the scale, though a place below may be empty
        lowest = axes[(len(others) - 1 - column) // columns, column]
        lowest.xaxis.set_tick_params(labelbottom=True)
    name_places(axes[0, 0].yaxis, places, drawable(classes))
    axes[0, 0].invert_yaxis()
    figure.supxlabel("test recall", fontsize=9)
    legend_outside(figure, axes[0, 0], 2)
    return figure


def macs_by_component(rows: dict[str, dict[str, int]]) -> Figure:
    """Stacked bars of MACs: model -> component -> MACs."""
    figure, [[axis]] = canvas(height=0.34 * len(rows) + 1.1)
    frame = pd.DataFrame(rows).T / 1e6
    parts = frame.loc[::-1, frame.sum() > 0]
    colours = [COMPONENTS.get(name, PALETTE[-1]) for name in parts.columns]
    parts.plot.barh(stacked=True, ax=axis, width=0.75, color=colours, edgecolor="white", linewidth=0.5)
    axis.set(xlabel="million MACs per image", ylabel="")
    axis.grid(visible=False, axis="y")
    legend_above(axis, 3)
    return figure


def growth(frame: pd.DataFrame, crossovers: dict[str, float]) -> Figure:
    """MACs, time and memory of one attention layer over tokens; columns as `complexity.medians` makes them.

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
    legend_outside(figure, axes[0], 4)
    return figure


def cost_by_keep_ratio(frame: pd.DataFrame) -> Figure:
    """MACs, latency and throughput over the keep ratio, each relative to keep ratio 1.

    frame: `complexity.by_keep_ratio`; times are compared within each round, bars reach from quartile to quartile.
    """
    figure, [[axis]] = canvas(height=2.6)
    whole = frame.loc[frame["keep_ratio"].idxmax()]
    axis.plot(frame["keep_ratio"], frame["macs"] / whole["macs"], marker=MARKERS[0], label="MACs")
    columns = {"latency_rounds_ms": "latency, batch 1", "images_per_second_rounds": "throughput"}
    for (column, label), marker in zip(columns.items(), MARKERS[1:], strict=False):
        relative = [np.divide(rounds, whole[column]) for rounds in frame[column]]
        low, middle, high = np.quantile(relative, [0.25, 0.5, 0.75], axis=1)
        bars = [middle - low, high - middle]
        axis.errorbar(frame["keep_ratio"], middle, bars, marker=marker, capsize=2, label=label)
    axis.axhline(1, color=MUTED, linewidth=0.8)
    axis.set(xlabel="keep ratio ρ", ylabel="relative to ρ = 1")
    axis.legend()
    return figure


# ---------------------------------------------------------------- 06 comparison


def hero(frame: pd.DataFrame) -> Figure:
    """The whole lab in a picture: test accuracy with its 95% interval over measured throughput and over MACs.

    Columns as `tables.by_model` makes them. Models are named in a legend below; those that no other beats are joined.
    """
    figure, [axes] = canvas(1, 2, height=3.0, sharey=True)
    for axis, (column, unit, label) in zip(
        axes,
        (("images_per_second", 1, "images per second, in batches"), ("macs", 1e6, "million multiply-adds")),
        strict=True,
    ):
        known = frame.dropna(subset=[column])
        _points(axis, known, known[column] / unit)
        costs = known.assign(cost=1 / known[column] if column == "images_per_second" else known[column])
        best = costs[on_frontier(costs, "cost")].sort_values(column)
        worse = "pre" if column == "images_per_second" else "post"  # between two on the frontier there is no model
        axis.step(best[column] / unit, best["accuracy"], color=MUTED, ls=":", where=worse, zorder=0, label="frontier")
        axis.set(xlabel=label, xscale="log")
        wide = known[column].max() / known[column].min()
        axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide > 30 else (1, 2, 5) if wide > 4 else FINE))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.1)
    axes[0].set_ylabel("test accuracy")
    in_percent(axes[0].yaxis)
    legend_outside(figure, axes[0], 3, "lower")
    return figure


def _points(axis: plt.Axes, frame: pd.DataFrame, places: pd.Series, runs: pd.DataFrame | None = None) -> None:
    """A marker with its interval for each model of a frame; of several seeds also their dots."""
    look, names = looks(frame["model"]), drawable(frame["model"], 40)
    above = 2 + frame["accuracy"].rank(pct=True)  # the best are drawn over the others
    for row, place, name, order in zip(frame.itertuples(), places, names, above, strict=True):
        bars = [[row.accuracy - row.accuracy_low], [row.accuracy_high - row.accuracy]]
        colour, marker = look[row.model]
        style = {"color": colour, "marker": marker, "elinewidth": 1, "capsize": 2, "markersize": 5.5}
        axis.errorbar(place, row.accuracy, yerr=bars, linestyle="none", label=name, zorder=order, **style)
        seeds = runs["accuracy"][runs["model"] == row.model] if runs is not None else []
        if len(seeds) > 1:
            dots = {"color": colour, "alpha": 0.5, "markersize": 4, "label": name + ONE_SEED}
            axis.plot([place] * len(seeds), seeds, ".", **dots)


def accuracy_against_cost(frame: pd.DataFrame, runs: pd.DataFrame | None = None) -> Figure:
    """Test accuracy with its 95% interval over MACs, latency and training time; a point a model, and the frontier.

    frame: `tables.by_model`; runs: `tables.results`, of which those of several seeds are drawn as dots.
    """
    figure, [axes] = canvas(1, 3, height=2.7 + 0.17 * -(-(len(frame) + 1) // 3), sharey=True)
    time, length, _ = unit_of_time(frame["training_seconds"])
    costs = (
        ("macs", 1e6, "million MACs"),
        ("latency_ms", 1, "latency, batch 1 (ms)"),
        ("training_seconds", length, f"training ({time})"),
    )
    for axis, (column, unit, label) in zip(axes, costs, strict=True):
        places = frame[column] / unit
        _points(axis, frame, places, runs)
        best = places[on_frontier(frame, column)].sort_values()
        axis.step(best, frame["accuracy"][best.index], color=MUTED, ls=":", where="post", zorder=0, label="frontier")
        axis.set(xlabel=label)
        if places.max() > 20 * places.min():  # a yardstick far from the others would press them together
            axis.set_xscale("log")
        else:
            axis.set_xlim(0, 1.1 * places.max())
    axes[0].set_ylabel("test accuracy")
    in_percent(axes[0].yaxis)
    legend_outside(figure, axes[0], 3, "lower")
    return figure


def recall_differences(frame: pd.DataFrame, reference: pd.Series) -> Figure:
    """Map of each model's recall minus the reference's by class, * where it is shown.

    frame: model, class, difference, p, as of `tables.recall_differences`; reference: class -> recall of the
    model that the others are compared with, written below the classes where they are few.
    """
    points = frame.pivot(index="model", columns="class", values="difference") * 100
    points = points.loc[frame["model"].unique(), frame["class"].unique()]
    stars = frame.assign(shown=shown(frame)).pivot(index="model", columns="class", values="shown")
    clear = stars.loc[points.index, points.columns]
    few = points.shape[1] <= MOST_LABELS
    classes, [reference_name] = drawable(points.columns), drawable([reference.name], 40)
    recalls = [f"{label}\n{reference[name]:.0%}" for name, label in zip(points.columns, classes, strict=True)]
    points.columns = clear.columns = classes
    figure, [[axis]] = canvas(height=min(0.36 * len(points) + 1.4, HIGHEST))
    texts = points.map(partial(signed, form="+z.0f")) + clear.map({True: "*", False: ""}.get)
    most = points.abs().to_numpy().max()
    mesh = heatmap(
        axis,
        points.to_numpy(),
        texts.to_numpy() if few else None,
        (drawable(points.index, 40), classes),
        cmap=DIVERGING,
        limits=(-most, most),
        all_rows=True,
    )
    figure.colorbar(mesh, ax=axis, label="difference (points)")
    if few:
        axis.set_xticklabels(recalls)
    axis.set_xlabel(f"class, and its recall by {reference_name}" if few else "class")
    return figure


__all__ = own_names(globals())


def __dir__() -> list[str]:
    return __all__
