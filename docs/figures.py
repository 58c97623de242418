"""Writes the tables of figures in README.md and benchmarks/README.md, from benchmarks/*.json.

    python docs/figures.py

A table stands between `<!-- figures: NAME -->` and `<!-- end -->`, where NAME is one of `TABLES`.
Ratios are the time of others over ours.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from upconv import auto, geometry
from upconv.auto.problem import CONVOLUTIONS, Ways
from upconv.bench.layers import LAYERS
from upconv.bench.peers import ELSEWHERE, ON_JAX, OURS, TORCH
from upconv.bench.report import number
from upconv.bench.results import GOALS, best, mean, ratios

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks"
PAGES = (ROOT / "README.md", RECORDS / "README.md")

# The headings of their columns, and what they are called beside a GPU.
CPUS = {
    "EPYC": ("cpu", "2 cores of an AMD EPYC"),
    "Zen 3": ("cpu-zen3", "2 cores of an older EPYC, without AVX-512"),
    "Xeon": ("cpu-xeon", "2 cores of an Intel Xeon"),
}
NEWER = {"EPYC, jaxlib 0.12": ("cpu-jaxlib-0.12", "2 cores of an AMD EPYC, jaxlib 0.12")}
DTYPES = ("float32", "bfloat16")


@functools.cache
def record(name: str) -> Any:
    """One of the files in benchmarks/."""
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    header = list(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body))


def spread(values: Iterable[float]) -> str:
    """Their geometric mean, and their range."""
    found = list(values)
    return f"{number(mean(found))} ({number(min(found))} to {number(max(found))})"


def of_layers(kind: str) -> str:
    """A row for each of the thirteen layers: our time on the first CPU, and ratios on all."""
    results = {heading: record(name)["results"] for heading, (name, _) in CPUS.items()}
    first, *others = CPUS
    found = [
        ratios(results[heading], f"{kind}_ms", peers)
        for peers, heading in itertools.product((ON_JAX, ELSEWHERE), CPUS)
    ]
    columns = [f"{kind}, ms", f"/ JAX, {first}", *others, f"/ others, {first}", *others]
    body = []
    for layer in LAYERS:
        ours = results[first][layer][OURS]
        line = [layer, number(ours[f"{kind}_ms"]), *(number(r[layer]) for r in found)]
        body.append([*line, number(ours["temp_ratio"])] if kind == "step" else line)
    return table(["layer", *columns, *(["memory"] if kind == "step" else [])], body)


def of_goals() -> str:
    """A row for each goal: misses in bold, and the layer where a figure is that of one."""
    machines = {**CPUS, **NEWER}
    judged = [record(name)["summary"] for name, _ in machines.values()]
    body = []
    for goal, *lines in zip(GOALS, *judged, strict=True):
        cells = []
        for line in lines:
            value = number(line["value"]) if line["reached"] else f"**{number(line['value'])}**"
            cells.append(value if goal.reduce is mean else f"{value} ({line['worst_layer']})")
        body.append([goal.what, *cells, lines[0]["goal"]])
    return table(["", *machines, "goal"], body)


def of_groups() -> str:
    """A row for each layer with groups, and one for the means of depthwise and of other layers."""
    report = record("groups")
    results = report["results"]
    found = [
        ratios(results, f"{kind}_ms", peers)
        for kind, peers in (
            ("step", ["lax"]), ("step", TORCH), ("forward", ["lax"]), ("forward", TORCH),
            ("hvp", TORCH),
        )
    ]  # fmt: skip
    body, depthwise = [], []
    for name, layer in report["layers"].items():
        *shape, channels = layer["input_shape"]
        sizes = "x".join(map(str, (*shape, channels)))
        kernel = "x".join(map(str, layer["kernel_size"]))
        line = [name, f"{sizes} -> {layer['filters']}", str(layer["groups"])]
        line += [f"{kernel} / {layer['stride']}", number(results[name][OURS]["step_ms"])]
        body.append([*line, *(number(r[name]) for r in found)])
        depthwise += [name] if layer["groups"] == channels else []
    for label, names in (
        ("depthwise", depthwise),
        ("others", [name for name in results if name not in depthwise]),
    ):
        means = (number(mean(r[name] for name in names)) for r in found)
        body.append([f"geometric mean, {label}", "", "", "", "", *means])
    columns = ["layer", "input, channels last -> filters", "groups", "kernel / stride", "step, ms"]
    columns += ["/ JAX", "/ torch", "forward / JAX", "/ torch", "HVP / torch"]
    return table(columns, body)


def taken(layer: Mapping[str, Any]) -> Ways:
    """How the rules of CUDA compute a layer of the GPU's record."""
    batch, *size, channels = layer["input_shape"]
    groups = layer["groups"]
    g = geometry.transposed(
        size,
        layer["kernel_size"],
        strides=layer["stride"],
        padding=layer["padding"],
        dilation_rate=layer["dilation_rate"],
        groups=groups,
    )
    kernel_shape = (*layer["kernel_size"], layer["filters"] // groups, channels)
    return auto.ways(g, batch, kernel_shape, jnp.dtype(layer["dtype"]), "cuda")


def _map_times(layer: Mapping[str, Any], ways: Ways) -> dict[str, float]:
    return {name: times[getattr(ways, name)] for name, times in layer["us"].items()}


@functools.cache
def on_gpu(dtype: str) -> dict[str, dict[str, float]]:
    """By column and layer, the thirteen layers on the GPU.

    A forward pass of ours is timed as the rules compute it, a step as convolutions alone.
    """
    report = record("h100")
    maps = {
        layer["layer"]: layer
        for layer in report["maps"]
        if layer["dtype"] == dtype and layer["layer"] in LAYERS
    }
    peers: dict[str, dict[str, Any]] = {name: {} for name in LAYERS}
    for row in report["peers"]:
        if row["dtype"] == dtype:
            peers[row["layer"]][row["peer"]] = row
    found: dict[str, dict[str, float]] = {}
    for layer, rows in peers.items():
        by_rules = _map_times(maps[layer], taken(maps[layer]))
        convolutions = _map_times(maps[layer], CONVOLUTIONS)
        ours = {**rows["convolutions"], "forward_us": by_rules["conv_transpose"]}
        columns = {
            "forward": ours["forward_us"],
            "maps": sum(convolutions.values()) / sum(by_rules.values()),
        }
        for kind, (label, names) in itertools.product(
            ("forward", "step", "hvp"), (("flax", ["flax"]), ("torch", TORCH))
        ):
            if peer := best(rows, f"{kind}_us", names):
                columns[f"{kind} {label}"] = rows[peer][f"{kind}_us"] / ours[f"{kind}_us"]
        for column, value in columns.items():
            found.setdefault(column, {})[layer] = value
    return found


def of_gpu(columns: Mapping[str, str]) -> str:
    """A row for each layer, and one for the means of ratios.

    Args:
      columns: those of `on_gpu`, with their headings.
    """
    found = {dtype: on_gpu(dtype) for dtype in DTYPES}
    pairs = list(itertools.product(DTYPES, columns))
    body = [
        [layer, *(number(found[dtype][column][layer]) for dtype, column in pairs)]
        for layer in LAYERS
    ]
    means = (
        "" if column == "forward" else number(mean(found[dtype][column].values()))
        for dtype, column in pairs
    )
    first, *others = columns.values()
    headings = itertools.chain(*((f"{dtype}: {first}", *others) for dtype in DTYPES))
    return table(["layer", *headings], [*body, ["geometric mean", *means]])


def of_machines() -> str:
    """A row for each machine and kind of peer, with means and ranges over the thirteen layers."""

    def over(names: Iterable[str], kind: str, peers: Iterable[str]) -> str:
        found = [ratios(record(name)["results"], f"{kind}_ms", peers).values() for name in names]
        return spread(itertools.chain(*found))

    kinds = ("step", "forward")
    body = [
        [machine, "fastest other layer on JAX", *(over([name], kind, ON_JAX) for kind in kinds)]
        for name, machine in (*CPUS.values(), *NEWER.values())
    ]
    names = [name for name, _ in CPUS.values()]
    others = (over(names, kind, ELSEWHERE) for kind in kinds)
    body.append(["the three CPUs", "fastest of PyTorch and TensorFlow", *others])
    for dtype, (peer, label) in itertools.product(DTYPES, (("flax", "Flax"), ("torch", "PyTorch"))):
        found = (spread(on_gpu(dtype)[f"{kind} {peer}"].values()) for kind in kinds)
        body.append([f"NVIDIA H100, {dtype}; step by cuDNN alone \\*", label, *found])
    return table(["", "others", "training step", "forward pass"], body)


TABLES: dict[str, Callable[[], str]] = {
    "machines": of_machines,
    "step": functools.partial(of_layers, "step"),
    "forward": functools.partial(of_layers, "forward"),
    "goals": of_goals,
    "groups": of_groups,
    "gpu forward": functools.partial(
        of_gpu,
        {
            "forward": "forward",
            "forward flax": "flax / ours",
            "forward torch": "torch / ours",
            "maps": "maps",
        },
    ),
    "gpu step": functools.partial(
        of_gpu,
        {
            "step flax": "step, flax / ours",
            "step torch": "torch / ours",
            "hvp torch": "HVP, torch / ours",
        },
    ),
}
BLOCK = re.compile(r"(<!-- figures: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """A page, with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
