"""The benchmark: its layers, its arithmetic, and that it runs beside every peer."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from upconv import lowering
from upconv.auto import cpu
from upconv.bench import (
    chart,
    clocks,
    command,
    comparing,
    jax_peers,
    machine,
    tensorflow_peer,
    torch_peer,
)
from upconv.bench.clocks import busy_time, clock
from upconv.bench.layers import GROUPED, LAYERS, TIMES, Data, LayerSpec, random_data
from upconv.bench.maps import OF_GROUPS
from upconv.bench.measuring import QUICK, Effort, measure, statistics_of
from upconv.bench.peers import PEERS, Peer, present
from upconv.bench.report import show_layer, show_spans, show_summary
from upconv.bench.results import Span, all_ratios, spans, summary
from upconv.bench.task import Task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
BENCHMARKS = ROOT / "benchmarks"

# Input, kernel, stride and output, by hand.
SIZES = {
    "dcgan1": ((32, 4, 4, 512), (4, 4, 256, 512), 2, (32, 8, 8, 256)),
    "dcgan2": ((32, 8, 8, 256), (4, 4, 128, 256), 2, (32, 16, 16, 128)),
    "dcgan3": ((32, 16, 16, 128), (4, 4, 64, 128), 2, (32, 32, 32, 64)),
    "dcgan4": ((32, 32, 32, 64), (4, 4, 3, 64), 2, (32, 64, 64, 3)),
    "odd5x5": ((32, 16, 16, 128), (5, 5, 64, 128), 2, (32, 32, 32, 64)),
    "unet2x2": ((2, 64, 64, 128), (2, 2, 64, 128), 2, (2, 128, 128, 64)),
    "unet3x3": ((2, 64, 64, 128), (3, 3, 64, 128), 2, (2, 128, 128, 64)),
    "fsrcnn": ((1, 96, 96, 56), (9, 9, 1, 56), 3, (1, 288, 288, 1)),
    "fcn": ((1, 16, 16, 21), (32, 32, 21, 21), 16, (1, 256, 256, 21)),
    "stride1": ((2, 64, 64, 128), (3, 3, 64, 128), 1, (2, 64, 64, 64)),
    "large": ((1, 128, 128, 64), (4, 4, 64, 64), 2, (1, 256, 256, 64)),
    "conv1d": ((4, 256, 256), (16, 128, 256), 8, (4, 2048, 128)),
    "conv3d": ((1, 12, 12, 12, 64), (3, 3, 3, 32, 64), 2, (1, 24, 24, 24, 32)),
}

# The same of layers with groups, and their number.
SIZES_OF_GROUPS = {
    "dla2": ((4, 64, 64, 64), (4, 4, 1, 64), 2, (4, 128, 128, 64), 64),
    "dla8": ((1, 32, 32, 64), (16, 16, 1, 64), 8, (1, 256, 256, 64), 64),
    "fcn8s": ((1, 64, 64, 21), (16, 16, 1, 21), 8, (1, 512, 512, 21), 21),
    "bigvgan": ((4, 4096, 96), (12, 1, 96), 2, (4, 8192, 96), 96),
    "depth3d": ((1, 16, 16, 16, 32), (4, 4, 4, 1, 32), 2, (1, 32, 32, 32, 32), 32),
    "depth1": ((4, 28, 28, 96), (7, 7, 1, 96), 1, (4, 28, 28, 96), 96),
    "two": ((32, 8, 8, 256), (4, 4, 64, 256), 2, (32, 16, 16, 128), 2),
    "eight": ((8, 32, 32, 128), (4, 4, 8, 128), 2, (8, 64, 64, 64), 8),
    "many": ((8, 28, 28, 128), (3, 3, 4, 128), 2, (8, 56, 56, 128), 32),
    "four1d": ((4, 256, 256), (16, 32, 256), 8, (4, 2048, 128), 4),
    "four3d": ((1, 12, 12, 12, 64), (3, 3, 3, 8, 64), 2, (1, 24, 24, 24, 32), 4),
}


def test_the_layers_are_those_that_the_goals_were_set_for() -> None:
    layers = LAYERS.values()
    found = {x.name: (x.input_shape, x.kernel_shape, x.stride, x.output_shape) for x in layers}
    assert found == SIZES
    assert [layer.name for layer in layers if layer.padding != "same"] == ["unet2x2"]
    assert {layer.groups for layer in layers} == {1}


def test_the_layers_of_groups() -> None:
    found = {
        x.name: (x.input_shape, x.kernel_shape, x.stride, x.output_shape, x.groups)
        for x in GROUPED.values()
    }
    assert found == SIZES_OF_GROUPS


def test_the_sizes_are_told_where_the_names_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.arguments(["--help"])
    told = capsys.readouterr().out
    assert told.isascii()
    assert "`" not in told
    for name, (image, kernel, stride, _) in SIZES.items():
        *window, filters, _ = kernel
        sizes, window = ("x".join(map(str, shape)) for shape in (image, window))
        padding = LAYERS[name].padding
        assert f"{name:<8} {sizes} -> {filters}, {window} / {stride}, {padding}\n" in told
        for page in BENCHMARKS.glob("*.md"):
            row = f"| {name} | {sizes} -> {filters} | {window} / {stride} | {padding} |\n"
            assert row in page.read_text()
    for name, (image, kernel, stride, output, groups) in SIZES_OF_GROUPS.items():
        sizes, window = ("x".join(map(str, shape)) for shape in (image, kernel[:-2]))
        layer = f"{sizes} -> {output[-1]} in {groups} groups, {window} / {stride}"
        assert f"{name:<8} {layer}, same\n" in told
        for page in BENCHMARKS.glob("*.md"):
            row = f"| {name} | {sizes} -> {output[-1]} | {groups} | {window} / {stride} |"
            assert row in page.read_text()


def test_tiny_layers_keep_their_windows() -> None:
    for layer in (LAYERS | GROUPED).values():
        tiny = layer.tiny
        assert (tiny.kernel_size, tiny.stride, tiny.padding) == (
            layer.kernel_size,
            layer.stride,
            layer.padding,
        )
        assert np.prod(tiny.input_shape) <= 1000
        assert tiny.groups == min(layer.groups, 2)
        assert (tiny.kernel_shape[-2] == 1) == (layer.kernel_shape[-2] == 1)


# ------------------------------------------------------------------ a run


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`command.main`, which leaves nothing behind."""
    for name in ("TF_CPP_MIN_LOG_LEVEL", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    cached = jax.config.jax_enable_compilation_cache
    yield command.main
    jax.config.update("jax_enable_compilation_cache", cached)


def test_a_quick_run_writes_what_it_measured(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, picture = tmp_path / "new" / "cpu.json", tmp_path / "speed.svg"
    options = ["--quick", "--layers", "unet2x2,conv1d", "--peers", "flax,lax"]
    main([*options, "--json", str(record), "--chart", str(picture)])

    report = json.loads(record.read_text())
    assert set(report) == {
        "environment", "dtype", "quick", "effort", "clock", "layers",
        "results", "ratios", "summary",
    }  # fmt: skip
    assert set(report["environment"]) == {
        "date", "python", "versions", "device",
        "cpu", "cpu_family", "cpu_model", "vectors", "cores",
    }  # fmt: skip
    assert report["environment"]["versions"]["jax"] == jax.__version__
    assert os.uname().nodename not in record.read_text()
    assert str(tmp_path) not in record.read_text()
    assert list(report["results"]) == list(report["layers"]) == ["unet2x2", "conv1d"]

    columns = ("ms", "spread", "samples")
    timed = {f"{kind}_{column}" for kind in ("forward", "step") for column in columns}
    of_jax = {*timed, "compile_ms", "temp_ratio", "loss", "aligned"}
    for rows in report["results"].values():
        assert {name: set(row) for name, row in rows.items()} == {
            "upconv": {*of_jax, *(f"hvp_{column}" for column in columns)},
            "flax": of_jax,
            "lax": of_jax,
        }
        assert all(value > 0 for row in rows.values() for value in row.values())
        assert all(row["step_samples"] == 1 for row in rows.values())
    for kind in ("forward", "step"):
        for peer, by_layer in report["ratios"][kind].items():
            for layer, ratio in by_layer.items():
                rows = report["results"][layer]
                assert ratio == rows[peer][f"{kind}_ms"] / rows["upconv"][f"{kind}_ms"]
    assert report["ratios"]["hvp"] == {}

    shown = capsys.readouterr().out
    assert "unet2x2: 2×5×5×4 → 3, 2×2 / 2" in shown  # noqa: RUF001
    assert report["summary"] == []
    assert "summary" not in shown
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("options", [[], ["--quick"], ["--layers", "fcn,large"]], ids=str)
def test_goals_are_judged_of_all_layers_in_full_size_alone(
    options: list[str], main: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def bench(layers: Any, *_: Any) -> Any:
        one = {"upconv": {**row(forward=2, step=10), "step_spread": 1.1, "temp_ratio": 1.5}}
        return dict.fromkeys(layers, one)

    monkeypatch.setattr(command, "bench_layers", bench)
    main([*options, "--peers", "upconv"])
    shown = capsys.readouterr().out
    assert "fcn: 1" in shown
    assert ("reached" in shown) == (options == [])


def test_every_way_of_every_map_is_timed(main: Any, tmp_path: Path) -> None:
    record = tmp_path / "maps.json"
    main(["--quick", "--maps", "--layers", "unet3x3", "--json", str(record)])
    maps = json.loads(record.read_text())["maps"]
    tables = {
        "conv_transpose": lowering.CONV_TRANSPOSE,
        "conv": lowering.CONV,
        "correlate_kernel": lowering.CORRELATE_KERNEL,
    }
    for name, table in tables.items():
        entries = [entry for entry in maps if entry["map"] == name]
        of_one_group = [way for way in table if way not in OF_GROUPS]
        assert [entry["way"] for entry in entries] == of_one_group
        assert sum(entry["taken"] for entry in entries) == 1
        assert all(entry["call_ms"] > 0 and entry["compile_ms"] > 0 for entry in entries)


def test_layers_of_groups_are_named_one_by_one_or_together() -> None:
    assert command.arguments(["--layers", "groups"]).layers == list(GROUPED)
    assert command.arguments(["--layers", "many,fcn"]).layers == ["fcn", "many"]
    everything = command.arguments(["--layers", "groups," + ",".join(LAYERS)]).layers
    assert everything == [*LAYERS, *GROUPED]
    assert command.arguments([]).layers == list(LAYERS)


def test_of_groups_only_those_that_have_them_take_part(main: Any, tmp_path: Path) -> None:
    """`jax.lax` by its convolution, whose loss must be ours; Flax has none."""
    record = tmp_path / "groups.json"
    options = ["--quick", "--layers", "bigvgan,many", "--peers", "flax,lax"]
    main([*options, "--json", str(record)])
    results = json.loads(record.read_text())["results"]
    assert {name: list(rows) for name, rows in results.items()} == {
        "bigvgan": ["upconv", "lax"],
        "many": ["upconv", "lax"],
    }
    assert all(row["aligned"] for rows in results.values() for row in rows.values())


@pytest.mark.parametrize(
    ("layer", "few_pairs", "narrow", "depthwise"),
    [("bigvgan", 1, True, True), ("many", 12, True, False), ("many", 11, False, False)],
)
def test_every_way_of_groups_is_timed(
    layer: str,
    few_pairs: int,
    narrow: bool,
    depthwise: bool,
    monkeypatch: pytest.MonkeyPatch,
    main: Any,
    tmp_path: Path,
) -> None:
    """The tiny `many` has four channels and three filters in a group."""
    monkeypatch.setattr(cpu, "FEW_PAIRS_OF_MORE", few_pairs)
    record = tmp_path / "maps.json"
    main(["--quick", "--maps", "--layers", layer, "--json", str(record)])
    found: dict[str, set[str]] = {}
    for entry in json.loads(record.read_text())["maps"]:
        found.setdefault(entry["map"], set()).add(entry["way"])
    always = {"matmul", "one_by_one"} | ({"elementwise"} if narrow else set())
    assert found == {
        "conv_transpose": {"input_dilation", "subpixel", "phases", *always}
        | ({"elementwise_phases"} if narrow else set()),
        "conv": {"strided", *always},
        "correlate_kernel": {"backward_filter", *always} | ({"depthwise"} if depthwise else set()),
    }


def missing(*peers: str) -> None:
    """Ends a test that cannot be run without them."""
    required = os.environ.get("UPCONV_REQUIRE_PARITY") == "1"
    (pytest.fail if required else pytest.skip)(f"not installed: {', '.join(peers)}")


ELSEWHERE = ("equinox", "keras", "torch", "torch_channels_last", "tensorflow")


@pytest.mark.parity
def test_all_peers_compute_the_same(tmp_path: Path) -> None:
    """In a process of its own: Keras must run on JAX, and other tests have it run on another."""
    peers = [p for p in ELSEWHERE if importlib.util.find_spec(PEERS[p].package)]
    if absent := set(ELSEWHERE) - set(peers) - {"equinox"}:  # which parity does not install
        missing(*absent)
    layers = ("unet2x2", "conv1d", "conv3d", "dla2", "four3d")
    record = tmp_path / "quick.json"
    options = ["--quick", "--layers", ",".join(layers), "--peers", ",".join(peers)]
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-m", "upconv.bench", *options, "--json", str(record)],
        env={**environment, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot do" not in done.stdout + done.stderr
    assert "left out" not in done.stdout

    results = json.loads(record.read_text())["results"]
    for name in layers:  # the benchmark itself compares shapes and losses
        absent = {"torch_channels_last"} if name == "conv1d" else set()
        absent |= {"keras", "tensorflow"} if name in GROUPED else set()
        expected = {"upconv", *peers} - absent
        assert set(results[name]) == expected
        apart = {peer for peer, row in results[name].items() if not row["aligned"]}
        # Where the crop is odd, PyTorch has its larger half at the start.
        assert apart == ({"torch", "torch_channels_last"} if name.endswith("3d") else set())
    assert {"hvp_ms", "hvp_spread"} <= set(results["conv3d"]["torch_channels_last"])


@pytest.mark.parity
@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorch_computes_the_same_derivatives(channels_last: bool) -> None:
    if importlib.util.find_spec("torch") is None:
        missing("torch")
    layer = LAYERS["unet2x2"].tiny
    data = random_data(layer)
    ours = PEERS["upconv"].build(layer, data, "float32").calls
    theirs = torch_peer.task(layer, data, "float32", channels_last=channels_last).calls
    for mine, other in (
        (ours["step"]()[1], theirs["step"]()[1]),
        (ours["hvp"](), theirs["hvp"]()),
    ):
        x, kernel = (np.asarray(g) for g in mine)
        np.testing.assert_allclose(np.moveaxis(other[0].numpy(), 1, -1), x, rtol=1e-4, atol=1e-3)
        other_kernel = np.moveaxis(other[1].numpy(), (0, 1), (-1, -2))
        np.testing.assert_allclose(other_kernel, kernel, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------ measuring


def turns(groups: list[str], effort: Effort) -> tuple[list[str], dict[str, list[float]]]:
    """Who was called, round by round, and what came of it; `slow` takes long, and the first calls
    of all longer still."""
    log: list[str] = []

    def clock(name: str) -> float:
        log[-1] += name
        return (6.0 if name == "s" else 0.01) * (1 if name * 2 in log[-1] else 100)

    def say(words: str) -> None:
        assert words == f"round {len(log) + 1} of {effort.rounds}"
        log.append("")

    named = [{name: functools.partial(clock, name) for name in group} for group in groups]
    return log, measure(named, effort, say)


def test_all_get_as_many_turns_whatever_they_take() -> None:
    log, times = turns(["asb"], Effort(rounds=3, calls=2, seconds=0.0))
    # One call that does not count, and two that do, in each of three rounds.
    assert [sorted(re.findall(r"(.)\1\1", line)) for line in log] == [["a", "b", "s"]] * 3
    assert times == {"a": [0.01] * 6, "s": [6.0] * 6, "b": [0.01] * 6}


def test_neighbours_change_from_round_to_round_but_groups_stay_together() -> None:
    effort = Effort(rounds=8, calls=1, seconds=0.0)
    log, _ = turns(["abcd", "xyz"], effort)
    orders = [line[::2] for line in log]
    assert all({*order[:4]} == {*"abcd"} and {*order[4:]} == {*"xyz"} for order in orders)
    for name in "abcd":  # nobody follows the same one always
        assert len({order[order.index(name) - 1] for order in orders}) > 2
    assert log == turns(["abcd", "xyz"], effort)[0]


def test_a_turn_lasts_its_time() -> None:
    effort = Effort(rounds=1, calls=3, seconds=0.1)
    times = measure([{"a": lambda: 0.01, "b": lambda: 0.2}], effort)
    assert 10 <= len(times["a"]) <= 11
    assert len(times["b"]) == 3


def test_a_row_has_the_minimum_and_the_spread() -> None:
    assert statistics_of("step", [0.003, 0.002, 0.008]) == {
        "step_ms": 2.0,
        "step_spread": 1.5,
        "step_samples": 3,
    }


def test_another_shape_is_an_error() -> None:
    layer = LAYERS["dcgan4"]
    task = Task({}, id, channel_axis=1)
    comparing.check_shape("torch", layer, task, np.empty((32, 3, 64, 64)))
    with pytest.raises(RuntimeError, match=r"torch gives .* for dcgan4"):
        comparing.check_shape("torch", layer, task, np.empty((32, 3, 65, 64)))


def test_another_loss_is_an_error_unless_it_is_cropped_otherwise() -> None:
    tasks = {"upconv": Task({}, id), "keras": Task({}, id), "torch": Task({}, id, aligned=False)}

    def check(keras: float, dtype: str) -> None:
        rows = {"upconv": {"loss": 8e6}, "keras": {"loss": keras}, "torch": {"loss": 9e6}}
        comparing.check_losses("odd5x5", tasks, rows, dtype)

    check(8e6 + 50, "float32")
    check(8.1e6, "bfloat16")
    message = "keras has the loss 8000800 for odd5x5, not our 8000000"
    with pytest.raises(RuntimeError, match=message):
        check(8e6 + 800, "float32")
    with pytest.raises(RuntimeError, match="keras has the loss"):
        check(7.8e6, "bfloat16")


def test_a_gpu_multiplies_ten_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {name: Task({}, id) for name in ("upconv", "flax")}
    rows = {"upconv": {"loss": 1.0}, "flax": {"loss": (1 - 2**-10) ** 4}}
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    comparing.check_losses("fcn", tasks, rows, "float32")
    rows["flax"]["loss"] = 0.99
    with pytest.raises(RuntimeError, match="flax has the loss"):
        comparing.check_losses("fcn", tasks, rows, "float32")


def test_a_run_compares_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(layer: LayerSpec, data: Data, dtype: str) -> Task:
        return PEERS["lax"].build(layer, data._replace(kernel=data.kernel[::-1]), dtype)

    monkeypatch.setitem(PEERS, "flax", Peer("flax", build))
    layers = {"conv1d": LAYERS["conv1d"].tiny}
    with pytest.raises(RuntimeError, match="flax has the loss"):
        comparing.bench_layers(layers, ["upconv", "flax"], "float32", QUICK, lambda _: None)


def test_a_peer_that_fails_is_left_out_but_we_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(layer: LayerSpec, data: Data, dtype: str) -> Task:
        def fail() -> None:
            raise NotImplementedError("no such layout")

        return Task({"forward": fail, "step": fail}, id)

    said: list[str] = []
    monkeypatch.setitem(PEERS, "flax", Peer("flax", build))
    layers = {"conv1d": LAYERS["conv1d"].tiny}
    results = comparing.bench_layers(layers, ["upconv", "flax"], "float32", QUICK, said.append)
    assert list(results["conv1d"]) == ["upconv"]
    assert said == [
        "compiling the training step of conv1d",
        "flax cannot do conv1d: NotImplementedError: no such layout",
        "round 1 of 1",
    ]
    monkeypatch.setitem(PEERS, "upconv", Peer("upconv", build))
    with pytest.raises(NotImplementedError):
        comparing.bench_layers(layers, ["upconv"], "float32", QUICK, said.append)


@pytest.mark.parametrize(
    ("name", "crop", "extra"),
    [("dcgan1", [1, 1], [0, 0]), ("odd5x5", [2, 2], [1, 1]), ("unet2x2", [0, 0], [0, 0]),
     ("stride1", [1, 1], [0, 0]), ("fsrcnn", [3, 3], [0, 0]), ("conv1d", [4], [0])],
)  # fmt: skip
def test_pytorch_crops_to_our_shape(name: str, crop: list[int], extra: list[int]) -> None:
    assert torch_peer.crop(LAYERS[name]) == (crop, extra)
    assert torch_peer.aligned(LAYERS[name]) == (name != "odd5x5")


def test_pytorch_extends_where_the_kernel_is_shorter_than_the_stride() -> None:
    assert torch_peer.crop(LayerSpec("gaps", (1, 5, 2), 3, (2,), 4)) == ([0], [2])


# ------------------------------------------------------------------ who takes part


def test_a_peer_that_is_not_installed_is_left_out_with_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = Peer("a_package_that_nobody_has", PEERS["torch"].build)
    monkeypatch.setitem(PEERS, "torch", absent)
    said: list[str] = []
    assert present(["flax", "torch"], said.append) == ["upconv", "flax"]
    assert said == ["torch is left out: it is not installed"]


def test_keras_on_another_backend_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "tensorflow"))
    monkeypatch.setattr(jax_peers, "import_keras", lambda: other)
    assert jax_peers.keras_obstacle() == "it was already imported, with the backend tensorflow"


def test_processors_of_one_name_are_told_apart() -> None:
    info = {"model name": "AMD EPYC", "cpu family": "25", "model": "17"}
    older = machine._cpu({**info, "model": "1", "flags": "fpu avx avx2 avx512_not"})
    newer = machine._cpu({**info, "flags": "fpu avx avx2 avx512f avx512dq"})
    assert older == {
        "cpu": "AMD EPYC", "cpu_family": "25", "cpu_model": "1", "vectors": "avx2",
    }  # fmt: skip
    assert newer == {**older, "cpu_model": "17", "vectors": "avx512f"}
    assert machine._cpu({})["cpu_family"] is None


def test_on_a_gpu_others_need_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    cuda = SimpleNamespace(is_available=lambda: False, synchronize=lambda: waited.append("torch"))
    config = SimpleNamespace(list_physical_devices=lambda kind: [])
    sync = SimpleNamespace(experimental=SimpleNamespace(sync_devices=lambda: waited.append("tf")))
    torch, tensorflow = SimpleNamespace(cuda=cuda), SimpleNamespace(config=config, test=sync)
    monkeypatch.setattr(torch_peer, "_import_torch", lambda: torch)
    monkeypatch.setattr(tensorflow_peer, "_import_tensorflow", lambda: tensorflow)
    peers, told = (torch_peer, tensorflow_peer), []
    for on_gpu in (False, True):
        monkeypatch.setattr(machine, "on_gpu", lambda on_gpu=on_gpu: on_gpu)
        for peer in peers:
            peer._wait(None)
        told.append([*waited, *(peer.obstacle() for peer in peers)])
    assert told == [[None, None], ["torch", "tf", "it has no GPU", "it has no GPU"]]
    cuda.is_available = lambda: True
    config.list_physical_devices = lambda kind: [kind]
    assert [peer.obstacle() for peer in peers] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--layers", "dcgan9"], "'dcgan9' is not one of dcgan1, "),
     (["--peers", "flax,caffe"], "'caffe' is not one of upconv, flax, "),
     (["--rounds", "0"], "--rounds must be at least 1"),
     (["--dtype", "float16"], "invalid choice"),
     (["--maps", "--chart", "speed.svg"], "--chart draws training steps, which --maps does not"),
     (["--maps", "--peers", "flax"], "--maps measures none of --peers"),
     (["--quick", "--rounds", "1"], "--quick makes one round, whatever --rounds says"),
     (["--json", "one", "--chart", "./one"], "--json and --chart must be two files, got one"),
     (["--chart", "a.png"], "--chart draws an SVG: its file must end in .svg, got a.png")],
)  # fmt: skip
def test_bad_options_are_named(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.arguments(options)
    assert message in capsys.readouterr().err


def test_a_chart_of_nobody_is_refused(main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "bench_layers", lambda *_: pytest.fail("measured"))
    for name in PEERS.keys() - {"upconv"}:
        monkeypatch.setitem(PEERS, name, Peer("a_package_that_nobody_has", PEERS[name].build))
    for options in ([], ["--peers", "upconv"]):
        with pytest.raises(SystemExit, match="--chart draws peers of upconv, and none takes part"):
            main(["--quick", *options, "--chart", "speed.svg"])


def test_a_peer_that_was_named_must_take_part(main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "bench_layers", lambda *_: pytest.fail("measured"))
    monkeypatch.setitem(PEERS, "torch", Peer("a_package_that_nobody_has", PEERS["torch"].build))
    message = "--peers: torch cannot take part: it is not installed"
    with pytest.raises(SystemExit, match=message):
        main(["--quick", "--peers", "flax,torch"])


@pytest.mark.parametrize("option", ["--json", "--chart"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [(".", "Is a directory"), ("file/new", "Not a directory"), ("file/a/new", "Not a directory")],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    option: str, name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    path = tmp_path / name
    with pytest.raises(SystemExit):
        command.arguments([option, str(path)])
    told = capsys.readouterr().err
    assert f"argument {option}: {path} cannot be written: {reason}\n" in told


def test_trying_whether_a_file_can_be_written_changes_none(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new" / "speed.svg"
    old.write_text("kept")
    command.arguments(["--json", str(old), "--chart", str(new)])
    assert old.read_text() == "kept"
    assert not new.exists()


# ------------------------------------------------------------------ clocks


def test_the_wall_clock_waits_for_the_result() -> None:
    waited: list[float] = []
    assert clock(time.perf_counter, waited.append)() > 0
    assert len(waited) == 1


PROFILE = """
planes { name: "/device:GPU:0"
  event_metadata { key: 1 value { id: 1 name: "kernel" } }
  lines { name: "Stream #13(Compute,MemcpyD2D)"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 2000000 }
    events { metadata_id: 1 offset_ps: 9000000 duration_ps: 5000000 } }
  lines { name: "Stream #7(Compute)" events { metadata_id: 1 duration_ps: 1000000 } }
  lines { name: "XLA Ops" events { metadata_id: 1 duration_ps: 7000000 } } }
planes { name: "/host:CPU"
  event_metadata { key: 1 value { id: 1 name: "launch" } }
  lines { name: "Stream" events { metadata_id: 1 duration_ps: 90000000 } } }
"""


def test_what_a_profile_says_of_the_streams_of_a_gpu() -> None:
    data = ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(PROFILE))
    assert busy_time(data) == pytest.approx(8e-6)


def test_on_a_gpu_kernels_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, waited = iter(range(100)), []
    monkeypatch.setattr(machine, "on_gpu", lambda: True)
    monkeypatch.setattr(clocks, "busy_time", lambda profile: 5.0)
    assert clock(lambda: next(calls), waited.append)() == 5.0 / clocks.PROFILED
    assert waited == [*range(clocks.PROFILED)]
    assert next(calls) == clocks.PROFILED


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU runs kernels")
def test_no_kernel_is_no_time() -> None:
    with pytest.raises(RuntimeError, match="no kernel of a GPU"):
        clocks.kernel_time(lambda: jnp.ones(3) + 1, jax.block_until_ready)


# ------------------------------------------------------------------ results


def row(**values: float) -> dict[str, float]:
    return {f"{name}_ms": float(value) for name, value in values.items()}


RESULTS = {
    "a": {
        "upconv": {**row(forward=2, step=10, hvp=5, compile=30), "temp_ratio": 1.5},
        "flax": row(forward=6, step=900, compile=60),
        "lax": row(forward=4, step=1000, compile=60),
        "torch": row(forward=3, step=20, hvp=20),
        "torch_channels_last": row(forward=8, step=40, hvp=10),
    },
    "b": {
        "upconv": {**row(forward=1, step=10, hvp=4, compile=80), "temp_ratio": 4.5},
        "flax": row(forward=2, step=200, compile=40),
        "lax": row(forward=1.5, step=100, compile=10),
        "torch": row(forward=5, step=5, hvp=32),
        "tensorflow": row(forward=0.75, step=8),
    },
}


def test_the_summary_is_what_one_computes_by_hand() -> None:
    found = {
        line["what"]: (round(line["value"], 9), line["reached"], line["worst_layer"])
        for line in summary(RESULTS)
    }
    assert found == {
        "step, best on JAX / ours: mean": (30, True, "b"),  # 90 and 10
        "step, best on JAX / ours: worst": (10, True, "b"),
        "step, best elsewhere / ours: mean": (1, True, "b"),  # 2 and 1/2
        "forward, best of all / ours: mean": (round(1.125**0.5, 9), True, "b"),  # 3/2 and 3/4
        "forward, flax / ours: worst": (2, True, "b"),  # 3 and 2
        "temporary memory / operands and results: worst": (4.5, False, "b"),
        "compilation, ours / flax: mean": (1, True, "b"),  # 1/2 and 2
        "Hessian-vector product, torch / ours: mean": (4, True, "a"),  # 2 and 8
    }


RECORDS = [*sorted(BENCHMARKS.glob("cpu*.json")), BENCHMARKS / "groups.json"]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_every_record_is_read_however_old(record: Path) -> None:
    report = json.loads(record.read_text(encoding="utf-8"))
    assert all_ratios(report["results"]) == report["ratios"]
    judged = summary(report["results"]) if report["layers"].keys() == LAYERS.keys() else []
    assert judged == report["summary"]


def test_a_goal_without_its_peers_is_not_judged() -> None:
    ours = {name: {"upconv": rows["upconv"]} for name, rows in RESULTS.items()}
    assert [line["what"] for line in summary(ours)] == [
        "temporary memory / operands and results: worst"
    ]


def test_ratios_are_by_kind_peer_and_layer() -> None:
    found = all_ratios(RESULTS)
    assert list(found) == ["forward", "step", "hvp"]
    assert found["step"]["lax"] == {"a": 100.0, "b": 10.0}
    assert found["step"]["tensorflow"] == {"b": 0.8}
    assert found["hvp"] == {"torch": {"a": 4.0, "b": 8.0}, "torch_channels_last": {"a": 2.0}}


def test_means_and_ranges_are_over_layers(capsys: pytest.CaptureFixture[str]) -> None:
    found = {what: (pytest.approx(mean), *rest) for what, mean, *rest in spans(RESULTS)}
    assert found == {
        "forward, JAX": (3**0.5, 1.5, 2.0),  # 4/2 and 3/2
        "forward, elsewhere": (1.125**0.5, 0.75, 1.5),
        "step, JAX": (30, 10, 90),
        "step, elsewhere": (1, 0.5, 2),
        "hvp, elsewhere": (4, 2, 8),
    }
    assert spans({"a": RESULTS["a"]}) == []
    show_spans([])
    assert capsys.readouterr().out == ""
    show_spans([Span("step, JAX", 30.0, 10.0, 90.0)])
    assert re.search(rf"step, JAX +30.0{TIMES} +10.0{TIMES} +90.0{TIMES}", capsys.readouterr().out)


def test_the_chart_has_a_bar_for_each_family_and_layer() -> None:
    layers = {"a": LAYERS["dcgan1"], "b": LAYERS["conv1d"]}
    root = ElementTree.fromstring(chart.draw(RESULTS, layers, "float32 & <others>"))
    tag = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in root.iter(f"{tag}text")]
    assert {"a", "b", "float32 & <others>", "fastest of flax, lax"} <= set(words)
    times = TIMES
    assert {f"90.0{times}  flax", f"10.0{times}  lax", f"2.00{times}  torch"} <= set(words)

    keys, bars = [], []
    for rect in root.iter(f"{tag}rect"):
        (keys if rect.get("width") == "10" else bars).append(rect)
    assert len(keys) == 2
    start, length = (np.array([float(bar.get(k)) for bar in bars]) for k in ("x", "width"))
    # Logarithmic, from 1 at the left end of the first: 90, 2, 10 and 1/2 are that far from it.
    np.testing.assert_allclose(length / length[1], np.log([90, 2, 10, 2]) / np.log(2), rtol=0.01)
    np.testing.assert_allclose(start[:3], start[0])
    assert start[3] + length[3] == pytest.approx(start[0], abs=0.2)


def test_the_chart_that_is_shown_is_of_the_figures_that_are_stated() -> None:
    report = json.loads((BENCHMARKS / "cpu.json").read_text(encoding="utf-8"))
    drawn = chart.draw(report["results"], LAYERS, chart.conditions(report))
    assert drawn == (ROOT / "docs" / "images" / "speed.svg").read_text(encoding="utf-8")


def test_tables_need_no_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = {name: {**row, "step_spread": 1.1} for name, row in RESULTS["a"].items()}
    show_layer(LAYERS["dcgan1"], rows)
    show_summary(summary(RESULTS))
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    times = ("6.00", f"3.00{TIMES}", "900", f"90.0{TIMES}", "1.10", "60.0")
    assert ["flax", *times] in lines
    assert "─" not in shown
