"""The measurement scripts run; here on next to nothing."""

import importlib.util
from types import ModuleType

import pytest
import torch

from vitlab.config import ROOT
from vitlab.data import Source


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_prints_its_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    models = script("models")
    for name, value in {"BATCH": 2, "ROUNDS": 2, "TOKENS": [64, 512, 1024]}.items():
        monkeypatch.setattr(models, name, value)
    with torch.inference_mode():
        models.pruning()
    models.growth()
    models.course()
    printed = capsys.readouterr().out
    for row in ("| DynamicViT, ρ = 0.7 | 112.2 M |", "| Linformer |", "| ViT-Base 512/6/8 | 18.98 M | 8.5 M |"):
        assert row in printed


def test_fine_tune_takes_the_first_images_of_each_class(few: Source) -> None:
    source = script("fine_tune").first_of_each_class(few, 3)
    assert source.train.labels.tolist() == [k for k in range(10) for _ in range(3)]
    assert source.test is few.test
    assert source.digest != few.digest
