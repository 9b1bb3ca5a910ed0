"""Runs as tasks of a Ray cluster: one machine is lost, and every run is the one that is made here."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import SMALL, assert_same_run

from vitlab.errors import LabError
from vitlab.lab import Lab, cluster
from vitlab.runs import LOCK_SECONDS, Run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -c constraints.txt -e '.[cluster]'")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the machines of this test have no GPU"),
]
NAMES = ("ViT", "ViT, conv tokenizer", "Linear ViT")
DEADLINE = 120.0


class Machines(Cluster):
    """A head without a place for tasks, and two machines of one CPU each, all of them processes here."""

    def __init__(self) -> None:
        super().__init__(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.others = [self.add_node(num_cpus=1) for _ in range(2)]
        self.wait_for_nodes()
        self.connect()

    def lose_one(self) -> None:
        mine = ray.get_runtime_context().get_node_id()  # of all that are here, by which this process goes
        lost = next(one for one in self.others if one.node_id != mine)
        self.others.remove(lost)
        self.remove_node(lost, allow_graceful=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    found = Machines()
    yield found
    ray.shutdown()
    found.shutdown()


def labs(folder: Path, address: str, **changes) -> tuple[Lab, Lab]:
    """The same lab on this machine, and on the cluster."""
    here = SMALL.replace(runs_dir=str(folder / "here"), **changes)
    return Lab.of(here), Lab.of(here.replace(runs_dir=str(folder / "there"), cluster=address))


def test_lost_machine_costs_no_run_and_no_bit(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_RUNS", raising=False)
    here, there = labs(tmp_path, machines.address, epochs=15)
    lost, ended = threading.Event(), threading.Event()

    def lose() -> None:  # by what has happened, not by the clock: Ray may take minutes to start a task
        while not ended.is_set() and not list((tmp_path / "there").glob("*/checkpoint.pt")):
            time.sleep(0.02)
        if not ended.is_set():
            machines.lose_one()
            lost.set()

    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    configs = {name: there.plan.config(name) for name in NAMES}
    made = there.train(configs)
    ended.set()
    losing.join()
    assert lost.is_set()
    for name, run in made.items():
        assert run.path.parent == tmp_path / "there"
        assert_same_run(run, here.train_one(configs[name]))
    machines.others.append(machines.add_node(num_cpus=1))


def test_task_waits_for_a_lost_machine_that_goes_on(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_RUNS", raising=False)
    _, there = labs(tmp_path, machines.address)
    config = there.plan.config("ViT")
    run = there.run_of(config)
    held, seconds = threading.Event(), LOCK_SECONDS + 5

    def hold() -> None:
        with run.locked():
            held.set()
            time.sleep(seconds)

    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(DEADLINE)
    start = time.monotonic()
    assert there.train({"ViT": config})["ViT"].complete
    assert time.monotonic() - start > LOCK_SECONDS


def test_run_is_brought_from_a_machine_that_sees_another_folder(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_RUNS", raising=False)
    monkeypatch.setattr(cluster, "MARK", ".another")  # here alone: the task looks for its own
    here, there = labs(
        tmp_path, machines.address, backbone="patch", seed=time.time_ns()
    )  # or the machine has it from another test
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
