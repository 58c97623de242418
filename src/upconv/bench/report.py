"""What is shown on the screen: tables of times, and what became of the goals."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from upconv.bench.layers import TIMES, LayerSpec
from upconv.bench.measuring import Row
from upconv.bench.peers import OURS
from upconv.bench.results import Span
from upconv.bench.task import KINDS


def table(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Prints a table, with rich where that is installed."""
    if importlib.util.find_spec("rich") is None:
        print(f"\n{title}\n{plain_table(header, body)}", flush=True)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, name in enumerate(header):
        view.add_column(name, justify="right" if index else "left", no_wrap=True)
    for line in body:
        view.add_row(*line, style="bold" if line[0] == OURS else None)
    console = Console()
    console.width = max(console.width, 120)  # better wrapped than cut off
    console.print(view)


def plain_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, the first aligned left, the rest right.

    >>> print(plain_table(["peer", "ms"], [["flax", "12"], ["lax", "9"]]))
    peer  ms
    flax  12
    lax    9
    """
    lines = [header, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, or nothing for None.

    >>> number(1234.5), number(12.345), number(0.98765, "×"), number(None)
    ('1234', '12.3', '0.988×', '')
    """
    if value is None:
        return ""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}{unit}"


def show_layer(layer: LayerSpec, rows: Mapping[str, Row]) -> None:
    """A line per peer: times, ratios to ours, the widest spread, memory, compilation."""
    header = ["peer", *itertools.chain(*((f"{kind} ms", "/ ours") for kind in KINDS))]
    body = []
    for name, row in rows.items():
        line = [name]
        for column in (f"{kind}_ms" for kind in KINDS):
            ms = row.get(column)
            line += [number(ms), number(ms and ms / rows[OURS][column], TIMES)]
        spread = max(value for column, value in row.items() if column.endswith("_spread"))
        body.append(
            [*line, *(number(v) for v in (spread, row.get("temp_ratio"), row.get("compile_ms")))]
        )
    table(f"{layer.name}: {layer}", [*header, "spread", "temp", "compile ms"], body)


def show_spans(lines: Sequence[Span]) -> None:
    """How many times as long the best on JAX and the best elsewhere take, over all layers."""
    if lines:
        body = [[line.what, *(number(r, TIMES) for r in line[1:])] for line in lines]
        title = "the fastest on JAX, and elsewhere (torch, tensorflow), over ours"
        table(title, ["", "geometric mean", "least", "most"], body)


def show_summary(lines: Iterable[Mapping[str, Any]]) -> None:
    """The goals of the project, and which of them are reached."""
    body = [
        [
            line["what"],
            number(line["value"]),
            line["goal"],
            "yes" if line["reached"] else "no",
            line["worst_layer"],
        ]
        for line in lines
    ]
    table(
        "goals, for two CPU cores",
        ["", "here", "goal", "reached", "worst layer"],
        body,
    )


def show_maps(layer: LayerSpec, records: Iterable[Mapping[str, Any]]) -> None:
    """A line per way; those that `auto` takes are marked."""
    body = [
        [
            record["map"],
            record["way"],
            "auto" if record["taken"] else "",
            number(record["call_ms"]),
            number(record["call_spread"]),
            number(record["compile_ms"]),
        ]
        for record in records
    ]
    table(f"{layer.name}: {layer}", ["map", "way", "taken", "ms", "spread", "compile ms"], body)
