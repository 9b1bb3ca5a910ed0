"""What several charts share: names, legends, heatmaps."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Formatter, PercentFormatter

from vitlab.texts import NAME_WIDTH, shortened, signed, width

MOST_LABELS = 20  # of classes along an axis; of more every second, or third, is named
ONE_SEED = ", one seed"  # ends the name of a series that stands among a chart's numbers and not in its legend
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)


def own_names(module: dict[str, object]) -> list[str]:
    """The functions that a module defines itself: what a reader who types `plots.` is offered."""
    own = (name for name, value in module.items() if getattr(value, "__module__", None) == module["__name__"])
    return sorted(name for name in own if not name.startswith("_"))


class Percent(PercentFormatter):
    """Shares as percentages, each as it is: half a percent is not rounded away."""

    def format_pct(self, x: float, display_range: float) -> str:
        return signed(self.convert_to_pct(x), "z.6g") + self.symbol


class Names(Formatter):
    """Names in place of numbers; `names` has all of them by place, also where an axis writes every second alone."""

    def __init__(self, names: dict[float, str]) -> None:
        self.names = names

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.names.get(x, "")


def name_places(axis: Axis, places: Iterable[float], names: Iterable[str], most: int = MOST_LABELS) -> None:
    """Write names along an axis, of more than `most` every second, third, …"""
    named = dict(zip(map(float, places), names, strict=True))
    axis.set_major_locator(FixedLocator(list(named)[:: -(-len(named) // most)]))
    axis.set_major_formatter(Names(named))


def in_percent(*axes: Axis) -> None:
    for axis in axes:
        axis.set_major_formatter(Percent(1))


def legend_above(axis: plt.Axes, columns: int) -> None:
    """A legend over the axes, where it hides no data."""
    axis.legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def legend_outside(figure: Figure, axis: plt.Axes, columns: int, place: str = "upper") -> None:
    """One legend for all panels, of what `axis` shows, above or below them; of two of a name it has the line."""
    found: dict[str, Artist] = {}
    for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
        if not label.endswith(ONE_SEED):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc=f"outside {place} center", ncols=columns)


def drawable(names: Iterable[str], columns: int = NAME_WIDTH) -> list[str]:
    """Names that users gave, as figures show them: not too long, and a dollar begins no formula."""
    return [name.replace("$", r"\$") for name in shortened(names, columns)]


def heatmap(
    axis: plt.Axes,
    values: np.ndarray,
    texts: np.ndarray | None,
    names: tuple[Sequence[str], Sequence[str]],
    *,
    cmap: str,
    limits: tuple[float, float],
    fontsize: float = 8,
    all_rows: bool = False,
) -> QuadMesh:
    """`values` (R, C) as colours between `limits`, `texts` (R, C) written on them; names: of rows, of columns.

    Of more names than `MOST_LABELS` every second, third, … is written, but of rows if all are asked for.
    """
    # edges of their own colour: the page behind would show as hairlines between the cells of a vector figure
    mesh = axis.pcolormesh(values, cmap=cmap, vmin=limits[0], vmax=limits[1], edgecolors="face", linewidth=0.3)
    for edge in axis.spines.values():
        edge.set_visible(False)
    rows, columns = names
    name_places(axis.yaxis, np.arange(len(rows)) + 0.5, rows, len(rows) if all_rows else MOST_LABELS)
    name_places(axis.xaxis, np.arange(len(columns)) + 0.5, columns)
    axis.set_ylim(len(rows), 0)  # the first row on top, also where axes share their rows
    class_axis(axis, columns)
    bright = mesh.to_rgba(values)[..., :3] @ LUMA > 0.5
    for (row, column), text in np.ndenumerate(texts) if texts is not None else ():
        style = {"color": "0.15" if bright[row, column] else "w", "fontsize": fontsize}
        axis.text(column + 0.5, row + 0.5, str(text), ha="center", va="center", **style)
    return mesh


def class_axis(axis: plt.Axes, classes: Sequence[str]) -> None:
    """Turn the names of classes along an axis so that they do not overlap."""
    longest = max(map(width, classes))
    few = len(classes) <= MOST_LABELS
    axis.tick_params(axis="x", rotation=0 if few and longest <= 3 else 30 if few and longest <= 12 else 90)
