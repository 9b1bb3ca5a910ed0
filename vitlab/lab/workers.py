"""Processes that train for a lab: several runs side by side, or several processes on one run."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from vitlab.config import LabConfig, RunConfig
from vitlab.errors import LabError
from vitlab.machine import NARROW
from vitlab.parameters import as_profile


def fitting(todo: Sequence[RunConfig]) -> int:
    """How many of these runs to train at once: narrow models leave all but one core idle, on a GPU one fills it."""
    if torch.cuda.is_available() or any(config.dim >= NARROW for config in todo):
        return 1
    return min(len(todo), torch.get_num_threads())


def side_by_side(train: Callable[..., Any], tasks: Sequence[tuple], workers: int) -> None:
    """Call `train` with the arguments of each task, in processes that load what they need: sent over, data would have
    to fit in shared memory. A fault in one, or an interrupt, ends them all; their checkpoints stay.
    """
    os.environ["TQDM_DISABLE"] = "1"  # for the workers, which import tqdm anew: one bar here shows all
    with ProcessPoolExecutor(workers, get_context("spawn"), _die_with_parent) as pool:
        waiting = [pool.submit(train, *task) for task in tasks]
        try:
            for done in tqdm(as_completed(waiting), "train side by side", len(tasks), unit="run", leave=False):
                done.result()
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
        finally:
            del os.environ["TQDM_DISABLE"]


def _die_with_parent() -> None:
    """Or a killed one's worker would go on."""

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def launch(params: LabConfig, runs_dir: Path, name: str) -> None:
    """Train the run `name` of a lab in several processes: `accelerate launch -m vitlab train` does it, not ours."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "params.yaml"
        profile.write_text(yaml.safe_dump(as_profile(params.replace(runs_dir=str(runs_dir)))), encoding="utf-8")
        several = ["--multi_gpu", "--num_processes", str(params.processes), "--num_machines", "1"]
        usual = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *several, *usual, "-m", "vitlab", "train"]
        told = ""
        with subprocess.Popen([*command, "--params", profile, "--run", name], stderr=subprocess.PIPE) as process:
            try:
                while chunk := process.stderr.read1():  # the progress bar, or what went wrong
                    sys.stderr.write(text := chunk.decode(errors="replace"))
                    told = (told + text)[-20_000:]
            except BaseException:
                process.terminate()  # killed, it would leave its processes behind
                raise
    if process.returncode:
        lines = [line for line in told.splitlines() if "Error" in line or line.startswith("vitlab:")]
        raise LabError(f"training {name!r} in {params.processes} processes failed: {(lines or ['?'])[0]}")
