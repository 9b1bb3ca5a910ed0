"""Where figures stand on paper: between paragraphs, near their place in the text, so that no page has a hole.

A figure that does not fit below what precedes it leaves a hole there. It may move past some of the paragraphs that
follow or precede it, but neither out of its chapter nor into the conclusion. Blocks were measured before, so that pages
can be filled on trial.
"""

from itertools import pairwise
from typing import NamedTuple

PAGE = 708.0  # points of text on a page, a little less than report.typ's margins leave
GAP = 14.0  # points between blocks
BEHIND_HEADING = 40.0  # points that have to fit below a heading, or it begins a page
FARTHEST = 6  # blocks that a figure moves past
MOVE, CROSS = 10.0, 60.0  # what a move past a block costs, and past a heading, in points of hole


class Block(NamedTuple):
    """A piece of the report in typst's language; kind: chapter, heading, conclusion, figure or text."""

    markup: str
    kind: str
    height: float = 0.0


def holes(blocks: list[Block]) -> list[float]:
    """Points left empty at the ends of pages, the last one's apart, when a chapter is set in this order."""
    found, filled = [], 0.0
    for block in blocks:
        if block.kind in ("heading", "conclusion"):
            if filled + block.height + BEHIND_HEADING > PAGE:
                found.append(PAGE - filled)
                filled = 0.0
            filled += block.height + GAP
        elif block.kind == "figure":
            if filled and filled + block.height > PAGE:
                found.append(PAGE - filled)
                filled = 0.0
            filled += block.height + GAP
        else:
            filled += block.height
            while filled > PAGE:  # text goes on over the page
                filled -= PAGE
            filled += GAP
    return found


def _cost(blocks: list[Block]) -> float:
    """Large holes count more than many small ones."""
    return sum(hole * hole / PAGE * 4 for hole in holes(blocks))


def arranged(blocks: list[Block]) -> list[Block]:
    """All chapters, each arranged for itself, as each begins on a new page."""
    starts = [i for i, block in enumerate(blocks) if block.kind == "chapter"]
    bounds = [0, *(i for i in starts if i), len(blocks)]
    return [b for low, high in pairwise(bounds) for b in arranged_chapter(blocks[low:high])]


def arranged_chapter(blocks: list[Block]) -> list[Block]:
    """The same blocks with each figure where it costs least, in two rounds, as one move makes room for another."""
    order = list(blocks)
    for _ in range(2):
        for figure in [block for block in order if block.kind == "figure"]:
            order = _moved(order, figure, blocks)
    return order


def _moved(order: list[Block], figure: Block, first: list[Block]) -> list[Block]:
    at = next(i for i, block in enumerate(order) if block is figure)
    rest = order[:at] + order[at + 1 :]
    best, least = order, _cost(order) + _distance(order, figure, first)
    for place in _places(rest, at):
        trial = [*rest[:place], figure, *rest[place:]]
        cost = _cost(trial) + _distance(trial, figure, first)
        if cost < least - 1:
            best, least = trial, cost
    return best


def _places(rest: list[Block], at: int) -> list[int]:
    """Where a figure taken out at `at` may stand: past no other figure, not after a heading that it would part."""
    places = []
    for step in (-1, 1):
        place = at
        while 0 < abs(place + step - at) <= FARTHEST:
            passed = rest[place - 1 : place] if step < 0 else rest[place : place + 1]
            if not passed or passed[0].kind in ("figure", "chapter", "conclusion"):
                break
            place += step
            if rest[place - 1].kind not in ("heading", "chapter"):
                places.append(place)
    return places


def _distance(order: list[Block], figure: Block, first: list[Block]) -> float:
    """What it costs that a figure stands elsewhere than at first: by the blocks between."""

    def before(blocks: list[Block]) -> list[Block]:
        return blocks[: next(i for i, block in enumerate(blocks) if block is figure)]

    was, now = before(first), before(order)
    ids_was, ids_now = {id(b) for b in was}, {id(b) for b in now}
    passed = [b for b in first if (id(b) in ids_was) != (id(b) in ids_now) and b.kind != "figure"]
    return sum(CROSS if block.kind == "heading" else MOVE for block in passed)
