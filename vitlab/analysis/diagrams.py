"""Diagrams drawn by code, as SVG, in the figures' typeface and colours, with the numbers of a run on them.

Each returns a `Drawing`, which `show_figure` numbers and the report sets as it sets a figure.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from torch import nn

from vitlab.analysis.drawing import Drawing
from vitlab.analysis.theme import FONT, INK, MUTED, PALETTE, RULE, WIDTH

if TYPE_CHECKING:
    from vitlab.config import RunConfig

POINTS = WIDTH * 72
LINE = 11.0  # points between lines of text
MOST_STAGES = 6  # convolutions that are drawn one by one
INDIGO, ORANGE, GREEN, PURPLE, SKY, *_ = PALETTE


def inner(size: float) -> float:
    """A cell without the gap to the next one."""
    return size - min(1, 0.15 * size)


class Canvas:
    """Boxes, arrows and words, collected as SVG; places are in points from the upper left."""

    def __init__(self, height: float) -> None:
        self.height, self.parts = height, []

    def box(
        self, x: float, y: float, w: float, h: float, text: str = "", colour: str = INK, fill: bool = False
    ) -> None:
        """A rounded box with its lines of text in the middle."""
        tint = f'fill="{colour}" fill-opacity="0.18"' if fill else 'fill="none"'
        place = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="3"'
        self.parts.append(f'<rect {place} {tint} stroke="{colour}" stroke-width="1"/>')
        lines = text.split("\n") if text else []
        for number, line in enumerate(lines):
            self.words(x + w / 2, y + h / 2 + (number - (len(lines) - 1) / 2) * LINE + 3, line)

    def words(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "middle",
        size: float = 9,
        colour: str = INK,
        bold: bool = False,
    ) -> None:
        style = f"font-size: {size}px; font-family: '{FONT}', 'DejaVu Sans', sans-serif; text-anchor: {anchor}"
        weight = "; font-weight: 600" if bold else ""
        raised = escape(text).replace("ᵀ", f'<tspan dy="{-0.35 * size:.1f}" font-size="{0.7 * size:.1f}px">T</tspan>')
        if "ᵀ" in text and not text.endswith("ᵀ"):
            raised = raised.replace("</tspan>", f'</tspan><tspan dy="{0.35 * size:.1f}">') + "</tspan>"
        place = f'x="{x:.1f}" y="{y:.1f}"'
        self.parts.append(f'<text {place} style="{style}{weight}" fill="{colour}">{raised}</text>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A straight arrow, horizontal or vertical."""
        dx, dy = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
        back_x, back_y = to_x - 5 * dx, to_y - 5 * dy
        aside = ((back_x + side * dy, back_y + side * dx) for side in (-2.5, 2.5))
        head = " ".join(f"{at_x:.1f},{at_y:.1f}" for at_x, at_y in ((to_x, to_y), *aside))
        self.line(x, y, back_x, back_y)
        self.parts.append(f'<polygon points="{head}" fill="{MUTED}"/>')

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: str = MUTED) -> None:
        ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
        self.parts.append(f'<line {ends} stroke="{colour}" stroke-width="1"/>')

    def cells(
        self,
        x: float,
        y: float,
        columns: int,
        rows: int,
        size: float,
        kept: set[int] | None = None,
        colour: str = INDIGO,
    ) -> None:
        """A grid of tokens; those not in `kept` are empty."""
        for at in range(columns * rows):
            place = f'x="{x + at % columns * size:.1f}" y="{y + at // columns * size:.1f}"'
            fill = f'fill="{colour}" fill-opacity="0.55"' if kept is None or at in kept else 'fill="none"'
            side = f'width="{inner(size):.1f}" height="{inner(size):.1f}"'
            self.parts.append(f'<rect {place} {side} {fill} stroke="{RULE}" stroke-width="0.5"/>')

    def matrix(self, x: float, y: float, w: float, h: float, name: str, shape: str, colour: str) -> None:
        """A matrix drawn to its proportions, its name in it and its shape below."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"'
        self.parts.append(f'<rect {place} fill="{colour}" fill-opacity="0.25" stroke="{colour}" stroke-width="1"/>')
        self.words(x + w / 2, y + h / 2 + 3, name, bold=True)
        self.words(x + w / 2, y + h + 11, shape, size=8, colour=MUTED)

    def drawing(self) -> Drawing:
        size = f'width="{POINTS:.2f}pt" height="{self.height:.2f}pt" viewBox="0 0 {POINTS:.2f} {self.height:.2f}"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(self.parts)}</svg>'
        return Drawing(svg, POINTS, self.height, [])


def vit(config: "RunConfig", channels: int, classes: int) -> Drawing:
    """From an image to tokens, through the blocks, to the classes; and what a block is made of."""
    size, patch, dim, depth, heads = config.image_size, config.patch_size, config.dim, config.depth, config.heads
    hidden = int(dim * config.mlp_ratio)
    canvas, grid = Canvas(212), size // patch
    tokens = grid * grid
    side = min(grid, 8)
    cell = 72 / side
    canvas.words(36, 10, "image", bold=True)
    canvas.cells(0, 16, side, side, cell)
    canvas.words(36, 101, f"{channels}×{size}×{size}", size=8, colour=MUTED)
    canvas.words(36, 112, f"{tokens} patches of {patch}×{patch}", size=8, colour=MUTED)
    canvas.arrow(76, 52, 96, 52)
    canvas.box(98, 30, 62, 44, f"× E\n{channels * patch * patch} → {dim}", SKY, fill=True)
    canvas.words(129, 23, "tokenizer", size=8, colour=MUTED)
    canvas.arrow(160, 52, 180, 52)
    extra = config.pool == "cls"
    for row in range(6):
        colour = ORANGE if extra and row == 0 else INDIGO
        canvas.parts.append(
            f'<rect x="182" y="{18 + row * 12:.1f}" width="46" height="9" fill="{colour}" fill-opacity="0.5"/>'
        )
    canvas.words(205, 101, f"{tokens + extra} tokens", size=8, colour=MUTED)
    canvas.words(205, 112, f"of {dim} numbers", size=8, colour=MUTED)
    canvas.words(205, 10, "+ positions", size=8, colour=MUTED)
    canvas.arrow(230, 52, 250, 52)
    for at in (8, 4, 0):
        canvas.box(252 + at, 26 - at, 66, 60, "", GREEN)
    canvas.parts.append(f'<rect x="252" y="26" width="66" height="60" rx="3" fill="{GREEN}" fill-opacity="0.18"/>')
    canvas.words(285, 54, f"{depth} blocks", bold=True)
    canvas.words(285, 66, f"{heads} heads each", size=8)
    canvas.arrow(328, 52, 348, 52)
    canvas.box(
        350, 30, 62, 44, "class token" if extra else "mean of\nthe tokens", ORANGE if extra else INDIGO, fill=True
    )
    canvas.arrow(412, 52, 430, 52)
    canvas.box(432, 30, 48, 44, f"linear\n{dim} → {classes}", SKY, fill=True)
    canvas.words(456, 87, "logits", size=8, colour=MUTED)
    canvas.words(0, 140, "one block", "start", bold=True)
    at = 0.0
    names = (("norm", 40, MUTED), (f"attention\n{heads} heads of {dim // heads}", 104, ORANGE), ("+", 20, INK))
    names += (("norm", 40, MUTED), (f"MLP\n{dim} → {hidden} → {dim}", 104, INDIGO), ("+", 20, INK))
    starts = []
    for name, wide, colour in names:
        canvas.arrow(at, 174, at + 20, 174)
        at += 20
        if name == "norm":
            starts.append(at - 12)
        canvas.box(at, 158 if wide > 20 else 164, wide, 32 if wide > 20 else 20, name, colour, fill=wide > 40)
        if name == "+":
            x = at + wide / 2
            canvas.line(starts[-1], 174, starts[-1], 204)
            canvas.line(starts[-1], 204, x, 204)
            canvas.arrow(x, 204, x, 184)
        at += wide
    canvas.arrow(at, 174, at + 20, 174)
    return canvas.drawing()


def conv_tokenizer(embed: nn.Module, image_size: int) -> Drawing:
    """A convolutional tokenizer: channels and pixels a side after each of its convolutions, of many after each size."""
    stack = [layer for layer in embed.modules() if isinstance(layer, nn.Conv2d)]
    stages, side = [(stack[0].in_channels, image_size, ["image"])], image_size
    for layer in stack:
        side //= layer.stride[0]
        kernel = "×".join(map(str, layer.kernel_size)) + (f", stride {layer.stride[0]}" if layer.stride[0] > 1 else "")
        again = len(stack) > MOST_STAGES and len(stages) > 1 and side == stages[-1][1]
        before = stages.pop()[2] if again else []
        stages.append((layer.out_channels, side, [*before, kernel]))
    lines, step = max(len(how) for *_, how in stages), POINTS / len(stages)
    canvas, largest = Canvas(123 + LINE * lines), min(60.0, step - 34)
    for number, (wide, side, how) in enumerate(stages):
        x, shown = number * step + 8, largest * (0.3 + 0.7 * side / image_size)
        depth = min(14, 3 + 3 * number)
        for at in (depth, depth / 2, 0):
            canvas.box(x + at, 52 - shown / 2 - at / 2, shown, shown, "", SKY if number else INDIGO, fill=at == 0)
        canvas.words(x + largest / 2, 98, f"{wide}×{side}×{side}", size=8.5)
        for line, text in enumerate(how):
            canvas.words(x + largest / 2, 109 + LINE * line, text, size=8, colour=MUTED)
        if number:
            canvas.arrow(x - 16, 52, x - 4, 52)
    canvas.words(
        POINTS, canvas.height - 6, f"{side**2} places are {side**2} tokens of {stages[-1][0]} numbers", "end", bold=True
    )
    return canvas.drawing()


def fewer_tokens(left: Sequence[int], blocks: Sequence[int], depth: int) -> Drawing:
    """Tokens that the stages leave: pruned above, merged below; left begins with all, blocks: where the stages stand.

    blocks count from one: a stage stands before its block.
    """
    canvas, grid = Canvas(204), round(left[0] ** 0.5)
    step = POINTS / len(left)
    side = min(64, step - 38)  # with room for the arrow
    cell = side / grid
    order = sorted(
        range(grid * grid), key=lambda at: abs(at % grid - grid / 2 + 0.5) ** 2 + abs(at // grid - grid / 2 + 0.5) ** 2
    )
    canvas.words(0, 10, "pruned: the others are gone", "start", bold=True)
    canvas.words(0, 112, "merged: each stands for several", "start", bold=True)
    for number, count in enumerate(left):
        x = number * step + 14
        canvas.cells(x, 18, grid, grid, cell, set(order[:count]))
        for row in range(grid):  # as evenly as can be
            wide = count // grid + (row < count % grid)
            for at in range(wide):
                place = f'x="{x + at * side / wide:.1f}" y="{120 + row * cell:.1f}"'
                shape = f'width="{inner(side / wide):.1f}" height="{inner(cell):.1f}"'
                canvas.parts.append(f'<rect {place} {shape} fill="{GREEN}" fill-opacity="0.55"/>')
        where = f"before block {blocks[number - 1]} of {depth}" if number else "from the image"
        canvas.words(x + side / 2, 92, f"{count} of {left[0]}", size=9)
        canvas.words(x + side / 2, 196, where, size=8, colour=MUTED)
        if number:
            for y in (18, 120):
                canvas.arrow(x - step + side + 10, y + side / 2, x - 10, y + side / 2)
    return canvas.drawing()


def two_orders(tokens: int, head: int) -> Drawing:
    """(QKᵀ)V against Q(KᵀV) for T tokens and heads of width `head`: the same product in two orders.

    Drawn to scale but for sides too short for a letter.
    """
    canvas = Canvas(206)
    scale = 64 / max(tokens, head)
    long, short = max(tokens * scale, 12), max(head * scale, 12)
    factors = (("Q", short, long, "T×d"), ("Kᵀ", long, short, "d×T"), ("V", short, long, "T×d"))
    first = ("QKᵀ", long, long, f"{tokens}×{tokens}")
    second = ("KᵀV", short, short, f"{head}×{head}")
    rows = (
        (0, "softmax needs all the weights first", first, ORANGE, 2 * tokens * tokens * head),
        (104, "a kernel lets keys and values meet first", second, GREEN, 2 * tokens * head * head),
    )
    for y, title, (name, w, h, shape), colour, macs in rows:
        canvas.words(0, y + 10, title, "start", bold=True)
        x = 8.0
        marks = ("(", "", ")", "") if y == 0 else ("", "(", "", ")")
        for number, (factor, wide, high, size) in enumerate(factors):
            if marks[number] == "(":
                canvas.words(x, y + 54, "(", size=22, colour=MUTED)
                x += 8
            canvas.matrix(x, y + 18 + (64 - high) / 2, wide, high, factor, size, INDIGO)
            x += wide + 4
            closes = (y == 0 and number == 1) or (y > 0 and number == 2)
            if closes:
                canvas.words(x + 2, y + 54, ")", size=22, colour=MUTED)
                x += 8
            x += 8
        canvas.arrow(x + 2, y + 50, x + 28, y + 50)
        canvas.matrix(x + 36, y + 18 + (64 - h) / 2, w, h, name, shape, colour)
        canvas.words(x + 36 + 78, y + 48, f"{macs:,} multiply-adds", "start")
        canvas.words(x + 36 + 78, y + 60, "2T²d" if y == 0 else "2Td²", "start", colour=MUTED)
    canvas.words(POINTS, 10, f"one head: T = {tokens} tokens, d = {head}", "end", size=8, colour=MUTED)
    return canvas.drawing()
