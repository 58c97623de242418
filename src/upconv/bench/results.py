"""What the times say: ratios of a peer's time to ours, and the goals set for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from upconv.bench.measuring import Results, Row
from upconv.bench.peers import ELSEWHERE, ON_JAX, OURS, PEERS, TORCH
from upconv.bench.task import KINDS


def best(rows: Mapping[str, Row], column: str, peers: Iterable[str]) -> str | None:
    """Which peer is fastest, of those that were measured."""
    there = [name for name in peers if column in rows.get(name, {})]
    return min(there, key=lambda name: rows[name][column], default=None)


def ratios(results: Results, column: str, peers: Iterable[str]) -> dict[str, float]:
    """By layer, the fastest peer's time over ours.

    >>> ratios({"a": {"upconv": {"ms": 2.0}, "x": {"ms": 8.0}, "y": {"ms": 6.0}}}, "ms", ["x", "y"])
    {'a': 3.0}
    """
    found = {name: best(rows, column, peers) for name, rows in results.items()}
    return {
        name: results[name][peer][column] / results[name][OURS][column]
        for name, peer in found.items()
        if peer
    }


def all_ratios(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """By kind, peer and layer, the peer's time over ours."""
    names = {name for rows in results.values() for name in rows} - {OURS}
    return {
        kind: {
            name: found
            for name in PEERS
            if name in names and (found := ratios(results, f"{kind}_ms", [name]))
        }
        for kind in KINDS
    }


class Span(NamedTuple):
    """How many times as long others take: over several layers, the geometric mean and the range."""

    what: str
    mean: float
    least: float
    most: float


def spans(results: Results) -> list[Span]:
    """Of each kind, against the best on JAX and elsewhere, where several layers were measured."""
    found = (
        (f"{kind}, {where}", list(ratios(results, f"{kind}_ms", peers).values()))
        for kind in KINDS
        for where, peers in (("JAX", ON_JAX), ("elsewhere", ELSEWHERE))
    )
    return [Span(what, mean(r), min(r), max(r)) for what, r in found if len(r) > 1]


class Goal(NamedTuple):
    """A line of the summary: a number for each layer, one number for all, and its bound.

    Attributes:
      what: describes it in words.
      values: the number for each layer.
      reduce: makes one number of them.
      bound: what that number is held to.
      least: whether the bound is a minimum.
    """

    what: str
    values: Callable[[Results], dict[str, float]]
    reduce: Callable[[Iterable[float]], float]
    bound: float
    least: bool = True

    def judge(self, values: Mapping[str, float]) -> dict[str, Any]:
        """What, value, goal, whether it is reached, and the worst layer."""
        value = self.reduce(values.values())
        worst = (min if self.least else max)(values, key=lambda name: values[name])
        return {
            "what": self.what,
            "value": value,
            "goal": f"{'≥' if self.least else '≤'} {self.bound}",
            "reached": value >= self.bound if self.least else value <= self.bound,
            "worst_layer": worst,
        }


def _against(column: str, peers: Iterable[str]) -> Callable[[Results], dict[str, float]]:
    return lambda results: ratios(results, column, peers)


def _memory(results: Results) -> dict[str, float]:
    return {name: rows[OURS]["temp_ratio"] for name, rows in results.items()}


def _compilation(results: Results) -> dict[str, float]:
    return {name: 1 / r for name, r in ratios(results, "compile_ms", ["flax"]).items()}


mean = statistics.geometric_mean
ALL = (*ON_JAX, *ELSEWHERE)
GOALS = (
    Goal("step, best on JAX / ours: mean", _against("step_ms", ON_JAX), mean, 25),
    Goal("step, best on JAX / ours: worst", _against("step_ms", ON_JAX), min, 1.2),
    Goal("step, best elsewhere / ours: mean", _against("step_ms", ELSEWHERE), mean, 1),
    Goal("forward, best of all / ours: mean", _against("forward_ms", ALL), mean, 1),
    Goal("forward, flax / ours: worst", _against("forward_ms", ["flax"]), min, 1),
    Goal("temporary memory / operands and results: worst", _memory, max, 4, least=False),
    Goal("compilation, ours / flax: mean", _compilation, mean, 1, least=False),
    Goal("Hessian-vector product, torch / ours: mean", _against("hvp_ms", TORCH), mean, 1),
)


def summary(results: Results) -> list[dict[str, Any]]:
    """Every goal that can be judged by what was measured, as `Goal.judge` has it."""
    found = ((goal, goal.values(results)) for goal in GOALS)
    return [goal.judge(values) for goal, values in found if values]
