"""The charts of the imbalance study, one function each: plain arrays or tables in, a matplotlib Figure out."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vitlab.analysis.chart_parts import ONE_SEED, drawable, heatmap, in_percent, legend_outside, name_places
from vitlab.analysis.sentences import words
from vitlab.analysis.study import SCORES
from vitlab.analysis.theme import PALETTE, canvas, remedy_looks
from vitlab.texts import width
from vitlab.training.losses import DEFERRED


def remedy_effects(frame: pd.DataFrame) -> Figure:
    """What each remedy does to each class, the commonest first; columns as `study.remedy_effects` makes them."""
    figure, axes = canvas(2, 2, height=4.6, sharex=True)
    panels = {
        "drawn": "share of the images drawn",
        "weight": "weight in the loss",
        "share": "share of the loss",
        "margin": "margin asked for (logits)",
    }
    classes = drawable(frame["class"].unique())
    look = remedy_looks(frame["remedy"].unique())
    for axis, (column, label) in zip(axes.flat, panels.items(), strict=True):
        for i, (remedy, rows) in enumerate(frame.groupby("remedy", sort=False)):
            colour, marker = look[remedy]
            size = max(3, 10 - i)  # equal ones lie on top of each other: the larger show behind the smaller
            style = {"color": colour, "marker": marker, "markersize": size, "linewidth": 1}
            axis.plot(range(len(rows)), rows[column], label=words(remedy), **style)
        axis.set(ylabel=label, yscale="linear" if column == "margin" else "log")
        name_places(axis.xaxis, range(len(classes)), classes)
        axis.tick_params(axis="x", rotation=90 if max(map(width, classes)) > 3 else 0)
    axes[0, 0].sharey(axes[1, 0])
    figure.supxlabel("class, commonest first", fontsize=9)
    legend_outside(figure, axes[0, 0], 4)
    return figure


def remedy_scores(frame: pd.DataFrame) -> Figure:
    """Macro F1, recall of the commonest, the middle and the rarest classes by remedy: a dot a seed, a bar at the mean.

    Of a single seed the line is the interval over test images; columns as `study.Study.scores` has them.
    """
    columns = {column: label for column, label in SCORES.items() if column in frame}
    figure, [axes] = canvas(1, len(columns), height=3.0, sharey=True)
    order = list(dict.fromkeys(frame["remedy"]))
    places = frame["remedy"].map(order.index)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        if len(frame) == len(order):
            axis.hlines(places, frame[f"{column}_low"], frame[f"{column}_high"], color="0.5", label="95% interval")
        else:
            means = frame.groupby("remedy")[column].mean()
            axis.scatter(means[order], range(len(order)), marker="|", s=140, color="black", label="mean")
        base = frame.loc[frame["remedy"] == "none", column].mean()
        axis.axvline(base, color="0.6", linewidth=0.8, linestyle=":", label="without a remedy")
        axis.scatter(frame[column], places, s=14, color=PALETTE[0], alpha=0.6, label="one seed")
        axis.set(xlabel=label)
        in_percent(axis.xaxis)
    axes[0].set_yticks(range(len(order)), [words(name) for name in order])
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    legend_outside(figure, axes[0], 3)
    return figure


def confusions(matrices: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """Confusion matrices side by side, rows = truth, the commonest class first: name -> (C, C) counts.

    Colour and number are the share of the true class, in percent; diagonals included. Many classes leave the numbers
    no room: then a bar says what the colours are.
    """
    figure, [axes] = canvas(1, len(matrices), height=3.6, sharey=True)
    few, names = len(classes) <= 12, drawable(classes)
    for axis, (name, matrix) in zip(axes, matrices.items(), strict=True):
        shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        texts = np.where(shares >= 1, np.char.mod("%.0f", shares), "") if few else None
        mesh = heatmap(axis, shares, texts, (names, names), cmap="Blues", limits=(0, 100), fontsize=6)
        axis.set_aspect("equal")
        axis.set_title(words(name), fontsize=9)
        axis.set_xlabel("answer")
        axis.tick_params(labelsize=7)
        axis.tick_params(axis="x", rotation=90)
    axes[0].set_ylabel("true class")
    if not few:
        figure.colorbar(mesh, ax=list(axes), label="percent of the true class", shrink=0.8)
    return figure


def f1_over_training(curves: dict[str, pd.DataFrame], switch: float) -> Figure:
    """Macro F1 over the steps: name -> step, val_macro_f1; a line where the share `switch` of the steps is over.

    From there on deferred weights count: without a remedy that has them there is no line.
    """
    figure, [[axis]] = canvas(height=3.0)
    look = remedy_looks(curves)
    for name, rows in curves.items():
        colour, marker = look[name]
        style = {"color": colour, "marker": marker, "markevery": max(1, len(rows) // 8), "markersize": 4, "lw": 1.2}
        axis.plot(rows["step"], rows["val_macro_f1"], label=words(name), **style)
    if {*DEFERRED} & {*curves}:
        last = max(rows["step"].max() for rows in curves.values())
        axis.axvline(switch * last, color="0.6", linestyle=":", label="deferred weights begin")
    axis.set(xlabel="training step", ylabel="macro F1, validation")
    in_percent(axis.yaxis)
    legend_outside(figure, axis, 4)
    return figure


def accuracy_against_calibration(frame: pd.DataFrame) -> Figure:
    """Accuracy over the calibration error by remedy: a small mark a seed, a large one at the mean."""
    figure, [[axis]] = canvas(height=3.2)
    look = remedy_looks(frame["remedy"].unique())
    for name, rows in frame.groupby("remedy", sort=False):
        colour, marker = look[name]
        x, y = rows["calibration_error"], rows["accuracy"]
        axis.plot(x, y, marker, color=colour, markersize=3, alpha=0.6, label=words(name) + ONE_SEED)
        axis.plot(x.mean(), y.mean(), marker, color=colour, markersize=8, label=words(name))
    axis.set(xlabel="calibration error: left is better", ylabel="test accuracy: up is better")
    in_percent(axis.yaxis)
    legend_outside(figure, axis, 5)
    return figure
