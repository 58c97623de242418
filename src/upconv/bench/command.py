"""The command line: reads the options, measures, shows and writes."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from upconv.bench import chart, machine, report
from upconv.bench.comparing import bench_layers
from upconv.bench.layers import GROUPED, LAYERS, TIMES, LayerSpec
from upconv.bench.maps import bench_maps
from upconv.bench.measuring import QUICK, Effort
from upconv.bench.peers import OURS, PEERS, present, why_not
from upconv.bench.results import all_ratios, spans, summary

DESCRIPTION = "How fast the layer is on this machine, compared with every peer that is installed."
ROUNDS = 5
# The help must be printable on any terminal.
ASCII = str.maketrans({TIMES: "x", "→": "->"})


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, checked as far as they can be before anything is measured."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    if args.quick and args.rounds is not None:
        parser.error("--quick makes one round, whatever --rounds says: drop one of them")
    if args.chart and args.maps:
        parser.error(
            "--chart draws training steps, which --maps does not measure: drop one of them"
        )
    if args.peers is not None and args.maps:
        parser.error("--maps measures none of --peers: drop one of them")
    if args.chart and args.json and args.chart.resolve() == args.json.resolve():
        parser.error(f"--json and --chart must be two files, got {args.chart} for both")
    if args.chart and args.chart.suffix.lower() != ".svg":
        parser.error(f"--chart draws an SVG: its file must end in .svg, got {args.chart}")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m upconv.bench",
        description=DESCRIPTION,
        epilog=_sizes_of_layers(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--layers",
        type=_names(LAYERS | GROUPED, {"groups": list(GROUPED)}),
        default=list(LAYERS),
        metavar="NAME,...",
        help="some of the layers listed below, or groups, for all that have them "
        "(default: all that have none; only then are goals judged)",
    )
    add(
        "--peers",
        type=_names(PEERS),
        metavar="NAME,...",
        help=f"some of {', '.join(PEERS)} (default: all that are installed)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of inputs and kernels (default: float32)",
    )
    add("--rounds", type=int, help=f"turns that each peer gets (default: {ROUNDS})")
    add("--quick", action="store_true", help="tiny layers, one round: check that everything runs")
    add(
        "--maps",
        action="store_true",
        help="time every way of computing each map, rather than the peers",
    )
    add("--json", type=_output, metavar="FILE", help="write all measurements to this file")
    add("--chart", type=_output, metavar="FILE.svg", help="draw the training steps as an SVG")
    return parser


def _sizes_of_layers() -> str:
    head = "layers (batch x image x channels -> filters, kernel / stride, padding):"
    lines = [
        f"  {layer.name:<8} {str(layer).translate(ASCII)}, {layer.padding}"
        for layer in (LAYERS | GROUPED).values()
    ]
    return "\n".join([head, *lines])


def _names(
    known: Mapping[str, Any], sets: Mapping[str, list[str]] = types.MappingProxyType({})
) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for word in text.split(",") for name in sets.get(word, [word])]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def _output(text: str) -> Path:
    """The path of a file that can be written; its folder is made if need be.

    This is tried before the many minutes of measuring what goes into the file. A file that exists
    stays as it is.
    """
    path = Path(text)
    try:
        new = not path.exists()
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        reason = f"{text} cannot be written: {error.strerror}"
        raise argparse.ArgumentTypeError(reason) from error
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, show, write."""
    args = arguments(argv)
    _prepare()
    effort = QUICK if args.quick else _effort(args.rounds or ROUNDS)
    layers = {name: (LAYERS | GROUPED)[name] for name in args.layers}
    if args.quick:
        layers = {name: layer.tiny for name, layer in layers.items()}
    found = _settings(args, layers, effort)
    found |= (_measure_maps if args.maps else _measure_peers)(args, layers, effort)
    if args.json:
        write(args.json, json.dumps(found, indent=1) + "\n")
    if args.chart:
        write(args.chart, chart.draw(found["results"], layers, chart.conditions(found)))


def _effort(rounds: int) -> Effort:
    if machine.on_gpu():  # where the minutes go into compilation, and a clock makes several calls
        return Effort(rounds, calls=1, seconds=0.0, compilations=1)
    return Effort(rounds)


def _prepare() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # The others need room on the GPU, too, and a cached compilation would take no time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)


def _settings(
    args: argparse.Namespace, layers: Mapping[str, LayerSpec], effort: Effort
) -> dict[str, Any]:
    return {
        "environment": machine.environment({"jaxlib", *(p.package for p in PEERS.values())}),
        "dtype": args.dtype,
        "quick": args.quick,
        "effort": effort._asdict(),
        "clock": "kernels" if machine.on_gpu() else "wall",
        "layers": {name: dataclasses.asdict(layer) for name, layer in layers.items()},
    }


def _measure_peers(
    args: argparse.Namespace, layers: Mapping[str, LayerSpec], effort: Effort
) -> dict[str, Any]:
    for name in args.peers or ():
        if reason := why_not(name):
            sys.exit(f"--peers: {name} cannot take part: {reason}")
    peers = present(args.peers or PEERS)
    if args.chart and peers == [OURS]:
        sys.exit(f"--chart draws peers of {OURS}, and none takes part")
    results = bench_layers(layers, peers, args.dtype, effort, _tell)
    for name, layer in layers.items():
        report.show_layer(layer, results[name])
    # The goals were set for all layers together, in their full size.
    lines = summary(results) if layers == LAYERS else []
    report.show_spans(spans(results))
    if lines:
        report.show_summary(lines)
    return {"results": results, "ratios": all_ratios(results), "summary": lines}


def _measure_maps(
    args: argparse.Namespace, layers: Mapping[str, LayerSpec], effort: Effort
) -> dict[str, Any]:
    records = []
    for layer in layers.values():
        records.append(bench_maps(layer, args.dtype, effort))
        report.show_maps(layer, records[-1])
    return {"maps": list(itertools.chain.from_iterable(records))}


def write(path: Path, text: str) -> None:
    """Writes the text, into a folder that need not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    _tell(f"wrote {path}")


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
