"""A model is added by one file and one row: trained, measured, compared and reported; no other file changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from vitlab.machine import ROOT
from vitlab.models.registry import MODELS, build_model

TOY = '''
"""Patches and a mean: as little as a model can be."""

from torch import Tensor, nn


class Toy(nn.Module):
    def __init__(self, *, channels: int, num_classes: int, patch_size: int, dim: int, **_) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tokens(images).relu().mean((2, 3)))
'''
SETTINGS = ["image_size=8", "dim=16", "depth=4", "heads=2", "mlp_ratio=2.0", "linformer_k=2", "epochs=1"]
BUDGET = ["fine_tune_epochs=1", "study_epochs=1", "study_seeds=1", "batch_size=256", "precision=fp32"]


def vitlab(place: Path, *words: str) -> subprocess.CompletedProcess:
    own = {"VITLAB_RUNS": str(place / "runs"), "PYTHONPATH": str(place), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "vitlab", *words]
    return subprocess.run(command, cwd=place, env=os.environ | own, capture_output=True, text=True)


@pytest.mark.slow
def test_model_of_one_file_and_one_row_is_in_the_report(tmp_path: Path) -> None:
    for part in ("vitlab", "notebooks", "params"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vitlab" / "models" / "toy.py").write_text(TOY)
    registry = tmp_path / "vitlab" / "models" / "registry.py"
    row = 'from vitlab.models import toy\n\nMODELS = {\n    "toy": Row(toy.Toy, "Toy", chapter="04"),\n'
    registry.write_text(registry.read_text().replace("MODELS = {\n", row))

    done = vitlab(tmp_path, "report", "--profile", "quick", "--set", *SETTINGS, *BUDGET)
    assert done.returncode == 0, done.stderr[-2000:]
    results = pd.read_csv(tmp_path / "reports" / "quick" / "results.csv").set_index("model")
    assert results.loc["Toy", "run"].startswith("digits-toy-")
    # the tokenizer's 8·8·16 and the head's 16·10, as torch counts them
    assert (results.loc["Toy", "parameters"], results.loc["Toy", "macs"]) == (16 * 17 + 170, 8 * 8 * 16 + 160)
    assert results.loc["Toy", "latency_ms"] > 0
    report = (tmp_path / "reports" / "quick" / "report.html").read_text(encoding="utf-8")
    for chapter in ("chapter-4", "chapter-5", "chapter-6"):
        part = report.split(f'id="{chapter}"')[1].split('id="chapter-')[0]
        assert "Toy" in part


@pytest.mark.parametrize("name", MODELS)
def test_every_row_builds_its_model_and_names_it_once(name: str, tiny) -> None:
    config = tiny.replace(model=name)
    logits = build_model(config, num_classes=7, channels=3).eval()(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 7)
    assert [row.title for row in MODELS.values()].count(MODELS[name].title) == 1
