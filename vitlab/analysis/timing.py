"""Wall time, compared fairly: what a table compares takes turns, so that whatever slows the machine slows all alike.

A ratio is taken within each round and its median over the rounds is quoted; a model is called faster where the rounds
leave no doubt (`ratio`). Rounds are added while the quartiles of a ratio are too far apart, up to half as many again.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit

from vitlab.machine import keep_freed_memory, synchronize

Key = TypeVar("Key", bound=Hashable)
WINDOW, CALLS = 0.05, 2  # seconds of calls, and how many at least, of which one round's figure is the median
ROUNDS = 7
MORE = 1.5  # times the rounds at most
SECONDS = 16.0  # a round, after which no further one is added: beside a busy program ratios never agree
SPREAD = 0.08  # of a ratio, from which on more rounds are made
LEAD = 0.05  # from which on a model is called faster: a token more, or where an array lies, is worth less than that


def seconds(work: Callable[[], object], at_least: float = 0.2, repeats: int = 5) -> tuple[float, float, float]:
    """Median, lower and upper quartile of `work`'s wall time in seconds, after one call to warm up."""
    keep_freed_memory()  # as in training: all timings of a process are to be alike
    _once(work)
    low, middle, high = statistics.quantiles(_calls(work, at_least, max(repeats, 2)), n=4)
    return middle, low, high


def in_turns(
    works: Mapping[Key, Callable[[], object]],
    holds: Callable[[pd.DataFrame], bool] = lambda rounds: True,
    rounds: int = ROUNDS,
) -> pd.DataFrame:
    """Median seconds of each of `works`: a column each, a row a round in which all take turns, after a warm-up.

    `rounds` of them; more, up to half as many again, while a ratio to the first one spreads by more than `SPREAD` or
    `holds`, what must be true of the rounds, is not. Every second round runs backwards.
    """
    keep_freed_memory()
    with torch.inference_mode(), one_thread():
        for work in works.values():
            _once(work)
        table: list[dict[Key, float]] = []
        end = time.perf_counter() + SECONDS * rounds
        while True:
            order = list(works)[:: -1 if len(table) % 2 else 1]
            table.append(_round({key: works[key] for key in order}))
            frame = pd.DataFrame(table, columns=list(works))
            spread = max(_quartiles_apart(frame[key] / frame.iloc[:, 0]) for key in works)
            last = len(frame) >= MORE * rounds or time.perf_counter() >= end
            if len(frame) >= rounds and (last or (spread <= SPREAD and holds(frame))):
                return frame


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """On a CPU one thread computes: what several gain depends on who else wants the cores, and so would each ratio.

    As torch's own benchmark utilities have it by default. On a GPU nothing changes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _round(works: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
    """Median seconds of each, called by turns: a machine's pace changes within a tenth of a second as well."""
    calls: dict[Key, list[float]] = {key: [] for key in works}
    while left := [key for key, times in calls.items() if sum(times) < WINDOW or len(times) < CALLS]:
        for key in left:
            calls[key].append(_once(works[key]))
    return {key: statistics.median(times) for key, times in calls.items()}


def ratio(values: Sequence[float], reference: Sequence[float], together: bool = True) -> tuple[float, float]:
    """Median of values / reference, (R,) each, and how far off it may be as a share of it, with 95% confidence.

    Within rounds in which both took turns; else, not `together`, of every round of one to every round of the other.
    How far: by the t interval of the mean logarithm, times √(π/2), as a median scatters so much more; of one round inf.
    """
    one, other = (np.log(np.asarray(times, float)) for times in (values, reference))
    if together:
        logs, parts = one - other, [one - other]
    else:
        logs, parts = (one[:, None] - other).ravel(), [one, other]
    freedom = min(map(len, parts)) - 1
    if not freedom:
        return float(np.exp(np.median(logs))), math.inf
    error = math.sqrt(math.pi / 2 * sum(part.var(ddof=1) / len(part) for part in parts))
    return float(np.exp(np.median(logs))), float(np.expm1(stdtrit(freedom, 0.975) * error))


def above(ratio: Any, off: Any) -> Any:
    """Whether a ratio, which may be `off` by so much of it, is above 1, by `LEAD` or more; of numbers or columns."""
    return ratio > 1 + np.maximum(off, LEAD)


def below(ratio: Any, off: Any) -> Any:
    """Whether it is below 1, by as much."""
    return ratio * (1 + np.maximum(off, LEAD)) < 1


def told(ratio: float, off: float) -> str:
    """A ratio and how far off it may be, for reading; far off by a factor, as it cannot fall below zero."""
    if not math.isfinite(off):  # one round does not tell
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (± {off:.1%})" if off < 0.5 else f"{ratio:.2f} (×÷ {1 + off:.1f})"


def _quartiles_apart(values: pd.Series) -> float:
    """The distance of the quartiles over the median."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return (high - low) / middle


def level(rounds: pd.DataFrame) -> pd.DataFrame:
    """`in_turns` without the pace that all had in common in a round (its geometric mean over theirs).

    Ratios within a round stay as they are, and the medians' quotients come close to the median ratios.
    """
    pace = np.exp(np.log(rounds).mean(axis=1))
    return rounds.div(pace / pace.median(), axis=0)


def _calls(work: Callable[[], object], at_least: float, repeats: int) -> list[float]:
    times: list[float] = []
    while len(times) < repeats or sum(times) < at_least:
        times.append(_once(work))
    return times


def _once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start
