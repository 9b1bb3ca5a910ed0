"""What a run directory keeps alive: a training that is killed continues to the bit, and a complete one is loaded."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLOCK, KilledError, assert_same_run, killed_before
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from vitlab import machine, runs
from vitlab.config import Recipe, RunConfig
from vitlab.data.splits import Data, Source, Split, split
from vitlab.errors import LabError
from vitlab.runs import Run
from vitlab.training import session
from vitlab.training.fit import fit
from vitlab.training.session import RunSession, Session

Train = Callable[..., Run]
RECIPE = Recipe(epochs=2, batch_size=32, precision="fp32", lr=0.01, mixup=0.5, ema=0.9)


def kill(train: Train, config: RunConfig, at: int, checkpoint_seconds: float = 0) -> None:
    with pytest.raises(KilledError):
        train(config, session=killed_before(at, checkpoint_seconds))


# ---------------------------------------------------------------- killed and continued


EVERYTHING = {
    "mixup": 0.8, "cutmix": 1.0, "cutout": 0.3, "flip": True, "dropout": 0.1, "drop_path": 0.2, "ema": 0.9,
    "remedy": "sampler", "imbalance": "linear", "imbalance_ratio": 2.0, "epochs": 3, "batch_size": 24,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "at"),
    [
        (EVERYTHING, 1),
        (EVERYTHING, 5),  # in the middle of an epoch: an epoch has 5 steps
        (EVERYTHING, 7),
        (EVERYTHING, 10),  # between two epochs
        ({"optimizer": "muon", "ema": 0.9}, 7),
        ({"optimizer": "sgd", "model": "dynamic_vit"}, 7),
        ({"precision": "fp16"}, 7),
        ({"remedy": "ldam_drw", "imbalance": "linear", "keep_epoch": "last", "steps": 10}, 9),  # weights change at 8
        ({"channels_last": True, "tokenizer": "conv", "optimizer": "muon"}, 7),
    ],
)
def test_killed_run_continues_bit_for_bit(
    options: dict, at: int, tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: Any
) -> None:
    # the scale of fp16's loss is a part of the state: let it change within these few steps
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**22, growth_interval=1))
    config = tiny.replace(**options)
    whole = train(config, runs_dir=tmp_path / "whole")
    kill(train, config, at)
    run = train(config, session=watched)
    assert watched.steps == list(range(at, whole.summary["steps"]))
    assert_same_run(run, whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_passes_train_as_launched_ones_do(tiny: RunConfig, train: Train, tmp_path: Path) -> None:
    class Launched(RunSession):
        def for_batch(self, called: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
            return called, inputs, targets

    config = tiny.replace(tokenizer="conv", start_size=4, patch_size=2)  # recorded anew as the images grow
    recorded = train(config, runs_dir=tmp_path / "recorded")
    launched = train(config, runs_dir=tmp_path / "launched", session=Launched)
    np.testing.assert_allclose(recorded.history["loss"], launched.history["loss"], rtol=1e-4)
    ours, theirs = recorded.weights(), launched.weights()
    for name in theirs:  # statistics of BatchNorm are among them
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "empty", "zeros", "absent"])
def test_damaged_checkpoint_is_replaced_by_the_one_before(
    damage: str, tiny: RunConfig, train: Train, tmp_path: Path, watched: Any
) -> None:
    whole = train(tiny, runs_dir=tmp_path / "whole")
    kill(train, tiny, at=8)
    [path] = tmp_path.glob("*/checkpoint.pt")
    content = path.read_bytes()
    path.write_bytes({"cut short": content[: len(content) // 2], "zeros": bytes(len(content))}.get(damage, b""))
    if damage == "absent":
        path.unlink()
    run = train(tiny, session=watched)
    assert watched.steps[0] == 7  # one step again, not all of them
    assert_same_run(run, whole)


@pytest.mark.slow
def test_without_a_timed_checkpoint_it_continues_from_the_end_of_the_epoch(
    tiny: RunConfig, train: Train, watched: Any
) -> None:
    kill(train, tiny, at=8, checkpoint_seconds=3600)
    train(tiny, session=watched)
    assert watched.steps[0] == 5


@pytest.mark.slow
def test_run_killed_while_it_is_evaluated_trains_no_step_again(
    tiny: RunConfig, few: Source, train: Train, tmp_path: Path, watched: Any
) -> None:
    class Unreadable(Split):
        digest = ""

        def __getattribute__(self, name: str) -> Any:
            if name == "pool":
                raise KilledError
            return super().__getattribute__(name)

    whole = train(tiny, runs_dir=tmp_path / "whole")
    test = Unreadable(few.test.pool, few.test.labels, few.test.index)
    with pytest.raises(KilledError):
        train(tiny, Source(few.train, test, few.classes, few.digest, ()))
    assert_same_run(train(tiny, session=watched), whole)
    assert watched.steps == []


@pytest.mark.slow
def test_compiled_run_is_the_same_run(
    tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself is torch's affair: its backend "eager" runs what it has traced."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_module(self, backend="eager"))
    config = tiny.replace(compile=True, ema=0.9, dropout=0.1)
    whole = train(config, runs_dir=tmp_path / "whole")
    plain = train(config.replace(compile=False), runs_dir=tmp_path / "whole")
    torch.testing.assert_close(whole.weights(), plain.weights())
    kill(train, config, at=3)
    assert_same_run(train(config), whole)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
def test_training_ends_with_torch_set_as_before_it(
    deterministic: bool, tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = []

    class Watched(RunSession):
        def before_step(self, step: int) -> None:
            inside.append((torch.get_num_threads(), torch.backends.cudnn.deterministic))

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        kill(train, tiny, at=1)
        assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == (2, deterministic)
        train(tiny, session=Watched)
        assert (torch.get_num_threads(), torch.backends.cudnn.deterministic) == (2, deterministic)
        assert set(inside) == {(1, True)}
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- complete, locked, unwritable


def test_complete_run_is_not_trained_again(tiny: RunConfig, train: Train, watched: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in train(tiny).path.iterdir()}
    run = train(tiny, session=watched)
    assert watched.steps == []
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


def test_complete_run_keeps_no_checkpoint(tiny: RunConfig, train: Train) -> None:
    assert list(train(tiny).path.glob("checkpoint*")) == []


@pytest.mark.slow
def test_run_that_another_process_trains_is_refused(
    tiny: RunConfig, few: Source, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.1)
    where = Run.of(tmp_path, tiny, few.digest)
    where.path.mkdir()
    with filelock.FileLock(where.path / ".lock"), pytest.raises(LabError, match="another process"):
        train(tiny)
    assert train(tiny).complete  # once it is free


@pytest.mark.slow
def test_run_that_another_process_has_completed_meanwhile_is_not_trained_again(
    tiny: RunConfig, train: Train, watched: Any
) -> None:
    class Late(watched):
        """Before this one has the directory for itself, another one completes the run."""

        @contextlib.contextmanager
        def running(self, *arguments: Any) -> Iterator[Any]:
            train(tiny)
            with super().running(*arguments) as saved:
                yield saved

    run = train(tiny, session=Late)
    assert watched.steps == []
    assert run.complete


def test_place_that_cannot_be_written_is_refused_before_training(
    tiny: RunConfig, train: Train, tmp_path: Path, watched: Any
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot write"):
        train(tiny, runs_dir=tmp_path / "file" / "runs", session=watched)
    assert watched.steps == []


# ---------------------------------------------------------------- a module of one's own


class Net(nn.Module):
    """A module that knows nothing of this package."""

    def __init__(self, width: int = 16, dropout: float = 0.2, heads: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(4))
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.first(images.flatten(1).unflatten(1, (4, 16)))
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Other(Net):
    """The same weights, by another name."""


def net(seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**options)


@pytest.fixture
def data(few: Source, tiny: RunConfig) -> Data:
    return split(few, tiny)


def assert_same_training(a: tuple[nn.Module, pd.DataFrame], b: tuple[nn.Module, pd.DataFrame]) -> None:
    torch.testing.assert_close(a[0].state_dict(), b[0].state_dict(), rtol=0, atol=0)
    pd.testing.assert_frame_equal(a[1].drop(columns=CLOCK), b[1].drop(columns=CLOCK), check_exact=True)


@pytest.mark.slow
def test_killed_training_of_a_module_of_ones_own_continues_bit_for_bit(
    data: Data, tmp_path: Path, watched: Any
) -> None:
    whole, run = (Run.of_module(tmp_path / name, net(), RECIPE, data) for name in ("whole", "killed"))
    assert whole.path.name == run.path.name
    uninterrupted = fit(net(), data, RECIPE, RunSession(whole))
    with pytest.raises(KilledError):
        fit(net(), data, RECIPE, killed_before(7)(run))
    resumed = fit(net(seed=1), data, RECIPE, watched(run))  # what it begins with has no say: it goes on
    assert watched.steps == [7, 8, 9]
    assert_same_training(resumed, uninterrupted)
    assert_same_run(run, whole)
    unkept = fit(net(), data, RECIPE, Session())
    assert_same_training(unkept, uninterrupted)  # nor has the session


def test_complete_training_of_a_module_of_ones_own_is_loaded(data: Data, tmp_path: Path, watched: Any) -> None:
    run = Run.of_module(tmp_path, net(), RECIPE, data)
    trained = fit(net(), data, RECIPE, RunSession(run))
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    another = net(seed=1)
    model, history = fit(another, data, RECIPE, watched(Run.of_module(tmp_path, another, RECIPE, data)))
    assert watched.steps == []
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before
    assert model is another
    assert not model.training
    assert_same_training((model, history), trained)
    assert run.config == RECIPE


@pytest.mark.parametrize("complete", [False, True])
def test_session_is_for_what_it_was_opened_for(
    complete: bool, data: Data, few: Source, tiny: RunConfig, tmp_path: Path, watched: Any
) -> None:
    run = Run.of_module(tmp_path, net(), RECIPE, data)
    if complete:
        fit(net(), data, RECIPE, RunSession(run))
    session, before = watched(run), sorted(tmp_path.rglob("*"))
    less = split(few, tiny.replace(imbalance="linear", imbalance_ratio=2.0))
    wrong = [(Other(), data, RECIPE), (net(heads=4), data, RECIPE), (net(), less, RECIPE)]
    for module, images, recipe in [
        *wrong,
        (net(), data, RECIPE.replace(lr=0.1)),
        (net(), data, RECIPE.replace(seed=1)),
    ]:
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.raises(
            LabError, match=r"another module, recipe, data or teacher .*: open one with lab\.session\(net, recipe"
        ):
            fit(module, images, recipe, session)
        torch.testing.assert_close(module.state_dict(), weights, rtol=0, atol=0)
    assert watched.steps == []
    assert sorted(tmp_path.rglob("*")) == before


def test_directory_of_a_module_of_ones_own_is_named_by_what_decides_its_result(data: Data) -> None:
    def name(module: nn.Module | None = None, data: Data = data, **changes: Any) -> str:
        return Run.of_module(Path("runs"), module or net(), RECIPE.replace(**changes), data).path.name

    assert name(net(seed=1)) == name() == name(num_workers=0, device="cpu", pin_memory=False)
    assert "Net" in name()
    fewer = Data(data.train.take(torch.arange(90)), data.val, data.test, data.classes, data.digest)
    others = [
        name(Other()), name(net(width=32)), name(net(heads=4)), name(net(dropout=0.5)), name(data=fewer),
        name(lr=0.1), name(seed=1), name(remedy="sampler"), name(epochs=3),
    ]  # fmt: skip
    assert len({name(), *others}) == 1 + len(others)


SOURCE = """
from torch import nn

class Base(nn.Module):
    def scaled(self, logits):
        return 2 * logits

class Part(nn.Linear):
    slope = 0.1

    def forward(self, images):
        return nn.functional.leaky_relu(super().forward(images.flatten(1)), self.slope)

class Own(Base):
    def __init__(self):
        super().__init__()
        self.part = Part(64, 10)

    def forward(self, images):
        return self.scaled(self.part(images))
"""


def test_directory_of_a_module_of_ones_own_follows_its_source(data: Data, tmp_path: Path) -> None:
    def name(source: str, file: str) -> str:
        (tmp_path / file).write_text(source)
        spec = importlib.util.spec_from_file_location("own", tmp_path / file)
        own = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(own)
        return Run.of_module(tmp_path, own.Own(), RECIPE, data).path.name

    first = name(SOURCE, "first.py")
    assert name(SOURCE, "copy.py") == first  # wherever it is
    assert name(SOURCE + "\n\nclass Unused:\n    pass\n", "longer.py") == first
    changes = [("self.scaled(", "-self.scaled("), ("2 * logits", "3 * logits"), ("images.flatten(1)", "images[:, 0]")]
    changes.append(("slope = 0.1", "slope = 0.2"))
    for i, (before, after) in enumerate(changes):
        assert name(SOURCE.replace(before, after), f"changed{i}.py") != first


def test_weights_of_a_module_of_ones_own_are_for_that_very_class(data: Data, tmp_path: Path) -> None:
    run = Run.of_module(tmp_path, net(), RECIPE, data)
    trained, _ = fit(net(), data, RECIPE, RunSession(run))
    loaded = run.model(net(seed=1))
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)
    with pytest.raises(LabError, match="class Net: pass an instance of it"):
        run.model()
    for other in (Other(), net(heads=4), net(width=32), nn.Linear(64, 10)):
        with pytest.raises(
            LabError, match=f"class Net.*this ({type(other).__name__} is another one|one has another head_dim)"
        ):
            run.model(other)


# ---------------------------------------------------------------- records


@pytest.mark.slow
def test_run_that_goes_on_elsewhere_says_so(tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(train, tiny, at=3)
    kill(train, tiny, at=5)  # the same machine, once more
    here = machine.environment()
    monkeypatch.setattr(machine, "environment", lambda *_: here | {"device": "another"})
    assert [start["device"] for start in train(tiny).environments] == [here["device"], "another"]


@pytest.mark.slow
def test_precision_that_training_began_with_is_kept(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: set[torch.dtype] = set()

    class Watched(RunSession):
        def begin(self, at: Any, objective: nn.Module, data: Data, recipe: Recipe) -> Recipe:
            def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
                kind = inputs[0].device.type
                taken.add(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32)

            objective.model.register_forward_pre_hook(note)  # of training steps, validation and test
            return super().begin(at, objective, data, recipe)

    wide = tiny.replace(precision="auto", dim=96, heads=2)
    monkeypatch.setattr(machine, "bf16_pays", lambda: True)
    kill(train, wide, at=4)
    monkeypatch.setattr(machine, "bf16_pays", lambda: False)
    run = train(wide, session=Watched)
    assert run.config.precision == "auto"
    assert {start["precision"] for start in run.environments} == {"bf16"}
    assert taken == {torch.bfloat16}


@pytest.mark.slow
def test_threads_that_training_began_with_are_kept(tiny: RunConfig, train: Train) -> None:
    taken: list[int] = []

    class Watched(RunSession):
        def before_step(self, step: int) -> None:
            taken.append(torch.get_num_threads())

    wide, threads = tiny.replace(dim=96, heads=2), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        kill(train, wide, at=4)
        torch.set_num_threads(2)
        run = train(wide, session=Watched)
        assert torch.get_num_threads() == 2  # as whoever called it had it
    finally:
        torch.set_num_threads(threads)
    assert set(taken) == {1}
    assert {start["threads"] for start in run.environments} == {1}


@pytest.mark.slow
def test_whether_training_began_compiled_is_kept(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr(session, "pays", lambda *_: True)
    kill(train, tiny, at=4)
    monkeypatch.setattr(session, "pays", lambda *_: False)
    run = train(tiny)
    assert len(compiled) == 2
    assert {start["compiled"] for start in run.environments} == {True}


def test_run_records_what_it_was(tiny: RunConfig, few: Source, train: Train) -> None:
    config = tiny.replace(imbalance="linear", imbalance_ratio=2)
    run = train(config)
    record = json.loads((run.path / "config.json").read_text())
    data = split(few, config)
    assert RunConfig(**record["config"]) == config == run.config
    assert record["counts"] == data.class_counts.tolist()
    with np.load(run.path / "split.npz") as stored:
        assert stored["train"].tolist() == data.train.index.tolist()
    assert record["classes"] == list(few.classes)
    [start] = run.environments
    assert start["versions"]["torch"] in torch.__version__
    assert {"commit", "device", "python"} <= start.keys()
    assert run.summary["parameters"] == sum(p.numel() for p in run.model().parameters())
    assert run.history["step"].tolist() == [len(data.train) // 32, 2 * (len(data.train) // 32)]


def test_tensorboard_shows_the_history(tiny: RunConfig, train: Train) -> None:
    run = train(tiny)
    events = EventAccumulator(str(run.path)).Reload()
    for name in ("loss", "val_accuracy", "lr", "images_per_second"):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == run.history["step"].tolist()
        assert [event.value for event in scalars] == pytest.approx(run.history[name].tolist())
    [batch] = events.Images("batch")  # of the first step
    assert batch.step == 0


@pytest.mark.slow
def test_tensorboard_shows_the_whole_history_of_a_continued_run(tiny: RunConfig, train: Train) -> None:
    kill(train, tiny, at=8, checkpoint_seconds=3600)  # the last checkpoint is that of the first epoch's end
    run = train(tiny)
    scalars = EventAccumulator(str(run.path)).Reload().Scalars("loss")
    assert [event.step for event in scalars] == run.history["step"].tolist()
