"""A training that is killed for real, by SIGKILL and by a full disk, ends as if nothing had happened."""

import contextlib
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from conftest import assert_same_run

from vitlab.config import RunConfig
from vitlab.data.sources import load_source
from vitlab.data.splits import split
from vitlab.files import writing
from vitlab.runs import Run
from vitlab.training.fit import fit_run
from vitlab.training.session import RunSession

if not sys.platform.startswith("linux"):
    pytest.skip("kills processes that a fork server starts", allow_module_level=True)

KILLS = 20
CONFIG = RunConfig(
    image_size=8, dim=16, depth=2, heads=2, mlp_ratio=2.0, batch_size=128, epochs=40, precision="fp32",
    mixup=0.8, cutmix=1.0, dropout=0.1, drop_path=0.1, ema=0.95,
)  # fmt: skip


def life(runs_dir: Path, started: Event, limit: int | None = None) -> None:
    """Train or go on, with a checkpoint after every step; `limit`: the largest file that can be written, in bytes."""
    torch.set_num_threads(1)
    source = load_source(CONFIG)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    started.set()
    run = Run.of(runs_dir, CONFIG, source.digest)
    fit_run(run, CONFIG, split(source, CONFIG), session=partial(RunSession, checkpoint_seconds=0))


@pytest.fixture(scope="module")
def context():
    server = get_context("forkserver")  # imports once what every life needs
    server.set_forkserver_preload(["vitlab.training.fit", "torch._dynamo"])
    return server


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run without interruption."""
    source = load_source(CONFIG)
    run = Run.of(tmp_path_factory.mktemp("whole"), CONFIG, source.digest)
    return fit_run(run, CONFIG, split(source, CONFIG))


def live(context, runs_dir: Path, limit: int | None = None) -> int:
    """A whole life; its exit code."""
    started = context.Event()
    process = context.Process(target=life, args=(runs_dir, started, limit))
    process.start()
    process.join(300)
    return process.exitcode


def changed(run: Run) -> int:
    """When the checkpoint was written last; 0 also in the instant between the old one and the new."""
    with contextlib.suppress(FileNotFoundError):
        return (run.path / "checkpoint.pt").stat().st_mtime_ns
    return 0


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(context, whole: Run, tmp_path: Path) -> None:
    moments = random.Random(0)
    run = Run(tmp_path / whole.path.name)
    reached = []
    for i in range(KILLS):
        started = context.Event()
        process = context.Process(target=life, args=(tmp_path, started))
        process.start()
        assert started.wait(60)
        written = changed(run)
        while i % 4 and process.is_alive() and changed(run) == written:  # every fourth may be killed before it gets on
            time.sleep(0.001)
        process.join(moments.uniform(0, 0.1))
        assert process.is_alive(), "the training was over before it was killed often enough: lengthen it"
        process.kill()
        process.join()
        state = run.load_checkpoint()
        reached.append(state["progress"]["step"] if state else 0)
    assert reached == sorted(reached)  # nothing that was saved was lost
    assert reached[-1] >= KILLS // 2
    assert live(context, tmp_path) == 0
    assert_same_run(run, whole)


@pytest.mark.slow
def test_write_that_fails_for_lack_of_space_keeps_the_last_good_checkpoint(context, whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / whole.path.name)
    started = context.Event()
    process = context.Process(target=life, args=(tmp_path, started))
    process.start()
    started.wait(60)
    while run.load_checkpoint() is None:
        process.join(0.1)
    process.kill()
    process.join()
    before = run.load_checkpoint()["progress"]["step"]
    size = max(path.stat().st_size for path in run.path.glob("checkpoint*.pt"))  # killed between two, one is absent
    assert live(context, tmp_path, size // 2) != 0  # the checkpoint no longer fits
    assert run.load_checkpoint()["progress"]["step"] >= before
    assert live(context, tmp_path) == 0
    assert_same_run(run, whole)


@contextlib.contextmanager
def begun(path: Path) -> Iterator[None]:
    """Meanwhile a process writes a file; then it is killed."""
    ready, tell = os.pipe()
    if not (process := os.fork()):
        try:
            with writing(path) as temporary:
                temporary.write_text("half")
                os.write(tell, b".")
                signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    path, others = tmp_path / "data.pt", {tmp_path / ".data.pt.mine.tmp", tmp_path / ".data.pt.01234567.tmp.pt"}

    def left() -> int:
        with writing(path) as temporary:
            temporary.write_text("whole")
        assert path.read_text() == "whole"
        assert others < {*tmp_path.iterdir()}
        return len(list(tmp_path.iterdir())) - 3

    for other in others:
        other.touch()
    with begun(path):
        with begun(path):
            assert left() == 2
        assert left() == 1
    assert left() == 0
