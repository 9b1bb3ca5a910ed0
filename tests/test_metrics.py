"""Scores agree with scikit-learn and with formulas written out; a difference is claimed where one shows."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from vitlab import metrics

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


def test_softmax_survives_large_logits() -> None:
    np.testing.assert_allclose(metrics.softmax(np.array([[1000.0, 1000.0], [0.0, -1000.0]])), [[0.5, 0.5], [1, 0]])


@pytest.mark.parametrize("p", [0.05, 0.2, 1.0])
def test_verdict_claims_no_difference_without_significance(p: float) -> None:
    text = metrics.verdict("A", "B", {"difference": 0.03, "p": p})
    assert "no difference" in text
    assert "ahead" not in text


def test_verdict_names_the_better_model_and_by_how_much() -> None:
    assert metrics.verdict("A", "B", {"difference": 0.031, "p": 0.02}) == "B is ahead of A by 3.1 points (p = 0.02)"
    assert metrics.verdict("A", "B", {"difference": -0.2, "p": 1e-9}) == "A is ahead of B by 20.0 points (p < 0.001)"


def test_spread_is_the_sample_deviation_and_nan_for_one_seed() -> None:
    mean, spread = metrics.mean_and_spread([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert spread == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    assert math.isnan(metrics.mean_and_spread([1.0])[1])


def test_best_remedy_is_a_gain_only_beyond_the_spread_over_seeds() -> None:
    none = [0.50, 0.52, 0.54]
    gain = metrics.best_remedy({"none": none, "sampler": [0.6, 0.62, 0.61], "class_weights": [0.5, 0.5, 0.5]})
    assert gain.startswith("The best remedy is **sampler**: macro F1 0.610 against 0.520")
    assert metrics.best_remedy({"none": none, "logit_adjustment": [0.52, 0.53, 0.54]}).startswith("No remedy gains")
    assert "one seed" in metrics.best_remedy({"none": [0.5], "sampler": [0.9]})


def test_frontier_holds_the_models_that_none_beats_at_no_more_cost() -> None:
    frame = pd.DataFrame({"model": ["cheap", "beaten", "dear"], "macs": [1, 2, 3], "accuracy": [0.8, 0.7, 0.9]})
    text = metrics.frontier(frame)
    assert "cheap, dear" in text
    assert "beaten" not in text


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"none": [0.5, 0.52], "sampler": [0.6, 0.61]}, "a gain beyond the spread"),
        ({"none": [0.5, 0.6], "sampler": [0.56, 0.6]}, "No remedy gains more than the spread"),
        ({"none": [0.5, 0.6], "sampler": [0.4, 0.5]}, "No remedy helps"),
        ({"none": [0.5], "sampler": [0.6]}, "with one seed there is no spread"),
        ({"none": [0.5], "sampler": [0.4]}, "No remedy helps"),
    ],
)
def test_sentence_on_remedies_claims_no_gain_inside_the_noise(scores: dict, expected: str) -> None:
    assert expected in metrics.best_remedy(scores)


def test_frontier_names_the_models_that_no_other_beats() -> None:
    results = pd.DataFrame({"model": ["a", "b", "c"], "macs": [1, 2, 3], "accuracy": [0.5, 0.4, 0.6]})
    assert metrics.frontier(results).endswith("than a, c.")
