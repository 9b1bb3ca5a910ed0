"""Threads give way to other programs while these want their cores, and compute the same."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitlab import neighbours
from vitlab.neighbours import giving_way, kept_waiting

DEADLINE = 20.0


def held() -> bool:
    return any(isinstance(thread, neighbours._Held) for thread in threading.enumerate())


def becomes(state: Callable[[], bool]) -> bool:
    end = time.perf_counter() + DEADLINE
    while not state() and time.perf_counter() < end:
        time.sleep(0.01)
    return state()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of time that threads are kept waiting for a core, to be set."""
    share, waited, then = [0.0], [0.0], [time.perf_counter()]

    def so_far() -> float:
        before, then[0] = then[0], time.perf_counter()
        waited[0] += share[0] * (then[0] - before)
        return waited[0]

    monkeypatch.setattr(neighbours, "kept_waiting", so_far)
    monkeypatch.setattr(neighbours, "SECONDS", 0.02)
    return share


def test_waiting_is_summed_over_the_threads(tmp_path: Path) -> None:
    for task, numbers in {"7": "100 2000000000 3", "8": "5 500000000 1"}.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(numbers)
    (tmp_path / "9").mkdir()  # has just ended
    assert kept_waiting(tmp_path) == 2.5
    assert kept_waiting(tmp_path / "absent") == 0  # another system


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says how long threads were kept waiting")
def test_waiting_of_this_process_grows() -> None:
    first = kept_waiting()
    assert 0 < first <= kept_waiting()


def test_team_is_held_while_others_want_the_cores(waits: list[float]) -> None:
    with giving_way():
        time.sleep(0.2)
        assert not held()
        waits[0] = 0.5
        assert becomes(held)
        waits[0] = 0.1  # between the two bounds nothing changes
        time.sleep(0.2)
        assert held()
        waits[0] = 0.0
        assert becomes(lambda: not held())
        waits[0] = 0.5
        assert becomes(held)
    assert not held()


def test_a_fault_inside_leaves_no_thread(waits: list[float]) -> None:
    waits[0], before = 0.5, threading.active_count()
    with contextlib.suppress(ZeroDivisionError), giving_way():
        assert becomes(held)
        1 / 0  # noqa: B018
    assert threading.active_count() == before


def test_giving_way_changes_no_bit(waits: list[float]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(300, 500), torch.randn(500, 400)
    alone = (a @ b).softmax(1).sum()
    waits[0] = 0.5
    with giving_way():
        assert becomes(held)
        assert torch.equal((a @ b).softmax(1).sum(), alone)


FOR_GOOD = """
import threading, time
from vitlab import neighbours
neighbours.SECONDS, neighbours.kept_waiting = 0.02, time.perf_counter  # all the time
alone = threading.active_count()
neighbours.give_way()
neighbours.give_way()
assert threading.active_count() == alone + 1
while not any(isinstance(thread, neighbours._Held) for thread in threading.enumerate()):
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_notebook_gives_way_for_good_and_ends_nevertheless() -> None:
    subprocess.run([sys.executable, "-c", FOR_GOOD], check=True, timeout=120)
