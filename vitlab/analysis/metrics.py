"""Scores from predictions, their uncertainty, and paired tests between two models on the same images."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.special import gammaln, ndtri, softmax, stdtr, stdtrit

Key = TypeVar("Key", bound=Hashable)
LEVEL = 0.05  # a difference is claimed where it would be this rare by chance
CONFIDENCE = 1 - LEVEL
RESAMPLES = 1000  # of a bootstrap: the ends of a 95% interval then rest on 25 draws each


def scores(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Scores of logits (N, C) against labels (N,): shares of 1, per class as lists, confusion with rows = truth."""
    answers, classes = logits.argmax(1), logits.shape[1]
    counted = tally(logits, labels)
    per_class = {"precision": precision(counted), "recall": recall(counted), "f1": f1(counted)}
    overall = {
        name: {
            "macro": float(_mean_of_present(row, counted[1])),
            "weighted": float(np.average(row, weights=counted[1])),
        }
        for name, row in per_class.items()
    }
    correct, drawn = int(counted[0].sum()), macro_f1(resampled(logits, labels))
    return {
        "n": len(labels),
        "accuracy": correct / len(labels),
        "interval": wilson(correct, len(labels)),
        "top_2": top_k(logits, labels, 2),
        "balanced_accuracy": float(mean_recall(counted)),
        **overall,
        # drawn from images that are all right, or all wrong, no other score can come
        "f1_interval": interval(drawn) if np.ptp(drawn) else wilson(correct, len(labels)),
        "per_class": {name: row.tolist() for name, row in per_class.items()},
        "calibration_error": calibration_error(logits, labels),
        "confusion": np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes).tolist(),
    }


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95% interval of a share of correct answers (Wilson 1927)."""
    z = float(ndtri(1 - LEVEL / 2))
    middle, reach = correct + z**2 / 2, z * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    low, high = (middle - reach) / (n + z**2), (middle + reach) / (n + z**2)
    return low if correct else 0.0, high if correct < n else 1.0


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of images whose class is among the k most probable answers; k = 1 is the accuracy."""
    answers = np.argsort(-logits, axis=1, kind="stable")[:, :k]  # stable: of equal logits the first, as argmax has it
    return float((answers == labels[:, None]).any(1).mean())


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """A row for each of `bins` ranges of confidence with images in it: images, confidence, accuracy, low, high."""
    probabilities = softmax(logits, axis=1)
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


def confident_mistakes(logits: np.ndarray, labels: np.ndarray, most: int = 12) -> list[tuple[int, int, float]]:
    """(index, answer, confidence) of the wrongly classified, the surest first."""
    probabilities = softmax(logits, axis=1)
    answer = probabilities.argmax(1)
    wrong = np.flatnonzero(answer != labels)
    order = wrong[np.argsort(-probabilities[wrong, answer[wrong]], kind="stable")][:most]
    return [(int(i), int(answer[i]), float(probabilities[i, answer[i]])) for i in order]


# ---------------------------------------------------------------- bootstrap


def tally(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(3, C) of each class: right answers, images, answers. What accuracy, recall and F1 are made of."""
    return _tally(labels[None], logits.argmax(1)[None], logits.shape[1])[:, 0]


def _tally(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """(3, R, C) `tally` of each row of labels (R, N) and answers (R, N)."""
    shift = classes * np.arange(len(labels))[:, None]  # each row counts on its own
    rows = ((labels + shift)[labels == answers], labels + shift, answers + shift)
    size = classes * len(labels)
    return np.stack([np.bincount(row.ravel(), minlength=size).reshape(-1, classes) for row in rows])


def resampled(logits: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(3, resamples, C) `tally` of test sets drawn from the images with replacement (Efron 1979).

    The same seed draws the same images, so that scores of two models differ image by image: a paired bootstrap.
    """
    rng, n, answers = np.random.default_rng(seed), len(labels), logits.argmax(1)
    at_once = max(1, 2**18 // n)  # test sets, a few MB of numbers
    draws = (rng.integers(0, n, (min(at_once, resamples - done), n)) for done in range(0, resamples, at_once))
    return np.concatenate([_tally(labels[drawn], answers[drawn], logits.shape[1]) for drawn in draws], axis=1)


def accuracy(tally: np.ndarray) -> np.ndarray:
    """Share of right answers of `tally` (3, ..., C)."""
    right, images, _ = tally
    return right.sum(-1) / images.sum(-1)


def precision(tally: np.ndarray) -> np.ndarray:
    """(..., C) precision of each class of `tally` (3, ..., C); 0 for a class that was never answered."""
    right, _, answers = tally
    return right / np.maximum(answers, 1)


def recall(tally: np.ndarray) -> np.ndarray:
    """(..., C) recall of each class of `tally` (3, ..., C); 0 for a class without images."""
    right, images, _ = tally
    return right / np.maximum(images, 1)


def mean_recall(tally: np.ndarray) -> np.ndarray:
    """Balanced accuracy: mean over the classes of the recall, of `tally` (3, ..., C)."""
    return _mean_of_present(recall(tally), tally[1])


def f1(tally: np.ndarray) -> np.ndarray:
    """(..., C) F1 of each class of `tally` (3, ..., C), the harmonic mean of precision and recall."""
    right, images, answers = tally
    return 2 * right / np.maximum(images + answers, 1)


def macro_f1(tally: np.ndarray) -> np.ndarray:
    """Mean over the classes of their F1, of `tally` (3, ..., C)."""
    return _mean_of_present(f1(tally), tally[1])


def _mean_of_present(scores: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Mean of `scores` (..., C) over the classes with images: a draw may hold none of a class that has few."""
    present = images > 0
    return (scores * present).sum(-1) / np.maximum(present.sum(-1), 1)


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of resampled values (resamples,)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------- two models, several models


def mcnemar(logits_a: np.ndarray, logits_b: np.ndarray, labels: np.ndarray) -> dict:
    """Exact McNemar test of two models on the same images: how often only one is right, and the two-sided p-value.

    Logits (N, C), or (S, N, C) of S seeds, paired. An image then counts for what it says in all seeds together, since
    the answers of several seeds to one image are no independent ones: under the null hypothesis the sum over images of
    ±(how many more seeds of b than of a are right) is as likely with either sign of each. One seed: McNemar's.
    """
    right_a, right_b = logits_a.argmax(-1) == labels, logits_b.argmax(-1) == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    votes = (right_b.astype(int) - right_a).reshape(-1, len(labels)).sum(0)
    return {"only_a": only_a, "only_b": only_b, "p": sign_test(votes)}


def sign_test(votes: np.ndarray) -> float:
    """Two-sided p-value of the sum of integer votes (N,), each of which could as well have the other sign.

    Exact: the distribution of the sum is the convolution of a binomial's for each size of a vote. Where there are
    several sizes, as of several seeds, no p is below 1e-13, where the transforms' rounding begins.
    """
    sums = np.ones(1)  # of votes of every size so far, its middle is a sum of 0
    for size in range(1, int(np.abs(votes).max(initial=0)) + 1):
        n = int((np.abs(votes) == size).sum())
        spread = np.zeros(2 * n * size + 1)
        up = np.arange(n + 1)  # how many of these votes have a plus
        spread[:: 2 * size] = np.exp(gammaln(n + 1) - gammaln(up + 1) - gammaln(n - up + 1) - n * math.log(2))
        sums = _convolved(sums, spread)
    middle, total = len(sums) // 2, abs(int(votes.sum()))
    least = 1e-13 if len(np.unique(np.abs(votes[votes != 0]))) > 1 else 0.0
    return float(np.clip(2 * sums[middle + total :].sum(), least, 1)) if total else 1.0


def _convolved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Convolution (A + B - 1,) of (A,) and (B,) by Fourier transforms: tens of thousands of values each."""
    if len(a) == 1:  # no rounding where there is nothing to transform
        return a * b
    size = len(a) + len(b) - 1
    return np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size)


def compare(
    logits_a: np.ndarray,
    logits_b: np.ndarray,
    labels: np.ndarray,
    draw: Callable[..., np.ndarray] = resampled,
    noise: Mapping[str, tuple[float, float]] | None = None,
) -> dict:
    """Two models on the same images: differences b − a of accuracy and macro F1, their intervals, McNemar's test.

    Logits (N, C), or (S, N, C) of S seeds: then the differences are those of the means. `draw` is `resampled`, or one
    that remembers. noise: "accuracy" and "macro_f1" -> `training_noise` of such models; where it is known, `trained`,
    intervals and p hold over trainings as well as images (`reach`, `p_value`), else they are of these very runs.
    """
    a, b = (logits.reshape(-1, *logits.shape[-2:]) for logits in (logits_a, logits_b))
    whole = [np.stack([tally(one, labels) for one in seeds], axis=1) for seeds in (a, b)]  # (3, S, C)
    drawn = [np.stack([draw(one, labels) for one in seeds], axis=2) for seeds in (a, b)]  # (3, resamples, S, C)
    found: dict = {"seeds": len(a)} | mcnemar(logits_a, logits_b, labels)
    for name, score in {"": accuracy, "f1_": macro_f1}.items():
        (one, other), (draws, others) = ([score(tallies) for tallies in both] for both in (whole, drawn))
        variance, freedom = (noise or {}).get(score.__name__, (0.0, math.inf))
        by_training, drawn_anew = 2 * variance / len(a), others.mean(-1) - draws.mean(-1)
        by_images = float(drawn_anew.var(ddof=1))
        found[f"{name}difference"] = difference = float(other.mean() - one.mean())
        if by_training or not by_images:
            off = reach(by_training, freedom, by_images) or unseen(len(labels))
            found[f"{name}interval"] = difference - off, difference + off
        else:
            found[f"{name}interval"] = interval(drawn_anew)
        if not name:
            found["trained"] = math.isfinite(freedom)
            found["p"] = p_value(difference, by_training, freedom, by_images, found["p"])
    return found


def _error(by_training: float, freedom: float, by_images: float) -> tuple[float, float]:
    """Standard error of a difference, and its degrees of freedom (Satterthwaite 1946, Welch 1947): of its variance by
    the chance of training, which is known with so many, and of that by the choice of images.
    """
    together = by_training + by_images
    return math.sqrt(together), freedom * (together / by_training) ** 2 if by_training else math.inf


def reach(by_training: float, freedom: float, by_images: float, level: float = LEVEL) -> float:
    """Half the interval of a difference over trainings and images (`_error`)."""
    error, freedom = _error(by_training, freedom, by_images)
    return float(stdtrit(freedom, 1 - level / 2)) * error


def p_value(difference: float, by_training: float, freedom: float, by_images: float, exact: float) -> float:
    """Two-sided p-value of a difference over trainings and images (`_error`); at least the `exact` one of images alone,
    which holds for few of them too, and is all there is where nothing tells of the chance of training.
    """
    error, freedom = _error(by_training, freedom, by_images)
    return max(exact, float(2 * stdtr(freedom, -abs(difference) / error))) if by_training else exact


def unseen(images: int) -> float:
    """The largest share of images of some kind of which none need be among so many (95%, two-sided): half the interval
    of a difference that does not vary, as of models that are right on the same images.
    """
    return 1 - (LEVEL / 2) ** (1 / images)


def shown(comparison: dict | pd.DataFrame) -> bool | pd.Series:
    """Whether a difference may be claimed, p < LEVEL; of `compare`, or of a table with its columns."""
    return comparison["p"] < LEVEL


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (M,) of M tests corrected for making all of them (Holm 1979)."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def corrected(comparisons: dict[Key, dict]) -> dict[Key, dict]:
    """`compare` of several pairs by what they are called, p corrected for making all of these `tests` (`holm`)."""
    p, tests = holm(np.array([comparison["p"] for comparison in comparisons.values()])), len(comparisons)
    return {
        key: found | {"p": float(q), "tests": tests} for (key, found), q in zip(comparisons.items(), p, strict=True)
    }


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the deviation of a single value is nan."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def on_frontier(results: pd.DataFrame, cost: str) -> pd.Series:
    """(models,) bool: whether no other model has a higher accuracy at no more, or as high a one at less, of `cost`.

    A model of unknown cost (NaN) is on none.
    """
    price, score = (results[name].to_numpy() for name in (cost, "accuracy"))
    cheaper, better = price < price[:, None], score > score[:, None]
    beaten = (cheaper & (score >= score[:, None])) | (better & (price <= price[:, None]))
    return ~pd.Series(beaten.any(1), results.index) & results[cost].notna()


# ---------------------------------------------------------------- over seeds and test images


def training_noise(scores: Mapping[str, Sequence], blocks: bool = True) -> tuple[float, float]:
    """Variance of a score by the chance of training alone, and its degrees of freedom.

    scores: name -> of each seed a number, or (C,) of the classes, over which the variance is a mean. Seeds are blocks:
    the models of one share its images and its rare classes. What is left of the scores once the means of names and of
    seeds are taken out is chance; its variance is pooled over the names (randomised blocks, Fisher 1935). Without
    `blocks`, and of a single name, seeds are chance as well. Of a single seed nothing is left: 0, and no limit to the
    degrees of freedom.
    """
    table = np.array(list(scores.values()))
    names, seeds = table.shape[:2]
    if seeds < 2:
        return 0.0, math.inf
    left, freedom = table - table.mean(1, keepdims=True), names * (seeds - 1)
    if blocks and names > 1:
        left, freedom = left - table.mean(0) + table.mean((0, 1)), (names - 1) * (seeds - 1)
    return float((left**2).sum((0, 1)).mean() / freedom), freedom


def mixed_noise(start: tuple[float, float], on: tuple[float, float]) -> tuple[float, float]:
    """`training_noise` of which twice the variance is that of a difference between a model that was trained from the
    start and one that goes on from such a model: the second has the chance of both trainings.

    start, on: the noise of models of either kind.
    """
    parts = start[0], on[0] / 2
    together = sum(parts)
    if not together:
        return 0.0, min(start[1], on[1])
    return together, together**2 / sum(part**2 / f for part, (_, f) in zip(parts, (start, on), strict=True))


def seed_differences(
    scores: dict[str, list[float]],
    resampled_scores: dict[str, np.ndarray],
    base: str,
    names: list[str],
    noise: tuple[float, float],
    tests: int = 0,
) -> pd.DataFrame:
    """Of each of `names`: score, its mean over seeds; gain over `base`; low, high, the gain's 95% interval.

    The interval is one over seeds and test images (`reach`), and holds for all of `names` at once, or for so many
    `tests` where `base` was chosen by these very scores (Bonferroni). No gain leaves −1 to 1. scores: name -> score of
    each seed; resampled_scores: name -> (resamples,) the seeds' mean on images drawn anew; noise: `training_noise`.
    """
    by_training, level = 2 * noise[0] / len(scores[base]), LEVEL / max(tests, len(names), 1)
    rows = {}
    for name in names:
        score = float(np.mean(scores[name]))
        by_images = float(np.var(resampled_scores[name] - resampled_scores[base], ddof=1))
        off, gain = reach(by_training, noise[1], by_images, level), score - float(np.mean(scores[base]))
        rows[name] = score, gain, max(gain - off, -1.0), min(gain + off, 1.0)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["score", "gain", "low", "high"])


def best_gain(gains: pd.DataFrame) -> pd.Series:
    """The row of the largest gain of those that are shown, of all where none is; gains: `seed_differences`."""
    clear = gains[gains["low"] > 0]
    rows = gains if clear.empty else clear
    return rows.loc[rows["gain"].idxmax()]
