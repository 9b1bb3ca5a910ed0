"""Runs train side by side, in processes that end together."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import psutil
import pytest
import torch
from conftest import SMALL, assert_same_run

from vitlab import machine
from vitlab.config import PRESETS, RunConfig
from vitlab.lab import Lab
from vitlab.lab.workers import fitting, side_by_side

NARROW, WIDE = SMALL.run(), SMALL.run(dim=128)
SLEEP = "import os, pathlib, time\npathlib.Path({!r}, str(os.getpid())).touch()\ntime.sleep(300)"


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="one run fills a GPU")
@pytest.mark.parametrize(("todo", "at_once"), [([NARROW] * 5, 2), ([NARROW], 1), ([], 1), ([NARROW, WIDE, NARROW], 2)])
def test_as_many_train_at_once_as_there_are_threads(todo: list, at_once: int, two_threads: None) -> None:
    assert fitting(todo, 1000) == at_once


@pytest.mark.skipif(torch.cuda.is_available(), reason="main memory is not what counts")
@pytest.mark.parametrize(("gibibytes", "at_once"), [(1, 1), (3, 1), (6, 2)])
def test_no_more_train_at_once_than_memory_has_room_for(
    gibibytes: int, at_once: int, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda on: gibibytes * 2**30)
    cifar = PRESETS["tiny"] | {"image_size": 32, "batch_size": 128}
    assert fitting([RunConfig(**cifar)] * 3, 60_000) == at_once


@pytest.mark.parametrize("gpus", [1, 3])
def test_each_gpu_takes_one_run_at_a_time(gpus: int, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert fitting([NARROW] * 5, 1000) == gpus


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="one run fills a GPU")
def test_runs_trained_side_by_side_are_those_trained_one_by_one(tmp_path: Path, two_threads: None) -> None:
    """On as many threads: two of them add up in another order, which some CPUs round otherwise."""
    one, many = (Lab.of(SMALL.replace(runs_dir=str(tmp_path / name), epochs=1)) for name in ("one", "many"))
    configs = {name: one.plan.config(name) for name in ("ViT", "ViT, conv tokenizer", "Linear ViT")}
    done = many.train(configs)
    torch.set_num_threads(1)
    for name, config in configs.items():
        assert done[name].path.parent == tmp_path / "many"
        assert_same_run(done[name], one.train_one(config))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="one run fills a GPU")
def test_a_run_that_goes_on_from_another_waits_for_it(tmp_path: Path, two_threads: None) -> None:
    one, many = (Lab.of(SMALL.replace(runs_dir=str(tmp_path / name), epochs=1)) for name in ("one", "many"))
    todo = many.missing(many.plan.config(name) for name in ("ToMe", "ViT, fine-tuned", one.plan.backbone))
    many.train_at_once(todo)
    assert not many.missing(todo)
    torch.set_num_threads(1)  # as in the processes
    for config in sorted(todo, key=lambda config: config.init_from):  # "" is first
        assert_same_run(many.run_of(config), one.train_one(config))


def test_runs_that_processes_share_are_not_put_side_by_side(
    tmp_path: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    monkeypatch.setattr("vitlab.lab.workers.side_by_side", lambda *_: begun.append(True))
    for processes in (2, 1):
        lab = Lab.of(SMALL.replace(runs_dir=str(tmp_path), processes=processes))
        lab.train_at_once(lab.missing(lab.plan.chapters["02"].values()))
        assert len(begun) == (processes == 1)


@pytest.mark.slow
def test_a_wave_begins_when_the_one_before_it_is_done(tmp_path: Path) -> None:
    done = tmp_path / "done"
    first = f"import pathlib, time\ntime.sleep(1)\npathlib.Path({str(done)!r}).touch()"
    second = f"import pathlib\nassert pathlib.Path({str(done)!r}).exists()"
    side_by_side(exec, [[(first,)], [(second,)] * 2], 2)
    with pytest.raises(AssertionError):
        side_by_side(exec, [[("",)], [("assert False",)]], 2)


@pytest.mark.slow
def test_fault_in_one_ends_all(tmp_path: Path) -> None:
    fault = f"import os, time\nwhile not os.listdir({str(tmp_path)!r}):\n    time.sleep(0.1)\n1 / 0"
    started = time.perf_counter()
    with pytest.raises(ZeroDivisionError):
        side_by_side(exec, [[(SLEEP.format(str(tmp_path)),), (fault,)]], 2)
    for child in active_children():
        child.join(30)
    assert time.perf_counter() - started < 120
    [sleeper] = tmp_path.iterdir()
    assert not psutil.pid_exists(int(sleeper.name))


@pytest.mark.slow
def test_workers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "lab.py"  # a spawned process imports it again
    (tmp_path / "pids").mkdir()
    tasks = [(SLEEP.format(str(tmp_path / "pids")),)] * 2
    work = f"if __name__ == '__main__':\n    side_by_side(exec, [{tasks!r}], 2)"
    script.write_text(f"from vitlab.lab.workers import side_by_side\n{work}")
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        pids = waited_for(lambda: [int(path.name) for path in (tmp_path / "pids").iterdir()], 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    waited_for(lambda: [pid for pid in pids if not psutil.pid_exists(pid)], 2)


def waited_for(found, number: int, seconds: float = 90) -> list:
    end = time.perf_counter() + seconds
    while len(found()) < number:
        assert time.perf_counter() < end
        time.sleep(0.1)
    return found()
