"""Other programs on the same cores: threads that wait for each other give way to them.

Threads of libgomp, torch's on Linux, wait for each other by spinning: quickest as long as each has a core to itself.
Where another program wants a core too, they spin away the very time that the thread they wait for has been put off
for, and a busy neighbour costs a training not its share but most of its pace. libgomp gives way by itself as soon as it
manages more threads than there are cores, and nothing else changes what it does after it was loaded. So while threads
are kept waiting for a core, another thread holds a team of its own: which thread computes what stays as it is.
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

SECONDS = 0.5  # between two looks
BUSY, QUIET = 0.15, 0.05  # seconds a second that threads are kept waiting for a core, from and below which to change


def kept_waiting(tasks: Path = Path("/proc/self/task")) -> float:
    """Seconds that the threads of this process which are alive could have run, and had no core; Linux alone says so."""
    waited = 0
    for path in tasks.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            waited += int(path.read_text(encoding="ascii").split()[1])
    return waited / 1e9


class _Held(threading.Thread):
    """A team of threads beside the others, as long as it is held."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        torch.ones(2**17).neg_()  # the smallest work that torch shares out opens a team
        self.over.wait()

    def end(self) -> None:
        self.over.set()
        self.join()


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """Have this process's threads give way, while the block runs, whenever other programs want their cores."""
    over = threading.Event()

    def look() -> None:
        held, waited, then = None, kept_waiting(), time.perf_counter()
        while not over.wait(SECONDS):
            before, waited, since, then = waited, kept_waiting(), then, time.perf_counter()
            share = (waited - before) / (then - since)
            if held is None and share > BUSY:
                held = _Held()
            elif held is not None and share < QUIET:
                held.end()
                held = None
        if held is not None:
            held.end()

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


@cache
def give_way() -> None:
    """The same from now on, as a notebook's kernel does: its reader's browser, or a training, wants cores as well."""
    for_good = contextlib.ExitStack()
    for_good.enter_context(giving_way())
    atexit.register(for_good.close)  # a process that ends while a thread holds a team is aborted
