"""Scores agree with scikit-learn and with formulas written out."""

import itertools
import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap
from scipy.stats import t as student
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vitlab.analysis import metrics

RNG = np.random.default_rng(0)


def answers(labels: np.ndarray, right: np.ndarray, classes: int = 3) -> np.ndarray:
    """Logits whose answer is right where it is asked to be."""
    return np.eye(classes)[np.where(right, labels, (labels + 1) % classes)] * 5.0


@pytest.fixture
def skewed() -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.choice(4, 300, p=[0.6, 0.25, 0.1, 0.05])
    return RNG.normal(size=(300, 4)) + 1.5 * np.eye(4)[labels], labels


@pytest.fixture
def balanced() -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(4), 50)
    return RNG.normal(size=(200, 4)) + 1.5 * np.eye(4)[labels], labels


def test_scores_agree_with_scikit_learn(skewed: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = skewed
    guess, got = logits.argmax(1), metrics.scores(logits, labels)
    assert got["n"] == 300
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, guess))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, guess))
    for name in ("precision", "recall", "f1"):
        score = getattr(sk, f"{name}_score")
        assert got["per_class"][name] == pytest.approx(score(labels, guess, average=None))
        for average in ("macro", "weighted"):
            assert got[name][average] == pytest.approx(score(labels, guess, average=average))
    assert got["f1"]["macro"] != pytest.approx(got["f1"]["weighted"], abs=1e-3)


def test_rows_of_the_confusion_matrix_are_the_truth() -> None:
    labels = np.array([0, 0, 0, 1])
    got = metrics.scores(np.eye(3)[[0, 1, 1, 2]], labels)
    assert got["confusion"] == [[1, 2, 0], [0, 0, 1], [0, 0, 0]]


def test_on_balanced_labels_averages_agree_where_they_must(balanced: tuple[np.ndarray, np.ndarray]) -> None:
    got = metrics.scores(*balanced)
    for name in ("precision", "recall", "f1"):
        assert got[name]["macro"] == pytest.approx(got[name]["weighted"])
    assert got["accuracy"] == pytest.approx(np.mean(got["per_class"]["recall"]))
    assert got["accuracy"] == pytest.approx(got["balanced_accuracy"])


def test_class_that_is_never_answered_scores_zero_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    got = metrics.scores(np.eye(3)[[0, 0, 0]], np.array([0, 1, 2]))
    assert got["per_class"]["f1"] == pytest.approx([0.5, 0, 0])
    assert len(recwarn) == 0


def test_scores_can_be_written_as_json(skewed: tuple[np.ndarray, np.ndarray]) -> None:
    import json

    assert json.loads(json.dumps(metrics.scores(*skewed)))["n"] == 300


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (1, 10), (342, 360), (360, 360), (7500, 10_000)])
def test_interval_is_wilsons_closed_formula(correct: int, n: int) -> None:
    z, p = 1.959963984540054, correct / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = metrics.wilson(correct, n)
    assert low == pytest.approx(max(0, centre - half), abs=1e-12)
    assert high == pytest.approx(min(1, centre + half), abs=1e-12)
    assert 0 <= low <= p <= high <= 1


def pair(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    labels = RNG.integers(0, 3, len(a))
    return answers(labels, a), answers(labels, b), labels


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (9, 3), (5, 5), (0, 6), (40, 20)])
def test_mcnemar_is_the_exact_binomial_test_on_the_disagreements(only_a: int, only_b: int) -> None:
    got = metrics.mcnemar(*pair(50, only_a, only_b, 7))
    n, few = only_a + only_b, min(only_a, only_b)
    by_hand = min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)
    assert (got["only_a"], got["only_b"]) == (only_a, only_b)
    assert got["p"] == pytest.approx(by_hand, rel=1e-9)


def test_models_that_agree_everywhere_do_not_differ() -> None:
    assert metrics.mcnemar(*pair(10, 0, 0, 5))["p"] == 1


def test_calibration_error_by_hand() -> None:
    # two answers sure to 0.6, one right; two sure to 0.9, both right: (2 |0.5 − 0.6| + 2 |1 − 0.9|) / 4
    sure = np.array([0.6, 0.6, 0.9, 0.9])
    logits = np.log(np.stack([sure, 1 - sure], 1))
    labels = np.array([0, 1, 0, 0])
    assert metrics.calibration_error(logits, labels) == pytest.approx(0.1)


def test_calibration_error_averages_within_a_bin_before_it_takes_the_distance() -> None:
    # half right at 0.5 + a little is well calibrated, although every single answer is off by a half
    logits = np.log(np.tile([0.5001, 0.4999], (100, 1)))
    assert metrics.calibration_error(logits, np.arange(100) % 2) == pytest.approx(0.0001, abs=1e-9)


def test_calibration_error_of_certain_answers_is_the_error_rate() -> None:
    labels = np.arange(90) % 3
    logits = answers(labels, RNG.random(90) < 0.7) * 100
    assert metrics.calibration_error(logits, labels) == pytest.approx(np.mean(logits.argmax(1) != labels))


# ---------------------------------------------------------------- independent implementations


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (1, 10), (342, 360), (360, 360), (7500, 10_000)])
def test_interval_is_that_of_statsmodels(correct: int, n: int) -> None:
    expected = proportion_confint(correct, n, alpha=0.05, method="wilson")
    assert metrics.wilson(correct, n) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (5, 5), (0, 6), (40, 20), (300, 240)])
def test_mcnemar_is_that_of_statsmodels(only_a: int, only_b: int) -> None:
    expected = statsmodels_mcnemar([[50, only_a], [only_b, 7]], exact=True).pvalue
    assert metrics.mcnemar(*pair(50, only_a, only_b, 7))["p"] == pytest.approx(expected, abs=1e-9)


def test_holm_is_that_of_statsmodels() -> None:
    for size in (1, 2, 15):
        p = RNG.random(size) ** 3
        assert metrics.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def scipys_bootstrap(statistic: Callable, *samples: np.ndarray) -> tuple[float, float]:
    """scipy draws the same images from the same seed, image by image for all samples."""
    result = bootstrap(
        samples, statistic, paired=True, vectorized=False, n_resamples=200, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return tuple(result.confidence_interval)


def test_bootstrap_of_macro_f1_is_that_of_scipy_and_scikit_learn(skewed: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = skewed

    def f1(truth: np.ndarray, guess: np.ndarray) -> float:
        present = np.unique(truth)  # a draw may lack a class
        return sk.f1_score(truth, guess, average="macro", labels=present, zero_division=0)

    got = metrics.interval(metrics.macro_f1(metrics.resampled(logits, labels, resamples=200)))
    assert got == pytest.approx(scipys_bootstrap(f1, labels, logits.argmax(1)), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["accuracy", "macro_f1"])
def test_paired_bootstrap_is_that_of_scipy(score: str, balanced: tuple[np.ndarray, np.ndarray]) -> None:
    a, labels = balanced
    b = a + RNG.normal(size=a.shape)

    def value(truth: np.ndarray, guess: np.ndarray) -> float:
        if score == "accuracy":
            return sk.accuracy_score(truth, guess)
        return sk.f1_score(truth, guess, average="macro", labels=range(4), zero_division=0)

    expected = scipys_bootstrap(lambda y, i, j: value(y, j) - value(y, i), labels, a.argmax(1), b.argmax(1))
    drawn = [getattr(metrics, score)(metrics.resampled(logits, labels, resamples=200)) for logits in (a, b)]
    assert metrics.interval(drawn[1] - drawn[0]) == pytest.approx(expected, abs=1e-9)


# ---------------------------------------------------------------- bootstrap, top k, reliability


def test_scores_of_a_tally_are_those_of_the_predictions(skewed: tuple[np.ndarray, np.ndarray]) -> None:
    got, tally = metrics.scores(*skewed), metrics.tally(*skewed)
    assert metrics.accuracy(tally) == pytest.approx(got["accuracy"])
    assert metrics.macro_f1(tally) == pytest.approx(got["f1"]["macro"])
    assert metrics.recall(tally) == pytest.approx(got["per_class"]["recall"])
    assert metrics.macro_f1(np.stack([tally, 2 * tally], axis=1)) == pytest.approx([got["f1"]["macro"]] * 2)


def test_means_run_over_the_classes_that_a_draw_holds() -> None:
    tally = metrics.tally(np.eye(3)[[0, 0, 0, 1, 1]], np.array([0, 0, 0, 1, 1]))
    assert tally.tolist() == [[3, 2, 0]] * 3
    assert metrics.recall(tally).tolist() == [1, 1, 0]
    assert metrics.mean_recall(tally) == metrics.macro_f1(tally) == 1
    tally = metrics.tally(np.eye(3)[[0, 2, 0, 1, 1]], np.array([0, 0, 0, 1, 1]))  # an answer to a class without images
    assert metrics.mean_recall(tally) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.macro_f1(tally) == pytest.approx((4 / 5 + 1) / 2)


def test_perfect_model_is_perfect_in_every_draw_where_a_class_has_one_image() -> None:
    labels = np.array([0] * 8 + [1] * 8 + [2])
    drawn = metrics.resampled(np.eye(3)[labels], labels, resamples=200)
    assert (drawn[1] == 0).any()
    assert metrics.interval(metrics.macro_f1(drawn)) == metrics.interval(metrics.mean_recall(drawn)) == (1, 1)


def test_resampling_is_seeded_and_quick() -> None:
    labels = np.arange(10_000) % 10
    logits = RNG.normal(size=(10_000, 10)) + 2 * np.eye(10)[labels]
    started = time.thread_time()  # of this thread's work alone: others may use the cores
    drawn = metrics.resampled(logits, labels)
    assert time.thread_time() - started < 2
    assert drawn.shape == (3, metrics.RESAMPLES, 10)
    assert (drawn[1:].sum(-1) == 10_000).all()
    assert np.array_equal(drawn, metrics.resampled(logits, labels))
    assert not np.array_equal(drawn, metrics.resampled(logits, labels, seed=1))
    low, high = metrics.scores(logits, labels)["f1_interval"]
    assert low < metrics.scores(logits, labels)["f1"]["macro"] < high


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_agrees_with_scikit_learn(k: int, skewed: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = skewed
    assert metrics.top_k(logits, labels, k) == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=k))


def test_top_one_is_the_accuracy_even_where_logits_tie() -> None:
    assert metrics.top_k(np.zeros((4, 3)), np.array([0, 1, 2, 0]), 1) == 0.5
    assert metrics.top_k(np.zeros((4, 2)), np.array([0, 1, 1, 0]), 2) == 1  # two classes, which scikit-learn refuses


def test_reliability_by_hand() -> None:
    sure = np.array([0.61, 0.63, 0.93, 1.0])
    logits = np.log(np.maximum(np.stack([sure, 1 - sure], 1), 1e-300))
    rows = metrics.reliability(logits, np.array([0, 1, 0, 0]), bins=10)
    assert rows["images"].tolist() == [2, 2]
    assert rows["confidence"].tolist() == pytest.approx([0.62, 0.965])
    assert rows["accuracy"].tolist() == [0.5, 1]
    assert (rows["low"].iloc[0], rows["high"].iloc[0]) == pytest.approx(metrics.wilson(1, 2))


def test_surest_mistakes_come_first() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.1, 0.7], [0.0, 0.5, 0.5], [0.8, 0.1, 0.1], [0.05, 0.9, 0.05]])
    labels = np.array([0, 0, 0, 2, 2])  # the first is right
    found = metrics.confident_mistakes(np.log(np.maximum(probabilities, 1e-300)), labels)
    assert [(index, answer) for index, answer, _ in found] == [(4, 1), (3, 0), (1, 2), (2, 1)]
    assert [sure for *_, sure in found] == pytest.approx([0.9, 0.8, 0.7, 0.5])
    assert metrics.confident_mistakes(np.log(np.maximum(probabilities, 1e-300)), labels, most=2) == found[:2]
    assert metrics.confident_mistakes(np.eye(3), np.arange(3)) == []


def test_comparison_is_antisymmetric_and_finds_nothing_between_equals() -> None:
    a, b, labels = pair(50, 4, 20, 7)
    there, back = metrics.compare(a, b, labels), metrics.compare(b, a, labels)
    assert there["difference"] == -back["difference"] == pytest.approx(16 / 81)
    assert there["interval"] == pytest.approx([-end for end in back["interval"][::-1]])
    assert there["f1_interval"][0] < there["f1_difference"] < there["f1_interval"][1]
    same = metrics.compare(a, a, labels)
    assert (same["difference"], same["f1_difference"], same["p"]) == (0, 0, 1)


def test_votes_of_several_seeds_are_tested_exactly() -> None:
    rng = np.random.default_rng(0)
    for votes in (rng.integers(-3, 4, 11), rng.integers(0, 4, 9), np.array([2, 2, -1]), np.zeros(4, int)):
        sums = [abs(np.dot(signs, votes)) for signs in itertools.product((1, -1), repeat=len(votes))]
        assert metrics.sign_test(votes) == pytest.approx(np.mean(np.array(sums) >= abs(votes.sum())))


@pytest.mark.parametrize(("won", "lost"), [(2131, 831), (653, 2567), (40, 900)])
def test_p_of_one_seed_is_exact_however_small(won: int, lost: int) -> None:
    votes = np.repeat([1, -1, 0], [won, lost, 5000])
    expected = binomtest(won, won + lost).pvalue
    assert 0 < expected < 1e-100
    assert metrics.sign_test(votes) == pytest.approx(expected, rel=1e-6, abs=0)


def test_p_of_several_seeds_is_not_below_what_rounding_leaves() -> None:
    assert metrics.sign_test(np.repeat([1, 2, -1], [2000, 500, 300])) == 1e-13


def test_several_comparisons_are_corrected_for_all_of_them() -> None:
    found = metrics.corrected({"a": {"p": 0.01, "difference": 1}, "b": {"p": 0.03, "difference": 2}})
    assert found == {"a": {"p": 0.02, "difference": 1, "tests": 2}, "b": {"p": 0.03, "difference": 2, "tests": 2}}


def test_several_seeds_are_compared_within_seeds() -> None:
    first, second, labels = pair(50, 4, 20, 7)
    found = metrics.compare(np.stack([first, first]), np.stack([second, second]), labels)
    one = metrics.compare(first, second, labels)
    assert (found["seeds"], found["trained"], one["seeds"], one["trained"]) == (2, False, 1, False)
    assert (found["only_a"], found["only_b"]) == (2 * one["only_a"], 2 * one["only_b"])
    assert found["difference"] == pytest.approx(one["difference"])
    assert found["interval"] == pytest.approx(one["interval"])
    assert found["p"] == pytest.approx(one["p"])  # the same answers twice are no more evidence than once


def test_chance_of_training_widens_the_interval_and_the_test() -> None:
    first, second, labels = pair(50, 4, 20, 7)
    n = len(labels)
    several = np.stack([first, first]), np.stack([first, second])
    images = metrics.compare(*several, labels)
    assert images["difference"] == pytest.approx(16 / n / 2)
    assert metrics.shown(images)
    for variance, shown in ((1e-8, True), (0.01, False)):
        found = metrics.compare(*several, labels, noise={"accuracy": (variance, 4), "macro_f1": (variance, 4)})
        assert found["trained"]
        assert found["p"] >= images["p"]
        assert bool(metrics.shown(found)) == shown
        low, high = found["interval"]
        assert (low + high) / 2 == pytest.approx(found["difference"])
        assert (low <= 0 <= high) != shown
    assert found["p"] == pytest.approx(2 * student.sf(found["difference"] / 0.1, 4), rel=0.05)  # the images' part
    assert found["f1_interval"][0] < images["f1_interval"][0]


def test_of_equal_recipes_few_are_called_different() -> None:
    """Trainings of one recipe whose accuracies scatter by half a point, on images that many agree on."""
    rng, called, covered = np.random.default_rng(0), 0, 0
    for _ in range(200):
        runs = rng.normal(0.9, 0.005, (4, 3))
        noise = metrics.training_noise(dict(enumerate(runs)))
        by_training, by_images = 2 * noise[0] / 3, 0.001**2
        difference = runs[1].mean() - runs[0].mean() + rng.normal(0, 0.001)
        called += metrics.p_value(difference, by_training, noise[1], by_images, 0.0) < metrics.LEVEL
        covered += abs(difference) < metrics.reach(by_training, noise[1], by_images)
    assert 0.01 < called / 200 < 0.1
    assert covered == 200 - called


def test_chance_of_training_is_what_models_and_seeds_leave() -> None:
    table = np.array([[1.0, 2.0], [3.0, 4.5], [2.0, 2.5]])
    left = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    variance, freedom = metrics.training_noise(dict(enumerate(table)))
    assert (variance, freedom) == (pytest.approx((left**2).sum() / 2), 2)
    classes, freedom = metrics.training_noise(dict(enumerate(np.stack([table, 2 * table], axis=-1))))
    assert (classes, freedom) == (pytest.approx(2.5 * variance), 2)  # the mean of 1 and 4 times as much
    seeds_too = metrics.training_noise(dict(enumerate(table)), blocks=False)
    assert seeds_too == (pytest.approx(np.var(table, axis=1, ddof=1).mean()), 3)
    assert metrics.training_noise({"alone": [1.0, 3.0]}) == (2.0, 1)  # no blocks: all is chance
    assert metrics.training_noise({"a": [1.0], "b": [2.0]}) == (0, math.inf)


def test_model_that_goes_on_has_the_chance_of_its_start_as_well() -> None:
    """Of equal models few are called different, whichever of the two goes on from another one."""
    rng, called = np.random.default_rng(1), 0
    for _ in range(300):
        starts = rng.normal(0, 0.01, (6, 3))
        backbone = starts[0]
        on = backbone + rng.normal(0, 0.003, (4, 3))
        noise = [metrics.training_noise(dict(enumerate(scores))) for scores in (starts, on)]
        variance, freedom = metrics.mixed_noise(*noise)
        difference = float(on[0].mean() - starts[1].mean())
        called += metrics.p_value(difference, 2 * variance / 3, freedom, 1e-12, 0.0) < metrics.LEVEL
    assert called / 300 < 0.08
    assert metrics.mixed_noise((0.0, 4), (0.0, 2)) == (0.0, 2)


def test_models_that_are_right_on_the_same_images_may_differ_on_others() -> None:
    first, _, labels = pair(50, 4, 20, 7)
    n = len(labels)
    low, high = metrics.compare(first, first, labels)["interval"]
    assert low == -high
    assert (1 - high) ** n == pytest.approx(0.025)
    all_wrong = np.eye(10)[(labels + 1) % 10]
    apart = metrics.compare(np.eye(10)[labels], all_wrong, labels)["interval"]
    assert apart == (pytest.approx(-1 - high), pytest.approx(-1 + high))
    perfect = np.eye(10)[labels]
    assert metrics.scores(perfect, labels)["f1_interval"] == metrics.wilson(n, n)


def test_difference_is_shown_where_p_is_small() -> None:
    frame = pd.DataFrame({"difference": [0.02, -0.02, 0.02], "p": [0.01, 0.049, 0.05]})
    assert metrics.shown(frame).tolist() == [True, True, False]
    assert [bool(metrics.shown(row)) for row in frame.to_dict("records")] == [True, True, False]


def test_spread_is_the_sample_deviation_and_nan_for_one_seed() -> None:
    mean, spread = metrics.mean_and_spread([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert spread == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    assert math.isnan(metrics.mean_and_spread([1.0])[1])


@pytest.mark.parametrize("cost", ["macs", "seconds"])
def test_frontier_holds_the_models_that_none_beats_in_accuracy_and_cost(cost: str) -> None:
    names = ["dear", "cheap", "beaten", "as good as dear, and dearer", "twin of cheap"]
    frame = pd.DataFrame({"model": names, cost: [3, 1, 2, 4, 1], "accuracy": [0.9, 0.8, 0.7, 0.9, 0.8]})
    assert metrics.on_frontier(frame, cost).tolist() == [True, True, False, False, True]


def test_model_of_unknown_cost_is_on_no_frontier_and_takes_none_off_it() -> None:
    frame = pd.DataFrame({"macs": [math.nan, 1.0, math.nan], "accuracy": [0.9, 0.8, 0.7]}, index=[3, 1, 2])
    assert metrics.on_frontier(frame, "macs").to_dict() == {3: False, 1: True, 2: False}
