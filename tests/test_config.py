"""Parameters: what is wrong is said in one sentence before any work, and what is declared is used."""

import re
from typing import Any, Literal, get_args, get_origin

import pytest

from vitlab.config import PRESETS, STUDIED, Common, LabConfig, Recipe, RunConfig, Training, parse
from vitlab.errors import LabError
from vitlab.files import absolute
from vitlab.machine import ROOT
from vitlab.models.registry import MODELS, SHARED
from vitlab.parameters import overrides_in


def message(values: dict[str, Any]) -> str:
    with pytest.raises(LabError) as caught:
        parse(RunConfig, values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("keep_ration", "keep_ratio"), ("epoch", "epochs"), ("patchsize", "patch_size"), ("optimiser", "optimizer")],
)
def test_misspelt_key_names_the_nearest_parameter(wrong: str, right: str) -> None:
    assert message({wrong: 1}) == f"unknown parameter {wrong!r}: did you mean {right!r}?"


def test_key_like_nothing_points_to_the_list_of_parameters() -> None:
    assert "vitlab/config.py" in message({"zzzz": 1})


def test_every_fault_is_named() -> None:
    text = message({"epochs": 0, "lrr": 1, "val_fraction": 0.9})
    assert all(name in text for name in ("epochs", "'lr'", "val_fraction"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_size": 32, "patch_size": 5}, "patch_size 5 does not divide image_size 32"),
        ({"dim": 64, "heads": 5}, "heads 5 does not divide dim 64"),
        ({"epochs": 0}, "epochs is 0"),
        ({"dataset": "folder"}, "data_dir"),
        ({"dataset": "mnist"}, "dataset is 'mnist'"),
        ({"model": "resnet"}, "unknown model 'resnet'"),
        ({"model": "linear_vti"}, "did you mean 'linear_vit'?"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"preset": "huge"}, "preset is 'huge'"),
        ({"preset": ["nano"]}, "preset"),
        ({"model": "dynamic_vit", "depth": 3}, "depth 4 or more"),
        ({"model": "dynamic_vit", "dim": 75, "heads": 5}, "even dim of 4 or more, got 75"),
        ({"positions": "sincos", "dim": 30, "heads": 5}, "sincos needs a dim that 4 divides"),
        ({"image_size": 18, "patch_size": 6, "tokenizer": "conv"}, "needs patch_size 1, 2, 4, 8"),
        ({"keep_ratio": 0}, "keep_ratio"),
        ({"keep_ratio": 1.1}, "keep_ratio"),
        ({"lr": -1}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"epochs": 1.5}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"imbalance_ratio": 0.5}, "imbalance_ratio"),
        ({"cutout": 1.0}, "cutout"),
        ({"image_size": 16, "crop": 40}, "crop"),  # a shift beyond the image has no border to reflect
    ],
)
def test_impossible_value_is_one_sentence(values: dict[str, Any], words: str) -> None:
    text = message(values)
    assert words in text
    assert "\n" not in text
    assert len(text) < 200


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_fills_the_shape(preset: str) -> None:
    config = RunConfig(preset=preset)
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]


def test_explicit_value_overrides_the_preset_and_null_does_not() -> None:
    config = RunConfig(preset="tiny", depth=2, dim=None)
    assert (config.depth, config.dim, config.heads) == (2, PRESETS["tiny"]["dim"], PRESETS["tiny"]["heads"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 7}, "7 epochs"),
        ({"epochs": 1}, "1 epoch"),
        ({"steps": 1}, "1 step"),
        ({"minutes": 1}, "1 minute"),
        ({"epochs": 7, "patience": 2}, "up to 7 epochs"),
        ({"minutes": 2.5}, "2.5 minutes"),
        ({"steps": 1200, "minutes": 2}, "1,200 steps"),
    ],
)
def test_budget_names_what_ends_a_training(values: dict[str, Any], words: str) -> None:
    assert RunConfig(**values).budget == words


def test_longer_training_is_longer() -> None:
    with pytest.raises(LabError, match="long_epochs 32 must exceed epochs 40, or be 0"):
        parse(LabConfig, {"epochs": 40, "long_epochs": 32})
    assert parse(LabConfig, {"epochs": 40, "long_epochs": 0}).long_epochs == 0


def test_run_that_ends_with_its_last_epoch_waits_for_no_better_one() -> None:
    with pytest.raises(LabError, match="patience 3 waits for a best epoch"):
        parse(Recipe, {"patience": 3, "keep_epoch": "last"})


# ---------------------------------------------------------------- the imbalance study


def test_study_may_have_further_class_sizes() -> None:
    params = LabConfig(study_imbalance="linear", study_ratio=10, study_more=" linear 100,exponential 2.5, linear 10")
    assert params.study_shapes == [("linear", 10), ("linear", 100), ("exponential", 2.5)]
    assert LabConfig().study_shapes == [("exponential", 50)]


@pytest.mark.parametrize("text", ["linera 10", "linear", "10", "linear 10:1", "linear 0.5", "linear 10; linear 20"])
def test_class_sizes_that_nobody_can_read_are_one_sentence(text: str) -> None:
    with pytest.raises(LabError, match=f'study_more has .{text}.: write it as "linear 10, exponential 100"'):
        parse(LabConfig, {"study_more": text})


def test_study_has_all_remedies_or_those_that_are_named() -> None:
    assert LabConfig().remedies == list(STUDIED)
    chosen = LabConfig(study_remedies="post_hoc, sampler")
    assert chosen.remedies == ["none", "sampler", "post_hoc"]  # none is what they are compared with


@pytest.mark.parametrize(("text", "words"), [("samplr", "did you mean 'sampler'"), ("none", "none alone")])
def test_remedies_that_make_no_study_are_one_sentence(text: str, words: str) -> None:
    with pytest.raises(LabError, match=words):
        parse(LabConfig, {"study_remedies": text})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ablations": ["local_vti"]}, "ablations names 'local_vti': choose of injective_vit"),
        ({"ablations": "linear_vit"}, "ablations names 'linear_vit'"),  # it is trained anyway
        ({"equal_cost": ["vit"]}, "equal_cost names 'vit': choose of dynamic_vit"),
        ({"equal_cost": ["resnet20"]}, "equal_cost names 'resnet20'"),
        ({"equal_cost": ["local_vit"], "ablations": ["injective_vit"]}, "equal_cost names 'local_vit'"),  # not trained
        ({"sizes": "nano,small"}, "sizes names nano, which is the preset itself"),
        ({"sizes": ["huge"]}, "parameter sizes is 'huge'"),
        ({"tokenizers": "patch,cone"}, "parameter tokenizers is 'cone'"),
        ({"tokenizers": ["patch"], "long_epochs": 50}, "name it in tokenizers"),
        ({"seeds": 0}, "seeds is 0"),
    ],
)
def test_lists_name_what_there_is(values: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError) as caught:
        parse(LabConfig, values)
    assert words in str(caught.value)


def test_list_may_be_written_with_commas() -> None:
    assert parse(LabConfig, {"sizes": "tiny, small"}).sizes == parse(LabConfig, {"sizes": ["tiny", "small"]}).sizes
    assert parse(LabConfig, {"repeated": "ViT, fine-tuned; ToMe"}).repeated == ["ViT, fine-tuned", "ToMe"]


def test_empty_list_may_be_written_as_nothing() -> None:
    """`SET="sizes="`, or a key without a value in YAML, arrives as None."""
    lists = [name for name, value in LabConfig().model_dump().items() if isinstance(value, list)]
    assert {"stages", "sizes", "repeated"} <= {*lists}
    read = parse(LabConfig, dict.fromkeys(lists) | {"tokenizer": "conv"})
    assert [getattr(read, name) for name in lists] == [[]] * len(lists)


def test_empty_word_may_be_written_as_nothing() -> None:
    assert parse(LabConfig, overrides_in("long_preset=")).long_preset == ""
    with pytest.raises(LabError, match="parameter preset is None"):
        parse(LabConfig, overrides_in("preset="))


def test_processes_share_a_batch_evenly() -> None:
    with pytest.raises(LabError, match="batch_size 64 cannot be shared evenly by 3 processes"):
        parse(LabConfig, {"batch_size": 64, "processes": 3})


def test_batch_is_taken_in_no_more_pieces_than_it_has_images() -> None:
    with pytest.raises(LabError, match="accumulate 9 must not exceed batch_size 8"):
        parse(Recipe, {"batch_size": 8, "accumulate": 9})


def test_another_preset_changes_the_shape_and_nothing_else() -> None:
    before = RunConfig(depth=8, lr=0.1)
    assert before.replace(preset="base") == RunConfig(preset="base", lr=0.1)
    assert before.replace(preset="base", depth=3) == RunConfig(preset="base", depth=3, lr=0.1)
    lab = LabConfig(lr=0.1)
    tiny = lab.run().model_dump() | {"preset": "tiny"} | PRESETS["tiny"]
    assert lab.run(preset="tiny") == lab.replace(preset="tiny").run() == RunConfig(**tiny)
    with pytest.raises(LabError, match="preset"):
        before.replace(preset=["base"])


def test_replacing_a_value_validates_again_and_leaves_the_original() -> None:
    config = RunConfig()
    assert config.replace(lr=0.1).lr == 0.1
    assert config == RunConfig()
    with pytest.raises(LabError, match="does not divide"):
        config.replace(heads=7)
    with pytest.raises(LabError, match="did you mean 'epochs'"):
        config.replace(epoch=3)


def test_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().lr = 1.0


def test_runs_of_the_lab_are_balanced_unless_they_say_otherwise() -> None:
    lab = LabConfig(study_imbalance="linear", lr=0.5)
    assert lab.run().imbalance == "none"
    assert lab.run(imbalance="linear").imbalance == "linear"


@pytest.mark.parametrize(("make", "cls", "common"), [("run", RunConfig, Common), ("recipe", Recipe, Training)])
def test_what_the_lab_says_of_training_reaches_its_runs_and_recipes(
    make: str, cls: type[Training], common: type[Training]
) -> None:
    lab = LabConfig(lr=0.5, epochs=7, mixup=0.3, seed=4, image_size=32, preset="tiny")
    made = getattr(lab, make)(remedy="sampler", steps=9)
    assert isinstance(made, cls)
    assert {name: getattr(made, name) for name in common.model_fields} == {
        name: getattr(lab, name) for name in common.model_fields
    }
    assert (made.remedy, made.steps) == ("sampler", 9)
    assert getattr(lab, make)(lr=0.1).lr == 0.1
    with pytest.raises(LabError, match="did you mean 'epochs'"):
        getattr(lab, make)(epoch=3)


def test_recipe_knows_no_data_and_no_model() -> None:
    """It trains any module."""
    assert not Recipe.model_fields.keys() & {"dataset", "image_size", "preset", "dim", "patch_size", "model"}
    with pytest.raises(LabError, match="unknown parameter 'keep_ratio'"):
        parse(Recipe, {"keep_ratio": 0.5})


def test_images_may_grow_by_what_the_model_can_cut() -> None:
    assert Recipe().size_unit == 1
    assert RunConfig(image_size=32, patch_size=8).size_unit == 8
    with pytest.raises(LabError, match="start_size 12 must be a multiple of patch_size 8"):
        parse(RunConfig, {"image_size": 32, "patch_size": 8, "start_size": 12})


@pytest.mark.parametrize("name", {**RunConfig.model_fields, **LabConfig.model_fields})
def test_every_declared_field_is_read_outside_config(name: str) -> None:
    if name == "preset":  # it is read in config.py itself, where it fills the shape: see the tests of presets
        assert RunConfig(preset="base").dim != RunConfig(preset="nano").dim
        return
    through = {"study_ratio": "study_shapes", "study_more": "study_shapes", "study_remedies": "remedies"}
    name = through.get(name, name)  # what a property of LabConfig makes of it
    by_name = {*SHARED, *(option for row in MODELS.values() for option in row.options)}  # read by build_model
    source = "".join(path.read_text() for path in (ROOT / "vitlab").rglob("*.py") if path.name != "config.py")
    assert name in by_name or re.search(rf"\b(config|params|recipe|p)\.{name}\b", source)


def test_every_parameter_of_the_lab_is_explained() -> None:
    explained = LabConfig.help()
    assert explained.keys() == LabConfig.model_fields.keys()
    assert all(len(text) > 5 for text in explained.values())


@pytest.mark.parametrize("name", ["dataset", "preset", "tokenizer", "pool", "optimizer", "schedule", "study_imbalance"])
def test_choices_are_named_where_the_parameter_is_explained(name: str) -> None:
    annotation = LabConfig.model_fields[name].annotation
    assert get_origin(annotation) is Literal
    assert [choice for choice in get_args(annotation) if choice not in LabConfig.help()[name]] == []


def test_explanation_above_a_parameter_is_its_own() -> None:
    """A comment that is too long to stand beside its parameter stands above it."""
    assert "headwise" in LabConfig.help()["linformer_sharing"]
    assert "headwise" not in LabConfig.help()["linformer_k"]


@pytest.mark.parametrize("name", sorted(RunConfig.model_fields.keys() - LabConfig.model_fields.keys()))
def test_what_a_chapter_decides_is_no_parameter_of_the_lab(name: str) -> None:
    with pytest.raises(LabError, match=f"unknown parameter '{name}'"):
        parse(LabConfig, {name: RunConfig.model_fields[name].default})


def test_error_shows_in_a_notebook_without_a_traceback() -> None:
    assert LabError("say what to do")._render_traceback_() == ["LabError: say what to do"]


def test_relative_paths_are_those_of_the_repository_wherever_a_notebook_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("runs") == ROOT / "runs"
    assert absolute("~/runs") == tmp_path / "runs"
    assert absolute(str(tmp_path)) == tmp_path
