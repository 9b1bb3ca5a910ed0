"""Runs as tasks of a Ray cluster: one machine is lost, and every run is the one that is made here."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from conftest import SMALL, assert_same_run

from vitlab.errors import LabError
from vitlab.lab import Lab, cluster
from vitlab.runs import Run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vitlab[cluster]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the machines of this test have no GPU"),
]
NAMES = ("ViT", "ViT, conv tokenizer", "Linear ViT")
DEADLINE = 120.0


class Machines:
    """A head without a place for tasks, and machines of one CPU each, all of them here."""

    def __init__(self, folder: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.own = os.environ | {"RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        port = self.address.split(":")[1]
        self.head = self._start("--head", "--port", port, "--num-cpus=0", "--temp-dir", folder)
        self.workers: list[subprocess.Popen] = []

    def _start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*command, "--include-dashboard=false", *words], env=self.own, **quiet)

    def add(self) -> None:
        self.workers.append(self._start("--address", self.address, "--num-cpus=1"))

    def lose(self, which: int) -> None:
        end(self.workers[which])

    def stop(self) -> None:
        for process in (*self.workers, self.head):
            end(process)


def end(process: subprocess.Popen) -> None:
    with_children = []
    if process.poll() is None:
        with_children = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in with_children:
        one.send_signal(signal.SIGKILL)
    psutil.wait_procs(with_children, timeout=30)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:  # a socket's path is short
        found = Machines(folder)
        try:
            found.add()
            found.add()
            waited_for(lambda: connected(found.address) and ray.cluster_resources().get("CPU", 0) == 2)
            yield found
        finally:
            ray.shutdown()
            found.stop()


def connected(address: str) -> bool:
    try:
        cluster._connected(address)
    except LabError:
        return False
    return True


def waited_for(state) -> None:
    end = time.monotonic() + DEADLINE
    while not state() and time.monotonic() < end:
        time.sleep(0.2)
    assert state()


def labs(folder: Path, address: str, **changes) -> tuple[Lab, Lab]:
    """The same lab on this machine, and on the cluster."""
    here = SMALL.replace(runs_dir=str(folder / "here"), **changes)
    return Lab.of(here), Lab.of(here.replace(runs_dir=str(folder / "there"), cluster=address))


def test_lost_machine_costs_no_run_and_no_bit(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_RUNS", raising=False)
    here, there = labs(tmp_path, machines.address, epochs=40)
    lost = threading.Event()

    def lose() -> None:
        waited_for(lambda: list((tmp_path / "there").glob("*/checkpoint.pt")))
        machines.lose(0)
        lost.set()

    threading.Thread(target=lose, daemon=True).start()
    configs = {name: there.plan.config(name) for name in NAMES}
    made = there.train(configs)
    assert lost.is_set()
    for name, run in made.items():
        assert run.path.parent == tmp_path / "there"
        assert_same_run(run, here.train_one(configs[name]))
    machines.add()


def test_run_is_brought_from_a_machine_that_sees_another_folder(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_RUNS", raising=False)
    monkeypatch.setattr(cluster, "MARK", ".another")  # here alone: the task looks for its own
    here, there = labs(tmp_path, machines.address, seed=int(time.time()))  # or the machine has it from another test
    first = there.plan.config("ViT")
    tuned = there.plan.config("ViT, fine-tuned")
    there.train({"ViT": first})
    made = there.train({"ViT, fine-tuned": tuned})["ViT, fine-tuned"]
    assert made.complete
    here.train_one(first)
    assert_same_run(made, here.train_one(tuned))
    assert {run.name for run in Run(made.path).path.iterdir()} >= {"summary.json", "model.pt", "history.csv"}


def test_fault_on_a_machine_is_its_sentence_here(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_RUNS", raising=False)
    monkeypatch.setattr(cluster.machine, "commit", lambda: "0123456789ab")
    _, there = labs(tmp_path, machines.address)
    with pytest.raises(LabError, match="check out the same one"):
        there.train({"ViT": there.plan.config("ViT")})


def test_no_cluster_is_one_sentence_before_any_training(tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    _, there = labs(tmp_path, "127.0.0.1:1")
    with pytest.raises(LabError, match="no Ray cluster answers at cluster="):
        there.train({"ViT": there.plan.config("ViT")})
    assert not list((tmp_path / "there").glob("*/config.json"))
