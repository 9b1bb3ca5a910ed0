"""Figures as vector drawings: from matplotlib to SVG, and from one SVG to what a page and what paper needs.

A drawing has fixed colours, as paper wants them. In the page those of the theme become CSS variables, so that it
follows a reader who prefers dark.
"""

import io
import re
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from vitlab.analysis.theme import INK, MUTED, PALETTE, PALETTE_DARK, RULE, legible

POINT = 96 / 72  # CSS pixels
PNG_DPI = 144  # twice the size at which a notebook shows a figure
MOST_PANELS, LEAST_PANEL = 4, 90  # columns of panels, and points of width, that are stacked on a narrow screen

Piece = tuple[float, float, float, float]  # left, top, width, height in points
VARIABLES = {INK: "ink", "#000000": "ink", MUTED: "muted", "#808080": "muted", "#999999": "muted", RULE: "rule"}
VARIABLES |= {colour: f"series-{i}" for i, colour in enumerate(PALETTE)}


class Drawing(NamedTuple):
    """An SVG with its size in points, and the columns of its panels: each the pieces that stand side by side in it."""

    svg: str
    width: float
    height: float
    panels: list[list[Piece]]

    def on_white(self) -> str:
        """Where the page's own colours are not known."""
        return re.sub(
            r"(<svg[^>]*>)", r'\1<rect x="-9" y="-9" width="200%" height="200%" fill="#ffffff"/>', self.svg, count=1
        )


def drawing(figure: Figure) -> tuple[Drawing, bytes]:
    """A figure as SVG without background, and as PNG with a white one."""
    legible(figure)
    svg, png = io.StringIO(), io.BytesIO()
    plain = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(svg, format="svg", facecolor="none", dpi=200, metadata=plain)  # lays the figure out
    figure.set_layout_engine("none")
    figure.savefig(png, format="png", facecolor="white", dpi=PNG_DPI)
    boxes = {axes: _inches(axes.get_tightbbox(), figure.dpi) for axes in figure.axes if axes.get_visible()}
    parts = (figure, *figure.subfigs)  # whose titles and legends belong to no axes
    others = [_inches(item.get_window_extent(), figure.dpi) for part in parts for item in [*part.legends, *part.texts]]
    box = Bbox.union([area for area in [*boxes.values(), *others] if area.width > 0]).padded(0.02)
    panels = _panels(figure, boxes)
    plt.close(figure)
    text = _cropped(svg.getvalue(), box, figure.get_figheight())
    return Drawing(text, 72 * box.width, 72 * box.height, panels), png.getvalue()


def _inches(area: Bbox, unit: float) -> Bbox:
    return Bbox.from_extents(*(area.extents / unit))


def _cropped(svg: str, box: Bbox, height: float) -> str:
    """The part of matplotlib's SVG within `box`, inches from the lower left; the rest is empty."""
    places = (box.x0, height - box.y1, box.width, box.height)
    left, top, wide, high = (f"{72 * value:.2f}" for value in places)
    size = f'width="{wide}pt" height="{high}pt" viewBox="{left} {top} {wide} {high}"'
    return re.sub(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"', size, svg[svg.index("<svg") :], count=1)


def _panels(figure: Figure, boxes: dict[Axes, Bbox]) -> list[list[Piece]]:
    """What to show below each other on a narrow screen: columns of axes; nothing where there is one, or too many.

    boxes: of the axes with their labels, in inches. An axis that panels share stands in the first of
    them alone, so that its strip is put beside the others.
    """
    columns: list[tuple[Bbox, list[Axes]]] = []
    for axes, area in sorted(boxes.items(), key=lambda pair: pair[1].x0):
        if not (axes.axison or axes.images or axes.collections):
            continue
        if columns and area.x0 < columns[-1][0].x1 - 0.05:
            columns[-1] = (Bbox.union([columns[-1][0], area]), [*columns[-1][1], axes])
        else:
            columns.append((area, [axes]))
    if not 1 < len(columns) <= MOST_PANELS or min(area.width for area, _ in columns) * 72 < LEAST_PANEL:
        return []
    top, bottom = max(area.y1 for area, _ in columns), min(area.y0 for area, _ in columns)

    def piece(left: float, right: float, high: float = top, low: float = bottom) -> Piece:
        places = (left, figure.get_figheight() - high, right - left, high - low)
        return tuple(round(72 * value, 2) for value in places)

    first = min(columns[0][1], key=lambda axes: axes.get_position().x0)
    strip = piece(columns[0][0].x0, _inches(first.get_window_extent(), figure.dpi).x0 - 0.02)
    panels = []
    for number, (area, [axes, *_]) in enumerate(columns):
        shares = number > 0 and axes.get_shared_y_axes().joined(axes, first) and not _has_labels(axes)
        own = piece(area.x0 - (0 if shares else 0.03), area.x1 + 0.03)
        panels.append([strip, own] if shares else [own])
    legends = [_inches(legend.get_window_extent(), figure.dpi) for legend in figure.legends]
    for area in legends:
        at = 0 if area.y0 > top - 0.1 else len(panels)  # above the panels, or below
        panels.insert(at, [piece(area.x0, area.x1, area.y1, area.y0)])
    return panels


def _has_labels(axes: Axes) -> bool:
    return any(label.get_visible() and label.get_text() for label in axes.get_yticklabels())


def with_own_ids(svg: str, prefix: str) -> str:
    """The same SVG with ids that no other of the page has, and without those that nothing refers to."""
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    names = {old: f"{prefix}-{number}" for number, old in enumerate(used)}

    def rename(match: re.Match[str]) -> str:
        return f' id="{names[match[1]]}"' if match[1] in names else ""

    svg = re.sub(r' id="([^"]*)"', rename, svg)
    return re.sub(r'(url\(#|href="#)([^")]+)', lambda match: match[1] + names[match[2]], svg)


def themed(svg: str) -> str:
    """The same SVG in the page's colours, in which white is the paper, but for white letters on something dark."""

    def swap(match: re.Match[str]) -> str:
        tag, white = match[0], not match[0].startswith(("<text", "<tspan"))
        for colour, name in VARIABLES.items():
            tag = tag.replace(colour, f"var(--{name})")
        return re.sub(r"(?<=[ :\"])#ffffff", "var(--paper)", tag) if white else tag

    return re.sub(r"<(?!image|style)\w[^>]*>", swap, svg)


def embedded(shown: Drawing, name: str, title: str) -> str:
    """HTML of a drawing: whole on a wide screen; on a narrow one its panels below each other.

    Panels show parts of the whole, so that nothing is drawn twice. title: alternative text, as HTML.
    """
    inner = themed(with_own_ids(shown.svg, name))
    size = re.search(r'viewBox="[^"]*"', shown.svg)[0]
    inner = re.sub(r"^<svg[^>]*>", "", inner).removesuffix("\n").removesuffix("</svg>")
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", inner, flags=re.DOTALL)
    whole = (
        f'<svg class="whole" role="img" aria-label="{title}" {size} style="width:{shown.width * POINT:.0f}px" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><g id="{name}-all">{inner}</g></svg>'
    )
    if not shown.panels:
        return f'<div class="picture">{whole}</div>'
    return f'{whole}<div class="panels" aria-hidden="true">{"".join(_panel(p, name) for p in shown.panels)}</div>'


def _panel(pieces: list[Piece], name: str) -> str:
    width, height, at, parts = sum(piece[2] for piece in pieces), pieces[0][3], 0.0, []
    for x, y, w, h in pieces:
        parts.append(
            f'<svg x="{at:.2f}" y="0" width="{w:.2f}" height="{h:.2f}" viewBox="{x:.2f} {y:.2f} {w:.2f} {h:.2f}">'
            f'<use href="#{name}-all"/></svg>'
        )
        at += w
    style = f"max-width:{width * POINT * 1.5:.0f}px"
    return f'<svg viewBox="0 0 {width:.2f} {height:.2f}" style="{style}">{"".join(parts)}</svg>'


def dark_series() -> str:
    """CSS declarations of the palette as it is on a dark page."""
    return " ".join(f"--series-{i}: {colour};" for i, colour in enumerate(PALETTE_DARK))


def light_series() -> str:
    """CSS declarations of the palette as it is on a light page, and on paper."""
    return " ".join(f"--series-{i}: {colour};" for i, colour in enumerate(PALETTE))
