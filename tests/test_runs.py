"""A run's directory is named by what decides its result; what is loaded from it is data, never code."""

import contextlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vitlab import machine, runs
from vitlab.config import RunConfig
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.identity import identity
from vitlab.models.registry import MODELS, Row
from vitlab.runs import Run

CONFIG = RunConfig()


def name(config: RunConfig, digest: str = "abc") -> str:
    return Run.of(Path("runs"), config, digest).path.name


DYNAMIC = CONFIG.replace(model="dynamic_vit")
LINFORMER = CONFIG.replace(model="linformer_vit")


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (CONFIG, {}),
        (CONFIG.replace(dataset="cifar10"), {"data_dir": "/elsewhere"}),
        (CONFIG, {"device": "cpu", "num_workers": 0, "pin_memory": False, "channels_last": True}),
        (CONFIG, {"grow": 0.3}),
        (CONFIG, {"keep_ratio": 0.3}),
        (CONFIG, {"ratio_weight": 1.0}),
        (CONFIG, {"linformer_k": 4}),
        (CONFIG, {"feature_map": "relu", "linformer_sharing": "layerwise"}),
        (CONFIG, {"imbalance_ratio": 3.0}),
        (CONFIG, {"imbalance_order": "random"}),
        (CONFIG.replace(optimizer="adamw"), {"muon_lr": 1.0}),
        (LINFORMER, {"keep_ratio": 0.3}),
        (DYNAMIC, {"linformer_k": 4}),
        (CONFIG.replace(steps=10), {"epochs": 3}),
        (CONFIG.replace(steps=10), {"minutes": 3.0}),
        (CONFIG.replace(minutes=2.0), {"epochs": 3}),
    ],
)
def test_what_has_no_effect_finds_the_same_run(config: RunConfig, changes: dict) -> None:
    assert name(config.replace(**changes)) == name(config)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (CONFIG, {"lr": 1e-4}),
        (CONFIG, {"seed": 1}),
        (CONFIG, {"model": "linear_vit"}),
        (CONFIG, {"epochs": 3}),
        (CONFIG, {"steps": 10}),
        (CONFIG, {"minutes": 2.0}),
        (CONFIG, {"precision": "bf16"}),
        (CONFIG.replace(start_size=8), {"grow": 0.3}),
        (CONFIG, {"val_fraction": 0.0}),
        (CONFIG, {"remedy": "sampler"}),
        (CONFIG, {"keep_epoch": "last"}),
        (CONFIG, {"imbalance": "linear"}),
        (CONFIG, {"init_from": "another"}),
        (DYNAMIC, {"keep_ratio": 0.3}),
        (DYNAMIC, {"distill_weight": 1.0}),
        (CONFIG, {"positions": "sincos"}),
        (CONFIG.replace(model="linear_vit"), {"feature_map": "relu"}),
        (LINFORMER, {"linformer_k": 4}),
        (LINFORMER, {"linformer_sharing": "layerwise"}),
        (CONFIG.replace(imbalance="linear"), {"imbalance_ratio": 3.0}),
        (CONFIG.replace(imbalance="linear"), {"imbalance_order": "random"}),
        (CONFIG.replace(optimizer="muon"), {"muon_lr": 1.0}),
    ],
)
def test_what_has_an_effect_is_another_run(config: RunConfig, changes: dict) -> None:
    assert name(config.replace(**changes)) != name(config)


def test_other_data_are_another_run() -> None:
    assert name(CONFIG, "abc") != name(CONFIG, "abd")


def test_preset_is_only_a_name_for_its_shape() -> None:
    shape = {"dim": 128, "depth": 6, "heads": 4, "mlp_ratio": 2.0}
    assert name(RunConfig(preset="tiny")) == name(RunConfig(preset="nano", **shape))


def test_whole_numbers_and_floats_are_the_same_value() -> None:
    assert name(RunConfig(clip=1, mixup=0)) == name(RunConfig(clip=1.0, mixup=0.0))


class Plain(nn.Module):
    """A model that somebody added to the registry."""

    factor = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images.flatten(1)


def test_code_of_a_model_that_the_reader_added_is_part_of_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own code is not: its runs would be made anew with every comment."""
    assert "source" not in identity(CONFIG, "abc")
    monkeypatch.setitem(MODELS, "plain", Row(Plain, "Plain"))
    config = CONFIG.replace(model="plain")
    before = name(config)
    assert before == name(config)
    monkeypatch.setattr(Plain, "factor", 2)
    assert name(config) != before


def test_name_says_what_ran() -> None:
    assert name(DYNAMIC.replace(seed=7)).startswith("digits-dynamic_vit-64x4-seed7-")


def test_identity_is_plain_data() -> None:
    assert json.loads(json.dumps(identity(CONFIG, "abc"))) == identity(CONFIG, "abc")


def test_run_is_complete_once_its_summary_is_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert not run.complete
    run.write_json("config.json", {"config": CONFIG.model_dump()})
    assert not run.complete
    run.write_json("summary.json", {"run": "run"})
    assert run.complete
    assert run.config == CONFIG


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save("model.pt", {"a": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.save("model.pt", {"a": torch.ones(2)})

    def break_off(state: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(LabError, match="free some space"):
        run.save("model.pt", {"a": torch.zeros(2)})
    assert torch.equal(run.weights()["a"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_newest_readable_checkpoint_is_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.load_checkpoint() is None
    for step in (1, 2, 3):
        run.save_checkpoint({"step": step})
    assert run.load_checkpoint() == {"step": 3}
    (tmp_path / "checkpoint.pt").unlink()
    assert run.load_checkpoint() == {"step": 2}


@pytest.mark.parametrize("fault", [ValueError("of a reader"), KeyError("a part of it")])
def test_damage_of_whatever_kind_is_passed_over(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, load = Run(tmp_path), torch.load
    run.save_checkpoint({"step": 1})
    run.save_checkpoint({"step": 2})

    def reads(path: Path, **options: object) -> object:
        if path.name == "checkpoint.pt":
            raise fault
        return load(path, **options)

    monkeypatch.setattr(torch, "load", reads)
    assert run.load_checkpoint() == {"step": 1}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(1000), b"garbage" * 100])
def test_file_that_is_no_checkpoint_is_passed_over(content: bytes, tmp_path: Path) -> None:
    check_passed_over(content, tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.03, 0.1, 0.5, 0.9, 0.999])
def test_checkpoint_cut_anywhere_is_passed_over(share: float, tmp_path: Path) -> None:
    torch.save({"step": 2, "weights": torch.zeros(100_000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    check_passed_over(whole[: round(share * len(whole))], tmp_path)


def check_passed_over(content: bytes, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save_checkpoint({"step": 1})
    run.save_checkpoint({"step": 2})
    (tmp_path / "checkpoint.pt").write_bytes(content)
    assert run.load_checkpoint() == {"step": 1}
    (tmp_path / "checkpoint.previous.pt").write_bytes(content)
    with pytest.raises(LabError, match=r"both checkpoints .* are damaged: delete them"):
        run.load_checkpoint()


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=2))])
@pytest.mark.parametrize("file", ["checkpoint.pt", "model.pt"])
def test_nothing_that_is_loaded_can_run_code(save, file: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    save(Trap(sprung), tmp_path / file)
    run = Run(tmp_path)
    with contextlib.suppress(LabError):  # refusing it aloud is right, passing it over as well
        run.load_checkpoint() if file == "checkpoint.pt" else run.weights()
    assert not sprung.exists()


def test_predictions_are_read_without_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "predictions.npz", logits=np.array([{"a": 1}], dtype=object), labels=np.zeros(1))
    with pytest.raises(LabError, match=r"predictions\.npz is empty or damaged"):
        _ = Run(tmp_path).predictions


@pytest.mark.parametrize("damage", [b"\0" * 40, b"BZh9" + b"\xff" * 36])
def test_damage_inside_packed_predictions_is_named(damage: bytes, tmp_path: Path) -> None:
    """The archive's own table, at its end, is whole."""
    run = Run(tmp_path)
    run.write_arrays("predictions.npz", logits=np.random.default_rng(0).normal(size=(500, 10)), labels=np.zeros(500))
    content = (tmp_path / "predictions.npz").read_bytes()
    start = content.index(b"BZh")  # where the first packed array begins
    (tmp_path / "predictions.npz").write_bytes(content[:start] + damage + content[start + len(damage) :])
    with pytest.raises(LabError, match=r"predictions\.npz is empty or damaged"):
        _ = run.predictions


def test_copy_of_a_run_has_no_weights_and_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    for file in (*runs.SMALL_FILES, "model.pt", "checkpoint.pt"):
        (run.path / file).write_text(file)
    run.write_json("config.json", {"config": {"data_dir": "/home/me/photos", "seed": 3}})
    run.copy_small_files(tmp_path / "kept")
    copy = Run(tmp_path / "kept" / "run")
    kept = {path.name: path.read_text() for path in copy.path.iterdir()}
    assert json.loads(kept.pop("config.json")) == {"config": {"data_dir": "photos", "seed": 3}}
    assert kept == {name: name for name in runs.SMALL_FILES}
    with pytest.raises(LabError, match="has no weights, it is a report's copy"):
        copy.weights()


def test_damaged_weights_that_a_report_keeps_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(LabError, match=r"model\.safetensors is empty or damaged"):
        Run(tmp_path).weights()


def test_copies_of_runs_that_train_on_the_same_images_keep_them_once(tmp_path: Path) -> None:
    for name, first in {"a": 1, "b": 1, "c": 2}.items():
        run = Run(tmp_path / name)
        run.path.mkdir()
        for file in runs.SMALL_FILES:
            (run.path / file).write_text(file)
        run.write_arrays("split.npz", train=np.array([first]))
        if name == "b":  # packed in another way, as by earlier versions
            np.savez_compressed(run.path / "split.npz", train=np.array([first]))
        run.write_json("config.json", {"config": {}})
    for _ in range(2):  # a report made again
        for name in "abc":
            Run(tmp_path / name).copy_small_files(tmp_path / "kept")
    assert sorted(path.parent.name for path in (tmp_path / "kept").glob("*/split.npz")) == ["a", "c"]
    assert [Run(tmp_path / "kept" / name).record.get("split") for name in "abc"] == [None, "a", None]
    Run(tmp_path / "kept" / "b").copy_small_files(tmp_path / "other")  # a copy of a copy
    other = Run(tmp_path / "other" / "b")
    assert "split" not in other.record
    assert np.load(other.path / "split.npz")["train"] == [1]


def test_copy_overwrites_no_whole_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    for file in (*runs.SMALL_FILES, "config.json", "model.pt"):
        (run.path / file).write_text(file)
    run.copy_small_files(tmp_path)
    assert (run.path / "config.json").read_text() == "config.json"


# ---------------------------------------------------------------- what a complete run tells


@pytest.mark.slow
def test_run_knows_its_model_and_its_answers(train: Callable[..., Run], tiny: RunConfig, few: Source) -> None:
    again = Run(train(tiny.replace(epochs=1)).path)
    model = again.model(device="cpu")
    assert not model.training
    assert all(torch.equal(value, again.weights()[name]) for name, value in model.state_dict().items())
    logits, labels = again.predictions
    assert (logits.shape, logits.dtype) == ((len(few.test), 10), np.float32)
    assert labels.tolist() == few.test.labels.tolist()


def test_runs_tested_on_the_same_images_can_be_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_json("config.json", {"identity": {"data": "abc"}, "test_digest": "t"})
    assert run.tested_on("abc", "whatever")
    assert run.tested_on("moved", "t")  # other training images, the same test images
    assert not run.tested_on("moved", "u")


def test_training_time_and_epochs_include_those_of_the_run_it_started_from(tmp_path: Path) -> None:
    def run(name: str, seconds: float, init_from: str = "") -> Run:
        made = Run(tmp_path / name)
        made.write_json("config.json", {"config": {"init_from": init_from}})
        made.write_json("summary.json", {"seconds": seconds, "epochs": seconds / 5})
        return made

    first = run("first", 10)
    assert first.training_seconds == 10
    third = run("third", 2, run("second", 5, "first").path.name)
    assert (third.training_seconds, third.spent("epochs")) == (17, pytest.approx(17 / 5))
    with pytest.raises(LabError, match="started from lost, which is not beside it"):
        _ = run("fourth", 1, "lost").training_seconds


# ---------------------------------------------------------------- beside others, and on this machine


@pytest.mark.slow
def test_lock_is_free_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.1)
    run = Run(tmp_path)
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    with run.locked(), pytest.raises(LabError, match=str(tmp_path)), Run(tmp_path).locked():
        pytest.fail("two processes at once")


def test_environment_names_machine_and_versions() -> None:
    here = machine.environment()
    assert here["cores"] >= 1
    assert here["memory_gib"] > 0
    assert {"torch", "numpy"} <= here["versions"].keys()
    json.dumps(here)


def test_commit_is_unknown_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == "unknown"


def test_checkpoint_that_may_not_be_read_is_no_reason_to_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.save_checkpoint({"step": 1})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(LabError, match=r"cannot read .*checkpoint\.pt \(Permission denied\): check its permissions"):
        run.load_checkpoint()
