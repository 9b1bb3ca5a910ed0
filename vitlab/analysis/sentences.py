"""What the numbers say, as sentences: no gain inside the noise is called one. Each chapter has a module of its own."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from vitlab.analysis.metrics import shown
from vitlab.models.registry import MODELS
from vitlab.texts import markdown, signed

if TYPE_CHECKING:
    from vitlab.lab import Lab
    from vitlab.lab.plan import Plan


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def verdict(a: str, b: str, comparison: dict) -> str:
    """One sentence on what `compare` found: b or a is ahead only where `metrics.shown` says so.

    It says of which seeds the difference is, and for how many tests p is corrected. Of single runs another seed may
    tell otherwise: where no model has several, intervals and tests are of images alone.
    """
    points = comparison["difference"] * 100
    low, high = (end * 100 for end in comparison["interval"])
    single = "first seed of both" if comparison.get("trained") else "single runs, images alone"
    runs = f"{seeds} seeds" if (seeds := comparison.get("seeds", 1)) > 1 else single
    tests = f", Holm over {tests} tests" if (tests := comparison.get("tests", 1)) > 1 else ""
    if not shown(comparison):
        return (
            f"between {a} and {b} no difference can be shown (the second's lead: {signed(points)} points, 95% interval "
            f"{signed(low)} to {signed(high)}, {p_text(comparison['p'])}{tests}; {runs})"
        )
    if points < 0:
        a, b, points, low, high = b, a, -points, -high, -low
    figures = f"95% interval {signed(low)} to {signed(high)}, {p_text(comparison['p'])}{tests}; {runs}"
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


def shapes(plan: "Plan", chapter: str) -> str:
    """For a caption: how the ViTs look that were built to cost as little as a lighter model of this chapter."""
    small = {name: plan.config(name) for model, name in plan.equal_cost if MODELS[model].chapter == chapter}
    told = [f"*{n}*: {c.depth} blocks, width {c.dim}, MLP ratio {c.mlp_ratio:g}" for n, c in small.items()]
    return f" Built as small: {'; '.join(told)}." if told else ""


def thin_lines(lab: "Lab") -> str:
    """What a caption of training curves says of further seeds, where there are any."""
    return " Thin lines: further seeds, which hold out other images." if len(lab.plan.seeds) > 1 else ""


def named(names: Iterable[str]) -> str:
    """Names of models or steps for reading: some hold commas, and some are those of a user's directories."""
    return "; ".join(f"*{markdown(name)}*" for name in names)
