"""What the tests of `upconv.interop` share: layers to exchange, and when two are alike."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from checks import normal
from upconv import linen

LAYERS = {1: linen.Conv1DTranspose, 2: linen.Conv2DTranspose, 3: linen.Conv3DTranspose}


def integers(rng: np.random.Generator, low: int, high: int, rank: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(low, high, rank))


def draw_layer(rng: np.random.Generator, rank: int, **fixed: Any) -> tuple[Any, Any, np.ndarray]:
    """A layer of ours with any sizes, its variables, and an input for it."""
    strides, dilation = integers(rng, 1, 4, rank), integers(rng, 1, 3, rank)
    if rng.random() < 0.7:
        dilation = (1,) * rank
    kinds = ["valid", "same", "same_lower", "causal", "pads"]
    padding: Any = kinds[rng.integers(len(kinds))]
    if padding == "pads":
        padding = tuple(integers(rng, 0, 3, 2) for _ in range(rank))
    output_padding = None
    if padding != "causal" and rng.random() < 0.4:
        limits = map(max, strides, dilation)
        output_padding = tuple(int(rng.integers(limit)) for limit in limits)
    arguments = {
        "filters": 4,
        "kernel_size": integers(rng, 2, 6, rank),
        "strides": strides,
        "padding": padding,
        "output_padding": output_padding,
        "dilation_rate": dilation,
        "use_bias": bool(rng.random() < 0.7),
        **fixed,
    }
    module = LAYERS[rank](**arguments)
    c_in, spatial = 6, (integers(rng, 4, 7, rank) if rank < 3 else (4, 3, 5))
    last = module.data_format == "channels_last"
    x = normal(rng, 2, *(*spatial, c_in) if last else (c_in, *spatial))
    arrays = {"kernel": normal(rng, *module.kernel_size, 4 // module.groups, c_in)}
    if module.use_bias:
        arrays["bias"] = normal(rng, 4)
    return module, {"params": arrays}, x


def run(module: Any, variables: Any, x: Any, ct: Any) -> tuple[Any, Any, Any]:
    """The outputs of a linen module, and the gradients in its parameters and in `x` along `ct`."""
    [collection] = variables

    @jax.jit
    def both(arrays: Any, x: Any, ct: Any) -> Any:
        y, pull = jax.vjp(lambda a, x: module.apply({collection: a}, x), arrays, x)
        return y, *pull(ct)

    return both(variables[collection], x, ct)


def assert_close(got: Any, want: Any) -> float:
    """To 1e-4 of the largest number; gives the error that there is."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    error = float(np.max(np.abs(got - want)) / max(np.max(np.abs(want)), 1e-6))
    assert error < 1e-4
    return error


def assert_same_bits(got: Any, want: Any) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()
