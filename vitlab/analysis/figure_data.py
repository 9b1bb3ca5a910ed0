"""The numbers that a chart shows, read from the chart itself: what it draws is what a reader downloads."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FuncFormatter

from vitlab.analysis.chart_parts import Names


def data_of(figure: Figure) -> pd.DataFrame:
    """A row for each point, bar or cell of a figure: panel, series, x, y, and the ends of its interval if it has one.

    Where an axis has names instead of numbers the name stands. Guides without a name, and images, are left out.
    """
    rows = []
    charts = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    for number, axes in enumerate(charts, 1):
        found = [{"panel": _name(axes, number), **row} for row in _rows(axes)]
        rows += _named(axes, found)
    frame = pd.DataFrame(rows).dropna(axis="columns", how="all")
    return frame.map(
        lambda value: value.replace(r"\$", "$") if isinstance(value, str) else value
    )  # as `drawable` has it


def _name(axes: Axes, number: int) -> str:
    """Its title, or what it shows over what."""
    sharing = [axes, *axes.get_shared_y_axes().get_siblings(axes)]  # one of which has the label
    over = [next(filter(None, map(Axes.get_ylabel, sharing)), ""), axes.get_xlabel()]
    return axes.get_title().replace("\n", " ") or " over ".join(filter(None, over)) or f"panel {number}"


def _rows(axes: Axes) -> list[dict]:
    rows, drawn = [], set()
    for container in axes.containers:
        label = _public(container.get_label())
        if isinstance(container, BarContainer):
            drawn.update(map(id, container.patches))
            of_bars = []
            for bar in container.patches:
                flat = container.orientation == "horizontal"
                place = bar.get_y() + bar.get_height() / 2 if flat else bar.get_x() + bar.get_width() / 2
                size = bar.get_width() if flat else bar.get_height()
                x, y = (size, place) if flat else (place, size)
                of_bars.append({"series": label, "x": x, "y": y})
            rows += _ended(of_bars, container.errorbar.lines[2][0] if container.errorbar else None)
        elif isinstance(container, ErrorbarContainer):
            line, _, bars = container.lines
            drawn.update(map(id, [line, *container.lines[1], *bars]))
            if line is not None:
                rows += _with_ends(line, bars[0] if bars else None, label)
            elif not any(getattr(other, "errorbar", None) is container for other in axes.containers):  # ends alone
                middles = [segment.mean(0) for segment in bars[0].get_segments()] if bars else []
                rows += _ended([{"series": label, "x": x, "y": y} for x, y in middles], bars[0] if bars else None)
    for line in axes.lines:
        # a guide has two points and no name, or crosses the whole panel, whose edges are no data
        named = _public(line.get_label()) or len(line.get_xdata()) > 2
        if id(line) not in drawn and named and line.get_transform() is axes.transData:
            rows += _with_ends(line, None, line.get_label())
    for artist in axes.collections:
        if id(artist) not in drawn:
            rows += _of_collection(artist)
    return rows


def _with_ends(line: Line2D, bars: LineCollection | None, label: str) -> list[dict]:
    return _ended([{"series": _public(label), "x": x, "y": y} for x, y in zip(*line.get_data(), strict=True)], bars)


def _ended(rows: list[dict], bars: LineCollection | None) -> list[dict]:
    """The rows with the ends of their error bars, as low and high."""
    for row, segment in zip(rows, bars.get_segments() if bars else (), strict=False):
        upright = np.ptp(segment[:, 0]) <= np.ptp(segment[:, 1])
        low, high = sorted(segment[:, int(upright)])
        row |= {"low": low, "high": high}
    return rows


def _of_collection(artist: object) -> list[dict]:
    if isinstance(artist, QuadMesh):
        values = np.atleast_2d(np.asarray(artist.get_array(), dtype=float))
        return [
            {"series": "", "x": column + 0.5, "y": row + 0.5, "value": value}
            for (row, column), value in np.ndenumerate(values)
        ]
    label = _public(str(artist.get_label()))
    if isinstance(artist, PathCollection):
        return [{"series": label, "x": x, "y": y} for x, y in np.asarray(artist.get_offsets())]
    if isinstance(artist, LineCollection):  # intervals on their own
        ends = ((segment.min(axis=0), segment.max(axis=0)) for segment in artist.get_segments() if len(segment))
        return [
            {"series": label, "y": low[1], "low": low[0], "high": high[0]}
            if high[0] - low[0] >= high[1] - low[1]
            else {"series": label, "x": low[0], "low": low[1], "high": high[1]}
            for low, high in ends
        ]
    return []


def _public(label: str) -> str:
    return "" if label.startswith("_") else label


def _named(axes: Axes, rows: list[dict]) -> list[dict]:
    """Names in place of positions, where an axis has names."""
    for key, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        formatter, names = axis.get_major_formatter(), {}
        if isinstance(formatter, Names):
            names = {round(place, 6): text.replace("\n", " ") for place, text in formatter.names.items()}
        elif isinstance(formatter, FixedFormatter | FuncFormatter) or axis.have_units():
            labels = {
                round(float(p), 6): t.get_text()
                for p, t in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
            }
            names = {place: text.replace("\n", " ") for place, text in labels.items() if text}
        for row in rows if names else ():
            if key in row and isinstance(row[key], float | int | np.number):
                row[key] = names.get(round(float(row[key]), 6), row[key])
    return rows
