"""What the tests share: scikit-learn's digits at 8×8, a few of them, and the smallest run that trains."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from torch import nn

from vitlab.config import RunConfig
from vitlab.data.sources import load_source
from vitlab.data.splits import Source, Split, split
from vitlab.runs import Run
from vitlab.training.fit import fit_run
from vitlab.training.session import RunSession

mpl.use("Agg")
SHARED_RUNS = Path(tempfile.mkdtemp(prefix="vitlab-test-"))
torch.set_num_threads(1)  # models this small only lose by more


def pytest_configure() -> None:
    """The kernels that nbmake starts share a fresh folder of runs with the report's tests, and read no own profile."""
    os.environ["VITLAB_RUNS"] = str(SHARED_RUNS)
    os.environ["VITLAB_PARAMS"] = str(SHARED_RUNS / "none.yaml")


@pytest.fixture(autouse=True)
def _no_runs_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLAB_RUNS", raising=False)


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """Four tokens, width 16, four blocks (DynamicViT's least), two epochs."""
    return RunConfig(
        image_size=8,
        patch_size=4,
        dim=16,
        depth=4,
        heads=2,
        mlp_ratio=2.0,
        epochs=2,
        batch_size=32,
        precision="fp32",
        linformer_k=2,
    )


@pytest.fixture(scope="session")
def digits() -> Source:
    return load_source(RunConfig(image_size=8))


@pytest.fixture(scope="session")
def few(digits: Source) -> Source:
    """Twenty training and six test images of each digit; validation takes two: five steps an epoch at batch 32."""
    return Source(_first(digits.train, 20), _first(digits.test, 6), digits.classes, digest="few", notes=())


def lively(model: nn.Module) -> nn.Module:
    """Random weights large enough that attention is far from uniform, as a trained model's; evaluation mode."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
        else:  # norms stay around one, biases around zero
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def _first(part: Split, per_class: int) -> Split:
    return part.take(torch.cat([(part.labels == k).nonzero()[:per_class, 0] for k in range(10)]))


@pytest.fixture
def train(few: Source, tmp_path: Path) -> Callable[..., Run]:
    """train(config, source=few, runs_dir=tmp_path): what `Lab.train_one` does, without a lab.

    `session` is a class of sessions that looks on or interferes.
    """

    def run(
        config: RunConfig,
        source: Source = few,
        runs_dir: Path = tmp_path,
        start: Run | None = None,
        session: Callable[[Run], RunSession] = RunSession,
    ) -> Run:
        return fit_run(Run.of(runs_dir, config, source.digest), config, split(source, config), start, session)

    return run
