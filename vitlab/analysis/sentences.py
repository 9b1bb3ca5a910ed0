"""What the numbers say, as sentences: no gain inside the noise is called one. Each chapter has a module of its own."""

from collections.abc import Iterable

import pandas as pd

from vitlab.analysis.metrics import shown
from vitlab.texts import markdown, signed


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def verdict(a: str, b: str, comparison: dict) -> str:
    """One sentence on what `compare` found: b or a is ahead only where `metrics.shown` says so.

    That is where McNemar's p is below 0.05 and, where seeds tell it, the difference exceeds the spread over them.
    """
    points = comparison["difference"] * 100
    low, high = (end * 100 for end in comparison["interval"])
    several = comparison.get("seeds", 1) > 1
    of = f"over {comparison['seeds']} seeds" if several else "of single runs"
    over = f", spread {of} {100 * comparison['spread']:.1f}" if several or comparison.get("spread") else ""
    if not shown(comparison):
        them = "these test images and seeds" if over else "this test set"
        return (
            f"between {a} and {b} there is no difference that {them} can show "
            f"({signed(points)} points, 95% interval {signed(low)} to {signed(high)}, {p_text(comparison['p'])}{over})"
        )
    if points < 0:
        a, b, points, low, high = b, a, -points, -high, -low
    figures = f"95% interval {low:.1f} to {high:.1f}, {p_text(comparison['p'])}{over}"
    return f"{b} is ahead of {a} by {points:.1f} points ({figures})"


def points(gain: pd.Series) -> str:
    """A row of `metrics.seed_differences` in points."""
    return f"{signed(100 * gain['gain'])} points, {signed(100 * gain['low'])} to {signed(100 * gain['high'])}"


def words(name: str) -> str:
    """A remedy's name for reading."""
    return {"drw": "DRW", "ldam_drw": "LDAM-DRW"}.get(name, name.replace("_", " "))


def expected(confirmed: bool) -> str:
    """How a sentence begins that holds an expectation against what was measured."""
    return "As expected" if confirmed else "Against the expectation"


def named(names: Iterable[str]) -> str:
    """Names of models or steps for reading: some hold commas, and some are those of a user's directories."""
    return "; ".join(f"*{markdown(name)}*" for name in names)
