"""How times are taken: interleaved rounds of calls, and what is kept of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
      rounds: turns that every call gets.
      calls: timed calls in a turn, at least.
      seconds: that they take together, at least.
      compilations: how often the training step is compiled.
    """

    rounds: int
    calls: int = 2
    seconds: float = 0.1
    compilations: int = 6


QUICK = Effort(1, calls=1, seconds=0.0, compilations=1)

# Threads of OpenMP and Eigen keep spinning for some milliseconds after their last work, on cores
# that whoever comes next needs.
REST = 0.01

Key = TypeVar("Key", bound=Hashable)


def measure(
    groups: Sequence[Mapping[Key, Callable[[], float]]],
    effort: Effort,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Key, list[float]]:
    """Seconds of every call, taken in interleaved rounds, so that noise affects all alike.

    Whoever is compared takes turns side by side, in an order drawn anew in every round: nobody
    always follows the same neighbour, whose data fill the caches and whose threads still spin.

    Args:
      groups: those that are compared with each other; by key, a function that makes a call and
        returns how long it took.
      effort: how often they are called.
      say: is told of every round.
    """
    times: dict[Key, list[float]] = {key: [] for group in groups for key in group}
    rng = random.Random(0)
    for turn in range(effort.rounds):
        say(f"round {turn + 1} of {effort.rounds}")
        for group in groups:
            for key in rng.sample(list(group), len(group)):
                times[key] += _turn(group[key], effort)
    return times


def _turn(clock: Callable[[], float], effort: Effort) -> list[float]:
    time.sleep(REST)
    clock()  # refills the caches, which hold others' data
    times: list[float] = []
    while len(times) < effort.calls or sum(times) < effort.seconds:
        times.append(clock())
    return times


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of one call, and how many milliseconds it took."""
    start = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - start)


Row: TypeAlias = dict[str, float]
Results: TypeAlias = dict[str, dict[str, Row]]  # by layer and peer


def statistics_of(kind: str, times: Sequence[float]) -> Row:
    """The minimum in milliseconds, the spread (the median over the minimum), and of how many."""
    best = min(times)
    return {
        f"{kind}_ms": 1e3 * best,
        f"{kind}_spread": statistics.median(times) / best,
        f"{kind}_samples": len(times),
    }
