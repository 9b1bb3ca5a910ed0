"""What the tests share: scikit-learn's digits at 8×8, a few of them, and the smallest run that trains."""

import gc
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from xdist.scheduler import LoadScopeScheduling

from vitlab.analysis.findings import Speed
from vitlab.config import LabConfig, RunConfig
from vitlab.data.sources import load_source
from vitlab.data.splits import Source, Split, split
from vitlab.lab import Lab
from vitlab.runs import Run
from vitlab.training.fit import fit_run
from vitlab.training.session import RunSession

mpl.use("Agg")
SHARED_RUNS = Path(tempfile.mkdtemp(prefix="vitlab-test-"))
CLOCK = ["seconds", "images_per_second"]  # all that may differ between equal runs
torch.set_num_threads(1)  # models this small only lose by more


def pytest_configure() -> None:
    """The kernels that nbmake starts share a fresh folder of runs with the report's tests, and read no own profile."""
    os.environ["VITLAB_RUNS"] = str(SHARED_RUNS)
    own = SHARED_RUNS / "none.yaml"
    own.write_text("{}", encoding="utf-8")
    os.environ["VITLAB_PARAMS"] = str(own)


def _is_of_the_report(file: Path) -> bool:
    return file.stem == "test_report" or file.suffix == ".ipynb"


class WholeFiles(LoadScopeScheduling):
    """With `-n 2` a file's tests stay together, as do the report and the notebooks that find its runs."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "report" if _is_of_the_report(Path(file)) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> WholeFiles:
    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2` the report and the notebooks begin, because they take longest; else they are the last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not _is_of_the_report(item.path))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is loaded now stays: the collection after each training need not look at it


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
        if parameter.ndim == 4:  # convolutions keep their scale: twenty in a row, or logits are beyond all rounding
            nn.init.kaiming_normal_(parameter)
        elif parameter.ndim > 1:
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


# ---------------------------------------------------------------- pictures


def save_png(path: Path, pixels: np.ndarray, bits: int = 16, key: tuple[int, ...] = ()) -> None:
    """A PNG (H, W, 1 to 4) as Pillow reads it and does not write it: key is the colour that is transparent."""
    height, width, channels = pixels.shape
    unpacked = np.unpackbits(pixels.astype(">u2").reshape(height, -1, 1).view(np.uint8), axis=2)[..., -bits:]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    transparent = [(b"tRNS", np.array(key, ">u2").tobytes())] if key else []
    chunks = [(b"IHDR", header), *transparent, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    made = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))


# ---------------------------------------------------------------- sessions that look on or interfere


class KilledError(Exception):
    """What ends a training that is killed."""


def killed_before(step: int, checkpoint_seconds: float = 0) -> type[RunSession]:
    """Sessions that are killed when step `step` is to begin; they keep a checkpoint after every step before."""

    class Killed(RunSession):
        def __init__(self, run: Run) -> None:
            super().__init__(run, checkpoint_seconds)

        def before_step(self, now: int) -> None:
            if now == step:
                raise KilledError

    return Killed


@pytest.fixture
def watched() -> type[RunSession]:
    """Sessions that leave in `steps` and `batches` what they see."""

    class Watched(RunSession):
        steps: ClassVar[list[int]] = []
        batches: ClassVar[list[Tensor]] = []  # of augmented images

        def before_step(self, step: int) -> None:
            self.steps.append(step)

        def on_batch(self, step: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            self.batches.append(inputs.cpu())
            return super().on_batch(step, inputs, targets)

    return Watched


# ---------------------------------------------------------------- equal runs


def same_weights(a: Run, b: Run) -> bool:
    first, second = a.weights(), b.weights()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_same_run(a: Run, b: Run) -> None:
    """To the bit, but for the clock."""
    assert same_weights(a, b)
    pd.testing.assert_frame_equal(a.history.drop(columns=CLOCK), b.history.drop(columns=CLOCK), check_exact=True)
    np.testing.assert_array_equal(a.predictions[0], b.predictions[0])
    assert all(run.summary[name] > 0 for run in (a, b) for name in CLOCK)
    assert a.summary | dict.fromkeys(CLOCK) == b.summary | dict.fromkeys(CLOCK)


# ---------------------------------------------------------------- labs

SMALL = LabConfig(
    image_size=8, patch_size=4, dim=16, depth=4, heads=2, mlp_ratio=2.0, batch_size=32, precision="fp32",
    study_imbalance="linear", study_ratio=2.0, epochs=2, fine_tune_epochs=1, study_epochs=1, study_seeds=2,
    linformer_k=2,
)  # fmt: skip


@pytest.fixture
def fresh(few: Source, tmp_path: Path) -> Lab:
    """A lab in which nothing has run."""
    return Lab(SMALL.replace(runs_dir=str(tmp_path / "runs")), few)


@pytest.fixture(scope="session")
def done(few: Source, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab in which every run is complete; what they cost was not measured."""
    whole = Lab(SMALL.replace(runs_dir=str(tmp_path_factory.mktemp("runs")), study_seeds=1), few)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VITLAB_RUNS", raising=False)
        whole.train(whole.plan.configs)
    return whole


# ---------------------------------------------------------------- measurements


def speed_of(results: pd.DataFrame, spread: float = 0.01) -> Speed:
    """What `Lab.speed` says where rounds differ by `spread`."""
    rows = results.set_index("model")

    def ratio(name: str, reference: str, what: str = "images_per_second") -> tuple[float, float]:
        column = {"latency": "latency_ms"}.get(what, what)
        return rows.loc[name, column] / rows.loc[reference, column], spread

    return ratio
