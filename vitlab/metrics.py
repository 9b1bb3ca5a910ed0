"""Scores from predictions, their uncertainty, and paired tests between two models on the same images."""

import math

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

LEVEL = 0.05  # a difference is claimed where it would be this rare by chance
CONFIDENCE = 1 - LEVEL
RESAMPLES = 1000  # of a bootstrap: the ends of a 95 % interval then rest on 25 draws each


def scores(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Scores of logits (N, C) against labels (N,): shares of 1, per class as lists, confusion with rows = truth."""
    predicted = logits.argmax(1)
    classes = range(logits.shape[1])
    per_class = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    macro, weighted = (
        precision_recall_fscore_support(labels, predicted, labels=classes, average=kind, zero_division=0)[:3]
        for kind in ("macro", "weighted")
    )
    correct = int((predicted == labels).sum())
    return {
        "n": len(labels),
        "accuracy": correct / len(labels),
        "interval": wilson(correct, len(labels)),
        "top_2": top_k(logits, labels, 2),
        "balanced_accuracy": float(per_class[1][per_class[3] > 0].mean()),
        "precision": {"macro": float(macro[0]), "weighted": float(weighted[0])},
        "recall": {"macro": float(macro[1]), "weighted": float(weighted[1])},
        "f1": {"macro": float(macro[2]), "weighted": float(weighted[2])},
        "f1_interval": interval(macro_f1(resampled(logits, labels))),
        "per_class": dict(zip(("precision", "recall", "f1"), (row.tolist() for row in per_class[:3]), strict=True)),
        "calibration_error": calibration_error(logits, labels),
        "confusion": confusion(logits, labels).tolist(),
    }


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, C) images by class (row) and answer (column)."""
    return confusion_matrix(labels, logits.argmax(1), labels=range(logits.shape[1]))


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) logits -> (N, C) probabilities."""
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of correct answers (Wilson 1927)."""
    interval = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of images whose class is among the k most probable answers; k = 1 is the accuracy."""
    answers = np.argsort(-logits, axis=1, kind="stable")[:, :k]  # stable: of equal logits the first, as argmax has it
    return float((answers == labels[:, None]).any(1).mean())


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """A row for each of `bins` ranges of confidence with images in it: images, confidence, accuracy, low, high."""
    probabilities = softmax(logits)
    frame = pd.DataFrame({"confidence": probabilities.max(1), "correct": probabilities.argmax(1) == labels})
    which = np.minimum((frame["confidence"] * bins).astype(int), bins - 1)
    rows = frame.groupby(which).agg(
        images=("correct", "size"), correct=("correct", "sum"), confidence=("confidence", "mean")
    )
    rows["accuracy"] = rows["correct"] / rows["images"]
    rows["low"], rows["high"] = zip(*(wilson(int(r.correct), int(r.images)) for r in rows.itertuples()), strict=True)
    return rows


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy − confidence| over equal bins, weighted by size.

    It has no interval here: noise in the bins only ever adds to it, so that resampling draws it upwards.
    """
    rows = reliability(logits, labels, bins)
    return float(np.average((rows["accuracy"] - rows["confidence"]).abs(), weights=rows["images"]))


# ---------------------------------------------------------------- bootstrap


def resampled(logits: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, C, C) confusion matrices of test sets drawn from the images with replacement (Efron 1979).

    The same seed draws the same images, so that matrices of two models differ image by image: a paired bootstrap.
    """
    rng, (n, classes) = np.random.default_rng(seed), logits.shape
    cell = labels * classes + logits.argmax(1)
    draws = (np.bincount(cell[rng.integers(0, n, n)], minlength=classes**2) for _ in range(resamples))
    return np.stack(list(draws)).reshape(-1, classes, classes)


def accuracy(confusions: np.ndarray) -> np.ndarray:
    """Share of right answers of confusion matrices (..., C, C)."""
    return np.trace(confusions, axis1=-2, axis2=-1) / confusions.sum((-2, -1))


def recall(confusions: np.ndarray) -> np.ndarray:
    """(..., C) recall of each class of confusion matrices (..., C, C); 0 for a class without images."""
    return _right(confusions) / np.maximum(confusions.sum(-1), 1)


def macro_f1(confusions: np.ndarray) -> np.ndarray:
    """Mean over the classes of 2 right / (images + answers), of confusion matrices (..., C, C)."""
    either = confusions.sum(-1) + confusions.sum(-2)
    return (2 * _right(confusions) / np.maximum(either, 1)).mean(-1)


def _right(confusions: np.ndarray) -> np.ndarray:
    return np.diagonal(confusions, axis1=-2, axis2=-1)


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of resampled values (resamples,)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------- two models, several models


def mcnemar(logits_a: np.ndarray, logits_b: np.ndarray, labels: np.ndarray) -> dict:
    """Exact McNemar test of two models on the same images: how often only one is right, and the two-sided p-value."""
    right_a, right_b = logits_a.argmax(1) == labels, logits_b.argmax(1) == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def compare(logits_a: np.ndarray, logits_b: np.ndarray, labels: np.ndarray) -> dict:
    """Two models on the same images: differences b − a of accuracy and macro F1, their intervals, McNemar's test."""
    a, b = (resampled(logits, labels) for logits in (logits_a, logits_b))
    whole_a, whole_b = confusion(logits_a, labels), confusion(logits_b, labels)
    return {
        "difference": float(accuracy(whole_b) - accuracy(whole_a)),
        "interval": interval(accuracy(b) - accuracy(a)),
        "f1_difference": float(macro_f1(whole_b) - macro_f1(whole_a)),
        "f1_interval": interval(macro_f1(b) - macro_f1(a)),
        **mcnemar(logits_a, logits_b, labels),
    }


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (M,) of M tests corrected for making all of them (Holm 1979)."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def verdict(a: str, b: str, comparison: dict) -> str:
    """One sentence on what `compare` found: b or a is ahead only where McNemar's p is below 0.05."""
    points = comparison["difference"] * 100
    low, high = (end * 100 for end in comparison["interval"])
    if comparison["p"] >= LEVEL:
        return (
            f"between {a} and {b} there is no difference that this test set can show "
            f"({points:+z.1f} points, 95 % interval {low:+z.1f} to {high:+z.1f}, {p_text(comparison['p'])})"
        )
    if points < 0:
        a, b, points, low, high = b, a, -points, -high, -low
    return (
        f"{b} is ahead of {a} by {points:.1f} points (95 % interval {low:.1f} to {high:.1f}, {p_text(comparison['p'])})"
    )


def verdicts(pairs: pd.DataFrame) -> str:
    """A line for each pair of `tables.pairs` in which one is ahead, and one on how many pairs showed no difference."""
    clear = pairs[pairs["p"] < LEVEL]
    lines = [f"* {verdict(f'*{row.a}*', f'*{row.b}*', row._asdict())}." for row in clear.itertuples()]
    rest = f"In {len(pairs) - len(clear)} of {len(pairs)} pairs there is no difference that this test set can show."
    return "\n".join([*lines, f"* {rest}"] if lines else [rest])


def leaders(results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Sentences on the most accurate model, and on the one of fewest MACs that the tests cannot tell from it.

    results: model, accuracy, accuracy_low, accuracy_high, macs; pairs: a, b, p, corrected for the number of tests.
    """
    best = results.loc[results["accuracy"].idxmax()]
    unclear = pairs[(pairs["p"] >= LEVEL) & ((pairs["a"] == best["model"]) | (pairs["b"] == best["model"]))]
    peers = results[results["model"].isin({*unclear["a"], *unclear["b"]} - {best["model"]})]
    text = (
        f"The highest accuracy was measured for **{best['model']}**: {best['accuracy']:.1%} "
        f"(95 % interval {best['accuracy_low']:.1%} to {best['accuracy_high']:.1%})."
    )
    if peers.empty:
        return f"{text} The tests tell it from every other model."
    text += f" This test set can show no difference between it and {', '.join(f'*{name}*' for name in peers['model'])}"
    light = peers.loc[peers["macs"].idxmin()]
    if light["macs"] >= best["macs"]:
        return f"{text}, none of which needs fewer multiply-adds."
    share = light["macs"] / best["macs"]
    return f"{text}; of these **{light['model']}** needs the fewest multiply-adds, {share:.1%} of the best one's."


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the deviation of a single value is nan."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def best_remedy(scores: dict[str, list[float]], resampled_scores: dict[str, np.ndarray]) -> str:
    """One sentence on remedy -> macro F1 of each seed: a gain over `none` counts only beyond all of the noise.

    That is the spread over seeds, where there are several, and the choice of test images: the paired bootstrap's
    interval of the gain, from remedy -> (resamples,) mean macro F1 over the seeds. It is widened (Bonferroni) because
    the best is picked out of several. `balanced`, all the images of every class, is no remedy.
    """
    remedies = [remedy for remedy in scores if remedy not in ("none", "balanced")]
    best = max(remedies, key=lambda remedy: np.mean(scores[remedy]))
    (mean, spread), (base, base_spread) = mean_and_spread(scores[best]), mean_and_spread(scores["none"])
    confidence = 1 - LEVEL / len(remedies)
    low, high = interval(resampled_scores[best] - resampled_scores["none"], confidence)
    figures = (
        f"macro F1 {mean:.3f} against {base:.3f} without a remedy (gain {mean - base:+.3f}, {confidence:.0%} interval "
        f"of the paired bootstrap {low:+.3f} to {high:+.3f})"
    )
    name = best.replace("_", " ")
    noise = 0.0 if math.isnan(spread) else max(spread, base_spread)
    seeds = "; one seed says nothing on the spread between seeds" if math.isnan(spread) else ""
    beyond = "the test images' noise" if seeds else f"the spread over seeds ({noise:.3f}) and the test images' noise"
    if mean <= base:
        return f"No remedy helps: the best is {name}, {figures}."
    if mean - base > noise and low > 0:
        return f"The best remedy is **{name}**: {figures}, a gain beyond {beyond}{seeds}."
    return f"No remedy shows a gain beyond {beyond}; the best is {name}, {figures}{seeds}."


def price_of_imbalance(scores: dict[str, list[float]], resampled_scores: dict[str, np.ndarray]) -> str:
    """One sentence on what the imbalance cost: macro F1 of `balanced` against `none`, as `best_remedy` has them."""
    gap = float(np.mean(scores["balanced"]) - np.mean(scores["none"]))
    low, high = interval(resampled_scores["balanced"] - resampled_scores["none"])
    figures = f"({100 * gap:+.1f} points of macro F1, 95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low <= 0 <= high:
        return f"Between all the images and the imbalanced ones this test set can show no difference {figures}."
    return f"All the images are {'better' if gap > 0 else 'worse'} than the imbalanced ones without a remedy {figures}."


def on_frontier(results: pd.DataFrame, cost: str) -> pd.Series:
    """(models,) bool: whether no other model has a higher accuracy at no more, or as high a one at less, of `cost`."""
    price, score = (results[name].to_numpy() for name in (cost, "accuracy"))
    cheaper, better = price < price[:, None], score > score[:, None]
    beaten = (cheaper & (score >= score[:, None])) | (better & (price <= price[:, None]))
    return pd.Series(~beaten.any(1), results.index)


def frontier(results: pd.DataFrame) -> str:
    """One sentence naming the models on the frontier of accuracy and MACs."""
    names = ", ".join(f"*{name}*" for name in results[on_frontier(results, "macs")].sort_values("macs")["model"])
    return f"As measured, no model is as good in accuracy and multiply-adds and better in one of them than {names}."
