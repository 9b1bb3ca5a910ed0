"""Runs on several machines, as tasks of a Ray cluster: Ray finds each a place, and another one where a machine is lost.

A task makes the run directory that this machine would make. Where the folder of the runs is shared, it trains there;
elsewhere it trains into a folder of its own machine's, and brings what it has made.
"""

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from vitlab import machine
from vitlab.config import LabConfig, RunConfig
from vitlab.errors import LabError
from vitlab.files import writing
from vitlab.lab import workers
from vitlab.runs import Run
from vitlab.training import display

MARK = ".cluster"  # file in the folder of the runs, by which a task knows whether it sees the same folder
SMALL = 256  # width of a model below which four share a GPU
TRIES = 5  # of a task whose machine or process is lost
LOST_SECONDS = 60  # that a lost machine may take to notice it, and go on training, where the folder is shared


def train(
    params: LabConfig, runs_dir: Path, todo: Sequence[tuple[RunConfig, Run | None]], images: int, view: display.View
) -> None:
    """Have the cluster at `params.cluster` complete these runs in `runs_dir`, each with the one it begins with.

    images: how many train and validate, by which memory is reckoned. LabError where none answers, where a machine has
    other code, and for what fails there. An interrupt, or a fault in one, ends them all; their checkpoints stay.
    """
    ray = _connected(params.cluster)
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    statuses = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # not where it may be lost
    gpus = ray.cluster_resources().get("GPU", 0)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = max(node.get("memory", 0) for node in nodes if node.get("GPU" if gpus else "CPU"))
    task = ray.remote(max_retries=TRIES)(_task)
    waiting = {}
    with _mark(runs_dir) as token:
        for config, begun in todo:
            start = ray.put(_packed(begun) if begun else {})
            share = {"num_gpus": 0.25 if config.dim < SMALL else 1} if gpus else {"num_cpus": 1}
            wants = share | {"memory": min(workers.needs(config, images), room)}  # for more it would wait for ever
            told = (params, config, str(runs_dir), token, start, machine.commit(), statuses)
            waiting[task.options(**wants).remote(*told)] = config
        try:
            while waiting:
                done, _ = ray.wait(list(waiting), timeout=0.5)
                for status in statuses.get_nowait_batch(statuses.qsize()):
                    view.update(status)
                for reference in done:
                    _unpack(_result(ray, reference), runs_dir)
                    del waiting[reference]
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
            statuses.shutdown()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        how = f"{sys.executable} -m pip install -c constraints.txt -e '.[cluster]'"
        raise LabError(f"cluster needs Ray, which is not installed: in the repository, {how}") from None
    if not ray.is_initialized():
        try:
            _require_answer(address)
            ray.init(address, log_to_driver=False, logging_level="ERROR", namespace="vitlab")
        except (OSError, ValueError) as error:
            raise LabError(
                f"no Ray cluster answers at cluster={address} ({str(error).splitlines()[0]}): start one with "
                "`ray start --head`, and `ray start --address=HOST:6379` on each further machine"
            ) from None
    return ray


def _require_answer(address: str) -> None:
    """OSError where nobody listens: Ray itself would try for five minutes."""
    if address not in ("auto", "local"):
        place = urlsplit(address if "://" in address else f"//{address}")
        usual = 10001 if place.scheme == "ray" else 6379
        socket.create_connection((place.hostname, place.port or usual), timeout=10).close()


def _result(ray: Any, reference: Any) -> dict[str, bytes]:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, LabError) else error from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise LabError(
            f"the cluster lost a run {TRIES + 1} times ({type(error).__name__}), most likely for want of memory: lower "
            "batch_size; the same command goes on from there"
        ) from None


def _task(
    params: LabConfig,
    config: RunConfig,
    runs_dir: str,
    token: str,
    start: Mapping[str, bytes],
    commit: str,
    statuses: Any,
) -> dict[str, bytes]:
    """Train one run on whichever machine this is; what it made, unless the folder is shared."""
    from vitlab.lab import Lab  # which asks for this module

    if (here := machine.commit()) != commit:
        raise LabError(f"a machine of the cluster has commit {here}, this one {commit}: check out the same one on both")
    shared = _reads(Path(runs_dir) / MARK) == token
    folder = Path(runs_dir) if shared else machine.cache_folder() / "cluster"
    os.environ["VITLAB_RUNS"] = str(folder)
    if not shared:
        _unpack(start, folder)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    display.use(display.PipeView(statuses.put_nowait))
    lab = Lab.of(params)
    with lab.run_of(config).locked(LOST_SECONDS):
        pass  # whoever trained it before has ended
    run = lab.train_one(config)
    return {} if shared else _packed(run)


@contextlib.contextmanager
def _mark(runs_dir: Path) -> Iterator[str]:
    """A token that whoever sees this folder can read, as long as it is needed."""
    token, path = secrets.token_hex(), runs_dir / MARK
    with writing(path) as temporary:
        temporary.write_text(token, encoding="utf-8")
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def _reads(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _packed(run: Run) -> dict[str, bytes]:
    """The files of a complete run, by their path from the folder of the runs."""
    files = (path for path in run.path.iterdir() if path.is_file() and path.name != ".lock")
    return {f"{run.path.name}/{path.name}": path.read_bytes() for path in files}


def _unpack(files: Mapping[str, bytes], runs_dir: Path) -> None:
    """Write them, the summary last: it is what makes a run complete."""
    for name in sorted(files, key=lambda name: name.endswith("/summary.json")):
        with writing(runs_dir / name) as temporary:
            temporary.write_bytes(files[name])
