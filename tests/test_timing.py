"""What is compared takes turns; a ratio is taken within a round; rounds are added until they agree."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student

from vitlab.analysis import timing
from vitlab.analysis.timing import in_turns, level, ratio, seconds


class Clock:
    """Stands in for the module `time`: it goes on only while work is done, for as long as the next duration says."""

    def __init__(self, durations: Iterable[float] = ()) -> None:
        self.now, self.durations = 0.0, iter(durations)

    def perf_counter(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += next(self.durations)

    def lasting(self, duration: Callable[[], float]) -> Callable[[], None]:
        def work() -> None:
            self.now += duration()

        return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_seconds_are_a_median_between_its_quartiles(clock: Clock) -> None:
    clock.durations = chain([1000.0], cycle([5.0, 1.0, 3.0, 2.0, 40.0]))  # the first call is slow and not counted
    assert seconds(clock.work, at_least=0, repeats=5) == (3.0, 1.5, 22.5)


def test_seconds_repeat_until_enough_time_was_spent(clock: Clock) -> None:
    clock.durations = cycle([1.0])
    seconds(clock.work, at_least=100, repeats=5)
    assert 100 < clock.now < 104


def test_one_thread_computes_whatever_is_compared() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        in_turns({"a": lambda: seen.append(torch.get_num_threads())}, rounds=1)
        assert {*seen} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_machine_that_slows_down_slows_all_that_is_compared(clock: Clock) -> None:
    """Three times as slow after some rounds: absolute times move, the ratio does not."""

    def pace() -> float:
        return 1.0 if clock.now < 10 else 3.0

    frame = in_turns({"a": clock.lasting(lambda: pace()), "b": clock.lasting(lambda: 2 * pace())}, rounds=9)
    assert frame["a"].max() == 3 * frame["a"].min()
    middle, off = ratio(frame["b"], frame["a"])
    assert middle == pytest.approx(2)
    assert off < 0.2  # though one round saw the change


def test_level_rounds_have_one_pace_and_the_same_ratios() -> None:
    pace, own = np.array([1.0, 3.0, 2.0, 1.5, 2.0]), np.array([[1.0, 2.0, 5.0]] * 5)
    own[2] = [1.1, 2.0, 5.0]  # what is not the pace's stays
    rounds = pd.DataFrame(pace[:, None] * own, columns=["a", "b", "c"])
    flat = level(rounds)
    assert (flat["b"] / flat["a"]).to_numpy() == pytest.approx((rounds["b"] / rounds["a"]).to_numpy())
    assert flat.loc[[0, 1, 3, 4]].to_numpy() == pytest.approx(np.tile(flat.loc[0], (4, 1)))
    assert flat["c"].median() == pytest.approx(rounds["c"].median(), rel=0.05)


def test_every_second_round_runs_backwards(clock: Clock) -> None:
    order: list[str] = []
    works = {key: clock.lasting(lambda key=key: order.append(key) or 1.0) for key in "abc"}
    in_turns(works, rounds=2)
    assert "".join(order) == "abc" + timing.CALLS * "abc" + timing.CALLS * "cba"  # a warm-up, then two rounds


def test_works_take_turns_call_by_call_until_each_has_its_window(clock: Clock) -> None:
    order: list[str] = []
    lasting = {"a": timing.WINDOW / 2, "b": timing.WINDOW / 4}
    works = {k: clock.lasting(lambda k=k, s=s: order.append(k) or s) for k, s in lasting.items()}
    in_turns(works, rounds=1)
    assert "".join(order) == "ab" + "ababbb"  # a warm-up, then the round


def each_round(*durations: float) -> Iterator[float]:
    """A warm-up, then a duration a round, all of whose calls take as long, over and over."""
    return chain(durations[:1], cycle(duration for duration in durations for _ in range(timing.CALLS)))


def test_rounds_are_added_while_ratios_spread(clock: Clock) -> None:
    noise = each_round(0.5, 0.75)  # quartiles a third apart, for good
    noisy = {"a": clock.lasting(lambda: 0.5), "b": clock.lasting(lambda: next(noise))}
    assert len(in_turns(noisy, rounds=4)) == 6
    calm = {"a": clock.lasting(lambda: 0.5), "b": clock.lasting(lambda: 1.0)}
    assert len(in_turns(calm, rounds=5)) == 5


@pytest.mark.parametrize(("slow", "rounds"), [(1, 4), (10, 3)])
def test_no_round_is_added_after_so_many_seconds_each_but_all_that_were_asked_for_are_made(
    slow: int, rounds: int, clock: Clock
) -> None:
    noise = each_round(4.0 * slow, 7.5 * slow)
    noisy = {"a": clock.lasting(lambda: 1.0 * slow), "b": clock.lasting(lambda: next(noise))}
    assert len(in_turns(noisy, rounds=3)) == rounds


def test_rounds_are_added_until_what_must_hold_is_true(clock: Clock) -> None:
    asked: list[int] = []

    def holds(rounds: pd.DataFrame) -> bool:
        asked.append(len(rounds))
        return len(rounds) == 7

    assert len(in_turns({"a": clock.lasting(lambda: 1.0)}, holds, rounds=5)) == 7
    assert asked == [5, 6, 7]


def test_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == (pytest.approx(2.0), pytest.approx(0.0))
    middle, off = ratio([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert middle == pytest.approx(2.0)
    assert math.log1p(off) == pytest.approx(student.ppf(0.975, 2) * math.log(2) * math.sqrt(math.pi / 6))
    assert ratio([3.0], [1.0]) == (pytest.approx(3.0), math.inf)  # one round shows nothing


def test_faster_one_way_is_slower_the_other_way() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        one, other = rng.lognormal(0.05, 0.1, 5), rng.lognormal(0, 0.1, 5)
        assert timing.above(*ratio(one, other)) == timing.below(*ratio(other, one))
    assert timing.below(0.4, 1.2)


def test_times_that_were_not_taken_together_are_compared_over_all_pairs() -> None:
    middle, off = ratio([8.0, 8.0], [1.0, 2.0, 4.0], together=False)
    assert middle == pytest.approx(4.0)  # of 8, 4, 2, twice each
    assert math.log1p(off) == pytest.approx(student.ppf(0.975, 1) * math.log(2) * math.sqrt(math.pi / 6))


@pytest.mark.parametrize("rounds", [2, 3, 5, 15])
def test_of_equally_fast_models_few_are_called_faster(rounds: int) -> None:
    rng, called = np.random.default_rng(rounds), 0
    for _ in range(400):
        middle, off = ratio(rng.lognormal(0, 0.02, rounds), rng.lognormal(0, 0.02, rounds))
        called += timing.above(middle, off) or timing.below(middle, off)
    assert called / 400 < 0.07
