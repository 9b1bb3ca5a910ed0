"""The measurement scripts run; here on next to nothing."""

import importlib
import importlib.util
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from vitlab import machine
from vitlab.config import RunConfig
from vitlab.data.splits import Source
from vitlab.machine import ROOT


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_prints_its_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    models = script("models")
    for name, value in {"BATCH": 2, "ROUNDS": 2, "TOKENS": [64, 512, 1024], "BATCH_TOKENS": 65}.items():
        monkeypatch.setattr(models, name, value)
    with torch.inference_mode():
        models.pruning()
    models.growth()
    models.course()
    monkeypatch.setattr(models.complexity, "seconds", lambda work: (work() is not None or 1.0, 1.0, 1.0))
    models.kernels()
    printed = capsys.readouterr().out
    for row in (
        "| DynamicViT, ρ = 0.7 | 112.2 M |",
        "| Linformer |",
        f"| bfloat16 | 65 | {'explicit' if machine.device().type == 'cpu' else 'fused'} |",
        "| ViT-Base 512/6/8 |",
    ):
        assert row in printed


def test_fine_tune_takes_the_first_images_of_each_class(few: Source) -> None:
    source = script("fine_tune").first_of_each_class(few, 3)
    assert source.train.labels.tolist() == [k for k in range(10) for _ in range(3)]
    assert source.test is few.test
    assert source.digest != few.digest


def test_fine_tune_compares_pruning_with_training_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for part, name in product(("train", "test"), ("cat", "dog")):
        (tmp_path / "photos" / part / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.new("RGB", (8, 8), (30 * i, 255 * (name == "cat"), 0))
            picture.save(tmp_path / "photos" / part / name / f"{i}.png")
    fine_tune = script("fine_tune")
    small = {"image_size": 8, "preset": "nano", "dim": 16, "batch_size": 8, "crop": 1, "linformer_k": 2}
    monkeypatch.setattr(fine_tune, "PARAMS", fine_tune.PARAMS | small)
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    fine_tune.PER_CLASS = 8
    fine_tune.main(str(tmp_path / "photos"), 2, 1)
    printed = capsys.readouterr().out
    assert "| DynamicViT, ρ = 0.7 |" in printed
    assert "points (wanted: no less than −1)." in printed


@pytest.mark.slow
def test_training_measures_fit_against_the_course_trainer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # its second process imports it by name
    training = importlib.import_module("training")
    config = RunConfig(image_size=32, dim=16, depth=1, heads=2, mlp_ratio=2.0, batch_size=training.BATCH)
    training.compare("tiny", config, steps=2, turns=1)
    training.compare("growing", config.replace(start_size=16), steps=2, turns=1)
    training.muon(config)
    printed = capsys.readouterr().out
    assert "| tiny |" in printed
    assert "| growing |" in printed
    assert "| – | – |" in printed
    assert "Muon, 16/1: " in printed
