"""Parameters: what is wrong is said in one sentence before any work, and what is declared is used."""

import re
from pathlib import Path
from typing import Any

import pytest

from vitlab.config import PRESETS, ROOT, LabConfig, LabError, RunConfig, from_notebook, load_params, parse
from vitlab.models import OPTIONS, SHARED

PROFILES = sorted((ROOT / "params").glob("*.yaml"))


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


def test_scientific_notation_that_yaml_reads_as_text_becomes_a_number(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("lr: 1e-3\n")  # without a dot YAML 1.1 reads a string
    assert load_params(tmp_path / "p.yaml").lr == 0.001


@pytest.mark.parametrize("name", ["mixup", "crop", "epochs", "dim", "runs_dir", "optimizer"])
def test_yamls_no_is_refused_where_a_number_or_word_is_meant(name: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"{name}: no\n")
    with pytest.raises(LabError, match=f"{name} is False"):
        load_params(tmp_path / "p.yaml")


def test_yamls_yes_is_accepted_for_a_switch(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("flip: yes\n")
    assert load_params(tmp_path / "p.yaml").flip is True


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_size": 32, "patch_size": 5}, "patch_size 5 does not divide image_size 32"),
        ({"dim": 64, "heads": 5}, "heads 5 does not divide dim 64"),
        ({"epochs": 0}, "epochs is 0"),
        ({"dataset": "folder"}, "data_dir"),
        ({"dataset": "mnist"}, "dataset is 'mnist'"),
        ({"model": "resnet"}, "model is 'resnet'"),
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


def test_with_preset_changes_the_shape_and_nothing_else() -> None:
    before = RunConfig(depth=8, lr=0.1)
    after = before.with_preset("base")
    assert after == RunConfig(preset="base", lr=0.1)


def test_but_validates_again() -> None:
    with pytest.raises(LabError, match="does not divide"):
        RunConfig().but(heads=7)
    with pytest.raises(LabError, match="did you mean 'epochs'"):
        RunConfig().but(epoch=3)


def test_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().lr = 1.0


def test_runs_of_the_lab_are_balanced_unless_they_say_otherwise() -> None:
    lab = LabConfig(imbalance="linear", lr=0.5)
    assert lab.run().imbalance == "none"
    assert lab.run(imbalance="linear").imbalance == "linear"
    assert lab.run().lr == 0.5


@pytest.mark.parametrize("name", {**RunConfig.model_fields, **LabConfig.model_fields})
def test_every_declared_field_is_read_outside_config(name: str) -> None:
    if name == "preset":  # it is read in config.py itself, where it fills the shape: see the tests of presets
        assert RunConfig(preset="base").dim != RunConfig(preset="nano").dim
        return
    by_name = {*SHARED, *(option for options in OPTIONS.values() for option in options)}  # read by build_model
    source = "".join(p.read_text() for p in (ROOT / "vitlab").glob("*.py") if p.name != "config.py")
    assert name in by_name or re.search(rf"\b(config|params|p)\.{name}\b", source)


def test_every_parameter_of_the_lab_is_explained() -> None:
    explained = LabConfig.help()
    assert explained.keys() == LabConfig.model_fields.keys()
    assert all(len(text) > 5 for text in explained.values())


@pytest.mark.parametrize("name", sorted(RunConfig.model_fields.keys() - LabConfig.model_fields.keys()))
def test_what_a_chapter_decides_is_no_parameter_of_the_lab(name: str) -> None:
    with pytest.raises(LabError, match=f"unknown parameter '{name}'"):
        parse(LabConfig, {name: RunConfig.model_fields[name].default})


def notebook(**parameters: Any) -> dict[str, Any]:
    """Globals as IPython has them: its own names, modules and functions beside the parameters."""
    ipython = {"__name__": "__main__", "In": [""], "Out": {}, "_": "", "_i1": "x", "Path": Path, "exit": print}
    return ipython | parameters


def test_notebook_parameters_become_the_configuration() -> None:
    config = from_notebook(notebook(dataset="digits", epochs=3, lr=5e-4, flip=True))
    assert config == LabConfig(epochs=3, lr=5e-4, flip=True)


def test_misspelt_name_in_a_notebook_is_caught() -> None:
    with pytest.raises(LabError, match="did you mean 'study_seeds'"):
        from_notebook(notebook(study_sedes=3))


def test_foreign_name_in_a_fresh_notebook_is_caught() -> None:
    with pytest.raises(LabError, match="total"):
        from_notebook(notebook(total=3))


def test_run_again_a_cell_tolerates_what_the_notebook_made_since() -> None:
    namespace = notebook(epochs=3)
    from_notebook(namespace)
    namespace |= {"total": 12, "best": 0.9, "name": "ViT", "epochs": 4}
    assert from_notebook(namespace) == LabConfig(epochs=4)


def test_run_again_a_cell_still_catches_a_misspelt_parameter() -> None:
    namespace = notebook(epochs=3)
    from_notebook(namespace)
    namespace |= {"total": 12, "keep_ratoi": 0.5}
    with pytest.raises(LabError, match="did you mean 'keep_ratio'"):
        from_notebook(namespace)


def test_error_shows_in_a_notebook_without_a_traceback() -> None:
    assert LabError("say what to do")._render_traceback_() == ["LabError: say what to do"]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_is_valid(path: Path) -> None:
    assert load_params(path).epochs >= 1


def test_the_three_profiles_exist() -> None:
    assert {"quick", "cifar10_cpu", "cifar10_gpu"} <= {path.stem for path in PROFILES}


def test_quick_profile_equals_the_defaults() -> None:
    assert load_params(ROOT / "params" / "quick.yaml").model_dump() == LabConfig().model_dump()


def test_profile_values_can_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("epochs: 3\nseed: 1\n")
    config = load_params(tmp_path / "p.yaml", {"seed": 2})
    assert (config.epochs, config.seed) == (3, 2)


def test_unknown_profile_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("")
    with pytest.raises(LabError, match="choose one of one"):
        load_params(tmp_path / "two.yaml")


@pytest.mark.parametrize("text", ["epochs: [3", "- a\n- b\n", "just words", ""])
def test_file_that_holds_no_parameters_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(LabError, match=r"p\.yaml"):
        load_params(tmp_path / "p.yaml")


@pytest.mark.parametrize("content", [b"\xff\xfe epochs: 3", b"no: 3", None])
def test_file_that_is_no_profile_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(LabError, match=re.escape(str(path))):
        load_params(path)
