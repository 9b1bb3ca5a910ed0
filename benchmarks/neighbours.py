"""What a busy neighbour costs a training on a CPU, and what several runs at once gain; nothing else should be running.

    python benchmarks/neighbours.py [--rounds 5] [--seconds 8] [--models tiny conv base]

Images a second of `fit` on random images of 32 pixels, batch 128, over all trainings that run: one on all cores, one on
each core, either of them quiet and beside a process that wants a core all the time. `rigid` is one training whose
threads do not give way, as torch's do by themselves. Rounds take turns; a ratio is taken within each round.
"""

import argparse
import multiprocessing
import sys
import time
from functools import partial

import pandas as pd
import torch
from training import random_data

from vitlab import machine, neighbours
from vitlab.analysis.timing import ratio
from vitlab.config import RunConfig
from vitlab.errors import LabError, told
from vitlab.models.registry import build_model
from vitlab.parameters import load_params
from vitlab.training.fit import fit
from vitlab.training.session import Session

BATCH, WARM_UP = 128, 6
WAIT_SECONDS = 600  # for the others to warm up: one may have been killed
MODELS = {"tiny": {}, "conv": {"tokenizer": "conv"}, "base": {"dim": 512, "depth": 6, "heads": 8, "optimizer": "adamw"}}
PROCESSES = multiprocessing.get_context("spawn")


class OverError(Exception):
    """The window of time is over, after so many steps."""


class Window(Session):
    """Counts the steps of a window of time that opens for all trainings at once."""

    main = False  # shows nothing

    def __init__(self, together: "multiprocessing.Barrier", seconds: float) -> None:
        self.together, self.seconds, self.opened = together, seconds, 0.0

    def before_step(self, step: int) -> None:
        if step == WARM_UP:
            self.together.wait(WAIT_SECONDS)
            self.opened = time.perf_counter()
        elif step > WARM_UP and (spent := time.perf_counter() - self.opened) >= self.seconds:
            raise OverError((step - WARM_UP) * BATCH / spent)


def train(config: RunConfig, threads: int, gives_way: bool, session: Window, rates: "multiprocessing.Queue") -> None:
    torch.set_num_threads(threads)
    if not gives_way:
        neighbours.kept_waiting = lambda: 0.0
    try:
        fit(build_model(config, 10, 3), random_data(50 * BATCH), config, session)
    except OverError as over:
        rates.put(over.args[0])


def rate(config: RunConfig, seconds: float, at_once: int, busy: bool, gives_way: bool = True) -> float:
    """Images a second over `at_once` trainings that share the cores evenly."""
    together, rates = PROCESSES.Barrier(at_once), PROCESSES.Queue()
    args = config, machine.cores() // at_once, gives_way, Window(together, seconds), rates
    trainings = [PROCESSES.Process(target=train, args=args, daemon=True) for _ in range(at_once)]
    neighbour = PROCESSES.Process(target=spin, daemon=True)
    for process in [neighbour] * busy + trainings:
        process.start()
    for process in trainings:
        process.join()  # one number lies in the queue's pipe without being fetched
        if process.exitcode:
            raise LabError(f"a training ended with status {process.exitcode}, most likely for want of memory")
    total = sum(rates.get() for _ in trainings)
    if busy:
        neighbour.terminate()
        neighbour.join()
    return total


def spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    print(f"{machine.environment()['device']}, {machine.cores()} cores")
    for name in given.models:
        profile = load_params(machine.ROOT / "params" / "cifar10_cpu.yaml").run(start_size=0, epochs=10**6)
        config = profile.replace(**MODELS[name], batch_size=BATCH)
        one, each = (partial(rate, config, given.seconds, at_once) for at_once in (1, machine.cores()))
        ways = {
            "one, quiet": partial(one, busy=False),
            "one, rigid, quiet": partial(one, busy=False, gives_way=False),
            "one a core, quiet": partial(each, busy=False),
            "one, busy": partial(one, busy=True),
            "one, rigid, busy": partial(one, busy=True, gives_way=False),
            "one a core, busy": partial(each, busy=True),
        }
        table = pd.DataFrame({way: work() for way, work in ways.items()} for _ in range(given.rounds))
        print(f"\n{name}: {table.shape[0]} rounds")
        for way in ways:
            quiet = "one a core, quiet" if way == "one a core, busy" else "one, quiet"
            middle, off = ratio(table[way], table[quiet])
            print(
                f"  {way:18s} {table[way].median():6.0f} images/s, {middle:.2f} (± {off:.1%}) of {quiet!r}", flush=True
            )


if __name__ == "__main__":
    sys.exit(told("neighbours", main))
