"""Every way of computing each of the three maps: `--maps`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upconv import auto, geometry, lowering
from upconv.bench.clocks import clock
from upconv.bench.layers import LayerSpec, random_data
from upconv.bench.measuring import Effort, Row, measure, statistics_of, timed
from upconv.lowering.numerics import Numerics, Way

# Ways for layers of groups alone, and those that take them, too.
OF_GROUPS = ("elementwise", "elementwise_phases", "depthwise", "one_by_one")
TAKE_GROUPS = ("input_dilation", "subpixel", "phases", "strided", "backward_filter", "matmul")

OPERANDS = {"conv_transpose": "xw", "conv": "yw", "correlate_kernel": "xy"}


def bench_maps(layer: LayerSpec, dtype: str, effort: Effort) -> list[dict[str, Any]]:
    """A record for every way of computing a map, on which the rules of `upconv.auto` rest."""
    g = layer.geometry
    platform = _platform()
    taken = auto.ways(g, layer.input_shape[0], layer.kernel_shape, jnp.dtype(dtype), platform)
    numerics = Numerics("auto", None, jnp.dtype(dtype), platform)
    arrays = _arrays(layer, dtype)
    records = []
    for name, table in lowering.WAYS.items():
        ways = {
            way: partial(_compute, f, g, numerics)
            for way, f in table.items()
            if _applies(way, layer)
        }
        rows = _rows(ways, [arrays[operand] for operand in OPERANDS[name]], effort)
        for way, row in rows.items():
            is_taken = way == getattr(taken, name)
            records.append({"layer": layer.name, "map": name, "way": way, "taken": is_taken, **row})
    return records


def _applies(way: str, layer: LayerSpec) -> bool:
    """Whether it is a way of computing such a layer."""
    g, channels = layer.groups, layer.input_shape[-1]
    if way == "depthwise":
        return g == layer.filters == channels
    if way.startswith("elementwise"):  # what has more pairs takes minutes to compile
        return g > 1 and layer.filters * channels <= auto.cpu.FEW_PAIRS_OF_MORE * g**2
    if g > 1:
        return way in (*OF_GROUPS, *TAKE_GROUPS)
    return way not in OF_GROUPS and (way != "planes" or layer.rank > 1)


def _platform() -> str:
    """That of the default device, as it is called in lowering; any GPU is taken for NVIDIA's."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def _compute(
    way: Way,
    g: geometry.Geometry,
    numerics: Numerics,
    a: jax.Array,
    b: jax.Array,
) -> jax.Array:
    return way(a, b, g, numerics)


def _arrays(layer: LayerSpec, dtype: str) -> dict[str, jax.Array]:
    """The operands of the three maps, by the letters that `OPERANDS` has for them."""
    data = random_data(layer)
    y = np.random.default_rng(1).standard_normal(layer.output_shape, np.float32)
    arrays = {"x": data.x, "w": data.kernel, "y": y}
    return {letter: jnp.asarray(array, dtype) for letter, array in arrays.items()}


def _compile(way: Callable[..., jax.Array], args: Sequence[jax.Array]) -> jax.stages.Compiled:
    return jax.jit(way).lower(*args).compile()


def _rows(
    ways: Mapping[str, Callable[..., jax.Array]], args: Sequence[jax.Array], effort: Effort
) -> dict[str, Row]:
    """By way, how long a call takes, and how long its compilation took."""
    compiled = {way: timed(partial(_compile, f, args)) for way, f in ways.items()}
    clocks = {
        way: clock(partial(call, *args), jax.block_until_ready)
        for way, (call, _) in compiled.items()
    }
    return {
        way: {**statistics_of("call", times), "compile_ms": compiled[way][1]}
        for way, times in measure([clocks], effort).items()
    }
