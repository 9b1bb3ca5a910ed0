"""Processes that train for a lab: several runs side by side, or several processes on one run."""

import atexit
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
import yaml

from vitlab import machine
from vitlab.config import LabConfig, RunConfig
from vitlab.errors import LabError
from vitlab.parameters import as_profile
from vitlab.training import display


def fitting(todo: Sequence[RunConfig], images: int) -> int:
    """How many of these runs, on so many images in all, to train at once.

    On a CPU as many as there are cores, on one thread each, as far as memory allows: threads of one run wait for each
    other at every product (benchmarks/neighbours.py). Of GPUs each takes one.
    """
    if not todo or torch.cuda.is_available():
        return max(1, min(len(todo), torch.cuda.device_count()))
    room = machine.free_memory(torch.device("cpu")) // max(needs(config, images) for config in todo)
    return max(1, min(len(todo), torch.get_num_threads(), room))


def needs(config: RunConfig, images: int) -> int:
    """Bytes of a process that trains it: torch itself, the images, what each layer keeps of a batch for its gradient.

    Reckoned high: a process of the preset tiny, batch 128, on CIFAR-10 takes 1.3 GB, of base 4.4.
    """
    tokens = config.num_tokens + 1
    block = 4 * tokens * (config.dim * (8 + 3 * config.mlp_ratio) + 2 * tokens * config.heads)  # bytes an image
    return 2**30 + images * 3 * config.image_size**2 + int(config.batch_size * config.depth * block)


def side_by_side(
    train: Callable[..., Any], waves: Sequence[Sequence[tuple]], workers: int, view: display.View | None = None
) -> None:
    """Call `train` with the arguments of each task, in processes that load what they need: sent over, data would have
    to fit in shared memory. Tasks of a wave begin when those before it are done. `view` shows all of them. A fault in
    one, or an interrupt, ends them all; their checkpoints stay.
    """
    processes, view = get_context("spawn"), view or display.View()
    statuses, places = processes.SimpleQueue(), processes.SimpleQueue()
    for place in range(workers):
        places.put(place)
    with ProcessPoolExecutor(workers, processes, _begin, (statuses, places)) as pool:
        try:
            for wave in waves:
                waiting = {pool.submit(train, *task) for task in wave}
                while waiting:
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    while not statuses.empty():
                        view.update(statuses.get())
                    for one in done:
                        one.result()
        except BrokenProcessPool:
            raise LabError(
                "a process that trained beside others was killed, most likely for want of memory: let them train one "
                "after the other (OMP_NUM_THREADS=1), or lower batch_size; the same command goes on from there"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():
                worker.terminate()
            raise


def _begin(statuses: Any, places: Any) -> None:
    """What a worker does first: it takes its thread, or its GPU, tells how far it is, and ends with its parent."""
    place = places.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    else:
        torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a notebook's stop button reaches the workers too
    display.use(display.PipeView(statuses.put))
    _die_with_parent()
    gc.freeze()  # what is loaded now stays: the collection after each run need not look at it
    atexit.register(os._exit, 0)  # nothing is left to do, and to take all that is loaded apart takes a second


def _die_with_parent() -> None:
    """Or a killed one's worker would go on."""

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def launch(params: LabConfig, runs_dir: Path, name: str) -> None:
    """Train the run `name` of a lab in several processes: `accelerate launch -m vitlab train` does it, not ours."""
    environment = os.environ | {display.PIPED: "1"}  # its first process tells here how far it is
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "params.yaml"
        profile.write_text(yaml.safe_dump(as_profile(params.replace(runs_dir=str(runs_dir)))), encoding="utf-8")
        several = ["--multi_gpu", "--num_processes", str(params.processes), "--num_machines", "1"]
        usual = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *several, *usual, "-m", "vitlab", "train"]
        told, command = "", [*command, "--params", profile, "--run", name]
        with (
            display.viewed(name) as view,
            subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process,
        ):
            try:
                for line in process.stderr:
                    if status := display.parse(text := line.decode(errors="replace")):
                        view.update(status)
                    else:  # what went wrong
                        sys.stderr.write(text)
                        told = (told + text)[-20_000:]
            except BaseException:
                process.terminate()  # killed, it would leave its processes behind
                raise
    if process.returncode:
        lines = [line for line in told.splitlines() if "Error" in line or line.startswith("vitlab:")]
        raise LabError(f"training {name!r} in {params.processes} processes failed: {(lines or ['?'])[0]}")
