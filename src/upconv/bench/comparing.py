"""Every peer's times for every layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from upconv.bench import machine
from upconv.bench.clocks import Clock, clock
from upconv.bench.layers import LayerSpec, random_data
from upconv.bench.measuring import (
    Effort,
    Results,
    Row,
    measure,
    statistics_of,
    timed,
)
from upconv.bench.peers import OURS, PEERS, SECOND_ORDER
from upconv.bench.task import KINDS, Task

Clocks = dict[tuple[str, str, str], Clock]  # by layer, kind and peer


def bench_layers(
    layers: Mapping[str, LayerSpec],
    peers: Sequence[str],
    dtype: str,
    effort: Effort,
    say: Callable[[str], None],
) -> Results:
    """A row for each layer and peer; one that fails is left out, but a failure of ours is raised.

    A round takes all layers in turn: a minute in which the machine is busy with something else then
    spoils one round of each layer, rather than all rounds of one.
    """
    tasks = {name: build_tasks(layer, peers, dtype, say) for name, layer in layers.items()}
    results: Results = {}
    for name in layers:  # all of them before any call, since this empties JAX's caches
        say(f"compiling the training step of {name}")
        results[name] = compile_steps(name, tasks[name], effort.compilations, say)
    groups: list[Clocks] = []
    for name, layer in layers.items():
        warm_up(layer, tasks[name], results[name], say)
        check_losses(name, tasks[name], results[name], dtype)
        groups += _groups(name, tasks[name])
    for (name, kind, peer), times in measure(groups, effort, say).items():
        results[name][peer] |= statistics_of(kind, times)
    return {name: {peer: rows[peer] for peer in tasks[name]} for name, rows in results.items()}


@contextlib.contextmanager
def sparing(
    peer: str, layer: str, tasks: dict[str, Task], say: Callable[[str], None]
) -> Iterator[None]:
    """Drops the task of a peer that fails within, and says so; our own failure is raised."""
    try:
        yield
    except Exception as error:
        # A dtype or layout that one peer lacks must not cost all the measuring.
        if peer == OURS:
            raise
        say(f"{peer} cannot do {layer}: {type(error).__name__}: {error}")
        tasks.pop(peer, None)


def _groups(layer: str, tasks: Mapping[str, Task]) -> list[Clocks]:
    """A group for each kind: everyone's clock."""
    return [
        {
            (layer, kind, peer): clock(task.calls[kind], task.wait)
            for peer, task in tasks.items()
            if kind in task.calls
        }
        for kind in KINDS
    ]


def build_tasks(
    layer: LayerSpec, peers: Sequence[str], dtype: str, say: Callable[[str], None]
) -> dict[str, Task]:
    """The tasks of those peers that have such a layer."""
    data = random_data(layer)
    tasks: dict[str, Task] = {}
    for name in peers:
        if PEERS[name].has(layer):
            with sparing(name, layer.name, tasks, say):
                task = PEERS[name].build(layer, data, dtype)
                kinds = [k for k in task.calls if k != "hvp" or name in SECOND_ORDER]
                tasks[name] = task._replace(calls={kind: task.calls[kind] for kind in kinds})
    return tasks


def warm_up(
    layer: LayerSpec, tasks: dict[str, Task], rows: dict[str, Row], say: Callable[[str], None]
) -> None:
    """Makes every call once, which compiles it."""
    for name, task in list(tasks.items()):
        made: dict[str, Any] = {}
        with sparing(name, layer.name, tasks, say):
            made = {kind: call() for kind, call in task.calls.items()}
        if made:
            check_shape(name, layer, task, made["forward"])
            rows[name]["loss"] = float(made["step"][0])
            rows[name]["aligned"] = task.aligned


def check_shape(name: str, layer: LayerSpec, task: Task, output: Any) -> None:
    """Raises a RuntimeError if the output's shape is not ours."""
    shape = list(map(int, output.shape))
    shape.append(shape.pop(task.channel_axis))
    if tuple(shape) != layer.output_shape:
        raise RuntimeError(f"{name} gives {shape} for {layer.name}, not {layer.output_shape}")


def check_losses(
    layer: str, tasks: Mapping[str, Task], rows: Mapping[str, Row], dtype: str
) -> None:
    """Raises a RuntimeError if a peer that crops as we do has another loss."""
    ours, tolerance = rows[OURS]["loss"], _tolerance(dtype)
    for name, task in tasks.items():
        loss = rows[name]["loss"]
        if task.aligned and not math.isclose(loss, ours, rel_tol=tolerance):
            raise RuntimeError(f"{name} has the loss {loss:.9g} for {layer}, not our {ours:.9g}")


def _tolerance(dtype: str) -> float:
    """How far a loss may be from ours, relatively."""
    if dtype == "bfloat16":
        return 2**-6  # two steps from one number to the next
    if machine.on_gpu():
        return 2**-8  # TF32 may cut a 2**-10th off each of four factors
    return 1e-5  # sums in other orders differ by some 1e-7


def compile_steps(
    layer: str, tasks: dict[str, Task], times: int, say: Callable[[str], None]
) -> dict[str, Row]:
    """How long the training step takes to trace and compile, and how much memory it then needs.

    `temp_ratio` is the temporary memory over that of arguments and results.
    """
    rows: dict[str, Row] = {name: {} for name in tasks}
    for _ in range(times):
        for name, task in list(tasks.items()):
            if task.compile:
                with sparing(name, layer, tasks, say):
                    jax.clear_caches()
                    compiled, ms = timed(task.compile)
                    rows[name]["compile_ms"] = min(ms, rows[name].get("compile_ms", math.inf))
                    rows[name]["temp_ratio"] = _temp_ratio(compiled)
    return rows


def _temp_ratio(compiled: jax.stages.Compiled) -> float:
    memory: Any = compiled.memory_analysis()
    operands = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return memory.temp_size_in_bytes / operands
