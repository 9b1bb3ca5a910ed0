"""The measurement scripts run; here on next to nothing."""

import importlib
import importlib.util
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import SMALL
from PIL import Image

from vitlab import machine
from vitlab.analysis import metrics, timing
from vitlab.config import BALANCED, RunConfig
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.identity import identity
from vitlab.lab import Lab
from vitlab.machine import ROOT
from vitlab.models.reduce import ToMeViT
from vitlab.parameters import as_profile, load_params
from vitlab.runs import Run


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_says_what_it_does_before_it_does_it(path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"usage: {path.name}")
    refused = subprocess.run([*command[:2], "--no-such-option"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2


@pytest.mark.slow
def test_models_prints_its_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    models = script("models")
    for name, value in {"BATCH": 2, "ROUNDS": 2, "TOKENS": [64, 576, 1024], "BATCH_TOKENS": 65}.items():
        monkeypatch.setattr(models, name, value)
    with torch.inference_mode():
        models.pruning()
    models.growth()
    models.course()
    monkeypatch.setattr(models.timing, "seconds", lambda work: (work() is not None or 1.0, 1.0, 1.0))
    models.kernels()
    printed = capsys.readouterr().out
    for row in (
        "| DynamicViT, ρ = 0.7 | 111.0 M |",
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


@pytest.mark.slow
def test_fine_tune_compares_pruning_with_training_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for part, name in product(("train", "test"), ("cat", "dog")):
        (tmp_path / "photos" / part / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.new("RGB", (8, 8), (30 * i, 255 * (name == "cat"), 100 * (part == "test")))
            picture.save(tmp_path / "photos" / part / name / f"{i}.png")
    fine_tune = script("fine_tune")
    small = {"image_size": 8, "preset": "nano", "dim": 16, "batch_size": 8, "crop": 1, "linformer_k": 2}
    monkeypatch.setattr(fine_tune, "PARAMS", fine_tune.PARAMS | small)
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    fine_tune.PER_CLASS = 8
    fine_tune.main([str(tmp_path / "photos"), "--epochs", "2", "--fine-tune-epochs", "1"])
    printed = capsys.readouterr().out
    assert "| DynamicViT, ρ = 0.7 |" in printed
    assert "points (wanted: no less than −1)." in printed


@pytest.mark.slow
def test_study_compares_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    profile = tmp_path / "small.yaml"
    profile.write_text(yaml.safe_dump(as_profile(SMALL)))
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    chosen = ["study_remedies=sampler, class_weights, post_hoc", "study_seeds=2", "epochs=1", "study_ratio=9"]
    script("study").main([str(profile), "2", "1", "--set", *chosen])
    printed = capsys.readouterr().out
    assert printed.index("# 1 epochs") < printed.index("# 2 epochs")
    changes = {"study_remedies": chosen[0].partition("=")[2], "study_seeds": 2, "study_ratio": 9.0, "study_epochs": 2}
    lab = Lab.of(SMALL.replace(**changes))
    balanced = [run.summary["val_accuracy"] for (name, _), run in lab.load_study().items() if name == BALANCED]
    assert f"The balanced reference reaches {np.mean(balanced):.1%}" in printed  # of validation images
    assert "macro_f1" in printed
    assert "linear 9:1, from 1 to 2 epochs: the best is" in printed


@pytest.mark.slow
def test_recipe_judges_changes_by_validation_images_and_keeps_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    recipe, profile, kept = script("recipe"), tmp_path / "small.yaml", tmp_path / "trials.csv"
    profile.write_text(yaml.safe_dump(as_profile(SMALL)))
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    words = [str(profile), "lr=0.03 label_smoothing=0", "flip=true", "--keep", str(kept)]
    recipe.main([*words, "--set", "epochs=1"])
    printed = capsys.readouterr().out
    summaries = {p.parent: Run(p.parent).summary for p in (tmp_path / "runs").glob("*/summary.json")}
    assert len(summaries) == 6  # two seeds of each
    rows = pd.read_csv(kept)
    assert sorted(rows["val_accuracy"]) == sorted(round(s["val_accuracy"], 4) for s in summaries.values())
    by_seed = 100 * rows.pivot(index="seed", columns="change", values="val_accuracy")
    line = next(line for line in printed.splitlines() if line.startswith("flip=true")).split()
    assert float(line[1]) == pytest.approx(by_seed["flip=true"].mean(), abs=0.01)
    assert float(line[3]) == pytest.approx((by_seed["flip=true"] - by_seed["as it stands"]).mean(), abs=0.01)
    recipe.main([*words[:-2], "crop=0", *words[-2:], "--set", "epochs=1"])
    assert len(pd.read_csv(kept)) == 8  # what was kept is kept once


def test_recipe_wants_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "small.yaml"
    profile.write_text(yaml.safe_dump(as_profile(SMALL.replace(val_fraction=0.0))))
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    with pytest.raises(LabError, match="validation images, and there are none"):
        script("recipe").main([str(profile), "lr=0.03"])


def test_recipe_compares_no_trials_on_other_images() -> None:
    with pytest.raises(LabError, match="image_size is the same in all trials"):
        script("recipe").main(["quick", "lr=0.03", "image_size=32 lr=0.03"])


@pytest.mark.slow
def test_recipe_trains_what_a_run_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "small.yaml"
    profile.write_text(yaml.safe_dump(as_profile(SMALL.replace(epochs=1))))
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    words = ["fine_tune_epochs=1", "lr=0.005", "--run", "DynamicViT", "--seeds", "1", "--set", "fine_tune_epochs=2"]
    script("recipe").main([str(profile), *words])
    runs = [Run(path.parent) for path in (tmp_path / "runs").glob("*/summary.json")]
    assert sorted(run.config.model for run in runs) == ["dynamic_vit"] * 3 + ["vit"] * 2  # two rates to start with


@pytest.mark.parametrize("profile", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_tokens_is_a_run_of_its_own(profile: Path, few: Source) -> None:
    params = load_params(profile, {"dataset": "digits"})
    bench = script("tokens").Bench.__new__(script("tokens").Bench)
    bench.params, bench.labs = params, [Lab(params, few)]
    for table, size in {"trained on": 7, "ablation": 9}.items():
        named = bench.named("conv")[table]
        runs = [bench.on_from("conv", **changes)[0] for changes in named.values()]
        assert len({str(identity(config, "data")) for config in runs}) == len(runs)
        assert len(runs) - ("as this profile has it" in named) == size


def test_ablation_of_dynamic_vit_begins_as_published_whatever_the_profile_has(few: Source) -> None:
    params = load_params(ROOT / "params" / "quick.yaml", {"keep_ratio": 0.5, "backbone_rate": 0.2, "stages": [2, 3]})
    rows = script("tokens").departures(params, 6)
    assert rows["as published"] == {
        "backbone_rate": 0.01, "frozen": 0.17, "settle": 0.0, "stages": [], "keep_ratio": 0.7,
    }  # fmt: skip
    assert rows["backbone never frozen"] == rows["as published"] | {"frozen": 0.0}
    assert rows["rates, no draw, later stages"]["stages"] == [2, 4, 5]
    assert rows["as this profile has it"] == {}


SMALL_PROFILE = """
image_size: 8
batch_size: 64
precision: fp32
more: {dim: 16, depth: 4, heads: 2, mlp_ratio: 2.0, linformer_k: 2, epochs: 1, fine_tune_epochs: 1}
"""


@pytest.mark.slow
def test_attention_prints_differences_of_means_and_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    attention = script("attention")
    (tmp_path / "small.yaml").write_text(SMALL_PROFILE)
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    attentions = attention.attentions
    monkeypatch.setitem(attention.GROUPS, "attentions", lambda params: dict([*attentions(params).items()][:3]))
    words = ["--profile", str(tmp_path / "small.yaml"), "--seeds", "2", "--only", "attentions"]
    attention.main(words)
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines() if line.startswith("| ")][2:] == [
        "| softmax", "| kernelised", "| injective, same φ",
    ]  # fmt: skip
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/summary.json")}
    assert len(made) == 6
    both = [Run(path.parent) for path in sorted(made) if "linear_vit" in path.parent.name]
    mean, spread = metrics.mean_and_spread([run.summary["val_accuracy"] for run in both])
    assert f"| kernelised | {100 * mean:.2f} ± {100 * spread:.2f} |" in printed
    attention.main(words)
    capsys.readouterr()
    attention.main([*words[:3], "1", *words[4:]])  # one seed has no spread
    printed = capsys.readouterr().out
    assert f"| kernelised | {100 * both[0].summary['val_accuracy']:.2f} |" in printed
    assert "nan" not in printed
    assert "spread" not in printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/summary.json")} == made


def test_attention_plans_runs_of_every_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = script("attention")
    for profile in (ROOT / "params").glob("*.yaml"):
        params = load_params(profile)
        for group in attention.GROUPS.values():
            configs = [params.run(**changes) for changes in group(params).values()]
            assert len({str(identity(config, "data")) for config in configs}) == len(configs)


@pytest.mark.slow
def test_attention_measures_one_layer_in_rounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    attention = script("attention")
    monkeypatch.setattr(attention, "TOKENS", [64, 576, 1024])
    monkeypatch.setattr(attention, "ROUNDS", 2)
    monkeypatch.setattr(timing, "SPREAD", 10.0)  # two rounds are enough here
    attention.speed(RunConfig(dim=16, heads=2, linformer_k=4, image_size=32))
    printed = capsys.readouterr().out
    assert "One layer, 16/2, Linformer k = 4, 2 rounds" in printed
    assert all(f"| {kind} |" in printed for kind in ("softmax", "kernelised", "Linformer", "InLine"))


@pytest.mark.slow
def test_tokens_prints_the_tables_of_every_way_and_departure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tokens = script("tokens")
    for name, value in {"ROUNDS": 2, "BATCH": 2, "RATIOS": (0.9, 0.5)}.items():
        monkeypatch.setattr(tokens, name, value)
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path))
    small = ["image_size=8", "dim=16", "depth=4", "heads=2", "linformer_k=2", "epochs=1", "fine_tune_epochs=1"]
    asked = ["--profile", str(ROOT / "params" / "quick.yaml"), "--seeds", "1", "--set", *small, "batch_size=256"]
    tokens.main(asked)
    printed = capsys.readouterr().out
    for row in (
        "As it is: conv tokenizer",
        "| Top-K by norm |",
        "| ToMe in every block |",
        "| DynamicViT, fresh predictors |",
        "| distilled, not pruned |",
        "| pruned, not distilled |",
        "| never a draw |",
        "saving at half a point",
        "Speed: patch tokenizer",
    ):
        assert row in printed
    trained = {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()
    tokens.main([*asked, "--tokenizers", "patch", "--only", "as it is", "trained on", "ablation"])
    printed = capsys.readouterr().out
    assert "As it is: patch tokenizer" in printed
    assert "conv tokenizer" not in printed
    assert {path.name for path in tmp_path.iterdir()} == trained  # found, not trained again


@pytest.mark.parametrize("keep_ratio", [0.9, 0.7, 0.5])
def test_tokens_merges_as_many_in_every_block_as_at_three_stages(keep_ratio: float) -> None:
    config = RunConfig(model="tome_vit", preset="tiny", image_size=32, keep_ratio=keep_ratio)
    changed = config.replace(**script("tokens").gradual(config))
    blocks = [sum(ToMeViT.patches_by_block(c)) for c in (config, changed)]
    assert abs(blocks[1] - blocks[0]) <= 0.03 * blocks[0]
    assert changed.stages == [1, 2, 3, 4, 5]


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
