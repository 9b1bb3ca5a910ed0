"""The imbalance study: what remedies do before training is drawn and computed, what they gain is measured fairly."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import confusion_matrix

from vitlab.analysis import metrics, sentences_study, study
from vitlab.analysis.study import Study
from vitlab.config import BALANCED, POST_HOC, STUDIED, RunConfig
from vitlab.data.splits import Source, Split
from vitlab.lab import Lab


@pytest.fixture(scope="module")
def drawn(few: Source, tmp_path_factory: pytest.TempPathFactory, done: Lab) -> Study:
    """Two seeds that draw their own rare classes, and some of the remedies."""
    chosen = {"study_order": "random", "study_ratio": 9, "study_seeds": 2, "study_remedies": "sampler, post_hoc"}
    chosen["study_more"] = "linear 4"
    lab = Lab(done.params.replace(**chosen, runs_dir=str(tmp_path_factory.mktemp("drawn"))), few)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VITLAB_RUNS", raising=False)
        lab.train(lab.plan.study_configs)
        return Study(lab)


# ---------------------------------------------------------------- before training


def test_effects_of_the_remedies_are_drawn_and_computed(fresh: Lab, few: Source) -> None:
    lab = Lab(fresh.params.replace(study_ratio=9, study_order="classes"), few)
    frame = study.remedy_effects(lab).set_index(["remedy", "class"])
    assert set(frame.index.get_level_values(0)) == {*STUDIED} - {POST_HOC}
    images = frame.loc["none", "images"]
    assert images.is_monotonic_decreasing
    assert frame.loc["none", "drawn"].tolist() == pytest.approx((images / images.sum()).tolist())  # an epoch is all
    first, last = images.index[[0, -1]]

    def against(remedy: str, column: str) -> float:
        return frame.loc[(remedy, last), column] / frame.loc[(remedy, first), column]

    ratio = images[first] / images[last]
    assert against("class_weights", "share") == pytest.approx(1)
    assert against("both", "weight") == pytest.approx(ratio)
    assert against("both", "share") == pytest.approx(against("both", "drawn") * ratio)
    assert against("sampler", "drawn") > 2 / ratio  # drawn for real, so only about 1
    assert against("drw", "weight") == against("ldam_drw", "weight") == pytest.approx(ratio, rel=0.01)
    assert frame.loc[("logit_adjustment", first), "margin"] == 0
    assert frame.loc[("logit_adjustment", last), "margin"] == pytest.approx(np.log(ratio), rel=1e-4)
    assert frame.loc[("ldam_drw", last), "margin"] == pytest.approx(15)
    assert against("ldam_drw", "margin") == pytest.approx(ratio**0.25, rel=1e-4)
    assert frame.loc["sampler", "margin"].eq(0).all()


def test_commonest_and_rarest_classes_are_three_or_fewer_and_never_the_same() -> None:
    assert [study.group_size(n) for n in (1, 2, 3, 5, 6, 10, 100)] == [1, 1, 1, 2, 3, 3, 3]


# ---------------------------------------------------------------- what the runs answered


def test_scores_are_those_of_the_runs_by_group_of_classes(done: Lab) -> None:
    found = Study(done)
    frame = found.scores.set_index("remedy")
    assert list(frame.index) == [BALANCED, *STUDIED]
    order = torch.tensor(found.runs["none", 0].record["counts"]).argsort(descending=True, stable=True)
    test = found.runs["sampler", 0].summary["test"]
    recall = np.array(test["per_class"]["recall"])[order]
    row = frame.loc["sampler"]
    assert row["recall_common"] == pytest.approx(recall[:3].mean())
    assert row["recall_middle"] == pytest.approx(recall[3:-3].mean())
    assert row["recall_rare"] == pytest.approx(recall[-3:].mean())
    assert row["accuracy"] == test["accuracy"]
    assert row["macro_f1"] == pytest.approx(test["f1"]["macro"])
    assert row["calibration_error"] == test["calibration_error"]
    for name in ("accuracy", *study.SCORES):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


@pytest.mark.slow
def test_post_hoc_answers_are_those_of_none_adjusted_by_its_training_counts(drawn: Study) -> None:
    for seed in drawn.seeds:
        logits, labels = drawn.runs["none", seed].predictions
        counts = drawn.lab.data_of(drawn.lab.plan.study["none", seed]).class_counts
        expected = logits - np.log(counts.numpy() / counts.sum().item())
        np.testing.assert_allclose(drawn.predictions[POST_HOC, seed][0], expected, rtol=1e-5)
        assert drawn.predictions[POST_HOC, seed][1].tolist() == labels.tolist()
    assert not [key for key in drawn.runs if key[0] == POST_HOC]


def test_no_test_image_decides_anything_in_the_study(done: Lab, few: Source, tmp_path: Path) -> None:
    """With all other test images, blank ones of random labels, the same weights are trained and kept."""
    blank = Split.whole(torch.zeros_like(few.test.images), few.test.labels.flip(0))
    other = Lab(done.params.replace(runs_dir=str(tmp_path)), Source(few.train, blank, few.classes, "other test", ()))
    config = RunConfig.model_validate(done.plan.study["ldam_drw", 0].model_dump())
    ours, theirs = done.load_study()["ldam_drw", 0].weights(), other.train_one(config).weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rare_classes_are_each_seeds_own_where_the_seed_draws_them(drawn: Study) -> None:
    assert drawn.order[0].tolist() != drawn.order[1].tolist()
    frame = drawn.scores.set_index(["remedy", "seed"])
    for seed in drawn.seeds:
        recall = np.array(drawn.runs["none", seed].summary["test"]["per_class"]["recall"])
        assert frame.loc[("none", seed), "recall_rare"] == pytest.approx(recall[drawn.order[seed][-3:]].mean())
    most = max(drawn.counts[0].tolist())
    assert drawn.class_names[0] == f"{most} images"


def test_classes_go_by_their_names_where_all_seeds_have_the_same_order(done: Lab) -> None:
    counts = torch.tensor(Study(done).runs["none", 0].record["counts"])
    assert Study(done).class_names == [str(k) for k in counts.argsort(descending=True, stable=True).tolist()]


def test_confusion_counts_all_seeds_in_the_order_of_class_size(drawn: Study) -> None:
    expected = 0
    for seed in drawn.seeds:
        logits, labels = drawn.predictions["sampler", seed]
        expected = expected + confusion_matrix(labels, logits.argmax(1), labels=drawn.order[seed])
    assert drawn.confusion("sampler").tolist() == expected.tolist()


def test_curves_are_the_seeds_mean_of_what_validation_said(drawn: Study) -> None:
    assert set(drawn.curves) == {BALANCED, "none", "sampler"}  # post hoc has no training
    histories = [drawn.runs["sampler", seed].history for seed in drawn.seeds]
    assert drawn.curves["sampler"]["val_macro_f1"].tolist() == pytest.approx(
        np.mean([history["val_macro_f1"] for history in histories], 0).tolist()
    )
    assert drawn.curves["sampler"]["step"].iloc[-1] == drawn.steps


# ---------------------------------------------------------------- gains


def test_gains_are_differences_within_the_seeds(drawn: Study) -> None:
    mean = drawn.scores.groupby("remedy")["macro_f1"].mean()
    gains = drawn.gains()
    assert list(gains.index) == ["sampler", POST_HOC]
    assert gains["gain"].tolist() == pytest.approx([mean[name] - mean["none"] for name in gains.index])
    assert (gains["low"] < gains["gain"]).all()
    assert drawn.gains(names=[BALANCED]).loc[BALANCED, "score"] == pytest.approx(mean[BALANCED])
    back = drawn.gains(base="sampler", names=["none"]).loc["none"]
    assert back["gain"] == pytest.approx(-gains.loc["sampler", "gain"])


def test_chance_of_training_is_that_of_what_is_trained_or_of_post_hoc_where_nothing_else_is(
    drawn: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled: list[set[str]] = []
    monkeypatch.setattr(metrics, "training_noise", lambda scores: pooled.append({*scores}) or (0.0, math.inf))
    drawn.gains()
    monkeypatch.setattr(drawn, "remedies", [POST_HOC])
    drawn.gains()
    assert pooled == [{"none", "sampler"}, {"none", POST_HOC}]


def test_chance_of_training_is_the_residual_of_a_two_way_analysis_of_variance() -> None:
    scores = {"none": [0.50, 0.60, 0.58], "a": [0.62, 0.71, 0.70], "b": [0.55, 0.69, 0.61]}
    frame = pd.DataFrame([(n, s, v) for n, row in scores.items() for s, v in enumerate(row)], columns=["n", "s", "v"])
    grand, by_name, by_seed = frame["v"].mean(), frame.groupby("n")["v"].mean(), frame.groupby("s")["v"].mean()
    squares = sum((r.v - by_name[r.n] - by_seed[r.s] + grand) ** 2 for r in frame.itertuples())
    variance, freedom = metrics.training_noise(scores)
    assert (variance, freedom) == (pytest.approx(squares / 4), 4)


def test_interval_of_a_gain_by_hand() -> None:
    scores = {"none": [0.50, 0.60, 0.58], "a": [0.62, 0.71, 0.70], "b": [0.55, 0.69, 0.61]}
    still = {name: np.full(1000, np.mean(row)) for name, row in scores.items()}  # test images add nothing
    variance, _ = noise = metrics.training_noise(scores)
    frame = metrics.seed_differences(scores, still, "none", ["a", "b"], noise)
    reach = stats.t.ppf(1 - 0.05 / 4, 4) * (2 * variance / 3) ** 0.5  # two comparisons at once
    assert frame.loc["a", ["gain", "low", "high"]].tolist() == pytest.approx([7 / 60, 7 / 60 - reach, 7 / 60 + reach])


def test_test_images_widen_the_interval_of_a_gain() -> None:
    scores = {"none": [0.5, 0.6], "a": [0.7, 0.8]}  # the seeds agree on the gain
    draws = np.random.default_rng(0).normal(0, 0.03, 100_000)
    moving = {"none": np.zeros(100_000), "a": draws}
    frame = metrics.seed_differences(scores, moving, "none", ["a"], metrics.training_noise(scores))
    assert frame.loc["a", "high"] - 0.2 == pytest.approx(1.96 * 0.03, rel=0.02)
    one = {"none": [0.5], "a": [0.7]}
    alone = metrics.seed_differences(one, moving, "none", ["a"], metrics.training_noise(one))
    assert alone.loc["a"].tolist() == pytest.approx(frame.loc["a"].tolist() - np.array([0.05, 0, 0, 0]), abs=0.06)


def test_intervals_hold_what_they_promise() -> None:
    """Of studies without any effect, about one in twenty claims one: seeds, remedies and test images are all noise."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(400):
        order, images = rng.normal(0, 0.05, 3), rng.normal(0, 0.01, 6)  # what seeds share; what the test set favours
        table = 0.5 + order + rng.normal(0, 0.02, (6, 3)) + images[:, None]
        scores = {str(k): row.tolist() for k, row in enumerate(table)}
        moving = {name: rng.normal(0, 0.01, 200) for name in scores}
        names = [str(k) for k in range(1, 6)]
        frame = metrics.seed_differences(scores, moving, "0", names, metrics.training_noise(scores))
        wrong += bool(((frame["low"] > 0) | (frame["high"] < 0)).any())
    assert 0.01 < wrong / 400 < 0.08


def test_no_gain_leaves_what_a_share_can_gain() -> None:
    scores = {"none": [0.9, 0.98], "low": [0.1, 0.0]}
    flat = dict.fromkeys(scores, np.zeros(10))
    row = metrics.seed_differences(scores, flat, "none", ["low"], (0.5, 2)).loc["low"]
    assert (row["low"], row["high"]) == (-1, 1)


def test_base_that_was_chosen_by_its_score_stands_for_every_pair() -> None:
    scores = {"none": [0.5, 0.6], "a": [0.7, 0.7], "b": [0.6, 0.7]}
    drawn = {name: np.linspace(0, 0.001 * k, 9) for k, name in enumerate(scores)}
    fixed, chosen = (metrics.seed_differences(scores, drawn, "a", ["none", "b"], (1e-4, 2), tests) for tests in (0, 3))
    assert (chosen["low"] < fixed["low"]).all()
    assert (chosen["gain"] == fixed["gain"]).all()


def test_price_of_imbalance_has_the_chance_of_which_classes_are_rare(drawn: Study) -> None:
    """Each seed draws them, and the balanced runs have none: what seeds share does not cancel."""
    of_seeds = {name: drawn._by_seed("macro_f1", name) for name in ("none", BALANCED)}
    differences = np.subtract(*of_seeds.values())
    variance, freedom = drawn.noise("macro_f1", ["none", BALANCED])
    assert (variance, freedom) == (pytest.approx(np.var(differences, ddof=1) / 2), 1)
    assert drawn.price["gain"] == pytest.approx(-differences.mean())


# ---------------------------------------------------------------- sampler and class weights


def test_gradient_noise_is_larger_where_weights_are_than_where_draws_are_equal(done: Lab) -> None:
    noise = study.gradient_noise(done, batches=8)
    assert set(noise.index) == {"sampler", "class_weights"}
    assert (noise > 0).all()


def test_gradient_whose_mean_is_chance_alone_has_no_noise_that_could_be_told(
    done: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = itertools.cycle((1.0, -1.0))
    monkeypatch.setattr(study.torch.autograd, "grad", lambda loss, of: [next(signs) * torch.ones(3)])
    assert study.gradient_noise(done, batches=4).tolist() == [math.inf] * 2


# ---------------------------------------------------------------- for reading


def test_several_seeds_show_their_spread_and_a_single_one_its_interval(done: Lab, drawn: Study) -> None:
    several = study.study_table(drawn)
    assert list(several.index) == [BALANCED, "none", "sampler", "post hoc"]
    f1 = drawn.scores.groupby("remedy")["macro_f1"]
    assert several.loc["sampler", "macro F1"] == f"{f1.mean()['sampler']:.3f} ± {f1.std()['sampler']:.3f}"
    gain = drawn.gains().loc["sampler"]
    assert several.loc["sampler", "gain of F1 (points)"].startswith(f"{100 * gain['gain']:+z.1f} (")
    assert several.loc[[BALANCED, "none"], "gain of F1 (points)"].tolist() == ["–", "–"]
    one, row = study.study_table(Study(done)), Study(done).scores.set_index("remedy").loc["drw"]
    interval = f"({row['recall_rare_low']:.3f} – {row['recall_rare_high']:.3f})"
    assert one.loc["DRW", "recall, rarest"] == f"{row['recall_rare']:.3f} {interval}"
    assert one.loc["DRW", "calibration error"] == f"{row['calibration_error']:.3f}"


def test_conclusion_answers_for_whatever_was_studied(drawn: Study, done: Lab) -> None:
    assert len(study.conclusion(drawn)) == len(study.conclusion(Study(done))) == 6
    assert "n imbalance of 9:1 cost" in study.conclusion(drawn)[0]
    assert "2 remedies" in study.conclusion(drawn)[1] or "No remedy" in study.conclusion(drawn)[1]


def test_report_keeps_every_run_of_the_studies_once(done: Lab) -> None:
    paths = [run.path for run in done.studied]
    assert sorted(paths) == sorted({done.run_of(config).path for config in done.plan.study_configs.values()})


def test_class_sizes_stand_beside_each_other(drawn: Study) -> None:
    table = study.shapes_table([drawn])
    assert list(table.index) == ["none", "sampler", "post hoc"]
    assert table.loc["none", "linear 9:1"] == f"{drawn.scores.groupby('remedy')['macro_f1'].mean()['none']:.3f}"


def test_single_seed_of_further_class_sizes_has_the_chance_of_training_of_the_first(drawn: Study) -> None:
    further = Study(drawn.lab, "linear 4:1")
    assert (drawn.seeds, further.seeds) == ([0, 1], [0])
    assert further.noise("accuracy") == drawn.noise("accuracy") != (0.0, np.inf)
    wide, images = further.gains().loc["sampler"], further.resampled
    drawn_anew = [metrics.macro_f1(images[name, 0]) for name in ("sampler", "none")]
    narrow = np.std(drawn_anew[0] - drawn_anew[1], ddof=1)  # what the test images alone leave open
    assert (wide["high"] - wide["low"]) / 2 > 2 * np.hypot(narrow, np.sqrt(2 * drawn.noise("macro_f1")[0]))
    assert len(study.shapes_table([drawn, further]).columns) == 2
    caption = sentences_study.shapes_table([drawn, further])
    assert caption.endswith(
        "Seeds: 2 (linear 9:1), 1 (linear 4:1); where there is one, the chance of training is that of linear 9:1."
    )
    assert sentences_study.shapes_table([further]).endswith("Seeds: 1 (linear 4:1).")
