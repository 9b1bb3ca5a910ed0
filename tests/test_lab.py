"""The lab compares like with like, finds what was made before, and says what is missing and which notebook makes it."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitlab import complexity, lab, metrics, tables, train
from vitlab.config import LabConfig, LabError, RunConfig
from vitlab.data import Source
from vitlab.lab import BALANCED, REMEDIES, Lab
from vitlab.runs import identity

SMALL = LabConfig(
    image_size=8, patch_size=4, dim=16, depth=4, heads=2, mlp_ratio=2.0, batch_size=32, precision="fp32",
    imbalance="linear", imbalance_ratio=2.0, epochs=2, fine_tune_epochs=1, study_epochs=1, study_seeds=2, linformer_k=2,
)  # fmt: skip


@pytest.fixture
def fresh(few: Source, tmp_path: Path) -> Lab:
    """A lab in which nothing has run."""
    return Lab(SMALL.but(runs_dir=str(tmp_path / "runs")), few)


@pytest.fixture(scope="module")
def done(few: Source, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab in which every run is complete; what they cost was not measured."""
    whole = Lab(SMALL.but(runs_dir=str(tmp_path_factory.mktemp("runs")), study_seeds=1), few)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VITLAB_RUNS", raising=False)
        for name in whole.names:
            whole.train(whole.config(name))
        for config in whole.study.values():
            whole.train(config)
    return whole


def differing(a: RunConfig, b: RunConfig) -> set[str]:
    first, second = identity(a, "same"), identity(b, "same")
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


# ---------------------------------------------------------------- plan


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("ViT", "ViT, conv tokenizer", {"tokenizer"}),
        ("ViT", "Linear ViT", {"model", "feature_map"}),
        ("ViT", "Linformer ViT", {"model", "linformer_k", "linformer_sharing"}),
        ("ViT, fine-tuned", "DynamicViT", {"model", "keep_ratio", "ratio_weight", "distill_weight"}),
        ("ViT", "ViT, fine-tuned", {"init_from", "epochs", "lr"}),
    ],
)
def test_runs_differ_in_what_their_names_say_alone(one: str, other: str, names: set[str], fresh: Lab) -> None:
    assert differing(fresh.config(one), fresh.config(other)) == names


def test_every_run_of_the_plan_has_its_own_directory(fresh: Lab) -> None:
    assert len({fresh.run_of(fresh.config(name)).path for name in fresh.names}) == len(fresh.names) == 6


def test_chapter_02_trains_the_tokenizer_that_was_not_asked_for_as_well(fresh: Lab, few: Source) -> None:
    conv = Lab(fresh.params.but(tokenizer="conv"), few)
    assert [c.tokenizer for c in conv.plan["02"].values()] == ["conv", "patch"]
    assert "ViT, patch tokenizer" in conv.names


def test_chapters_02_to_06_are_balanced_whatever_the_study_is(fresh: Lab) -> None:
    assert {fresh.config(name).imbalance for name in fresh.names} == {"none"}
    assert fresh.data.counts.unique().numel() == 1


def test_fine_tuning_lowers_muons_rate_as_it_lowers_adamws(fresh: Lab, few: Source) -> None:
    tuned = Lab(fresh.params.but(optimizer="muon", lr=1e-3, fine_tune_lr=1e-4, muon_lr=0.02), few)
    assert tuned.config("DynamicViT").muon_lr == pytest.approx(0.002)
    assert tuned.config("DynamicViT").lr == 1e-4


# ---------------------------------------------------------------- study


def test_study_varies_remedy_and_seed_alone(fresh: Lab) -> None:
    study = fresh.study
    assert set(study) == {(remedy, seed) for remedy in (BALANCED, *REMEDIES) for seed in (0, 1)}
    for remedy in REMEDIES[1:]:
        assert differing(study["none", 0], study[remedy, 0]) == {"remedy"}
    assert differing(study["none", 0], study["none", 1]) == {"seed"}
    assert differing(study["none", 0], study[BALANCED, 0]) == {"imbalance", "imbalance_ratio", "imbalance_order"}


def test_all_of_the_study_takes_the_same_number_of_steps(fresh: Lab) -> None:
    images = int(fresh.study_counts.sum())
    assert {config.steps for config in fresh.study.values()} == {fresh.params.study_epochs * (images // 32)}
    balanced = fresh.data_of(fresh.study[BALANCED, 0]).train
    assert len(balanced) > images


def test_balanced_and_imbalanced_runs_meet_the_same_test_and_validation_images(fresh: Lab) -> None:
    shaped, balanced = (fresh.data_of(fresh.study[remedy, 0]) for remedy in ("none", BALANCED))
    assert shaped.test.index.tolist() == balanced.test.index.tolist()
    assert shaped.val.index.tolist() == balanced.val.index.tolist()


def test_data_that_come_imbalanced_have_no_balanced_twin(fresh: Lab, few: Source) -> None:
    assert {remedy for remedy, _ in Lab(fresh.params.but(imbalance="none"), few).study} == set(REMEDIES)


def test_imbalance_that_data_bring_is_used_as_it_comes(fresh: Lab, few: Source) -> None:
    keep = torch.cat([(few.train.labels == k).nonzero()[: 20 - 2 * k, 0] for k in range(10)])
    bring = Lab(fresh.params, replace(few, train=few.train.take(keep)))
    assert fresh.params.imbalance == "linear"
    assert BALANCED not in {remedy for remedy, _ in bring.study}
    assert bring.study_counts.tolist() == [20 - 2 * k - int(bring.data.val.counts(10)[k]) for k in range(10)]
    assert "as they come" in bring.imbalance_name


# ---------------------------------------------------------------- what was made before


def test_missing_run_names_the_notebook_that_makes_it(fresh: Lab) -> None:
    with pytest.raises(LabError, match=r"'ViT'.*notebooks/02_vit\.ipynb"):
        fresh.load("ViT")
    with pytest.raises(LabError, match=r"notebooks/03_dynamic_vit\.ipynb"):
        fresh.load("DynamicViT")
    with pytest.raises(LabError, match=r"notebooks/04_linear_vit\.ipynb"):
        fresh.load("Linear ViT")
    with pytest.raises(LabError, match=r"notebooks/01_data_and_imbalance\.ipynb"):
        fresh.load_study()


def test_run_that_needs_a_teacher_names_its_notebook(fresh: Lab) -> None:
    with pytest.raises(LabError, match=r"02_vit\.ipynb"):
        fresh.train(fresh.config("DynamicViT"))


def test_every_chapter_finds_the_same_run(done: Lab, few: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "seed_step", lambda *_: pytest.fail("trained again"))
    another = Lab(done.params, few)
    for name in done.names:
        assert another.train(another.config(name)).path == done.load(name).path


def test_other_parameters_leave_finished_runs_alone(done: Lab, few: Source) -> None:
    other = Lab(done.params.but(lr=0.123), few)
    with pytest.raises(LabError, match="not in"):
        other.load("ViT")
    assert done.load("ViT").complete


def test_environment_can_move_the_runs(fresh: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "elsewhere"))
    assert Lab(fresh.params, fresh.source).runs_dir == tmp_path / "elsewhere"
    assert fresh.run_of(fresh.config("ViT")).path.parent == tmp_path / "elsewhere"


def test_notebook_opens_its_lab_from_its_parameters() -> None:
    opened = Lab.open({"__name__": "__main__", "image_size": 8, "epochs": 3})
    assert opened.params == LabConfig(image_size=8, epochs=3)
    assert opened.source.train.images.shape[-1] == 8


# ---------------------------------------------------------------- measurements


def test_measurement_is_taken_once(fresh: Lab, few: Source) -> None:
    taken: list[int] = []

    def measure() -> dict[str, Any]:
        taken.append(1)
        return {"ms": [1.5, 2.5]}

    assert fresh.measured("speed", {"n": 1}, measure) == {"ms": [1.5, 2.5]}
    assert Lab(fresh.params, few).measured("speed", {"n": 1}, measure) == {"ms": [1.5, 2.5]}
    assert Lab(fresh.params, few).measured("speed", {"n": 1}, None) == {"ms": [1.5, 2.5]}
    assert len(taken) == 1
    fresh.measured("speed", {"n": 2}, measure)
    fresh.measured("memory", {"n": 1}, measure)
    assert len(taken) == 3


def test_another_machine_measures_for_itself(fresh: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    here = lab.environment()
    for machine in (here, here | {"device": "another"}, here | {"threads": -1}, here | {"commit": "another"}):
        monkeypatch.setattr(lab, "environment", lambda machine=machine: machine)
        fresh.measured("speed", 1, lambda: taken.append(1))
    assert len(taken) == 3  # the commit is no other machine


def test_measurement_is_taken_anew_when_the_code_has_changed_but_still_read(
    fresh: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.measured("speed", 1, lambda: "old")
    monkeypatch.setattr(lab, "_code_measured", lambda: "another")
    assert fresh.measured("speed", 1, None) == "old"
    assert fresh.measured("speed", 1, lambda: "new") == "new"
    assert fresh.measured("speed", 1, None) == "new"


def test_missing_measurement_names_chapter_05(fresh: Lab) -> None:
    with pytest.raises(LabError, match=r"notebooks/05_complexity\.ipynb"):
        fresh.measured("speed", 1, None)


def test_failed_measurement_is_not_kept(fresh: Lab) -> None:
    with pytest.raises(ZeroDivisionError):
        fresh.measured("speed", 1, lambda: 1 / 0)
    assert fresh.measured("speed", 1, lambda: 2) == 2


def test_equal_shapes_share_their_cost(fresh: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[RunConfig] = []
    monkeypatch.setattr(complexity, "measure", lambda config, *_: measured.append(config) or {"macs": len(measured)})
    first = fresh.cost(fresh.config("ViT"))
    assert fresh.cost(fresh.config("ViT, fine-tuned")) == first
    assert fresh.cost(fresh.config("ViT").but(lr=1.0, keep_ratio=0.2)) == first
    others = [fresh.config("DynamicViT"), fresh.config("Linear ViT"), fresh.config("DynamicViT").but(keep_ratio=0.2)]
    assert len({fresh.cost(config)["macs"] for config in others} | {first["macs"]}) == 4
    assert fresh.cost(fresh.config("ViT"), num_classes=7) != first


# ---------------------------------------------------------------- tables


COST = {"parameters": 5, "macs": 6, "latency_ms": 7.0, "images_per_second": 8.0}


def test_results_are_those_of_the_runs_the_best_first(done: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "cost", lambda self, config, only_read: COST if only_read else pytest.fail("measured"))
    frame = tables.results(done)
    assert set(frame["model"]) == set(done.names)
    assert frame["accuracy"].is_monotonic_decreasing
    for _, row in frame.iterrows():
        run = done.load(row["model"])
        assert row["accuracy"] == run.summary["test"]["accuracy"]
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["macro_f1_low"] <= row["macro_f1"] <= row["macro_f1_high"]
        assert row["accuracy"] <= row["top_2"] <= 1
        assert (row["run"], row["macs"], row["test_images"]) == (run.path.name, 6, 60)


def test_comparison_is_that_of_the_stored_predictions(done: Lab) -> None:
    got = done.compare("ViT", "Linear ViT")
    (a, labels), (b, _) = done.load("ViT").predictions, done.load("Linear ViT").predictions
    right_a, right_b = a.argmax(1) == labels, b.argmax(1) == labels
    assert got["difference"] == pytest.approx(right_b.mean() - right_a.mean())
    assert (got["only_a"], got["only_b"]) == (np.sum(right_a & ~right_b), np.sum(right_b & ~right_a))
    assert got["interval"][0] <= got["difference"] <= got["interval"][1]


def test_every_pair_is_tested_once_and_corrected_for_all(done: Lab) -> None:
    pairs = tables.pairs(done)
    assert {frozenset(pair) for pair in zip(pairs["a"], pairs["b"], strict=True)} == {
        frozenset(pair) for pair in combinations(done.names, 2)
    }
    alone = np.array([done.compare(a, b)["p"] for a, b in zip(pairs["a"], pairs["b"], strict=True)])
    assert pairs["p"].tolist() == pytest.approx(metrics.holm(alone).tolist())
    assert (pairs["p"] >= alone).all()


def test_recall_differences_add_up_to_the_differences_of_recall(done: Lab) -> None:
    frame = tables.recall_differences(done, "ViT")
    recall = {name: np.array(done.load(name).summary["test"]["per_class"]["recall"]) for name in done.names}
    for name, rows in frame.groupby("model"):
        assert rows["difference"].to_numpy() == pytest.approx(recall[name] - recall["ViT"])
    assert "ViT" not in set(frame["model"])
    assert frame["p"].between(0, 1).all()


# ---------------------------------------------------------------- runs from elsewhere


@pytest.fixture
def elsewhere(done: Lab, few: Source, tmp_path: Path) -> Lab:
    """The finished lab with a run of another lab, whose images have another digest, in the comparison."""
    other = Lab(done.params.but(runs_dir=str(tmp_path), seed=7), replace(few, digest="moved"))
    run = other.train(other.config("Linear ViT"))
    return Lab(done.params.but(extra_runs=f"{run.path}, {done.load('ViT').path}"), few)


def test_extra_runs_are_compared_with_the_labs_own(elsewhere: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "cost", lambda self, config, only_read: COST)
    frame = tables.results(elsewhere).set_index("model")
    [foreign] = set(frame.index) - set(elsewhere.names) - {elsewhere.load("ViT").path.name}
    assert len(frame) == 8
    assert (frame.loc[foreign, "seed"], frame.loc[foreign, "run"]) == (7, foreign)
    assert elsewhere.compare("ViT", frame.loc["ViT", "run"])["difference"] == 0  # the same run by its directory
    assert len(tables.pairs(elsewhere)) == 8 * 7 / 2


def test_extra_runs_cost_is_measured_where_nobody_has_yet(elsewhere: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []
    monkeypatch.setattr(Lab, "cost", lambda self, config, only_read: allowed.append(not only_read) or COST)
    tables.results(elsewhere)
    assert allowed == [False] * 6 + [True] * 2


def test_run_starts_from_the_run_that_its_configuration_names(done: Lab) -> None:
    with pytest.raises(LabError, match="the run to start from, another, is not in"):
        done.train(done.config("DynamicViT").but(init_from="another"))


def test_extra_run_that_cannot_be_compared_is_refused(done: Lab, few: Source, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no complete run"):
        Lab(done.params.but(extra_runs=str(tmp_path)), few).load("ViT")
    with pytest.raises(LabError, match="two directories have the same name"):
        Lab(done.params.but(extra_runs=f"{tmp_path}/a/run, {tmp_path}/b/run"), few).load("ViT")
    with pytest.raises(LabError, match="this lab has a run 'ViT' of its own"):
        Lab(done.params.but(extra_runs=f"{tmp_path}/a/ViT"), few).load("ViT")
    fewer = few.test.take(torch.arange(59))
    darker = replace(few.test, pool=few.test.pool // 2)  # of the same classes in the same order
    for digest, test in (("59", fewer), ("dark", darker)):
        other = Lab(done.params.but(runs_dir=str(tmp_path)), replace(few, test=test, digest=digest))
        run = other.train(other.config("ViT"))
        with pytest.raises(LabError, match="tested on other images"):
            tables.results(Lab(done.params.but(extra_runs=str(run.path)), few))


# ---------------------------------------------------------------- the study's tables


def test_study_scores_tell_common_from_rare_classes(done: Lab) -> None:
    frame = tables.study_scores(done).set_index("remedy")
    assert list(frame.index) == [BALANCED, *REMEDIES]
    order = done.study_counts.argsort(descending=True, stable=True)
    test = done.load_study()["sampler", 0].summary["test"]
    recall = np.array(test["per_class"]["recall"])
    row = frame.loc["sampler"]
    assert row["recall_common"] == pytest.approx(recall[order[:3]].mean())
    assert row["recall_rare"] == pytest.approx(recall[order[-3:]].mean())
    assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"]) == (test["accuracy"], *test["interval"])
    assert row["macro_f1"] == pytest.approx(test["f1"]["macro"])
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "recall_common", "recall_rare"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_rare_classes_are_each_seeds_own_where_the_seed_draws_them(fresh: Lab, few: Source) -> None:
    drawn = Lab(fresh.params.but(imbalance_order="random", imbalance_ratio=9), few)
    for config in drawn.study.values():
        drawn.train(config)
    frame = tables.study_scores(drawn).set_index(["remedy", "seed"])
    counts = {seed: drawn.data_of(drawn.study["none", seed]).counts for seed in (0, 1)}
    assert not torch.equal(counts[0], counts[1])
    for seed in (0, 1):
        recall = np.array(drawn.load_study()["none", seed].summary["test"]["per_class"]["recall"])
        rarest = counts[seed].argsort(descending=True, stable=True)[-3:]
        assert frame.loc[("none", seed), "recall_rare"] == pytest.approx(recall[rarest].mean())
    assert tables.study_recall(drawn).index[0] == f"{counts[0].max()} images"


def test_effects_of_the_remedies_are_drawn_and_computed(fresh: Lab, few: Source) -> None:
    frame = tables.remedy_effects(Lab(fresh.params.but(imbalance_ratio=9), few)).set_index(["remedy", "class"])
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
    shift = frame.loc["logit_adjustment", "shift"]
    assert shift[first] - shift[last] == pytest.approx(np.log(ratio), rel=1e-4)
    assert frame.loc["sampler", "shift"].eq(0).all()


def test_recall_by_remedy_starts_at_none_and_the_commonest_class(done: Lab) -> None:
    frame = tables.study_recall(done)
    assert list(frame.columns) == ["none", BALANCED, *REMEDIES[1:]]
    assert list(frame.index) == [str(k) for k in done.study_counts.argsort(descending=True, stable=True).tolist()]
    recall = done.load_study()["both", 0].summary["test"]["per_class"]["recall"]
    assert frame["both"].tolist() == pytest.approx([recall[int(k)] for k in frame.index])


def test_macro_f1_of_the_study_and_its_resamples(done: Lab) -> None:
    f1, drawn = tables.study_f1(done)
    assert f1.keys() == drawn.keys() == {BALANCED, *REMEDIES}
    assert f1["sampler"] == pytest.approx([done.load_study()["sampler", 0].summary["test"]["f1"]["macro"]])
    assert drawn["sampler"].shape == (metrics.RESAMPLES,)
    assert drawn["sampler"].std() > 0


def test_wrong_parameter_shows_before_any_work() -> None:
    with pytest.raises(LabError, match="depth 4 or more"):
        lab.check(SMALL.but(depth=2))
    assert lab.check(SMALL).names
