"""No sentence claims a difference, a gain or a leader inside the noise."""

import math

import numpy as np
import pandas as pd
import pytest

from vitlab.analysis import sentences


def found(difference: float, p: float, low: float = -0.01, high: float = 0.04) -> dict:
    return {"difference": difference, "p": p, "interval": (low, high)}


@pytest.mark.parametrize("p", [0.05, 0.2, 1.0])
def test_verdict_claims_no_difference_without_significance(p: float) -> None:
    text = sentences.verdict("A", "B", found(0.03, p))
    assert "no difference that this test set can show" in text
    assert "95% interval -1.0 to +4.0" in text
    assert "ahead" not in text


def test_verdict_names_the_better_model_and_by_how_much() -> None:
    got = sentences.verdict("A", "B", found(0.031, 0.02, 0.005, 0.057))
    assert all(part in got for part in ("B is ahead of A by 3.1 points", "95% interval 0.5 to 5.7", "p = 0.02"))
    got = sentences.verdict("A", "B", found(-0.2, 1e-9, -0.3, -0.1))
    assert all(part in got for part in ("A is ahead of B by 20.0 points", "95% interval 10.0 to 30.0", "p < 0.001"))


MODELS = pd.DataFrame(
    {
        "model": ["a", "b", "c"],
        "macs": [3, 1, 2],
        "accuracy": [0.9, 0.88, 0.5],
        "accuracy_low": [0.85, 0.83, 0.4],
        "accuracy_high": [0.95, 0.93, 0.6],
    }
)
PAIRS = [("a", "b"), ("a", "c"), ("b", "c")]


def leaders(*p: float) -> str:
    return sentences.leaders(
        MODELS, pd.DataFrame([{"a": a, "b": b, "p": q} for (a, b), q in zip(PAIRS, p, strict=True)])
    )


def test_leader_is_alone_only_where_the_tests_tell_it_from_all() -> None:
    assert "differs significantly from every other model" in leaders(0.01, 0.001, 1)
    text = leaders(0.3, 0.001, 0.001)
    assert "no difference between it and *b*;" in text
    assert "**b** needs the fewest multiply-adds, 33.3% of the best one's" in text
    assert "*c*" not in text


def test_leader_that_is_the_cheapest_too_has_no_cheaper_peer() -> None:
    pairs = pd.DataFrame([{"a": "a", "b": "b", "p": 0.3}])
    text = sentences.leaders(MODELS.assign(macs=1), pairs)
    assert "*b*, none of which needs fewer" in text
    assert "the fewest" not in text


@pytest.mark.parametrize("unknown", ["a", "b"])
def test_leader_is_compared_with_no_cost_that_nobody_knows(unknown: str) -> None:
    """What a module of the reader's own costs is not measured."""
    results = MODELS.assign(macs=[math.nan if name == unknown else 1 for name in MODELS["model"]])
    text = sentences.leaders(results, pd.DataFrame([{"a": "a", "b": "b", "p": 0.3}]))
    assert "no difference between it and *b*" in text
    assert "none of which is known to need fewer" in text
    assert "nan" not in text


def test_cheapest_peer_is_one_whose_cost_is_known() -> None:
    results = MODELS.assign(macs=[3, math.nan, 2])
    text = sentences.leaders(results, pd.DataFrame([{"a": "a", "b": b, "p": 0.3} for b in "bc"]))
    assert "no difference between it and *b*; *c*" in text
    assert "**c** needs the fewest multiply-adds" in text


def test_pairs_without_a_clear_difference_are_only_counted() -> None:
    pairs = pd.DataFrame(
        [{"a": a, "b": b, **found(0.03, p)} for (a, b), p in zip(PAIRS, (0.01, 0.05, 0.9), strict=True)]
    )
    text = sentences.verdicts(pairs)
    assert text.count("ahead") == 1
    assert "*b* is ahead of *a*" in text
    assert "In 2 of 3 pairs there is no difference" in text
    assert "ahead" not in sentences.verdicts(pairs[1:])
    assert sentences.verdicts(pairs[1:]).startswith("In 2 of 2 pairs")
    most = sentences.verdicts(pairs.assign(p=[0.01, 0.01, 0.9]))  # names the one that is left
    assert most.startswith("In 2 of 3 pairs")
    assert "In 1 of 3 pairs there is no difference" in most
    assert most.endswith(": *{}* and *{}*.".format(*PAIRS[2]))
    assert sentences.verdicts(pairs.assign(p=0.01)).count("pairs") == 1


@pytest.mark.parametrize(
    ("scores", "noise", "expected"),
    [
        ({"none": [0.5, 0.52], "sampler": [0.6, 0.61]}, 0.01, "a gain beyond the spread over seeds (0.014)"),
        ({"none": [0.5, 0.52], "sampler": [0.6, 0.61]}, 0.1, "No remedy shows a gain"),  # too few test images
        ({"none": [0.5, 0.6], "sampler": [0.56, 0.6]}, 0.001, "No remedy shows a gain"),  # seeds differ by more
        ({"none": [0.5, 0.6], "sampler": [0.4, 0.5]}, 0.001, "No remedy raised the measured"),
        ({"none": [0.5], "sampler": [0.6]}, 0.01, "a gain beyond the test images' noise; one seed says nothing"),
        ({"none": [0.5], "sampler": [0.6]}, 0.1, "No remedy shows a gain"),
        ({"none": [0.5], "sampler": [0.4]}, 0.001, "No remedy raised the measured"),
    ],
)
def test_sentence_on_remedies_claims_no_gain_inside_the_noise(scores: dict, noise: float, expected: str) -> None:
    spread = np.random.default_rng(0).normal(0, noise, 1000)
    drawn = {remedy: np.mean(f1) + spread * (remedy != "none") for remedy, f1 in scores.items()}
    assert expected in sentences.best_remedy(scores, drawn)


def test_who_gains_names_the_classes_of_the_best_remedy() -> None:
    recall = pd.DataFrame({"none": [0.9, 0.5, 0.2], "sampler": [0.85, 0.5, 0.4], "both": [0.9, 0.9, 0.9]}, list("abc"))
    got = sentences.who_gains(recall, {"none": [0.5], "sampler": [0.6, 0.6], "both": [0.7, 0.3], "balanced": [0.9]})
    assert "sampler gives most to the class c (+20.0 points) and takes most from the class a (-5.0 points)" in got
    assert "1 of 3 classes gain" in got
    assert "takes from none" in sentences.who_gains(recall, {"none": [0.5], "both": [0.6]})
    assert "gives to none" in sentences.who_gains(recall.assign(both=0.1), {"none": [0.5], "both": [0.6]})


def test_interval_of_the_best_remedy_is_widened_for_having_been_picked() -> None:
    scores = {name: [0.5] for name in ("none", *"abcd")} | {"e": [0.6]}
    drawn = {name: np.linspace(f1[0] - 0.1, f1[0] + 0.1, 1000) for name, f1 in scores.items()}
    drawn["none"] = np.full(1000, 0.5)
    scores["balanced"], drawn["balanced"] = [0.9], np.full(1000, 0.9)  # is none of them
    text = sentences.best_remedy(scores, drawn)
    assert all(part in text for part in ("99% interval", "because the best was picked", "+0.001 to +0.199"))


@pytest.mark.parametrize(
    ("profile", "counts", "words"),
    [("linear", [40, 10], ["linear", "4:1"]), ("none", [300, 90], ["as they come", "3.33:1"])],
)
def test_imbalance_is_named_with_the_ratio_that_was_reached(profile: str, counts: list[int], words: list[str]) -> None:
    assert all(word in sentences.imbalance(profile, np.array(counts)) for word in words)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [(0.001, "Trained on all the images the model scores better"), (1, "no difference can be shown")],
)
def test_price_of_imbalance_is_named_only_beyond_the_noise(noise: float, expected: str) -> None:
    drawn = {"none": np.zeros(1000), "balanced": 0.1 + noise * np.linspace(-1, 1, 1000)}
    scores = {"none": [0.6, 0.62], "balanced": [0.7, 0.72], "sampler": [0.64, 0.66], "both": [0.6, 0.6]}
    drawn["sampler"] = np.full(1000, 0.04)
    text = sentences.price_of_imbalance(scores, drawn, missing=1200)
    assert expected in text
    assert "(+10.0 points of macro F1, 95% interval" in text
    won = "sampler, wins 4.0 of these points back"
    assert (won in text) == ("better" in text) == ("1,200 missing images" in text)
    drawn["sampler"] = np.linspace(-0.04, 0.12, 1000)  # a gain inside the noise
    assert won not in sentences.price_of_imbalance(scores, drawn, missing=1200)
    wide = sentences.price_of_imbalance({"none": [0.5, 0.72], "balanced": [0.7, 0.72]}, drawn, missing=1200)
    assert "no difference can be shown" in wide  # seeds differ by more


def test_conclusion_on_the_study_is_of_one_mind() -> None:
    """A gain inside the best remedy's own spread over seeds is a gain in neither sentence."""
    scores = {"none": [0.5, 0.51], "balanced": [0.7, 0.71], "sampler": [0.49, 0.56]}
    drawn = {name: np.full(1000, np.mean(f1)) for name, f1 in scores.items()}
    assert "No remedy shows a gain" in sentences.best_remedy(scores, drawn)
    assert "wins" not in sentences.price_of_imbalance(scores, drawn, missing=9)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0, 1, 2], "Down to ρ = 0.3 (40.0%) the 100 test images can show no loss against the teacher"),
        ([0, 30, 60], "Down to ρ = 1 (80.0%) the 100 test images can show no loss against the teacher"),
        ([0, 30, 60], "; at ρ = 0.7 (60.0%) they show one."),
        ([30, 30, 60], "Even at ρ = 1 (80.0%) the 100 test images can show a loss"),
        ([0, -30, 60], "Down to ρ = 0.7 (60.0%)"),  # better than the teacher is no loss
    ],
)
def test_how_far_a_model_bends_is_where_a_test_first_shows_a_loss(losses: list[int], expected: str) -> None:
    sweep = pd.DataFrame({"keep_ratio": [1.0, 0.7, 0.3], "accuracy": [0.8, 0.6, 0.4]})
    tests = {
        share: {"only_a": max(n, 0), "only_b": max(-n, 0), "p": 1.0 if abs(n) < 5 else 1e-6}
        for share, n in zip(sweep["keep_ratio"], losses, strict=True)
    }
    assert expected in sentences.how_far(sweep, tests, "100 test images", "the teacher")


def test_sentence_on_the_frontier_speaks_of_what_was_measured() -> None:
    results = {"model": ["c", "a", "b"], "macs": [3, 1, 2], "latency_ms": [1, 3, 2], "accuracy": [0.6, 0.5, 0.4]}
    text = sentences.frontier(pd.DataFrame(results))
    assert text.startswith("On the measured values, noise included")
    by_work, by_time = text.split(": ")[1:]
    assert by_work.startswith("*a*; *c*;")
    assert by_time == "*c*."


def test_model_of_unknown_cost_is_on_no_frontier() -> None:
    results = {"model": ["a", "own"], "macs": [1, math.nan], "latency_ms": [1, math.nan], "accuracy": [0.5, 0.9]}
    text = sentences.frontier(pd.DataFrame(results))
    assert "*a*" in text
    assert "own" not in text


@pytest.mark.parametrize(
    ("difference", "p", "expected"),
    [(0.05, 0.01, "what they have learned"), (0.05, 0.2, "stays open"), (-0.15, 1e-6, "worse than chance")],
)
def test_predictors_are_said_to_know_what_the_test_shows(difference: float, p: float, expected: str) -> None:
    comparison = {"difference": difference, "interval": (difference - 0.03, difference + 0.03), "p": p}
    text = sentences.what_predictors_know(0.7, 0.7 + difference, comparison)
    assert "drawn at random, answers 70.0%" in text
    assert f"{100 * difference:+.1f} points" in text
    assert f"95% interval {100 * difference - 3:+.1f} to {100 * difference + 3:+.1f}, p " in text
    assert expected in text
    others = {"what they have learned", "stays open", "worse than chance"} - {expected}
    assert not [other for other in others if other in text]


def way(name: str, difference: float, p: float, accuracy: float) -> dict:
    return {"model": name, "difference": difference, "p": p, "accuracy": accuracy, "saved": 0.37}


def test_reduction_to_take_is_the_most_accurate_without_a_shown_loss() -> None:
    rows = pd.DataFrame([way("A", -0.03, 0.001, 0.87), way("B", -0.01, 0.3, 0.89), way("C", 0.002, 1.0, 0.902)])
    text = sentences.which_reduction(rows, "the ViT")
    assert "take **C**: 37% fewer multiply-adds, +0.2 points" in text
    assert "(nor for *B*)" in text
    assert "A loss against *the ViT* is shown for *A* (-3.0 points)." in text
    alone = sentences.which_reduction(rows[2:], "the ViT")
    assert "nor for" not in alone
    assert "is shown for" not in alone


def test_no_reduction_is_to_be_taken_where_all_of_them_lose() -> None:
    text = sentences.which_reduction(pd.DataFrame([way("A", -0.03, 0.001, 0.87)]), "the ViT")
    assert text.startswith("Every way to fewer tokens loses")
    assert "take" not in text


def test_gain_is_no_loss_however_clear() -> None:
    assert "take **A**" in sentences.which_reduction(pd.DataFrame([way("A", 0.03, 0.001, 0.93)]), "the ViT")


@pytest.mark.parametrize(
    ("chosen", "p", "words"),
    [(12.0, 0.001, "more than random ones (6.0"), (2.0, 0.001, "less than random"), (12.0, 0.2, "no difference that")],
)
def test_choice_is_called_worse_than_chance_only_where_a_test_shows_it(chosen: float, p: float, words: str) -> None:
    row = {"vit": "V", "chosen": chosen, "random": 6.0, "merged": 1.0, "alike": 0.2, "apart": 1.3, "p": p}
    text = sentences.why_it_fails(pd.DataFrame([row]))
    assert words in text
    assert "a place is 1.30 times as far" in text
