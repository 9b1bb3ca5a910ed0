"""The sentences of page one say what the numbers say, in either case."""

import math

import pandas as pd
import pytest
from conftest import speed_of

from vitlab.analysis import findings, tables
from vitlab.config import PRESETS
from vitlab.lab import Lab
from vitlab.lab.costs import Costs
from vitlab.models.registry import reductions
from vitlab.report import title
from vitlab.texts import markdown

RESULTS = pd.DataFrame(
    {
        "model": ["ViT, fine-tuned", "ViT", "Linear ViT", "DynamicViT"],
        "accuracy": [0.92, 0.90, 0.88, 0.85],
        "accuracy_low": [0.91, 0.89, 0.87, 0.84],
        "accuracy_high": [0.93, 0.91, 0.89, 0.86],
        "test_images": 1000,
        "parameters": 1_000_000,
        "macs": [100e6, 100e6, 90e6, 60e6],
        "images_per_second": [1000.0, 1000.0, 900.0, 1200.0],
        "latency_ms": [2.0, 2.0, 2.5, 3.0],
        "training_seconds": 60.0,
        "epochs": 10,
        "seeds": 1,
    }
)


def pairs(p: float) -> pd.DataFrame:
    names = list(RESULTS["model"])
    both = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return pd.DataFrame([{"a": a, "b": b, "difference": -0.05, "p": p} for a, b in both])


def best(results: pd.DataFrame, p: float, spread: float = 0.01) -> str:
    return findings.best_model(results, pairs(p), speed_of(results, spread))


def test_best_model_is_named_with_the_one_to_take() -> None:
    text = best(RESULTS, 0.5)
    assert "*ViT, fine-tuned* has the highest accuracy: 92.0% of 1,000" in text
    assert "none of the other 3 can be told from it" in text
    # an error of 0.9 points, and the next is two behind
    assert text.endswith("Take it: every other is shown to be behind it, or more than one standard error below.")
    few = best(RESULTS.assign(test_images=100), 0.5)  # 2.7 points
    assert few.endswith(
        "Take it: *ViT*, the only one within one standard error of it, is not shown to be faster by more than 8%."
    )  # as fast
    open_ = best(RESULTS.assign(test_images=80, images_per_second=[1000.0, 1500.0, 1300.0, 900.0]), 0.5, 0.9)
    assert "is not shown to be faster by more than 8% (*ViT* was measured 1.50 times as fast, which the rounds" in open_
    fast = RESULTS.assign(test_images=100, images_per_second=[1000.0, 1500.0, 900.0, 5000.0])
    assert (
        "Take *ViT*, 90.0%: within one standard error of *ViT, fine-tuned*, the most accurate, it classifies 1.5 times"
        in best(fast, 0.5)
    )


def test_equally_accurate_models_are_both_named_and_neither_is_called_second() -> None:
    even = RESULTS.assign(accuracy=[0.92, 0.92, 0.88, 0.85], images_per_second=[1000.0, 1500.0, 900.0, 1200.0])
    text = best(even, 0.5)
    assert "*ViT, fine-tuned* and *ViT* have the highest accuracy: 92.0%" in text
    assert "can be told from *ViT, fine-tuned*" in text
    assert "Take *ViT*, 92.0%: as accurate as *ViT, fine-tuned*, it classifies 1.5 times" in text
    assert "Take *ViT, fine-tuned*: *ViT*, the only one" in best(even.assign(images_per_second=1000.0), 0.5)


def test_near_model_that_is_shown_to_be_worse_is_not_taken() -> None:
    fast = RESULTS.assign(test_images=100, images_per_second=[1000.0, 1500.0, 900.0, 5000.0])
    assert findings.recommended(fast, pairs(0.01), speed_of(fast))["model"] == "ViT, fine-tuned"


@pytest.mark.parametrize(
    ("speed", "spread", "taken"),
    [(1050.0, 0.01, "ViT, fine-tuned"), (1100.0, 0.01, "ViT"), (1100.0, 0.2, "ViT, fine-tuned")],
)
def test_faster_is_what_is_worth_it_and_exceeds_the_spread(speed: float, spread: float, taken: str) -> None:
    near = RESULTS.assign(test_images=100, images_per_second=[1000.0, speed, 900.0, 5000.0])
    assert findings.recommended(near, pairs(0.5), speed_of(near, spread))["model"] == taken


def test_model_of_unknown_speed_is_not_taken_for_it() -> None:
    """A module of the reader's own has no measured cost, as a rival and as the most accurate one."""
    fast = RESULTS.assign(test_images=100, images_per_second=[1000.0, 5000.0, 900.0, 5000.0])
    unknown = lambda *_: (math.nan, math.nan)  # noqa: E731
    assert findings.recommended(fast, pairs(0.5), unknown)["model"] == "ViT, fine-tuned"


def test_best_model_is_ahead_where_tests_say_so() -> None:
    assert "ahead of each of the other 3 by the paired tests" in best(RESULTS, 0.01)


@pytest.mark.parametrize("faster", [900.0, 2000.0])
def test_name_of_a_users_directory_is_shown_as_it_is(faster: float) -> None:
    """As the most accurate model, and as the one to take."""
    name = "my_*model*"
    results = RESULTS.assign(model=[name, "ViT, *wide*", "Linear ViT", "DynamicViT"], test_images=100)
    results["images_per_second"] = [1000.0, faster, 900.0, 1200.0]
    text = best(results, 0.5)
    assert f"*{markdown(name)}* has the highest accuracy" in text
    assert (f"Take *{markdown('ViT, *wide*')}*, 90.0%:" in text) == (faster == 2000.0)
    assert name not in text


def test_model_that_is_ahead_is_found_whichever_stands_first_or_none_is() -> None:
    both = pd.DataFrame([{"a": "x", "b": "y", "difference": 0.1, "p": 0.01}])
    assert findings.ahead(both, "x", "y") == findings.ahead(both, "y", "x") == "y"
    assert findings.ahead(both.assign(difference=-0.1), "y", "x") == "x"
    assert findings.ahead(both.assign(p=0.5), "x", "y") == ""
    assert findings.ahead(both, "x", "x") == ""


def test_how_far_one_may_be_behind_is_read_from_either_side() -> None:
    both = pd.DataFrame([{"a": "x", "b": "y", "difference": 0.01, "interval": (-0.02, 0.04), "p": 0.5}])
    assert findings.behind_at_most(both, "x", "y") == 0.02
    assert findings.behind_at_most(both, "y", "x") == 0.04


def gain(value: float, low: float, high: float, name: str = "sampler") -> pd.DataFrame:
    return pd.DataFrame({"score": 0.8, "gain": value, "low": low, "high": high}, index=[name])


SHOWN, NOT_SHOWN = gain(0.1, 0.05, 0.15), gain(0.01, -0.05, 0.07)


def test_imbalance_costs_and_a_remedy_gives() -> None:
    text = findings.imbalance(10, (55, 100), SHOWN.iloc[0], pd.concat([gain(0.02, 0.01, 0.03, "both"), SHOWN]))
    assert (
        "10 images of the commonest class to one of the rarest, and 55 of the 100 training images, macro F1 falls by"
        in text
    )
    assert "training images" not in findings.imbalance(10, (100, 100), SHOWN.iloc[0], SHOWN)  # as many, only uneven
    assert text.endswith("take *sampler*, which gives 10.0 points (5.0 to 15.0) back.")
    alike = findings.imbalance(
        10, (55, 100), SHOWN.iloc[0], pd.concat([gain(0.02, 0.01, 0.03, "both"), SHOWN]), alike=1
    )
    assert "; 1 of the other 1 remedies cannot be told from it" in alike


def test_neither_cost_nor_gain_is_claimed_inside_the_noise() -> None:
    text = findings.imbalance(10, (55, 100), NOT_SHOWN.iloc[0], NOT_SHOWN)
    assert "no loss of macro F1 can be shown; no remedy shows a gain (the best, *sampler*: 1.0 points" in text
    assert text.endswith("(−5.0 to 7.0)).")
    assert "the cost cannot be measured" in findings.imbalance(10, (55, 100), None, SHOWN)


def test_largest_gain_is_not_the_one_to_take_where_another_alone_is_shown() -> None:
    both = pd.concat([SHOWN, gain(0.2, -0.1, 0.5, "drw")])
    assert "take *sampler*" in findings.imbalance(10, (55, 100), None, both)


@pytest.mark.parametrize("price", [None, NOT_SHOWN.iloc[0], gain(0.08, 0.05, 0.11).iloc[0]])
def test_nothing_is_given_back_that_was_not_shown_to_be_lost(price: pd.Series | None) -> None:
    """Of the last price the remedy gains more."""
    text = findings.imbalance(10, (55, 100), price, SHOWN)
    assert text.endswith("take *sampler*, which gains 10.0 points (5.0 to 15.0).")


def test_remedy_that_harms_is_not_recommended() -> None:
    assert "take" not in findings.imbalance(10, (55, 100), SHOWN.iloc[0], gain(-0.1, -0.2, -0.05))


def way(name: str, difference: float, p: float, saved: float, seeds: int = 3) -> dict:
    return {"model": name, "difference": difference, "p": p, "saved": saved, "seeds": seeds}


def tokens(*ways: dict, spread: float = 0.01) -> str:
    rows = pd.concat([RESULTS, RESULTS[3:].assign(model="Top-K")])
    return findings.tokens(pd.DataFrame(ways), "ViT, fine-tuned", (5, 16), speed_of(rows, spread))


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.5, "*DynamicViT* saves 40% of the multiply-adds without a loss that shows against *ViT, fine-tuned* (−5.0"),
        (
            0.01,
            "none does it without a loss; the best, *DynamicViT*, saves 40% of the multiply-adds and loses 5.0 points",
        ),
    ],
)
def test_tokens_can_go_or_not(p: float, expected: str) -> None:
    text = tokens(way("DynamicViT", -0.05, p, 0.4))
    assert "Of 16 tokens 5 are left in the end:" in text
    assert expected in text
    times = "(1.20 times the images a second of *ViT, fine-tuned*), and for one image {} (1.50 times the latency)."
    assert text.endswith(f"On the clock it is faster in batches {times.format('slower')}")
    open_ = tokens(way("DynamicViT", -0.05, p, 0.4), spread=0.6)
    assert open_.endswith(f"it is not shown to be faster in batches {times.format('not shown to be faster')}")


@pytest.mark.parametrize(
    ("spread", "images", "told"),
    [
        (0.01, 1200.0, ("faster", "slower")),
        (0.01, 900.0, ("slower", "slower")),
        (0.6, 1200.0, ("not shown to be faster", "not shown to be faster")),
    ],
)
def test_pace_is_claimed_beyond_what_the_rounds_leave_open(spread: float, images: float, told: tuple) -> None:
    rows = RESULTS.assign(images_per_second=[1000.0, 1000.0, 900.0, images])
    assert findings.paces("DynamicViT", "ViT, fine-tuned", speed_of(rows, spread)) == told


def test_way_to_fewer_tokens_loses_least_of_those_without_a_loss() -> None:
    dynamic = way("DynamicViT", -0.05, 0.5, 0.4)
    assert "*Top-K* saves 35%" in tokens(dynamic, way("Top-K", -0.01, 0.5, 0.35))
    dear = way("Top-K", -0.01, 0.5, -0.04)  # what saves no work is no way
    assert "*DynamicViT* saves 40%" in tokens(dynamic, dear)
    assert "none saves any work" in tokens(dear, dynamic | {"saved": 0.0})


def test_way_of_one_seed_does_not_stand_against_those_of_several() -> None:
    single = way("Top-K", 0.01, 0.5, 0.35, seeds=1)
    assert "*DynamicViT* saves 40%" in tokens(single, way("DynamicViT", -0.05, 0.5, 0.4))
    lost = way("DynamicViT", -0.05, 0.01, 0.4)
    assert "*Top-K* saves 35%" in tokens(single, lost)  # those of several lose, which is shown


def test_linear_attention_pays_from_some_number_of_tokens_or_never() -> None:
    crossed, against = {"kernelised": 500.0, "Linformer": math.inf}, {"Linear ViT": {"difference": -0.05, "p": 0.01}}
    rows = RESULTS.assign(images_per_second=[1000.0, 1000.0, 1060.0, 1200.0])
    text = findings.linear(against, speed_of(rows, 0.1), crossed, (64, 4096), 128, 16)  # inside what is open
    assert "As a layer of width 128 alone, from about 500 tokens (*kernelised*)" in text
    assert "in the lab's own models, of 16 tokens, none is shown to beat softmax in batches, and *Linear ViT*" in text
    assert "convolution" not in text
    against["Linear ViT"]["p"] = 0.5
    text = findings.linear(against, speed_of(rows, 0.01), {"kernelised": math.inf}, (64, 4096), 384, 16)
    assert "As a layer of width 384 alone, not up to 4,096 tokens" in text
    assert "*Linear ViT* beats softmax in batches, and no loss of accuracy can be shown" in text
    ahead = against | {"InLine ViT": {"difference": 0.046, "p": 0.01}}
    more = pd.concat([rows, rows[2:3].assign(model="InLine ViT")])
    text = findings.linear(ahead, speed_of(more, 0.01), {"kernelised": math.inf}, (64, 4096), 384, 16)
    assert "no loss of accuracy can be shown; ahead of *ViT* is *InLine ViT* by 4.6 points; *InLine ViT* has a" in text
    slow = RESULTS.assign(images_per_second=[1000.0, 1000.0, 800.0, 1200.0])
    text = findings.linear(against, speed_of(slow, 0.01), {"kernelised": 64.0}, (64, 4096), 128, 16)
    assert "at every size measured, from 64 tokens (*kernelised*)" in text
    assert "all are slower than softmax in batches (0.80 to 0.80 times its throughput)" in text


@pytest.mark.parametrize(
    ("difference", "p", "faster", "told"),
    [
        (0.0, 1.0, 1.23, "By accuracy it cannot be told from *DynamicViT*, and it is 1.23 times as fast."),
        (0.0, 1.0, 1.01, "*DynamicViT*, nor by speed."),
        (0.0, 1.0, 0.8, "and it is 0.80 times as fast."),
        (0.05, 0.01, 1.23, "By accuracy it is behind *DynamicViT*."),
        (-0.05, 0.01, 1.23, "By accuracy it is ahead of *DynamicViT*."),
    ],
)
def test_way_to_fewer_tokens_stands_beside_a_vit_built_as_small(
    difference: float, p: float, faster: float, told: str
) -> None:
    both = pd.DataFrame([{"a": "ViT", "b": "DynamicViT", "difference": difference, "p": p}])
    results = RESULTS.assign(macs=60e6)
    text = findings.built_as_small("DynamicViT", ["ViT"], results, both, lambda *_: (faster, 0.05))
    assert text.startswith("The most accurate ViT built as small is *ViT*: 90.0%. By accuracy it ")
    assert text.endswith(told)
    results.loc[results["model"] == "ViT", "macs"] *= 1.06  # built for another one
    text = findings.built_as_small("DynamicViT", ["ViT"], results, both, lambda *_: (faster, 0.05))
    assert text.startswith("The most accurate ViT built small is *ViT*: 90.0%, with 6% more multiply-adds. By")


@pytest.mark.parametrize(("seeds", "told"), [([1, 1, 1, 3], True), ([3, 3, 3, 3], False), ([1, 1, 1, 1], False)])
def test_difference_of_the_first_seed_is_called_so_where_scores_are_of_more(seeds: list[int], told: bool) -> None:
    both = pd.DataFrame([{"a": "ViT", "b": "DynamicViT", "difference": 0.0, "p": 1.0}])
    rows = RESULTS.assign(seeds=seeds)
    text = findings.built_as_small("DynamicViT", ["ViT"], rows, both, lambda *_: (1.2, 0.05))
    assert ("By accuracy (first seed alone) it cannot be told" in text) == told
    assert ("seed" in text) == told


@pytest.mark.slow
def test_page_one_tests_fewer_tokens_as_the_chapters_do_and_speaks_of_the_layer_that_chapter_5_concludes_on(
    done: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corrected as the chapters correct: for the ways to fewer tokens alone, and for chapter 4's comparisons."""
    seen: dict[str, tuple] = {}
    cost = {"parameters": 5, "macs": 6, "latency_ms": 7.0, "images_per_second": 8.0}
    cost |= {"images_per_second_rounds": [8.0], "latency_rounds_ms": [7.0]}
    growth = {"attention": ["softmax", "kernelised"] * 2, "tokens": [16, 16, 64, 64], "seconds": [1.0, 2.0, 4.0, 3.0]}
    layers = {PRESETS["tiny"]["dim"]: pd.DataFrame(growth).assign(round=0)}
    monkeypatch.setattr(Costs, "of", lambda *_, **__: cost)
    monkeypatch.setattr(Costs, "latest", lambda _, what, dim: layers[dim])
    for name in ("tokens", "linear"):
        monkeypatch.setattr(findings, name, lambda *given, name=name: seen.update({name: given}) or "")
    title.summary(done, tables.by_model(tables.results(done)))
    ways, reference, *_ = seen["tokens"]
    assert reference == "ViT, fine-tuned"
    assert set(ways["model"]) == {*reductions()}
    assert ways["p"].tolist() == tables.reductions(done)["p"].tolist()
    against, speed, crossed, (_, longest), width, here = seen["linear"]
    of_chapter_4 = tables.attentions(done)
    assert against == {name: of_chapter_4["ViT", name] for name in ("Linear ViT", "Linformer ViT", "InLine ViT")}
    assert speed == done.speed
    assert list(crossed) == ["kernelised"]
    assert 16 < crossed["kernelised"] < longest == 64
    assert width == PRESETS["tiny"]["dim"]
    assert here == done.plan.config("ViT").num_tokens + 1  # the class token


BESIDE = {"ViT, fine-tuned": ["DynamicViT"], "ViT": ["Linear ViT"]}


def test_multiply_adds_are_time_or_not() -> None:
    text = findings.worth(RESULTS, BESIDE, speed_of(RESULTS))
    assert (
        "with at least 0.5% less work than the ViT beside them (2 here) have, in the median, 75% of it, 97% of its"
        in text
    )
    assert "Shown to be faster: 1 in batches, none for one image." in text
    assert "faster: none in batches, none for" in findings.worth(RESULTS, BESIDE, speed_of(RESULTS, 0.3))
    small = RESULTS.replace("Linear ViT", "ViT, narrower, as Linear ViT")
    beside = BESIDE | {"ViT": ["ViT, narrower, as Linear ViT"]}
    assert "(2 here, ViTs built as small among them)" in findings.worth(small, beside, speed_of(small))
    assert "No model here needs 0.5% less work" in findings.worth(RESULTS[:2], BESIDE, speed_of(RESULTS))


def test_shortlist_has_the_best_of_each_family_and_at_most_seven_rows() -> None:
    many = pd.concat([RESULTS, *(RESULTS[:1].assign(model=f"ViT, kind {k}", accuracy=0.91) for k in range(9))])
    rows = findings.shortlist(many.reset_index(drop=True))
    assert len(rows) == findings.MOST_ROWS
    assert {"ViT", "ViT, fine-tuned", "Linear ViT", "DynamicViT"} <= set(rows["model"])
    assert rows["accuracy"].is_monotonic_decreasing
    small = RESULTS[:1].assign(model="ViT, narrower, as DynamicViT", accuracy=0.5)  # what a lighter one has to beat
    rows = findings.shortlist(pd.concat([many, small]).reset_index(drop=True))
    assert "ViT, narrower, as DynamicViT" in set(rows["model"])


def test_caption_of_the_shortlist_explains_the_names_that_are_in_it() -> None:
    text = findings.shortlist_caption(RESULTS, 16)
    assert "all of them, most accurate first" in text
    many = pd.concat([RESULTS, *(RESULTS[:1].assign(model=f"ViT, kind {k}") for k in range(9))])
    assert "7 of 13, the ViT and the best of each kind among them" in findings.shortlist_caption(many, 16)
    assert "*fine-tuned* means trained on" in text
    assert "*as X*" not in text
    assert "batches of 16" in text
    smaller = RESULTS.assign(model=["ViT, narrower, as DynamicViT", "ViT", "Linear ViT", "DynamicViT"])
    assert "*as X* means built" in findings.shortlist_caption(smaller, 16)


def test_shortlist_says_of_how_many_seeds_a_score_is_the_mean() -> None:
    assert "seeds" not in findings.shortlist_table(RESULTS)
    assert "seeds" not in findings.shortlist_caption(RESULTS, 16)
    some = RESULTS.assign(seeds=[3, 3, 1, 3])
    assert list(findings.shortlist_table(some)["seeds"]) == ["3", "3", "1", "3"]
    told = "scores are means over a model's seeds, the time of training is the first seed's; epochs include"
    assert told in findings.shortlist_caption(some, 16)


def test_unknown_cost_is_a_dash() -> None:
    table = findings.shortlist_table(RESULTS.assign(macs=math.nan))
    assert set(table["million multiply-adds"]) == {"–"}
