"""Scores from predictions, their uncertainty, and paired tests between two models on the same images."""

import math

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

CONFIDENCE = 0.95


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
        "balanced_accuracy": float(per_class[1][per_class[3] > 0].mean()),
        "precision": {"macro": float(macro[0]), "weighted": float(weighted[0])},
        "recall": {"macro": float(macro[1]), "weighted": float(weighted[1])},
        "f1": {"macro": float(macro[2]), "weighted": float(weighted[2])},
        "per_class": dict(zip(("precision", "recall", "f1"), (row.tolist() for row in per_class[:3]), strict=True)),
        "calibration_error": calibration_error(logits, labels),
        "confusion": confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) logits -> (N, C) probabilities."""
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of correct answers (Wilson 1927)."""
    interval = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy − confidence| over equal bins, weighted by size."""
    probabilities = softmax(logits)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(correct[which == b].sum() - confidence[which == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(labels))


def mcnemar(logits_a: np.ndarray, logits_b: np.ndarray, labels: np.ndarray) -> dict:
    """Exact McNemar test of two models on the same images: how often only one is right, and the two-sided p-value."""
    right_a, right_b = logits_a.argmax(1) == labels, logits_b.argmax(1) == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def verdict(a: str, b: str, comparison: dict, level: float = 0.05) -> str:
    """One sentence on two models from accuracy difference (b − a) and McNemar p-value: a gain only where p < level."""
    points, p = abs(comparison["difference"]) * 100, comparison["p"]
    p_text = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
    if p >= level:
        return f"between {a} and {b} there is no difference that this test set can show ({points:.1f} points, {p_text})"
    ahead, behind = (b, a) if comparison["difference"] > 0 else (a, b)
    return f"{ahead} is ahead of {behind} by {points:.1f} points ({p_text})"


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the deviation of a single value is nan."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def best_remedy(scores: dict[str, list[float]]) -> str:
    """One sentence on remedy -> macro F1 of each seed: a gain over `none` counts only beyond the spread."""
    best = max((remedy for remedy in scores if remedy != "none"), key=lambda remedy: np.mean(scores[remedy]))
    (mean, spread), (base, base_spread) = mean_and_spread(scores[best]), mean_and_spread(scores["none"])
    figures = f"macro F1 {mean:.3f} against {base:.3f} without a remedy"
    name = best.replace("_", " ")
    if mean <= base:
        return f"No remedy helps: the best is {name}, {figures}."
    if math.isnan(spread):
        return f"The best remedy is **{name}**, {figures}; with one seed there is no spread to compare that with."
    over_seeds = f"the spread over seeds ({max(spread, base_spread):.3f})"
    if mean - base > max(spread, base_spread):
        return f"The best remedy is **{name}**: {figures}, a gain beyond {over_seeds}."
    return f"No remedy gains more than {over_seeds}; the best is {name}, {figures}."


def frontier(results: pd.DataFrame) -> str:
    """One sentence naming the models that no other beats in accuracy at equal or fewer MACs."""
    on_it = [
        row.model
        for row in results.sort_values("macs").itertuples()
        if not ((results["macs"] <= row.macs) & (results["accuracy"] > row.accuracy)).any()
    ]
    return f"No other model is more accurate at the same or fewer multiply-adds than {', '.join(on_it)}."
