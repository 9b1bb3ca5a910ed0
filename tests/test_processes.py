"""Several processes, started by Accelerate and joined by gloo, train as one; a command trains without a notebook."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vitlab.__main__ import main
from vitlab.config import LabConfig
from vitlab.errors import LabError
from vitlab.lab import Lab
from vitlab.lab.results import check
from vitlab.machine import ROOT

SMALL = LabConfig(
    image_size=8, dim=16, depth=4, heads=2, mlp_ratio=2.0, batch_size=64, precision="fp32",
    epochs=3, fine_tune_epochs=2, mixup=0.5, cutmix=0.5, flip=True, linformer_k=2, study_epochs=1, study_seeds=1,
)  # fmt: skip


in_two_processes = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs, or none")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Trained by one process with the batch that two share."""
    lab = Lab.of(SMALL.replace(runs_dir=str(tmp_path_factory.mktemp("alone"))))
    lab.train_one(lab.plan.config("ViT"))
    return lab


@pytest.mark.slow
@in_two_processes
def test_two_processes_give_the_losses_of_one_with_twice_the_batch(alone: Lab, tmp_path: Path) -> None:
    lab = Lab.of(SMALL.replace(runs_dir=str(tmp_path), processes=2, backbone="patch"))
    run = lab.train_one(lab.plan.config("ViT"))
    one = alone.load("ViT")
    assert run.path.name == one.path.name  # how many processes is no part of what was run
    assert run.environments[0]["processes"] == 2
    for column in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(run.history[column], one.history[column], rtol=1e-4)
    np.testing.assert_allclose(run.predictions[0], one.predictions[0], atol=5e-3)
    student = lab.train_one(lab.plan.config("DynamicViT"))  # with a teacher and all its losses
    assert student.history["loss"].is_monotonic_decreasing
    assert lab.load("DynamicViT").complete


def test_run_that_no_plan_names_is_refused_in_several_processes(tmp_path: Path) -> None:
    lab = Lab.of(SMALL.replace(runs_dir=str(tmp_path), processes=2, backbone="patch"))
    with pytest.raises(LabError, match="set processes to 1"):
        lab.train_one(lab.plan.config("ViT").replace(lr=0.0123))


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LabError, match="processes is 2, but there is a GPU for 1 of them"):
        check(SMALL.replace(runs_dir=str(tmp_path), processes=2))


@pytest.mark.slow
@in_two_processes
def test_failure_in_the_processes_is_told(tmp_path: Path) -> None:
    lab = Lab.of(SMALL.replace(runs_dir=str(tmp_path), processes=2, batch_size=2000))  # more than there are images
    images = len(lab.data.train)
    with pytest.raises(LabError, match=f"batch_size {images} cannot be shared evenly by 2 processes"):
        lab.train_one(lab.plan.config("ViT"))


def command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, runs: Path, *arguments: str):
    """`python -m vitlab train` with these arguments: exit code, standard output and standard error."""
    monkeypatch.setenv("VITLAB_RUNS", str(runs))
    code = main(["train", "--params", str(ROOT / "params" / "quick.yaml"), *arguments])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_command_trains_the_run_that_the_chapter_asks_for(
    alone: Lab, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = SMALL.model_dump(exclude_none=True, exclude_defaults=True) | {"mlp_ratio": 2.0}
    settings = [f"{name}={value}" for name, value in values.items()]
    code, out, _ = command(capsys, monkeypatch, tmp_path, "--run", "ViT", "--set", *settings)
    assert code == 0
    run = Lab.of(SMALL).load("ViT")  # in VITLAB_RUNS
    assert f"test accuracy {run.summary['test']['accuracy']:.1%}" in out
    monkeypatch.delenv("VITLAB_RUNS")
    assert run.history["loss"].tolist() == alone.load("ViT").history["loss"].tolist()


def test_command_trains_on_the_cluster_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All runs at once, and none here."""

    def train(params: LabConfig, runs_dir: Path, tasks: list, images: int, view: object) -> None:
        raise LabError(f"{params.cluster} was asked for {len(tasks)} runs")

    monkeypatch.setattr("vitlab.lab.cluster.train", train)
    names = ["--run", "ViT", "Linear ViT", "--set", "cluster=nowhere:1"]
    code, _, err = command(capsys, monkeypatch, tmp_path, *names)
    assert (code, err) == (1, "vitlab: nowhere:1 was asked for 2 runs\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "Vit"], "there is no run 'Vit': did you mean 'ViT'?"),
        (["--run", "ViT", "--set", "epoch=3"], "did you mean 'epochs'?"),
        (["--run", "DynamicViT"], "the run to start from, 'ViT, conv tokenizer', is not in"),
        (["--run", "ViT", "Linear Vit"], "did you mean 'Linear ViT'?"),  # said before the first is trained
    ],
)
def test_wrong_command_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = command(capsys, monkeypatch, tmp_path, *arguments)
    assert code == 1
    assert words in err
    assert len(err.strip().splitlines()) == 1
