"""The lab compares like with like: runs differ in what their names say alone, and every chapter plans the same ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from vitlab.analysis.complexity import macs
from vitlab.config import BALANCED, POST_HOC, RunConfig
from vitlab.data.splits import Source, split
from vitlab.errors import LabError
from vitlab.identity import identity
from vitlab.lab.plan import NOTEBOOKS, Plan, how_to_make
from vitlab.lab.results import check
from vitlab.machine import ROOT
from vitlab.models.registry import MODELS
from vitlab.models.vit import ViT
from vitlab.parameters import load_params
from vitlab.runs import Run

TRAINED = [name for name in SMALL.remedies if name != POST_HOC]


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
        ("ViT", "InLine ViT", {"model", "inline_map"}),
        ("ViT, conv tokenizer", "ViT, narrower, as DynamicViT", {"dim", "mlp_ratio", "epochs"}),
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
    assert len(paths) == len(plan.names) == 14


@pytest.mark.parametrize(
    ("changes", "backbone"),
    [
        ({}, "ViT, conv tokenizer"),
        ({"backbone": "patch"}, "ViT"),
        ({"long_epochs": 9}, "ViT, conv tokenizer, 9 epochs"),
        ({"long_epochs": 9, "backbone": "patch"}, "ViT"),
        ({"long_epochs": 9, "long_preset": "tiny"}, "ViT-Tiny, conv tokenizer, 9 epochs"),
        ({"long_epochs": 9, "long_preset": "nano", "preset": "nano"}, "ViT, conv tokenizer, 9 epochs"),
        ({"long_epochs": 9, "long_preset": "nano", "preset": "tiny"}, "ViT, conv tokenizer, 9 epochs"),  # no larger
        ({"long_epochs": 9, "long_preset": "tiny", "dim": 128, "depth": 6}, "ViT, conv tokenizer, 9 epochs"),
        ({"long_preset": "tiny"}, "ViT, conv tokenizer"),
        ({"long_epochs": 9, "long_preset": "tiny", "backbone": "patch"}, "ViT-Tiny, patch tokenizer, 9 epochs"),
        ({"long_epochs": 9, "long_preset": "tiny", "sizes": ["small"]}, "ViT-Tiny, conv tokenizer, 9 epochs"),
        ({"long_epochs": 9, "long_preset": "tiny", "tokenizer": "conv"}, "ViT-Tiny, conv tokenizer, 9 epochs"),
        ({"tokenizer": "conv"}, "ViT"),
        ({"tokenizer": "conv", "backbone": "patch"}, "ViT, patch tokenizer"),
    ],
)
def test_chapter_03_goes_on_from_the_vit_that_was_trained_best(changes: dict, backbone: str, few: Source) -> None:
    plan = Plan(SMALL.replace(**changes), few)
    start, smaller = plan.config(backbone), {name for _, name in plan.equal_cost}
    assert plan.backbone == backbone
    assert {name for name in plan.names if plan.config(name).init_from} == plan.chapters["03"].keys() - smaller
    began = {config.init_from for name, config in plan.chapters["03"].items() if name not in smaller}
    assert began == {Run.of(Path(), start, few.digest).path.name}
    assert {(c.tokenizer, c.cutout) for c in plan.chapters["03"].values()} == {(start.tokenizer, start.cutout)}


def test_dynamic_vit_trains_what_is_new_at_the_full_rate(plan: Plan) -> None:
    """Its other weights stay below it by `backbone_rate`."""
    dynamic, start = plan.config("DynamicViT"), plan.config(plan.backbone)
    assert (dynamic.lr, dynamic.muon_lr) == (start.lr, start.muon_lr)
    own = {"keep_ratio", "stages", "ratio_weight", "distill_weight", "backbone_rate", "frozen", "settle"}
    assert differing(plan.config("ViT, fine-tuned"), dynamic) == {"model", "lr"} | own


def test_what_is_asked_of_a_run_trained_on_wins_over_the_labs_budget(plan: Plan) -> None:
    start, asked = plan.config(plan.backbone), {"ema": 0.99, "lr": 0.5, "epochs": 1}
    changed = plan.on_from(start, model="topk_vit", **asked)
    assert {name: getattr(changed, name) for name in asked} == asked


def test_averaging_can_be_asked_for_in_fine_tuning_alone(few: Source) -> None:
    plan = Plan(SMALL.replace(fine_tune_ema=0.9, equal_cost=[]), few)
    assert {config.ema for config in plan.chapters["03"].values()} == {0.9}
    assert {config.ema for chapter in ("02", "04") for config in plan.chapters[chapter].values()} == {0.0}
    assert {config.ema for config in Plan(SMALL.replace(ema=0.5), few).chapters["03"].values()} == {0.5}


def test_chapter_02_trains_the_tokenizer_that_was_not_asked_for_as_well(few: Source) -> None:
    conv = Plan(SMALL.replace(tokenizer="conv"), few)
    assert [conv.config(name).tokenizer for name in conv.tokenizers.values()] == ["conv", "patch"]
    assert "ViT, patch tokenizer" in conv.names


def test_chapter_02_compares_the_tokenizers_and_sizes_that_are_named(few: Source) -> None:
    plan = Plan(SMALL.replace(tokenizers="patch,conv,light", sizes="tiny"), few)
    assert list(plan.chapters["02"]) == [
        "ViT", "ViT, conv tokenizer", "ViT, light tokenizer", "ViT-Tiny", "ResNet-20",
    ]  # fmt: skip
    assert differing(plan.config("ViT"), plan.config("ViT, light tokenizer")) == {"tokenizer"}
    assert plan.config("ViT-Tiny") == plan.config("ViT").replace(preset="tiny")


@pytest.mark.parametrize("own", ["patch", "conv"])
def test_longer_trainings_differ_in_their_length_and_their_cutout(own: str, few: Source) -> None:
    plan = Plan(SMALL.replace(tokenizer=own, long_epochs=9, long_cutout=0.3), few)
    short = "ViT" if own == "conv" else "ViT, conv tokenizer"
    shorter = {name: reference for name, (reference, _) in plan.longer.items()}
    assert shorter == {"ViT, conv tokenizer, 9 epochs": short, "ResNet-20, 9 epochs": "ResNet-20"}
    for name, reference in shorter.items():
        assert differing(plan.config(name), plan.config(reference)) == {"epochs", "cutout"}
        assert (plan.config(name).epochs, plan.config(name).cutout) == (9, 0.3)


def test_larger_vit_is_trained_as_long_as_the_longest_and_the_lighter_models_have_its_shape(few: Source) -> None:
    longest = "ViT, conv tokenizer, 9 epochs"
    plan = Plan(SMALL.replace(long_epochs=9, long_preset="tiny"), few)
    larger = plan.config(plan.backbone)
    assert larger == plan.config(longest).replace(preset="tiny")
    for name, (reference, changes) in plan.longer.items():
        assert plan.config(name) == plan.config(reference).replace(**changes)
    patches = plan.config(plan.backbone_of("patch"))
    assert differing(patches, larger) == {"tokenizer"}
    alone = Plan(plan.params.replace(tokenizer="conv", tokenizers=[]), few)
    assert "ViT-Tiny, patch tokenizer, 9 epochs" not in alone.names
    assert "ViT-Tiny, conv tokenizer" not in plan.names
    reduced = plan.chapters["03"].keys() - {name for _, name in plan.equal_cost}
    assert {(plan.config(name).dim, plan.config(name).depth) for name in reduced} == {(larger.dim, larger.depth)}
    assert {plan.config(name).dim for name in plan.chapters["04"]} == {plan.params.dim}


def test_ablation_trains_the_attentions_that_are_named(few: Source) -> None:
    asked = [name for name, row in MODELS.items() if row.asked]
    assert not {MODELS[name].title for name in asked} & {*Plan(SMALL, few).names}
    plan = Plan(SMALL.replace(ablations=asked), few)
    assert {MODELS[name].title for name in asked} <= plan.chapters["04"].keys()
    for name in asked:
        assert differing(plan.config(MODELS[name].title), plan.config("ViT")) == {"model", *MODELS[name].options}


# ---------------------------------------------------------------- smaller ViTs


@pytest.mark.slow
@pytest.mark.parametrize("profile", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("changes", [{}, {"tokenizer": "conv", "keep_ratio": 0.5}, {"preset": "small", "pool": "mean"}])
def test_smaller_vits_cost_what_the_model_costs_that_they_stand_beside(
    changes: dict, profile: Path, few: Source
) -> None:
    params = load_params(profile, changes | {"equal_cost": ["dynamic_vit", "linear_vit", "inline_vit"], "sizes": []})
    plan, shape = Plan(params, few), (1, 10)
    assert {"dynamic_vit"} <= {model for model, _ in plan.equal_cost}
    for model, name in plan.equal_cost:
        small, light = plan.config(name), plan.config(MODELS[model].title)
        start = plan.config(plan.backbone if MODELS[model].chapter == "03" else "ViT")
        whole = sum(macs(start, *shape).values())
        cost, target = (sum(macs(config, *shape).values()) for config in (small, light))
        assert target < whole
        assert abs(cost / target - 1) <= 0.03
        assert plan.chapter_of(name) == MODELS[model].chapter
        assert (small.model, small.tokenizer, small.heads) == ("vit", start.tokenizer, start.heads)
        if "fewer blocks" in name:
            assert (small.dim, small.depth < start.depth) == (start.dim, True)
        else:
            assert (small.depth, small.dim < start.dim) == (start.depth, True)


def test_smaller_vit_has_seen_as_many_images_as_the_model_beside_it(few: Source) -> None:
    plan = Plan(SMALL.replace(equal_cost=["dynamic_vit", "linformer_vit"], image_size=32, linformer_k=8), few)
    epochs = {model: plan.config(name).epochs for model, name in plan.equal_cost}
    assert epochs == {"dynamic_vit": SMALL.epochs + SMALL.fine_tune_epochs, "linformer_vit": SMALL.epochs}


def test_model_that_is_no_lighter_has_no_smaller_vit(few: Source) -> None:
    assert Plan(SMALL.replace(keep_ratio=1.0), few).equal_cost == {}


# ---------------------------------------------------------------- seeds


def test_every_run_of_the_chapters_is_repeated_with_each_seed(few: Source) -> None:
    plan = Plan(SMALL.replace(seed=3, seeds=3), few)
    assert {name: [config.seed for config in seeds] for name, seeds in plan.repeats.items()} == {
        name: [3, 4, 5] for name in plan.names
    }
    for name in plan.names:
        first, second, _ = plan.repeats[name]
        assert plan.config(name) == first
        assert plan.config(f"{name}, seed 4") == second
        assert plan.chapter_of(f"{name}, seed 4") == plan.chapter_of(name)
        assert differing(first, second) - {"init_from"} == {"seed"}
    start = Run.of(Path(), plan.config(f"{plan.backbone}, seed 4"), plan.source.digest).path.name
    assert plan.config("DynamicViT, seed 4").init_from == start  # of its own seed


def test_runs_that_are_named_are_repeated_with_what_they_start_from(few: Source) -> None:
    plan = Plan(SMALL.replace(seeds=2, repeated=["ViT", "DynamicViT"]), few)
    again = {name for name, configs in plan.repeats.items() if len(configs) > 1}
    assert again == {"ViT", "DynamicViT", plan.backbone}
    assert plan.repeats.keys() == set(plan.names)
    start = Run.of(Path(), plan.config(f"{plan.backbone}, seed 1"), plan.source.digest).path.name
    assert plan.config("DynamicViT, seed 1").init_from == start
    with pytest.raises(LabError, match="no run 'ToMe, seed 1'"):
        plan.config("ToMe, seed 1")
    assert plan.seed_words == "mean ± standard deviation over seeds 0 to 1; in rows without a ±, of seed 0"
    assert plan.seed_numbers(plan.names) == "seeds 0 to 1; for some models seed 0 only"
    assert plan.seed_numbers(["ViT", "DynamicViT"]) == "seeds 0 to 1"
    assert plan.seed_numbers(plan.chapters["04"]) == "seed 0"
    assert Plan(SMALL.replace(seeds=2, repeated=["Linear ViT"]), few).repeats[plan.backbone] == [
        plan.config(plan.backbone)
    ]


@pytest.mark.parametrize("seeds", [1, 2])
def test_run_to_repeat_that_is_not_there_is_named_before_any_work(seeds: int) -> None:
    with pytest.raises(LabError, match=r"repeated names a run that is not there: 'Dynamic': did you mean 'DynamicViT'"):
        check(SMALL.replace(seeds=seeds, repeated=["Dynamic"]))


def test_one_seed_is_called_by_its_number_and_several_by_what_their_figures_are(few: Source) -> None:
    one = Plan(SMALL.replace(seed=2), few)
    assert (one.seed_words, one.seed_numbers(one.names), one.one_seed) == ("seed 2", "seed 2", "")
    several = Plan(SMALL.replace(seed=2, seeds=3), few)
    assert (several.seed_numbers(["ViT"]), several.one_seed) == ("seeds 2 to 4", " (seed 2)")
    assert several.seed_words == "mean ± standard deviation over seeds 2 to 4"


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
    for config in (other.config(name) for name in other.chapters["03"] if other.config(name).init_from):
        assert (config.minutes, config.start_size, config.epochs) == (0, 0, SMALL.fine_tune_epochs)


@pytest.mark.parametrize(("chapter", "like"), [("02", "ViT"), ("03", "ViT, fine-tuned"), ("04", "ViT")])
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
    assert set(study) == {(remedy, seed) for remedy in (BALANCED, *TRAINED) for seed in (0, 1)}
    for remedy in TRAINED[1:]:
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


def test_validation_chooses_nothing_in_the_study(few: Source) -> None:
    """Of rare classes it holds more images than training does."""
    plan = Plan(SMALL.replace(patience=3, study_ratio=9), few)
    assert {(config.keep_epoch, config.patience) for config in plan.study.values()} == {("last", 0)}
    assert plan.config("ViT").keep_epoch == "best"


@pytest.mark.parametrize(("tokenizer", "name"), [("patch", "ViT"), ("conv", "ViT, conv tokenizer")])
def test_study_has_a_tokenizer_of_its_own(few: Source, tokenizer: str, name: str) -> None:
    plan = Plan(SMALL.replace(study_tokenizer=tokenizer), few)
    assert {config.tokenizer for config in plan.study.values()} == {tokenizer}
    assert plan.study_vit == name
    assert differing(plan.study[BALANCED, 0], plan.config(name)) == {"keep_epoch", "epochs", "steps"}


def test_study_of_further_class_sizes_differs_in_these_alone(few: Source) -> None:
    plan = Plan(SMALL.replace(study_more="exponential 9, linear 4", study_more_seeds=2), few)
    assert list(plan.studies) == ["linear 2:1", "exponential 9:1", "linear 4:1"]
    first, second, third = plan.studies.values()
    assert first is plan.study
    assert first.keys() == second.keys() == third.keys()
    for key in first:
        assert differing(first[key], third[key]) == (set() if key[0] == BALANCED else {"imbalance_ratio"})
    assert plan.config("sampler, exponential 9:1, seed 1") == second["sampler", 1]
    assert len(plan.study_configs) == 2 * (1 + 3 * len(TRAINED))  # the balanced reference serves all of them


@pytest.mark.parametrize(("first", "more"), [(2, 1), (1, 2)])
def test_further_class_sizes_have_seeds_of_their_own_number(few: Source, first: int, more: int) -> None:
    plan = Plan(SMALL.replace(study_more="linear 4", study_seeds=first, study_more_seeds=more), few)
    assert [{seed for _, seed in runs} for runs in plan.studies.values()] == [{*range(first)}, {*range(more)}]
    named = list(plan.study_configs.values())
    assert all(config in named for runs in plan.studies.values() for config in runs.values())


def test_study_trains_the_remedies_that_were_asked_for(few: Source) -> None:
    plan = Plan(SMALL.replace(study_remedies="post_hoc, sampler"), few)
    assert {name for name, _ in plan.study} == {BALANCED, "none", "sampler"}  # post hoc: none's logits, adjusted


def test_balanced_and_imbalanced_runs_meet_the_same_test_and_validation_images(plan: Plan) -> None:
    shaped, balanced = (plan.data_of(plan.study[remedy, 0]) for remedy in ("none", BALANCED))
    assert shaped.test.index.tolist() == balanced.test.index.tolist()
    assert shaped.val.index.tolist() == balanced.val.index.tolist()


def test_data_that_come_imbalanced_have_no_balanced_twin(few: Source) -> None:
    assert {remedy for remedy, _ in Plan(SMALL.replace(study_imbalance="none"), few).study} == set(TRAINED)


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
    assert "a study of 27 runs" in shown


def test_plan_with_a_model_that_cannot_be_built_is_shown_with_the_reason(few: Source) -> None:
    shown = repr(Plan(SMALL.replace(depth=2), few))
    assert shown == "Plan(cannot be made: three stages need depth 4 or more, got 2: name other stages)"


def test_splits_are_counted_once_for_all_runs_that_split_alike(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = plan.configs.values()  # which counts for itself already
    sizes = [len(plan.data_of(config).train) for config in configs]
    fresh, asked = Plan(plan.params, plan.source), []
    monkeypatch.setattr("vitlab.lab.plan.split", lambda *of: asked.append(of) or split(*of))
    assert [fresh.num_train(config) for config in configs] == sizes
    assert len(asked) == len({(config.seed, config.imbalance) for config in configs})
