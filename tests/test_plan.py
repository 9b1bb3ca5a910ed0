"""The lab compares like with like: runs differ in what their names say alone, and every chapter plans the same ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from vitlab.config import RunConfig
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.lab.plan import BALANCED, NOTEBOOKS, REMEDIES, Plan, how_to_make
from vitlab.models.registry import MODELS
from vitlab.models.vit import ViT
from vitlab.runs import Run, identity


@pytest.fixture
def plan(few: Source) -> Plan:
    return Plan(SMALL, few)


def differing(a: RunConfig, b: RunConfig) -> set[str]:
    first, second = identity(a, "same"), identity(b, "same")
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


# ---------------------------------------------------------------- chapters


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("ViT", "ViT, conv tokenizer", {"tokenizer"}),
        ("ViT", "Linear ViT", {"model", "feature_map"}),
        ("ViT", "Linformer ViT", {"model", "linformer_k", "linformer_sharing"}),
        ("ViT, fine-tuned", "Random tokens", {"model", "keep_ratio", "stages"}),
        ("Random tokens", "Top-K", {"model", "salience"}),
        ("Top-K", "EViT", {"model", "proportional"}),
        ("EViT", "ToMe", {"model", "salience"}),
        ("ViT, conv tokenizer", "ViT, fine-tuned", {"init_from", "epochs", "lr"}),
    ],
)
def test_runs_differ_in_what_their_names_say_alone(one: str, other: str, names: set[str], plan: Plan) -> None:
    assert differing(plan.config(one), plan.config(other)) == names


def test_every_run_of_the_plan_has_its_own_directory(plan: Plan) -> None:
    paths = {Run.of(Path(), plan.config(name), plan.source.digest).path for name in plan.names}
    assert len(paths) == len(plan.names) == 10


@pytest.mark.parametrize(
    ("changes", "backbone"),
    [
        ({}, "ViT, conv tokenizer"),
        ({"backbone": "patch"}, "ViT"),
        ({"long_epochs": 9}, "ViT, conv tokenizer, 9 epochs"),
        ({"long_epochs": 9, "backbone": "patch"}, "ViT"),
        ({"tokenizer": "conv"}, "ViT"),
        ({"tokenizer": "conv", "backbone": "patch"}, "ViT, patch tokenizer"),
    ],
)
def test_chapter_03_goes_on_from_the_vit_that_was_trained_best(changes: dict, backbone: str, few: Source) -> None:
    plan = Plan(SMALL.replace(**changes), few)
    start = plan.config(backbone)
    assert plan.backbone == backbone
    assert {name for name in plan.names if plan.config(name).init_from} == {*plan.chapters["03"]}
    assert {config.init_from for config in plan.chapters["03"].values()} == {
        Run.of(Path(), start, few.digest).path.name
    }
    assert {(c.tokenizer, c.cutout) for c in plan.chapters["03"].values()} == {(start.tokenizer, start.cutout)}


def test_dynamic_vit_trains_what_is_new_at_the_full_rate(plan: Plan) -> None:
    """Its other weights stay below it by `backbone_rate`."""
    dynamic, start = plan.config("DynamicViT"), plan.config(plan.backbone)
    assert (dynamic.lr, dynamic.muon_lr) == (start.lr, start.muon_lr)
    own = {"keep_ratio", "stages", "ratio_weight", "distill_weight", "backbone_rate", "frozen", "settle"}
    assert differing(plan.config("ViT, fine-tuned"), dynamic) == {"model", "lr"} | own


def test_averaging_can_be_asked_for_in_fine_tuning_alone(few: Source) -> None:
    plan = Plan(SMALL.replace(fine_tune_ema=0.9), few)
    assert {config.ema for config in plan.chapters["03"].values()} == {0.9}
    assert {config.ema for chapter in ("02", "04") for config in plan.chapters[chapter].values()} == {0.0}
    assert {config.ema for config in Plan(SMALL.replace(ema=0.5), few).chapters["03"].values()} == {0.5}


def test_chapter_02_trains_the_tokenizer_that_was_not_asked_for_as_well(few: Source) -> None:
    conv = Plan(SMALL.replace(tokenizer="conv"), few)
    assert [config.tokenizer for config in conv.chapters["02"].values()] == ["conv", "patch"]
    assert "ViT, patch tokenizer" in conv.names


def test_longer_training_differs_in_its_length_and_its_cutout(few: Source) -> None:
    plan = Plan(SMALL.replace(long_epochs=9, long_cutout=0.3), few)
    [name] = [name for name in plan.chapters["02"] if "9 epochs" in name]
    assert differing(plan.config(name), plan.config("ViT, conv tokenizer")) == {"epochs", "cutout"}
    assert (plan.config(name).epochs, plan.config(name).cutout) == (9, 0.3)


def test_chapters_02_to_06_are_balanced_whatever_the_study_is(plan: Plan) -> None:
    assert plan.study_imbalance == "linear"
    assert {plan.config(name).imbalance for name in plan.names} == {"none"}
    assert plan.data_of(plan.config("ViT")).class_counts.unique().numel() == 1


def test_fine_tuning_lowers_muons_rate_as_it_lowers_adamws(few: Source) -> None:
    tuned = Plan(SMALL.replace(optimizer="muon", lr=1e-3, fine_tune_lr=1e-4, muon_lr=0.02), few)
    assert tuned.config("ToMe").muon_lr == pytest.approx(0.002)
    assert tuned.config("ToMe").lr == 1e-4


def test_fine_tuning_goes_by_epochs_and_at_full_size_where_the_others_do_not(few: Source) -> None:
    other = Plan(SMALL.replace(minutes=2.0, start_size=4), few)
    assert (other.config("ViT").minutes, other.config("ViT").start_size) == (2, 4)
    for name in other.chapters["03"]:
        config = other.config(name)
        assert (config.minutes, config.start_size, config.epochs) == (0, 0, SMALL.fine_tune_epochs)


@pytest.mark.parametrize(("chapter", "like"), [("03", "ViT, fine-tuned"), ("04", "ViT")])
def test_row_of_the_registry_is_trained_as_its_chapter_trains(
    chapter: str, like: str, few: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "mine", replace(MODELS["vit"], build=ViT, title="My ViT", chapter=chapter))
    plan = Plan(SMALL, few)
    assert "My ViT" in plan.chapters[chapter]
    assert differing(plan.config("My ViT"), plan.config(like)) == {"model"}
    monkeypatch.setitem(MODELS, "mine", replace(MODELS["mine"], chapter=""))
    assert "My ViT" not in Plan(SMALL, few).names


# ---------------------------------------------------------------- study


def test_study_varies_remedy_and_seed_alone(plan: Plan) -> None:
    study = plan.study
    assert set(study) == {(remedy, seed) for remedy in (BALANCED, *REMEDIES) for seed in (0, 1)}
    for remedy in REMEDIES[1:]:
        assert differing(study["none", 0], study[remedy, 0]) == {"remedy"}
    assert differing(study["none", 0], study["none", 1]) == {"seed"}
    assert differing(study["none", 0], study[BALANCED, 0]) == {"imbalance", "imbalance_ratio", "imbalance_order"}


def test_study_has_the_class_sizes_that_the_parameters_ask_for(few: Source) -> None:
    plan = Plan(SMALL.replace(study_imbalance="exponential", study_ratio=9, study_order="random"), few)
    config = plan.study["none", 0]
    assert (config.imbalance, config.imbalance_ratio, config.imbalance_order) == ("exponential", 9, "random")
    counts = plan.data_of(config).class_counts
    assert int(counts.max()) == 9 * int(counts.min())


def test_all_of_the_study_takes_the_same_number_of_steps(plan: Plan) -> None:
    images = len(plan.data_of(plan.study["none", 0]).train)
    assert {config.steps for config in plan.study.values()} == {SMALL.study_epochs * (images // 32)}
    assert len(plan.data_of(plan.study[BALANCED, 0]).train) > images


def test_balanced_and_imbalanced_runs_meet_the_same_test_and_validation_images(plan: Plan) -> None:
    shaped, balanced = (plan.data_of(plan.study[remedy, 0]) for remedy in ("none", BALANCED))
    assert shaped.test.index.tolist() == balanced.test.index.tolist()
    assert shaped.val.index.tolist() == balanced.val.index.tolist()


def test_data_that_come_imbalanced_have_no_balanced_twin(few: Source) -> None:
    assert {remedy for remedy, _ in Plan(SMALL.replace(study_imbalance="none"), few).study} == set(REMEDIES)


def test_imbalance_that_data_bring_is_used_as_it_comes(few: Source) -> None:
    keep = torch.cat([(few.train.labels == k).nonzero()[: 20 - 2 * k, 0] for k in range(10)])
    bring = Plan(SMALL, replace(few, train=few.train.take(keep)))
    assert (bring.params.study_imbalance, bring.study_imbalance) == ("linear", "none")
    assert BALANCED not in {remedy for remedy, _ in bring.study}
    data = bring.data_of(bring.study["none", 0])
    assert data.class_counts.tolist() == [20 - 2 * k - int(data.val.class_counts(10)[k]) for k in range(10)]


# ---------------------------------------------------------------- names


def test_every_run_has_a_name_and_a_chapter_that_makes_it(plan: Plan) -> None:
    assert plan.configs.keys() == {*plan.names, *(f"{remedy}, seed {seed}" for remedy, seed in plan.study)}
    assert plan.config("sampler, seed 1") == plan.study["sampler", 1]
    chapters = {name: plan.chapter_of(name) for name in plan.configs}
    assert {chapters[name] for name in plan.names} == {"02", "03", "04"}
    assert (chapters["ViT"], chapters["DynamicViT"], chapters["Linear ViT"]) == ("02", "03", "04")
    assert {chapters[name] for name in plan.configs.keys() - {*plan.names}} == {"01"}


@pytest.mark.parametrize(
    ("wrong", "right"), [("Vit", "ViT"), ("linear vit", "Linear ViT"), ("sampler seed 1", "sampler, seed 1")]
)
def test_misspelt_run_names_the_nearest_and_all_there_are(wrong: str, right: str, plan: Plan) -> None:
    with pytest.raises(LabError, match=f"no run '{wrong}': did you mean '{right}'") as caught:
        plan.config(wrong)
    assert all(name in str(caught.value) for name in plan.configs)


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_what_is_missing_can_be_made_with_the_command_that_is_named(chapter: str) -> None:
    text = how_to_make(chapter)
    assert f"papermill notebooks/{NOTEBOOKS[chapter].name} " in text


def test_plan_is_shown_by_its_names(few: Source) -> None:
    shown = repr(Plan(SMALL.replace(study_seeds=3), few))
    assert "DynamicViT" in shown
    assert "a study of 21 runs" in shown
