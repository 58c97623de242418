"""How fast the layer is here, beside every peer that is installed: `python -m upconv.bench`.

Forward pass, training step (loss and both gradients) and Hessian-vector product of thirteen
layers, each peer in the layout that it likes best and compiled as its users compile it. Times
are minima over interleaved rounds; ratios are a peer's time over ours.

    python -m upconv.bench --layers dcgan1,fcn --peers flax,torch
    python -m upconv.bench --json benchmarks/cpu.json --chart docs/images/speed.svg
    python -m upconv.bench --maps       # every way of computing each map, beside the one we take
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from xml.sax.saxutils import escape

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from upconv import auto, functional, geometry, linen, lowering

TIMES = "×"  # noqa: RUF001

# ------------------------------------------------------------------ layers


@dataclasses.dataclass(frozen=True)
class Layer:
    """A transposed convolution without bias: sizes alone, the same along every spatial axis.

    >>> LAYERS["dcgan1"].output_shape, LAYERS["dcgan1"].kernel_shape
    ((32, 8, 8, 256), (4, 4, 256, 512))
    """

    name: str
    input_shape: tuple[int, ...]  # channels last
    filters: int
    kernel_size: tuple[int, ...]
    stride: int
    padding: str = "same"

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each axis."""
        return (self.stride,) * self.rank

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """`(*kernel_size, c_out, c_in)`."""
        return (*self.kernel_size, self.filters, self.input_shape[-1])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What every peer must agree on."""
        return functional.output_shape(
            self.input_shape,
            self.filters,
            self.kernel_size,
            strides=self.stride,
            padding=self.padding,
        )

    @property
    def tiny(self) -> Layer:
        """The same window on next to nothing, for `--quick`."""
        batch, *space, channels = self.input_shape
        shape = (min(batch, 2), *(min(n, 5) for n in space), min(channels, 4))
        return dataclasses.replace(self, input_shape=shape, filters=min(self.filters, 3))

    def __str__(self) -> str:
        size, window = (TIMES.join(map(str, s)) for s in (self.input_shape, self.kernel_size))
        return f"{size} → {self.filters}, {window} / {self.stride}"


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("dcgan1", (32, 4, 4, 512), 256, (4, 4), 2),
        Layer("dcgan2", (32, 8, 8, 256), 128, (4, 4), 2),
        Layer("dcgan3", (32, 16, 16, 128), 64, (4, 4), 2),
        Layer("dcgan4", (32, 32, 32, 64), 3, (4, 4), 2),
        Layer("odd5x5", (32, 16, 16, 128), 64, (5, 5), 2),
        Layer("unet2x2", (2, 64, 64, 128), 64, (2, 2), 2, "valid"),
        Layer("unet3x3", (2, 64, 64, 128), 64, (3, 3), 2),
        Layer("fsrcnn", (1, 96, 96, 56), 1, (9, 9), 3),
        Layer("fcn", (1, 16, 16, 21), 21, (32, 32), 16),
        Layer("stride1", (2, 64, 64, 128), 64, (3, 3), 1),
        Layer("large", (1, 128, 128, 64), 64, (4, 4), 2),
        Layer("conv1d", (4, 256, 256), 128, (16,), 8),
        Layer("conv3d", (1, 12, 12, 12, 64), 32, (3, 3, 3), 2),
    )
}


class Data(NamedTuple):
    """Operands, and the tangents along which the Hessian is applied; all standard normal."""

    x: np.ndarray
    kernel: np.ndarray
    dx: np.ndarray
    dkernel: np.ndarray


def random_data(layer: Layer) -> Data:
    """The same numbers for every peer, in our layout."""
    rng = np.random.default_rng(0)
    shapes = (layer.input_shape, layer.kernel_shape) * 2
    return Data(*(rng.standard_normal(shape, np.float32) for shape in shapes))


# ------------------------------------------------------------------ peers

KINDS = ("forward", "step", "hvp")
# Who is asked for second derivatives: for the others they would take minutes, with no goal set.
SECOND_ORDER = ("upconv", "torch", "torch_channels_last")


class Task(NamedTuple):
    """One layer of one peer.

    Attributes:
      calls: by kind, what is timed; `step` returns the loss and the two gradients.
      wait: blocks until the result of a call is there.
      channel_axis: of the output.
      compile: traces and compiles the training step anew, where that is a thing.
    """

    calls: dict[str, Callable[[], Any]]
    wait: Callable[[Any], Any]
    channel_axis: int = -1
    compile: Callable[[], jax.stages.Compiled] | None = None


class Peer(NamedTuple):
    """Someone who has this layer too.

    Attributes:
      package: what must be installed.
      build: a task from a layer, its data and the name of a dtype.
      obstacle: says why it cannot take part although it is installed, or nothing.
      ranks: the numbers of spatial axes that it is there for.
    """

    package: str
    build: Callable[[Layer, Data, str], Task]
    obstacle: Callable[[], str | None] = lambda: None
    ranks: tuple[int, ...] = (1, 2, 3)


def on_gpu() -> bool:
    """Whether JAX, and so everyone, computes on a GPU."""
    return jax.default_backend() == "gpu"


def cores() -> int:
    """How many this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# Those on JAX differ in how `(x, kernel)` becomes `y`, and in layout.

Apply = Callable[[jax.Array, jax.Array], Any]
Arrange = Callable[[np.ndarray], np.ndarray]


def jax_task(
    make: Callable[[Layer, str], Apply],
    layer: Layer,
    data: Data,
    dtype: str,
    *,
    arrange: tuple[Arrange, Arrange] = (np.asarray, np.asarray),
    channel_axis: int = -1,
) -> Task:
    """The task of a peer on JAX; `arrange` gives it inputs and kernels in its own layout."""
    apply = make(layer, dtype)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # Quartic in x and kernel together, since y is bilinear: its Hessian is no constant.
        return jnp.sum(jnp.square(apply(x, kernel)))

    def hvp(x: jax.Array, kernel: jax.Array, dx: jax.Array, dkernel: jax.Array) -> Any:
        return jax.jvp(jax.grad(loss, argnums=(0, 1)), (x, kernel), (dx, dkernel))[1]

    arrays = [
        jnp.asarray(put(a), dtype) for put, a in zip(itertools.cycle(arrange), data, strict=False)
    ]
    step = jax.value_and_grad(loss, argnums=(0, 1))
    return Task(
        {
            "forward": functools.partial(jax.jit(apply), *arrays[:2]),
            "step": functools.partial(jax.jit(step), *arrays[:2]),
            "hvp": functools.partial(jax.jit(hvp), *arrays),
        },
        jax.block_until_ready,
        channel_axis,
        lambda: jax.jit(step).lower(*arrays[:2]).compile(),
    )


def _upconv(layer: Layer, dtype: str) -> Apply:
    classes = (linen.Conv1DTranspose, linen.Conv2DTranspose, linen.Conv3DTranspose)
    module = classes[layer.rank - 1](
        layer.filters, layer.kernel_size, layer.stride, layer.padding, use_bias=False
    )
    return lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x)


def _flax(layer: Layer, dtype: str) -> Apply:
    module = nn.ConvTranspose(
        layer.filters,
        layer.kernel_size,
        layer.strides,
        layer.padding.upper(),
        use_bias=False,
        transpose_kernel=True,
    )
    return lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x)


def _lax(layer: Layer, dtype: str) -> Apply:
    space = "DHW"[-layer.rank :]
    return lambda x, kernel: jax.lax.conv_transpose(
        x,
        kernel,
        layer.strides,
        layer.padding.upper(),
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        transpose_kernel=True,
    )


def _equinox(layer: Layer, dtype: str) -> Apply:
    import equinox as eqx

    module = eqx.nn.ConvTranspose(
        layer.rank,
        layer.input_shape[-1],
        layer.filters,
        layer.kernel_size,
        layer.strides,
        layer.padding.upper(),
        use_bias=False,
        key=jax.random.key(0),
    )
    return lambda x, kernel: jax.vmap(eqx.tree_at(lambda m: m.weight, module, kernel))(x)


def _equinox_kernel(kernel: np.ndarray) -> np.ndarray:
    """To `(c_out, c_in, *kernel_size)`, the window reversed: Equinox takes it as it convolves."""
    return np.flip(np.moveaxis(kernel, (-2, -1), (0, 1)), tuple(range(2, kernel.ndim)))


@functools.cache
def _import_keras() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"  # read when it is first imported
    import keras

    return keras


def _keras_obstacle() -> str | None:
    backend = _import_keras().backend.backend()
    return None if backend == "jax" else f"it was imported before, to run on {backend}"


def _keras(layer: Layer, dtype: str) -> Apply:
    layers = _import_keras().layers
    classes = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
    module = classes[layer.rank - 1](
        layer.filters,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        data_format="channels_last",
        use_bias=False,
        dtype=dtype,
    )
    module.build(layer.input_shape)
    return lambda x, kernel: module.stateless_call([kernel], [], x)[0]


# PyTorch and TensorFlow.


@functools.cache
def _import_torch() -> Any:
    import torch

    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    return torch


def _torch_obstacle() -> str | None:
    return "it has no GPU" if on_gpu() and not _import_torch().cuda.is_available() else None


def _torch_crop(layer: Layer) -> tuple[list[int], list[int]]:
    """PyTorch's `padding` and `output_padding` for our output shape.

    It crops as much at the end as at the start; of an odd total it has the larger half at the
    start, one pixel off ours.
    """
    sizes = zip(layer.input_shape[1:-1], layer.output_shape[1:-1], layer.kernel_size, strict=True)
    totals = [geometry.full_length(n, k, layer.stride) - out for n, out, k in sizes]
    crop = [max(total + 1, 0) // 2 for total in totals]
    return crop, [2 * lo - total for lo, total in zip(crop, totals, strict=True)]


def _torch(layer: Layer, data: Data, dtype: str, *, channels_last: bool = False) -> Task:
    torch = _import_torch()
    function = getattr(torch.nn.functional, f"conv_transpose{layer.rank}d")
    crop, extra = _torch_crop(layer)
    memory_format = torch.contiguous_format
    if channels_last:
        memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}[layer.rank]

    def tensor(a: np.ndarray, *axes: int) -> Any:
        a = np.moveaxis(a, axes, (0, 1))
        t = torch.tensor(np.ascontiguousarray(a), dtype=getattr(torch, dtype))
        return t.to("cuda" if on_gpu() else "cpu", memory_format=memory_format)

    x, dx = (tensor(a, 0, -1) for a in (data.x, data.dx))
    kernel, dkernel = (tensor(a, -1, -2) for a in (data.kernel, data.dkernel))
    for operand in (x, kernel):
        operand.requires_grad_()

    def apply() -> Any:
        return function(x, kernel, stride=layer.stride, padding=crop, output_padding=extra)

    def step(create_graph: bool = False) -> Any:
        loss = apply().square().sum()
        gradients = torch.autograd.grad(loss, (x, kernel), create_graph=create_graph)
        return loss.detach(), gradients

    def hvp() -> Any:
        _, gradients = step(create_graph=True)
        return torch.autograd.grad(gradients, (x, kernel), (dx, dkernel))

    def wait(result: Any) -> None:
        if on_gpu():
            torch.cuda.synchronize()

    return Task({"forward": torch.no_grad()(apply), "step": step, "hvp": hvp}, wait, 1)


@functools.cache
def _import_tensorflow() -> Any:
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it warns of functions built in a loop
    if on_gpu():
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    else:
        tf.config.set_visible_devices([], "GPU")
    return tf


def _tensorflow_obstacle() -> str | None:
    gpus = on_gpu() and _import_tensorflow().config.list_physical_devices("GPU")
    return "it has no GPU" if on_gpu() and not gpus else None


def _tensorflow(layer: Layer, data: Data, dtype: str) -> Task:
    tf = _import_tensorflow()
    x, kernel = (tf.constant(a, tf.as_dtype(dtype)) for a in (data.x, data.kernel))

    def forward(x: Any, kernel: Any) -> Any:
        return tf.nn.conv_transpose(
            x, kernel, layer.output_shape, layer.stride, layer.padding.upper()
        )

    def step(x: Any, kernel: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            loss = tf.reduce_sum(tf.square(forward(x, kernel)))
        return loss, tape.gradient(loss, (x, kernel))

    def wait(result: Any) -> None:
        if on_gpu():
            tf.test.experimental.sync_devices()

    calls = {"forward": tf.function(forward), "step": tf.function(step)}
    return Task({kind: functools.partial(f, x, kernel) for kind, f in calls.items()}, wait)


_equinox_task = functools.partial(
    jax_task,
    _equinox,
    arrange=(lambda x: np.moveaxis(x, -1, 1), _equinox_kernel),
    channel_axis=1,
)
PEERS = {
    "upconv": Peer("upconv", functools.partial(jax_task, _upconv)),
    "flax": Peer("flax", functools.partial(jax_task, _flax)),
    "lax": Peer("jax", functools.partial(jax_task, _lax)),
    "equinox": Peer("equinox", _equinox_task),
    "keras": Peer("keras", functools.partial(jax_task, _keras), _keras_obstacle),
    "torch": Peer("torch", _torch, _torch_obstacle),
    "torch_channels_last": Peer(
        # In one dimension PyTorch knows one layout only.
        "torch", functools.partial(_torch, channels_last=True), _torch_obstacle, ranks=(2, 3)
    ),
    "tensorflow": Peer("tensorflow", _tensorflow, _tensorflow_obstacle),
}  # fmt: skip
OURS, ON_JAX = "upconv", ("flax", "lax", "equinox", "keras")
TORCH = ("torch", "torch_channels_last")
ELSEWHERE = (*TORCH, "tensorflow")


def why_not(name: str) -> str | None:
    """Why a peer cannot take part here, or None."""
    if importlib.util.find_spec(PEERS[name].package) is None:
        return "it is not installed"
    return PEERS[name].obstacle()


# ------------------------------------------------------------------ measuring


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
      rounds: turns that everyone gets.
      calls: timed calls in a turn, at least.
      seconds: time for them, at least.
      batch: calls that are timed as one. More than one on a GPU alone, where a call returns
        before its work is done: the next one's launch is then no part of the time.
      compilations: how often the training step is compiled.
    """

    rounds: int
    calls: int = 3
    seconds: float = 0.1
    batch: int = 1
    compilations: int = 6


QUICK = Effort(1, calls=1, seconds=0.0, compilations=1)

# OpenMP's threads, and Eigen's, spin for some milliseconds after their last work, on the cores
# that the next one's turn needs.
REST = 0.01
# A call this long needs no warming up and no repetition: two turns of one call are its share.
SLOW, SLOW_TURNS = 0.3, 2

Key = TypeVar("Key", bound=Hashable)


def measure(
    clocks: Mapping[Key, Callable[[], float]],
    effort: Effort,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Key, list[float]]:
    """Seconds of every call, taken in interleaved rounds, so that all suffer from the same noise.

    Args:
      clocks: by key, a function that makes a call and returns how long it took.
      effort: how many.
      say: is told of every round.
    """
    times: dict[Key, list[float]] = {key: [] for key in clocks}
    for turn in range(effort.rounds):
        say(f"round {turn + 1} of {effort.rounds}")
        for key, clock in clocks.items():
            if turn < SLOW_TURNS or min(times[key]) < SLOW:
                times[key] += _turn(clock, effort)
    return times


def _turn(clock: Callable[[], float], effort: Effort) -> list[float]:
    time.sleep(REST)
    first = clock()  # fills the caches that others have emptied
    if first >= SLOW:
        return [first]
    times: list[float] = []
    while len(times) < effort.calls or sum(times) * effort.batch < effort.seconds:
        times.append(clock())
    return times


def stopwatch(
    call: Callable[[], Any], wait: Callable[[Any], Any], batch: int = 1
) -> Callable[[], float]:
    """A function that makes `batch` calls, waits for the last and returns the seconds of one."""

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(batch - 1):
            call()
        wait(call())
        return (time.perf_counter() - start) / batch

    return seconds


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of one call, and its milliseconds."""
    start = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - start)


Row: TypeAlias = dict[str, float]
Results: TypeAlias = dict[str, dict[str, Row]]  # by layer and peer


def statistics_of(kind: str, times: Sequence[float]) -> Row:
    """The minimum in milliseconds, and how far the median is above it."""
    best = min(times)
    return {f"{kind}_ms": 1e3 * best, f"{kind}_spread": statistics.median(times) / best}


def bench_layers(
    layers: Mapping[str, Layer],
    peers: Sequence[str],
    dtype: str,
    effort: Effort,
    say: Callable[[str], None],
) -> Results:
    """A row for each layer and peer; a peer that fails is left out, unless it is us.

    A round takes all layers in turn: what else the machine does for a minute meets each of them
    in one round, and none in all.
    """
    tasks = {name: build_tasks(layer, peers, dtype) for name, layer in layers.items()}
    results: Results = {}
    for name in layers:  # all first, since it empties JAX's caches
        say(f"compiling the training step of {name}")
        results[name] = compile_steps(tasks[name], effort.compilations)
    clocks: dict[tuple[str, str, str], Callable[[], float]] = {}
    for name, layer in layers.items():
        for kind, peer in itertools.product(KINDS, warm_up(layer, tasks[name], results[name], say)):
            task = tasks[name][peer]
            if kind in task.calls:
                call = task.calls[kind]
                clocks[name, kind, peer] = stopwatch(call, task.wait, effort.batch)
    for (name, kind, peer), times in measure(clocks, effort, say).items():
        results[name][peer] |= statistics_of(kind, times)
    return results


def build_tasks(layer: Layer, peers: Sequence[str], dtype: str) -> dict[str, Task]:
    """What each peer is to do, of those that know the layer's rank."""
    data = random_data(layer)
    tasks = {}
    for name in peers:
        if layer.rank in PEERS[name].ranks:
            task = PEERS[name].build(layer, data, dtype)
            kinds = [k for k in task.calls if k != "hvp" or name in SECOND_ORDER]
            tasks[name] = task._replace(calls={kind: task.calls[kind] for kind in kinds})
    return tasks


def warm_up(
    layer: Layer, tasks: Mapping[str, Task], rows: dict[str, Row], say: Callable[[str], None]
) -> list[str]:
    """Who can make its calls, which compiles them; the rows of the others are dropped."""
    able = []
    for name, task in tasks.items():
        try:
            made = {kind: call() for kind, call in task.calls.items()}
        except Exception as error:
            # No reason to lose an hour's measurement: a dtype or a layout that it cannot do.
            if name == OURS:
                raise
            say(f"{name} cannot do {layer.name}: {type(error).__name__}: {error}")
            del rows[name]
            continue
        check_shape(name, layer, task, made["forward"])
        rows[name]["loss"] = float(made["step"][0])
        able.append(name)
    return able


def check_shape(name: str, layer: Layer, task: Task, output: Any) -> None:
    """Raises a RuntimeError if the output's shape is not ours."""
    shape = list(map(int, output.shape))
    shape.append(shape.pop(task.channel_axis))
    if tuple(shape) != layer.output_shape:
        raise RuntimeError(f"{name} gives {shape} for {layer.name}, not {layer.output_shape}")


def compile_steps(tasks: Mapping[str, Task], times: int) -> dict[str, Row]:
    """Time to trace and compile the training step, and the memory that it then takes.

    `temp_ratio` is the temporary memory over that of arguments and results.
    """
    rows: dict[str, Row] = {name: {} for name in tasks}
    compilers = {name: task.compile for name, task in tasks.items() if task.compile}
    for _ in range(times):
        for name, compile_step in compilers.items():
            jax.clear_caches()
            compiled, ms = timed(compile_step)
            rows[name]["compile_ms"] = min(ms, rows[name].get("compile_ms", math.inf))
            memory: Any = compiled.memory_analysis()
            operands = memory.argument_size_in_bytes + memory.output_size_in_bytes
            rows[name]["temp_ratio"] = memory.temp_size_in_bytes / operands
    return rows


# ------------------------------------------------------------------ the ways of each map

MAPS = {  # table of ways, and which of x, w, y they take
    "transpose": (lowering.TRANSPOSE, "xw"),
    "strided": (lowering.STRIDED, "yw"),
    "kernel_grad": (lowering.KERNEL_GRAD, "xy"),
}


def bench_maps(layer: Layer, dtype: str, effort: Effort) -> list[dict[str, Any]]:
    """Every way of every map of `upconv.lowering`: what its rules are drawn from."""
    geo = geometry.transposed(
        layer.input_shape[1:-1],
        layer.kernel_size,
        strides=layer.stride,
        padding=layer.padding,
    )
    one_cpu = jax.default_backend() == "cpu"
    taken = auto.ways(geo, layer.input_shape[0], layer.kernel_shape, jnp.dtype(dtype), one_cpu)
    numerics = lowering.Numerics("auto", None, jnp.dtype(dtype), one_cpu)
    data = random_data(layer)
    y = np.random.default_rng(1).standard_normal(layer.output_shape, np.float32)
    arrays = {"x": data.x, "w": data.kernel, "y": y}
    records = []
    for name, (table, operands) in MAPS.items():
        args = [jnp.asarray(arrays[operand], dtype) for operand in operands]

        def compile_way(way: lowering.Way, args: Sequence[jax.Array] = args) -> jax.stages.Compiled:
            return jax.jit(lambda a, b: way(a, b, geo, numerics)).lower(*args).compile()

        compiled = {
            way: timed(functools.partial(compile_way, f))
            for way, f in table.items()
            if way != "planes" or layer.rank > 1
        }
        clocks = {
            way: stopwatch(functools.partial(call, *args), jax.block_until_ready, effort.batch)
            for way, (call, _) in compiled.items()
        }
        for way, times in measure(clocks, effort).items():
            records.append(
                {
                    "layer": layer.name,
                    "map": name,
                    "way": way,
                    "taken": way == getattr(taken, name),
                    **statistics_of("call", times),
                    "compile_ms": compiled[way][1],
                }
            )
    return records


# ------------------------------------------------------------------ results


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


class Goal(NamedTuple):
    """A line of the summary: one number per layer, reduced to one, and its bound.

    Attributes:
      what: in words.
      values: one number per layer.
      reduce: to one.
      bound: of that.
      least: whether the bound is from below.
    """

    what: str
    values: Callable[[Results], dict[str, float]]
    reduce: Callable[[Iterable[float]], float]
    bound: float
    least: bool = True


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
    """Every goal that can be judged: what, value, goal, whether reached, and the worst layer."""
    lines = []
    for goal in GOALS:
        values = goal.values(results)
        if values:
            value = goal.reduce(values.values())
            reached = value >= goal.bound if goal.least else value <= goal.bound
            worst = (min if goal.least else max)(values, key=lambda name: values[name])
            sign = "≥" if goal.least else "≤"
            lines.append(
                {
                    "what": goal.what,
                    "value": value,
                    "goal": f"{sign} {goal.bound}",
                    "reached": reached,
                    "worst_layer": worst,
                }
            )
    return lines


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


def environment() -> dict[str, Any]:
    """What the numbers depend on, and nothing that tells whose machine it is."""
    packages = {"jaxlib", *(peer.package for peer in PEERS.values())}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in sorted(packages)},
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_model(),
        "cores": cores(),
    }


def _version(package: str) -> str | None:
    # TensorFlow comes as several distributions.
    for name in (package, f"{package}_cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


# ------------------------------------------------------------------ screen


def table(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """On the screen, with rich where it is installed."""
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
    """Columns wide enough, the first to the left.

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
    """Three digits, or nothing.

    >>> number(1234.5), number(12.345), number(0.98765, "×"), number(None)
    ('1234', '12.3', '0.988×', '')
    """
    if value is None:
        return ""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}{unit}"


def show_layer(layer: Layer, rows: Mapping[str, Row]) -> None:
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


def show_summary(lines: Iterable[Mapping[str, Any]]) -> None:
    """The goals of the project, and what became of them."""
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
        "summary (means are geometric; elsewhere: torch, tensorflow)",
        ["", "here", "goal", "reached", "worst layer"],
        body,
    )


def show_maps(layer: Layer, records: Iterable[Mapping[str, Any]]) -> None:
    """A line per way, those that `auto` takes marked."""
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


# ------------------------------------------------------------------ chart

# In tones between white and black, legible on both; no background.
TEXT = "#76808c"
FAMILIES = ((ON_JAX, "#2f81f7"), (ELSEWHERE, "#d2691e"))
FONTS = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
NAMES = {"torch_channels_last": "torch", "keras": "keras (jax)"}
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 800, 236, 118, 64, 11, 12


def chart(results: Results, layers: Mapping[str, Layer], subtitle: str) -> str:
    """An SVG: for each layer, the training step of each family's fastest peer over ours.

    Bars start at 1×, our own time, on a logarithmic scale.
    """
    families = [(ratios(results, "step_ms", peers), peers, color) for peers, color in FAMILIES]
    families = [family for family in families if family[0]]
    values = [value for found, _, _ in families for value in found.values()]
    low, high = min([0.7, *values]), max([2.0, *values])
    scale = (WIDTH - LEFT - RIGHT) / math.log(high / low)

    def place(value: float) -> float:
        return LEFT + scale * math.log(value / low)

    pitch = BAR * max(len(families), 2) + GAP
    bottom = TOP + pitch * len(results)
    parts = []
    for tick in _ticks(low, high):
        x = place(tick)
        parts.append(_line(x, TOP - 4, bottom, 1 if tick == 1 else 0.3))
        parts.append(_text(x, bottom + 14, f"{tick:g}{TIMES}", "middle"))
    for row, (name, rows) in enumerate(results.items()):
        y = TOP + pitch * row + GAP / 2
        middle = y + (pitch - GAP) / 2
        parts.append(_text(LEFT - 12, middle - 2, name, "end", "bold"))
        parts.append(_text(LEFT - 12, middle + 10, str(layers[name]), "end", size=9.5))
        for index, (found, peers, color) in enumerate(families):
            if name in found:
                peer = best(rows, "step_ms", peers) or ""
                label = f"{number(found[name], TIMES)}  {NAMES.get(peer, peer)}"
                parts.append(_bar(place(1), place(found[name]), y + index * BAR, color, label))
    for index, (_, peers, color) in enumerate(families):
        there = dict.fromkeys(
            NAMES.get(p, p) for p in peers if any(p in rows for rows in results.values())
        )
        x = LEFT + index * 250
        parts.append(f'<rect x="{x}" y="40" width="10" height="10" fill="{color}"/>')
        parts.append(_text(x + 16, 49, f"fastest of {', '.join(there)}"))
    title = "Time of a training step, in multiples of upconv's"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 24}"',
            f'  width="{WIDTH}" height="{bottom + 24}" role="img" fill="{TEXT}"',
            f'  font-family="{FONTS}">',
            f"<title>{escape(title)}, by layer; {escape(subtitle)}</title>",
            _text(LEFT, 16, title, weight="bold", size=14),
            _text(LEFT, 31, subtitle, size=9.5),
            *parts,
            "</svg>\n",
        ]
    )


def _ticks(low: float, high: float) -> list[float]:
    steps = (m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5))
    return [tick for tick in steps if low <= tick <= high]


def _text(
    x: float, y: float, words: str, anchor: str = "start", weight: str = "normal", size: float = 11
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-size="{size}">{escape(words)}</text>'
    )


def _line(x: float, top: float, bottom: float, opacity: float) -> str:
    ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"'
    return f'<line {ends} stroke="{TEXT}" stroke-opacity="{opacity}"/>'


def _bar(start: float, end: float, y: float, color: str, label: str) -> str:
    left, right = sorted((start, end))
    return (
        f'<rect x="{left:.1f}" y="{y + 1:.1f}" width="{right - left:.1f}" height="{BAR - 2}" '
        f'fill="{color}"/>' + _text(right + 5, y + BAR - 2, label, size=9.5)
    )


# ------------------------------------------------------------------ command line


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m upconv.bench", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--layers", type=_names(LAYERS), default=list(LAYERS), help=", ".join(LAYERS))
    add("--peers", type=_names(PEERS), default=list(PEERS), help=", ".join(PEERS))
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--rounds", type=int, default=5, help="turns that each peer gets (default: 5)")
    add("--quick", action="store_true", help="tiny layers, one round: does everything run?")
    add("--maps", action="store_true", help="every way of computing each map, instead of peers")
    add("--json", type=_output, metavar="FILE", help="write all that was measured")
    add("--chart", type=_output, metavar="FILE.svg", help="draw the training steps")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    if args.chart and args.maps:
        parser.error("--chart draws training steps, which --maps does not measure: leave one out")
    return args


def _names(known: Mapping[str, Any]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def _output(text: str) -> Path:
    """A file that can be written, in a folder that is made if need be.

    That is tried before an hour is spent on what the file is to hold; it stays as it is.
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


def present(peers: Iterable[str], say: Callable[[str], None] = print) -> list[str]:
    """Us, and those of the peers that can take part."""
    chosen = [OURS]
    for name in peers:
        if name != OURS:
            reason = why_not(name)
            if reason:
                say(f"{name} is left out: {reason}")
            else:
                chosen.append(name)
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, show, write."""
    args = arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Others need room on the GPU too, and a compilation out of a cache is none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)
    effort = QUICK if args.quick else Effort(args.rounds, batch=10 if on_gpu() else 1)
    layers = {name: LAYERS[name].tiny if args.quick else LAYERS[name] for name in args.layers}
    report: dict[str, Any] = {
        "environment": environment(),
        "dtype": args.dtype,
        "quick": args.quick,
        "effort": effort._asdict(),
        "layers": {name: dataclasses.asdict(layer) for name, layer in layers.items()},
    }
    report |= (_report_maps if args.maps else _report_peers)(args, layers, effort)
    if args.json:
        write(args.json, json.dumps(report, indent=1) + "\n")
    if args.chart:
        env = report["environment"]
        device = f"{env['cpu']}, {env['cores']} cores" if env["device"] == "cpu" else env["device"]
        subtitle = f"{args.dtype}, {device}, jax {env['versions']['jax']}"
        write(args.chart, chart(report["results"], layers, subtitle))


def _report_peers(
    args: argparse.Namespace, layers: Mapping[str, Layer], effort: Effort
) -> dict[str, Any]:
    peers = present(args.peers)
    results = bench_layers(layers, peers, args.dtype, effort, _tell)
    for name, layer in layers.items():
        show_layer(layer, results[name])
    lines = summary(results)
    show_summary(lines)
    return {"results": results, "ratios": all_ratios(results), "summary": lines}


def _report_maps(
    args: argparse.Namespace, layers: Mapping[str, Layer], effort: Effort
) -> dict[str, Any]:
    records = []
    for layer in layers.values():
        records.append(bench_maps(layer, args.dtype, effort))
        show_maps(layer, records[-1])
    return {"maps": list(itertools.chain.from_iterable(records))}


def write(path: Path, text: str) -> None:
    """The text, in a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    _tell(f"wrote {path}")


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
