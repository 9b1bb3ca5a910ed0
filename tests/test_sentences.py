"""No sentence claims a difference, a gain or a leader inside the noise."""

import math

import numpy as np
import pandas as pd
import pytest

from vitlab.analysis import (
    metrics,
    sentences,
    sentences_comparison,
    sentences_curves,
    sentences_study,
    sentences_tokens,
)
from vitlab.analysis.findings import Speed
from vitlab.config import RunConfig
from vitlab.texts import markdown


def found(difference: float, p: float, low: float = -0.01, high: float = 0.04) -> dict:
    return {"difference": difference, "p": p, "interval": (low, high)}


@pytest.mark.parametrize("p", [0.05, 0.2, 1.0])
def test_verdict_claims_no_difference_without_significance(p: float) -> None:
    text = sentences.verdict("A", "B", found(0.03, p))
    assert "no difference can be shown" in text
    assert "95% interval −1.0 to +4.0" in text
    assert "ahead" not in text


def test_verdict_names_the_better_model_and_by_how_much() -> None:
    got = sentences.verdict("A", "B", found(0.031, 0.02, 0.005, 0.057))
    assert all(part in got for part in ("B is ahead of A by 3.1 points", "95% interval +0.5 to +5.7", "p = 0.02"))
    got = sentences.verdict("A", "B", found(-0.2, 1e-9, -0.3, -0.1))
    assert all(part in got for part in ("A is ahead of B by 20.0 points", "95% interval +10.0 to +30.0", "p < 0.001"))


@pytest.mark.parametrize(
    ("seeds", "trained", "runs"),
    [(3, True, "3 seeds"), (1, True, "first seed of both"), (1, False, "single runs, images alone")],
)
def test_verdict_says_what_it_rests_on(seeds: int, trained: bool, runs: str) -> None:
    for p in (0.001, 0.5):
        assert f"; {runs})" in sentences.verdict("A", "B", found(0.031, p) | {"seeds": seeds, "trained": trained})


def test_verdict_says_for_how_many_tests_it_is_corrected() -> None:
    for p, words in ((0.5, "p = 0.5, Holm over 5 tests; "), (0.001, "p = 0.001, Holm over 5 tests; ")):
        assert words in sentences.verdict("A", "B", found(0.031, p) | {"tests": 5})
    assert "Holm" not in sentences.verdict("A", "B", found(0.031, 0.5) | {"tests": 1})
    assert "(the second's lead: −3.1 points, 95%" in sentences.verdict("A", "B", found(-0.031, 0.5))


def test_names_are_apart_by_semicolons_and_never_read_as_markup() -> None:
    assert sentences.named(["ViT, wide", "ToMe"]) == "*ViT, wide*; *ToMe*"
    assert sentences.named(["my_*model*"]) == f"*{markdown('my_*model*')}*"
    assert "my_*" not in sentences.named(["my_*model*"])


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
    return sentences_comparison.leaders(
        MODELS,
        pd.DataFrame([{"a": a, "b": b, "difference": -0.02, "p": q} for (a, b), q in zip(PAIRS, p, strict=True)]),
    )


def test_leader_is_alone_only_where_the_tests_tell_it_from_all() -> None:
    assert "differs significantly from every other model" in leaders(0.01, 0.001, 1)
    text = leaders(0.3, 0.001, 0.001)
    assert "no difference is shown between it and *b*;" in text
    assert "**b** needs the fewest multiply-adds, 33.3% of the best one's" in text
    assert "*c*" not in text


def test_leader_that_is_the_cheapest_too_has_no_cheaper_peer() -> None:
    pairs = pd.DataFrame([{"a": "a", "b": "b", "difference": -0.02, "p": 0.3}])
    text = sentences_comparison.leaders(MODELS.assign(macs=1), pairs)
    assert "*b*, none of which needs fewer" in text
    assert "the fewest" not in text


@pytest.mark.parametrize("unknown", ["a", "b"])
def test_leader_is_compared_with_no_cost_that_nobody_knows(unknown: str) -> None:
    """What a module of the reader's own costs is not measured."""
    results = MODELS.assign(macs=[math.nan if name == unknown else 1 for name in MODELS["model"]])
    text = sentences_comparison.leaders(results, pd.DataFrame([{"a": "a", "b": "b", "difference": -0.02, "p": 0.3}]))
    assert "no difference is shown between it and *b*" in text
    assert "none of which is known to need fewer" in text
    assert "nan" not in text


def test_cheapest_peer_is_one_whose_cost_is_known() -> None:
    results = MODELS.assign(macs=[3, math.nan, 2])
    text = sentences_comparison.leaders(
        results, pd.DataFrame([{"a": "a", "b": b, "difference": -0.02, "p": 0.3} for b in "bc"])
    )
    assert "Tested in all 2 pairs, no difference is shown between it and *b*; *c*" in text
    assert "**c** needs the fewest multiply-adds" in text


def test_pairs_without_a_clear_difference_are_only_counted() -> None:
    pairs = pd.DataFrame(
        [{"a": a, "b": b, **found(0.03, p)} for (a, b), p in zip(PAIRS, (0.01, 0.05, 0.9), strict=True)]
    )
    text = sentences_comparison.verdicts(pairs)
    assert text.count("ahead") == 1
    assert "*b* is ahead of *a*" in text
    assert "In 2 of 3 pairs no difference" in text
    assert "ahead" not in sentences_comparison.verdicts(pairs[1:])
    assert sentences_comparison.verdicts(pairs[1:]).startswith("In 2 of 2 pairs")
    most = sentences_comparison.verdicts(pairs.assign(p=[0.01, 0.01, 0.9]))  # names the one that is left
    assert most.startswith("In 2 of 3 pairs")
    assert "In 1 of 3 pairs no difference" in most
    assert most.endswith(": *{}* and *{}*.".format(*PAIRS[2]))
    assert sentences_comparison.verdicts(pairs.assign(p=0.01)).count("pairs") == 1


@pytest.mark.parametrize(
    ("profile", "counts", "words"),
    [("linear", [40, 10], ["linear", "4:1"]), ("none", [300, 90], ["as they come", "3.33:1"])],
)
def test_imbalance_is_named_with_the_ratio_that_was_reached(profile: str, counts: list[int], words: list[str]) -> None:
    assert all(word in sentences_study.imbalance(profile, np.array(counts)) for word in words)


# ---------------------------------------------------------------- the imbalance study


def gains(**rows: tuple[float, float, float]) -> pd.DataFrame:
    """Name -> gain, low, high, over a base of 0.5."""
    columns = ["gain", "low", "high"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return frame.assign(score=0.5 + frame["gain"])


UP, FLAT, DOWN = (0.1, 0.04, 0.16), (0.02, -0.04, 0.08), (-0.1, -0.16, -0.04)
WIDE = (0.2, -0.1, 0.5)  # the largest gain, and not shown
PATCHES = RunConfig(tokenizer="patch", mixup=0.0, cutmix=0.0)


def test_best_gain_is_the_largest_of_those_that_are_shown_or_of_all() -> None:
    assert metrics.best_gain(gains(drw=WIDE, both=(0.05, 0.01, 0.09), sampler=UP)).name == "sampler"
    assert metrics.best_gain(gains(both=FLAT, drw=WIDE)).name == "drw"


def test_every_sentence_calls_a_remedy_the_best_whose_gain_is_shown() -> None:
    rows = gains(drw=WIDE, sampler=UP)
    text = sentences_study.best_remedy(rows, seeds=3)
    assert text.startswith("The best remedy that shows a gain is **sampler**: macro F1 0.600 against 0.500")
    over = "(95% intervals of all 2 together, over seeds and test images)."
    assert text.endswith(f"1 of 2 remedies gain beyond the noise: *sampler* +10.0 points, +4.0 to +16.0 {over}")
    assert sentences_study.who_pays(rows, rows, rows, few=3).startswith("Under sampler the recall")
    price = sentences_study.price_of_imbalance(gains(balanced=UP).iloc[0], rows, missing=9)
    assert "the best remedy, sampler, wins 10.0 of these points back" in price
    assert "Best by class sizes: linear 9:1: *sampler* (+10.0 points" in sentences_study.elsewhere({"linear 9:1": rows})


@pytest.mark.parametrize(
    ("rows", "expected", "not_said"),
    [
        ({"sampler": UP, "both": FLAT}, "shows a gain is **sampler**: macro F1 0.600 against 0.500", "Worse"),
        ({"sampler": UP, "both": FLAT}, "1 of 2 remedies gain beyond the noise: *sampler* +10.0 points", "*both*"),
        ({"sampler": UP, "both": DOWN}, "Worse than none: *both* −10.0 points, −16.0 to −4.0", "No remedy"),
        ({"class_weights": FLAT, "both": DOWN}, "No remedy shows a gain against 0.500", "The best remedy"),
        (
            {"class_weights": FLAT},
            "the best is class weights, 0.520 (+2.0 points, −4.0 to +8.0; 95% intervals",
            "Worse",
        ),
    ],
)
def test_gain_is_claimed_only_where_its_interval_leaves_zero_out(rows: dict, expected: str, not_said: str) -> None:
    text = sentences_study.best_remedy(gains(**rows), seeds=3)
    assert expected in text
    assert "over seeds and test images" in text
    assert not_said not in text
    assert "one seed says nothing" in sentences_study.best_remedy(gains(**rows), seeds=1)


def test_remedies_as_good_as_the_best_are_those_that_no_interval_parts_from_it() -> None:
    text = sentences_study.as_good("ldam_drw", gains(sampler=(-0.02, -0.08, 0.04), both=DOWN))
    assert "Not measurably behind LDAM-DRW: *sampler*" in text
    assert "both" not in text
    assert "Every other remedy is measurably behind" in sentences_study.as_good("ldam_drw", gains(both=DOWN))


def test_price_that_common_classes_pay_is_named_beyond_the_noise() -> None:
    better, common = gains(sampler=UP, post_hoc=UP, both=FLAT), gains(sampler=DOWN, post_hoc=FLAT, both=DOWN)
    text = sentences_study.who_pays(better, common, better, few=3)
    assert "Under sampler the recall of the 3 rarest classes changes by +10.0 points" in text
    assert "pay measurably under *sampler* −10.0 points" in text.replace("*both* −10.0 points, −16.0 to −4.0; ", "")
    assert "no loss is shown under *post hoc*" in text
    assert "*both* −10.0 points" in text  # though it gains nothing
    assert "No remedy is shown to cost" in sentences_study.who_pays(better, better, better, few=3)
    told = sentences_study.who_pays(gains(both=FLAT), common.loc[["both"]], better, few=3)
    assert told.startswith("No remedy is shown to gain, but the commonest classes pay under *both* −10.0 points")
    assert sentences_study.who_pays(gains(both=FLAT), gains(both=FLAT), better, few=3) == "No remedy is shown to gain."


@pytest.mark.parametrize(
    ("row", "to_best", "expected"),
    [
        (UP, FLAT, ["it gains (+10.0", "a difference to *sampler*, the best that is trained, can't be shown"]),
        (UP, DOWN, ["it gains (+10.0", "measurably behind *sampler*"]),
        (FLAT, UP, ["it shows no gain", "measurably ahead of *sampler*"]),
        (DOWN, None, ["it loses (−10.0"]),
    ],
)
def test_what_is_free_is_said_to_gain_what_it_gains(row: tuple, to_best: tuple | None, expected: list[str]) -> None:
    trained = None if to_best is None else gains(sampler=to_best).iloc[0]
    text = sentences_study.what_is_free(gains(post_hoc=row), trained)
    assert all(words in text for words in expected)


@pytest.mark.parametrize(
    ("row", "expected"), [(UP, "and differ in"), (DOWN, "and differ in"), (FLAT, "can't be told apart")]
)
def test_remedies_of_the_same_gradient_differ_where_that_is_shown(row: tuple, expected: str) -> None:
    noise = pd.Series({"sampler": 1.234, "class_weights": 3.456})
    text = sentences_study.same_gradient(gains(class_weights=row).iloc[0], noise, PATCHES)
    assert expected in text
    assert "3.5 times as long" in text
    assert "1.2 times under the sampler" in text
    loud = noise.replace(3.456, 12345.67)
    assert "12,345.7 times as long" in sentences_study.same_gradient(gains(class_weights=row).iloc[0], loud, PATCHES)
    assert text.endswith("; with class weights a rare image counts much, but seldom comes.")
    calm = sentences_study.same_gradient(gains(class_weights=row).iloc[0], noise.replace(3.456, 1.0), PATCHES)
    assert "seldom" not in calm  # the sampler is the noisier one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "minimise the same expected loss and"),
        ({"tokenizer": "conv"}, "nearly the same expected loss (but for batch norm in the tokenizer, to which"),
        ({"mixup": 0.2, "cutmix": 1.0}, "nearly the same expected loss (but for MixUp and CutMix, to which"),
    ],
)
def test_sampler_and_weights_are_the_same_where_images_do_not_meet(changes: dict, words: str) -> None:
    noise = pd.Series({"sampler": 1.2, "class_weights": 3.4})
    assert words in sentences_study.same_gradient(gains(class_weights=FLAT).iloc[0], noise, PATCHES.replace(**changes))


@pytest.mark.parametrize(
    ("noise", "under"),
    [
        ({"sampler": 1.2, "class_weights": math.inf}, "class weights"),
        ({"sampler": math.inf, "class_weights": math.inf}, "sampler and class weights"),
    ],
)
def test_noise_that_hides_the_gradient_is_given_no_number(noise: dict[str, float], under: str) -> None:
    text = sentences_study.same_gradient(gains(class_weights=FLAT).iloc[0], pd.Series(noise), PATCHES)
    assert f"the noise of a step: under {under} it is too long" in text
    assert text.endswith("to be told from so few batches.")
    assert "inf" not in text


@pytest.mark.parametrize(
    ("gap", "expected"),
    [(UP, "Trained on all the images the model scores better"), (FLAT, "no difference can be shown"), (DOWN, "worse")],
)
def test_price_of_imbalance_is_named_only_beyond_the_noise(gap: tuple, expected: str) -> None:
    row = gains(balanced=gap).iloc[0]
    text = sentences_study.price_of_imbalance(row, gains(sampler=UP, both=FLAT), missing=1200)
    assert expected in text
    won = "the best remedy, sampler, wins 10.0 of these points back"
    assert (won in text) == ("1,200 missing images" in text) == ("better" in text)
    assert "wins" not in sentences_study.price_of_imbalance(row, gains(both=FLAT), missing=1200)
    more = sentences_study.price_of_imbalance(row, gains(sampler=(0.12, 0.06, 0.18)), missing=1200)
    assert ("the best remedy, sampler, gains 12.0 points, more than that" in more) == ("better" in more)
    assert "back" not in more
    short = sentences_study.price_of_imbalance(row, gains(both=FLAT), missing=0)  # too few steps to see more images
    assert ("the price of uneven data, as neither has seen an image twice" in short) == ("better" in short)
    assert "missing" not in short


def test_remedies_that_help_at_all_class_sizes_are_named() -> None:
    text = sentences_study.elsewhere(
        {"linear 10:1": gains(sampler=UP, drw=FLAT), "linear 99:1": gains(sampler=UP, drw=(0.3, 0.1, 0.5))}
    )
    assert "linear 10:1: *sampler* (+10.0 points" in text
    assert "linear 99:1: *DRW* (+30.0 points" in text
    assert text.endswith("at all these class sizes: *sampler*.")
    assert sentences_study.elsewhere({"a": gains(drw=FLAT)}).endswith("sizes: none.")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (
            [0, 1, 2],
            "The 100 validation images show no loss against the teacher (seed 0; McNemar, Holm over each way's 3",
        ),
        ([0, 1, 2], "*A* down to 0.3 (40.0%), the least tried; *B* down to 0.3 (40.0%), the least tried. That none"),
        ([0, 30, 60], "*A* down to 1 (80.0%), at 0.7 (60.0%) they show one; *B* down to 0.3 (40.0%), the least"),
        ([0, 30, 60], "need not mean that there is none. At ρ = 0.7 others do."),
        ([30, 30, 60], "*A* a loss even at 1 (80.0%); *B* down to"),
        ([0, -30, 60], "*A* down to 0.7 (60.0%), at 0.3 (40.0%) they show one"),  # better than the teacher is no loss
    ],
)
def test_how_far_a_model_bends_is_where_a_test_first_shows_a_loss(losses: list[int], expected: str) -> None:
    sweep = pd.DataFrame({"keep_ratio": [1.0, 0.7, 0.3], "accuracy": [0.8, 0.6, 0.4]})
    sweeps = {
        name: (
            sweep,
            {
                share: {"only_a": max(n, 0), "only_b": max(-n, 0), "p": 1.0 if abs(n) < 5 else 1e-6}
                for share, n in zip(sweep["keep_ratio"], lost, strict=True)
            },
        )
        for name, lost in {"A": losses, "B": [0, 0, 0]}.items()
    }
    text = sentences_tokens.how_far(sweeps, "100 validation images", "the teacher", 0, " At ρ = 0.7 others do.")
    assert expected in text


def test_loss_that_the_test_images_show_is_told_and_no_other() -> None:
    rows = pd.DataFrame([way("A", -0.009, 0.001, 0.88), way("B", -0.009, 0.3, 0.88), way("C", 0.009, 0.001, 0.9)])
    assert sentences_tokens.at_test(rows, 0.7, 10000) == " At ρ = 0.7 the 10,000 test images show one for *A*."
    assert sentences_tokens.at_test(rows[1:], 0.7, 10000) == ""


def test_sentence_on_the_frontier_speaks_of_what_was_measured() -> None:
    results = {"model": ["c", "a", "b"], "macs": [3, 1, 2], "latency_ms": [1, 3, 2], "accuracy": [0.6, 0.5, 0.4]}
    text = sentences_comparison.frontier(pd.DataFrame(results))
    assert text.startswith("On the measured values, noise included")
    by_work, by_time = text.split(": ")[1:]
    assert by_work.startswith("*a*; *c*;")
    assert by_time == "*c*."


def test_model_of_unknown_cost_is_on_no_frontier() -> None:
    results = {"model": ["a", "own"], "macs": [1, math.nan], "latency_ms": [1, math.nan], "accuracy": [0.5, 0.9]}
    text = sentences_comparison.frontier(pd.DataFrame(results))
    assert "*a*" in text
    assert "own" not in text


# ---------------------------------------------------------------- yardsticks


def history(seconds: list[float], accuracy: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"seconds": seconds, "val_accuracy": accuracy})


def test_at_equal_minutes_the_epoch_counts_that_was_over_by_then() -> None:
    text = sentences_curves.at_equal_minutes(
        {
            "short": history([60, 120], [0.5, 0.6]),
            "long": history([50, 110, 170], [0.4, 0.7, 0.9]),
            "slow": history([130, 260], [0.8, 0.9]),
        }
    )
    assert "After 2.0 minutes" in text
    assert "*long* 70.0%; *short* 60.0%" in text  # the best first
    assert "slow" not in text  # no epoch of it was over
    assert "had not fallen to zero yet" in text


def test_at_equal_minutes_nothing_is_said_of_one_model_alone() -> None:
    text = sentences_curves.at_equal_minutes({"short": history([60], [0.5]), "slow": history([130], [0.8])})
    assert text.endswith("no other had finished an epoch: at equal minutes nothing can be said.")
    text = sentences_curves.beside_at_equal_minutes(
        "slow", "short", {"short": history([60], [0.5]), "slow": history([130], [0.8])}, 1000
    )
    assert text.endswith("when *short* was done, *slow* had not finished an epoch.")


@pytest.mark.parametrize(
    ("net", "how"), [(0.5, "behind it, with 50.0%"), (0.59, "not shown to be ahead or behind"), (0.7, "ahead of it")]
)
def test_yardstick_at_equal_minutes_is_ahead_or_behind_beyond_chance(net: float, how: str) -> None:
    histories = {"ViT": history([60, 120], [0.5, 0.6]), "Net": history([115, 230], [net, 0.9])}
    text = sentences_curves.beside_at_equal_minutes("ViT", "Net", histories, 1000, " (seed 0)")
    assert text.startswith(f"At equal minutes (seed 0): when *ViT* was done, after 2.0 minutes, *Net* was {how}")
    assert text.endswith("of the validation images against 60.0%, its learning rate not yet at zero.")
    assert "when *ViT* was done" in sentences_curves.beside_at_equal_minutes("Net", "ViT", histories, 1000)


RIVALS = pd.DataFrame(
    {
        "model": ["Light", "ViT, fewer blocks", "ViT, narrower", "Net"],
        "accuracy": [0.80, 0.78, 0.79, 0.85],
        "macs": [10e6, 10.1e6, 9.9e6, 12e6],
        "latency_ms": [2.0, 1.0, 1.0, 3.0],
        "images_per_second": [100.0, 120.0, 80.0, 60.0],
    }
)


def rival_pairs(
    difference: float, p: float, a: str = "Light", b: str = "ViT, narrower", off: float = 0.002
) -> pd.DataFrame:
    """A pair whose interval reaches `off` to either side."""
    ends = difference - off, difference + off
    return pd.DataFrame([{"a": a, "b": b, "difference": difference, "interval": ends, "p": p}])


@pytest.mark.parametrize(
    ("difference", "p", "faster", "taken"),
    [
        (-0.01, 0.01, 2.0, "**Light** is a better choice"),
        (0.01, 0.01, 0.5, "(**ViT, narrower**) is a better choice"),
        (-0.001, 0.5, 1.0, "and a smaller ViT (*ViT, narrower*) no difference in accuracy is shown; the"),
        (-0.001, 0.5, 1.0, "is at most 0.3 points behind and not shown to be slower: it is the better choice"),
        (0.003, 0.5, 1.2, "is at most 0.0 points behind and faster: it is the better choice"),
        (-0.001, 0.5, 0.96, "and not shown to be slower: it is the better choice"),
        (-0.001, 0.5, 0.8, "is slower: **Light** is the better choice where throughput counts"),
        (-0.01, 0.5, 1.2, "may be up to 1.2 points behind; it is faster. Which is the better choice is open"),
    ],
)
def test_smaller_vit_or_lighter_model_by_rule(difference: float, p: float, faster: float, taken: str) -> None:
    asked = []
    text = sentences_comparison.smaller_or_lighter(
        "Light",
        ["ViT, fewer blocks", "ViT, narrower"],
        RIVALS,
        rival_pairs(difference, p),
        lambda *names: asked.append(names) or (faster, 0.05),
    )
    assert taken in text
    assert asked == [("ViT, narrower", "Light")]
    assert "accuracy 79.0% against 80.0%, 9.90 against 10.00 million multiply-adds" in text
    assert f"in batches {faster:.2f} times as many" in text
    assert "fewer blocks" not in text  # the most accurate of the smaller ones is compared
    assert "seed" not in text


@pytest.mark.parametrize(("difference", "p"), [(-0.001, 0.5), (-0.01, 0.5), (0.01, 0.01), (-0.01, 0.01)])
def test_smaller_vit_of_one_seed_is_said_to_be_compared_by_that(difference: float, p: float) -> None:
    rivals, both = RIVALS.assign(seeds=[3, 1, 1, 1]), rival_pairs(difference, p)
    told = sentences_comparison.smaller_or_lighter("Light", ["ViT, narrower"], rivals, both, lambda *_: (1.2, 0.05))
    assert "(first seed alone)" in told


def net(tied_with: list[str] | None = None, off: float = 0.002, **ahead: float) -> str:
    """What is said of Net where each model named is `ahead` of it by so much, significantly, among these or all."""
    names = {"Light": "Light", "narrower": "ViT, narrower", "blocks": "ViT, fewer blocks"}
    pairs = [
        rival_pairs(ahead.get(key, 0.0), 0.01 if key in ahead else 0.5, "Net", name, off) for key, name in names.items()
    ]
    rivals = RIVALS.assign(macs=[10e6, 24e6, 36e6, 12e6], epochs=10)
    if tied_with:
        rivals = rivals[rivals["model"].isin(["Net", *(names[key] for key in tied_with)])]
    return sentences_comparison.convolution_or_attention("Net", "2 minutes", rivals, pd.concat(pairs))


def test_convolution_or_attention_by_rule() -> None:
    tie = net()
    assert "where work counts: *Light* is at most 0.2 points behind it, and needs 83% of its multiply-adds" in tie
    assert tie.endswith("It is shown to be ahead of none of them (corrected for 3 tests).")
    assert tie.startswith("Of the models trained from the start for 2 minutes: the convolutional network **Net** (8")
    open_ = net(off=0.02)
    assert "not shown to be ahead of *Light*, which needs 83% of its multiply-adds and may be up to 2.0 points" in open_
    assert "behind: which is the better choice where work counts is open." in open_
    assert "can be told from none of the others" in net(tied_with=["blocks", "narrower"])
    assert "It is ahead of *Light*; *ViT, narrower* (corrected for 3 tests)." in net(Light=-0.1, narrower=-0.1)
    text = net(blocks=0.1, narrower=0.1, Light=-0.1)
    assert "is the better choice up to its cost; ahead of it, for 2.0 times its multiply-adds or more" in text
    assert "is not the better choice: ahead of it, for no more work, is *Light*." in net(Light=0.1, narrower=0.1)
    assert "85.0%, 12.0 million multiply-adds, 3.00 ms an image" in text


# ---------------------------------------------------------------- fewer tokens


def way(name: str, difference: float, p: float, accuracy: float) -> dict:
    ends = difference - 0.005, difference + 0.005
    return {
        "model": name,
        "difference": difference,
        "interval": ends,
        "p": p,
        "accuracy": accuracy,
        "saved": 0.37,
        "seeds": 1,
    }


def clock(batch: float, one: float) -> Speed:
    """The same times the images a second, and times the latency, for every model."""
    return lambda name, reference, what="images_per_second": (one if what == "latency" else batch, 0.03)


def which_reduction(rows: pd.DataFrame, batch: float = 1.2, one: float = 0.9) -> str:
    return sentences_tokens.which_reduction(rows, "the ViT", clock(batch, one))


@pytest.mark.parametrize(
    ("batch", "one", "told"),
    [
        (0.99, 1.53, "it is not shown to be faster in batches (0.99 times the images a second of *the ViT*), and"),
        (0.99, 1.53, "image slower (1.53 times the latency). What it is shown to save is work, not time."),
        (1.2, 1.53, "it is faster in batches (1.20 times the images a second of *the ViT*), and for one image slower"),
        (0.8, 0.8, "it is slower in batches (0.80 times the images a second of *the ViT*), and for one image faster"),
    ],
)
def test_reduction_to_take_is_told_with_what_the_clock_says(batch: float, one: float, told: str) -> None:
    text = which_reduction(pd.DataFrame([way("C", 0.002, 1.0, 0.902)]), batch, one)
    assert "take **C**" in text
    assert told in text
    assert ("not time" in text) == (batch == 0.99)


def test_reduction_to_take_loses_least_of_those_without_a_shown_loss() -> None:
    """By the difference of the seeds that both have, whatever the mean over seeds of its own."""
    rows = pd.DataFrame([way("A", -0.03, 0.001, 0.87), way("B", -0.01, 0.3, 0.91), way("C", 0.002, 1.0, 0.902)])
    text = which_reduction(rows)
    assert "take **C**: 37% fewer multiply-adds, +0.2 points (−0.3 to +0.7)" in text
    dear = pd.concat([rows, pd.DataFrame([way("D", 0.01, 1.0, 0.95) | {"saved": -0.01}])], ignore_index=True)
    assert "take **C**" in which_reduction(dear)  # what saves no work is no way
    assert "(nor for *B*)" in text
    assert "A loss against *the ViT* is shown for *A* (−3.0 points)." in text
    alone = which_reduction(rows[2:])
    assert "nor for" not in alone
    assert "A loss against" not in alone


def test_no_reduction_is_to_be_taken_where_all_of_them_lose() -> None:
    text = which_reduction(pd.DataFrame([way("A", -0.03, 0.001, 0.87)]))
    assert text.startswith("Every way to fewer tokens loses")
    assert "take" not in text


def test_loss_is_claimed_where_it_is_shown() -> None:
    rows = pd.DataFrame([way("A", -0.01, 0.06, 0.89)])
    text = which_reduction(rows)
    assert "take **A**" in text
    assert "no loss is shown for it" in text
    assert "A loss against" not in text
    text = which_reduction(rows.assign(p=0.04))
    assert text.endswith("A loss against *the ViT* is shown for *A* (−1.0 points).")


def test_where_no_way_saves_work_none_is_said_to_lose() -> None:
    rows = pd.DataFrame([way("A", 0.0, 1.0, 0.9) | {"saved": 0.0}, way("B", -0.03, 0.001, 0.87)])
    text = which_reduction(rows)
    assert text.startswith("At this keep ratio no way to fewer tokens saves work without a loss that is shown.")
    assert text.endswith("is shown for *B* (−3.0 points).")


def test_gain_is_no_loss_however_clear() -> None:
    assert "take **A**" in which_reduction(pd.DataFrame([way("A", 0.03, 0.001, 0.93)]))


@pytest.mark.parametrize(
    ("chosen", "p", "words"),
    [
        (12.0, 0.001, "more than with random ones (6.0"),
        (2.0, 0.001, "fewer than with random"),
        (12.0, 0.2, "not shown to differ"),
    ],
)
def test_choice_is_called_worse_than_chance_only_where_a_test_shows_it(chosen: float, p: float, words: str) -> None:
    row = {"vit": "V", "chosen": chosen, "random": 6.0, "merged": 1.0, "alike": 0.2, "apart": 1.3, "p": p}
    text = sentences_tokens.why_it_fails(pd.DataFrame([row]))
    assert words in text
    assert "a place is 1.30 times as far" in text
