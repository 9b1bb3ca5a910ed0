"""What the numbers say, as sentences: no gain inside the noise is called one."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from vitlab.analysis.metrics import CONFIDENCE, LEVEL, holm, interval, mean_and_spread, on_frontier

NO_REMEDIES = {"none", "balanced"}  # in the study beside the remedies


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def verdict(a: str, b: str, comparison: dict) -> str:
    """One sentence on what `compare` found: b or a is ahead only where McNemar's p is below 0.05."""
    points = comparison["difference"] * 100
    low, high = (end * 100 for end in comparison["interval"])
    if comparison["p"] >= LEVEL:
        return (
            f"between {a} and {b} there is no difference that this test set can show "
            f"({points:+z.1f} points, 95% interval {low:+z.1f} to {high:+z.1f}, {p_text(comparison['p'])})"
        )
    if points < 0:
        a, b, points, low, high = b, a, -points, -high, -low
    return (
        f"{b} is ahead of {a} by {points:.1f} points (95% interval {low:.1f} to {high:.1f}, {p_text(comparison['p'])})"
    )


def verdicts(pairs: pd.DataFrame) -> str:
    """What the tests can say of `tables.pairs`: the pairs with a difference or, if fewer, those without."""
    clear = pairs["p"] < LEVEL
    rest = f"In {(~clear).sum()} of {len(pairs)} pairs there is no difference that this test set can show"
    if clear.sum() <= len(pairs) / 2:
        lines = [f"* {verdict(f'*{row.a}*', f'*{row.b}*', row._asdict())}." for row in pairs[clear].itertuples()]
        return "\n".join([*lines, f"* {rest}."] if lines else [f"{rest}."])
    found = f"In {clear.sum()} of {len(pairs)} pairs this test set shows which of the two is ahead."
    alike = "; ".join(f"*{row.a}* and *{row.b}*" for row in pairs[~clear].itertuples())
    return f"{found} {rest}: {alike}." if alike else found


def leaders(results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Sentences on the most accurate model, and on the one of fewest MACs that the tests cannot tell from it.

    results: model, accuracy, accuracy_low, accuracy_high, macs; pairs: a, b, p, corrected for the number of tests.
    """
    best = results.loc[results["accuracy"].idxmax()]
    unclear = pairs[(pairs["p"] >= LEVEL) & ((pairs["a"] == best["model"]) | (pairs["b"] == best["model"]))]
    peers = results[results["model"].isin({*unclear["a"], *unclear["b"]} - {best["model"]})]
    text = (
        f"The highest accuracy was measured for **{best['model']}**: {best['accuracy']:.1%} "
        f"(95% interval {best['accuracy_low']:.1%} to {best['accuracy_high']:.1%})."
    )
    if peers.empty:
        return f"{text} It differs significantly from every other model."
    text += f" This test set can show no difference between it and {'; '.join(f'*{name}*' for name in peers['model'])}"
    lighter = peers[peers["macs"] < best["macs"]]  # without those of unknown cost
    if lighter.empty:
        needs = "needs" if results["macs"].notna().all() else "is known to need"
        return f"{text}, none of which {needs} fewer multiply-adds."
    light = lighter.loc[lighter["macs"].idxmin()]
    share = light["macs"] / best["macs"]
    return f"{text}; of these **{light['model']}** needs the fewest multiply-adds, {share:.1%} of the best one's."


def imbalance(profile: str, counts: np.ndarray) -> str:
    """How the study's training data are shaped, with the ratio that was reached; counts (C,) images of each class."""
    return f"{'as they come' if profile == 'none' else profile}, {float(counts.max() / counts.min()):.3g}:1"


def _best(scores: dict[str, list[float]]) -> str:
    """The remedy with the highest mean, from remedy -> score of each seed."""
    return max((name for name in scores if name not in NO_REMEDIES), key=lambda name: np.mean(scores[name]))


def _picked(scores: dict[str, list[float]]) -> float:
    """Confidence of the best remedy's interval: wider (Bonferroni), because it was picked out of several."""
    return 1 - LEVEL / len(scores.keys() - NO_REMEDIES)


class Difference(NamedTuple):
    """Macro F1 minus that of `none`: its value, interval, the larger spread over seeds, and whether it exceeds both."""

    value: float
    low: float
    high: float
    spread: float
    shown: bool


def _against_none(
    name: str, scores: dict[str, list[float]], resampled_scores: dict[str, np.ndarray], confidence: float = CONFIDENCE
) -> Difference:
    (mean, spread), (base, base_spread) = mean_and_spread(scores[name]), mean_and_spread(scores["none"])
    spread = 0.0 if math.isnan(spread) else max(spread, base_spread)  # NaN: of a single seed
    low, high = interval(resampled_scores[name] - resampled_scores["none"], confidence)
    return Difference(mean - base, low, high, spread, abs(mean - base) > spread and not low <= 0 <= high)


def price_and_gain(
    scores: dict[str, list[float]], resampled_scores: dict[str, np.ndarray]
) -> tuple[Difference | None, str, Difference]:
    """Macro F1 of `balanced` over none, if it was trained; the best remedy; and its own over none."""
    best = _best(scores)
    price = _against_none("balanced", scores, resampled_scores) if "balanced" in scores else None
    return price, best, _against_none(best, scores, resampled_scores, _picked(scores))


def best_remedy(scores: dict[str, list[float]], resampled_scores: dict[str, np.ndarray]) -> str:
    """One sentence on remedy -> macro F1 of each seed: a gain over `none` counts only beyond all of the noise.

    That is the spread over seeds, where there are several, and the choice of test images: the paired bootstrap's
    interval of the gain, from remedy -> (resamples,) mean macro F1 over the seeds. `balanced`, all the images of
    every class, is no remedy.
    """
    best, confidence = _best(scores), _picked(scores)
    gain = _against_none(best, scores, resampled_scores, confidence)
    figures = (
        f"macro F1 {np.mean(scores[best]):.3f} against {np.mean(scores['none']):.3f} without a remedy (gain "
        f"{gain.value:+.3f}, {confidence:.0%} interval of the paired bootstrap, widened because the best was picked, "
        f"{gain.low:+.3f} to {gain.high:+.3f})"
    )
    name = best.replace("_", " ")
    one_seed = len(scores[best]) == 1
    seeds = "; one seed says nothing about the spread between seeds" if one_seed else ""
    of_seeds = f"the spread over seeds ({gain.spread:.3f}) and the test images' noise"
    beyond = "the test images' noise" if one_seed else of_seeds
    if gain.value <= 0:
        return f"No remedy raised the measured macro F1: the best is {name}, {figures}."
    if gain.shown:
        return f"The best remedy is **{name}**: {figures}, a gain beyond {beyond}{seeds}."
    return f"No remedy shows a gain beyond {beyond}; the best is {name}, {figures}{seeds}."


def who_gains(recall: pd.DataFrame, scores: dict[str, list[float]]) -> str:
    """One sentence on the classes that the best remedy gives most to and takes most from.

    recall: classes (rows) by remedy (columns). The best is that of `best_remedy`: remedy -> macro F1 of each seed.
    """
    best = _best(scores)
    change = (recall[best] - recall["none"]).mul(100).sort_values()
    least, most = (f"the class {change.index[i]} ({change.iloc[i]:+z.1f} points)" for i in (0, -1))
    given = f"gives most to {most}" if change.iloc[-1] > 0 else "gives to none"
    taken = f"takes most from {least}" if change.iloc[0] < 0 else "takes from none"
    return (
        f"By the measured recalls, noise included, {best.replace('_', ' ')} {given} and {taken}; "
        f"{(change > 0).sum()} of {len(change)} classes gain."
    )


def price_of_imbalance(scores: dict[str, list[float]], resampled_scores: dict[str, np.ndarray], missing: int) -> str:
    """What the imbalance cost: macro F1 of `balanced` against `none`, as `best_remedy` has them.

    missing: training images that the imbalanced data lack.
    """
    gap = _against_none("balanced", scores, resampled_scores)
    points, low, high = (100 * value for value in (gap.value, gap.low, gap.high))
    figures = f"({points:+.1f} points of macro F1, 95% interval {low:+.1f} to {high:+.1f})"
    if not gap.shown:
        return f"Between training on all the images and on the imbalanced ones no difference can be shown {figures}."
    than = f"than on the imbalanced ones without a remedy {figures}"
    if points < 0:
        return f"Trained on all the images the model scores worse {than}."
    text = f"Trained on all the images the model scores better {than}"
    best = _best(scores)
    gain = _against_none(best, scores, resampled_scores, _picked(scores))
    if gain.value > 0 and gain.shown:
        text += f"; the best remedy, {best.replace('_', ' ')}, wins {100 * gain.value:.1f} of these points back"
    return (
        f"{text}. This is the price of uneven data and of {missing:,} missing images together; a remedy can only mend "
        "the first."
    )


def how_far(sweep: pd.DataFrame, tests: dict[float, dict], images: str, unpruned: str) -> str:
    """One sentence on the keep ratio down to which no test shows a loss against the model named by `unpruned`.

    sweep: keep_ratio and accuracy, falling; tests: keep ratio -> `metrics.mcnemar` of both.
    """
    p = holm(np.array([test["p"] for test in tests.values()]))
    lost = [q < LEVEL and test["only_a"] > test["only_b"] for q, test in zip(p, tests.values(), strict=True)]
    shown = [f"ρ = {row.keep_ratio:g} ({row.accuracy:.1%})" for row in sweep.itertuples()]
    rule = f"the {images} can show {{}} against {unpruned} (McNemar, Holm over the {len(lost)} keep ratios)"
    if not any(lost):
        return f"Down to {shown[-1]} {rule.format('no loss')}."
    first = lost.index(True)
    if first == 0:
        return f"Even at {shown[0]} {rule.format('a loss')}."
    return f"Down to {shown[first - 1]} {rule.format('no loss')}; at {shown[first]} they show one."


def what_predictors_know(by_chance: float, learned: float, comparison: dict) -> str:
    """Accuracy of one DynamicViT with tokens drawn at random and with those its predictors choose, and what it shows.

    comparison: `metrics.compare` of the former with the latter.
    """
    points, (low, high) = 100 * comparison["difference"], (100 * end for end in comparison["interval"])
    measured = (
        "How much of this do the predictors know? The same network, given as many tokens drawn at random, answers "
        f"{by_chance:.1%} of these images correctly, and {learned:.1%} with the tokens that the predictors choose "
        f"({points:+z.1f} points, 95% interval {low:+z.1f} to {high:+z.1f}, {p_text(comparison['p'])})."
    )
    if comparison["p"] >= LEVEL:
        meaning = "That is no difference that these images can show: whether they know which tokens matter stays open."
    elif points > 0:
        meaning = "What is above chance is what they have learned."
    else:
        meaning = "So far they choose worse than chance."
    return f"{measured} {meaning}"


def frontier(results: pd.DataFrame) -> str:
    """One sentence naming the models on the frontiers of accuracy and MACs, and of accuracy and latency."""

    def best(cost: str) -> str:
        """Names apart by semicolons: some hold commas."""
        return "; ".join(f"*{name}*" for name in results[on_frontier(results, cost)].sort_values(cost)["model"])

    return (
        "On the measured values, noise included, no model is more accurate than these at the same or fewer "
        f"multiply-adds: {best('macs')}; and than these at the same or a shorter latency: {best('latency_ms')}."
    )
