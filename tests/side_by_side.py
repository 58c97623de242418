"""Ours beside a peer's: values and gradients of many calls, compiled as one program.

Compiling is what such a comparison costs. One program for twenty calls takes half of what twenty
programs do, and XLA's quick options another half; before jaxlib 0.12, an eighth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Float32 leaves errors of 1e-7 of the largest element; a product lost or misplaced leaves 1e-1.
TOLERANCE = 1e-5

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@functools.cache
def quick() -> dict[str, Any]:
    """The options for compiling quickly that the installed XLA knows."""

    def known(name: str) -> bool:
        try:
            jax.jit(lambda x: x).lower(0.0).compile({name: QUICK[name]})
        except jax.errors.JaxRuntimeError as e:
            assert "No such compile option" in str(e)  # noqa: PT017
            return False
        return True

    return {name: value for name, value in QUICK.items() if known(name)}


class Call(NamedTuple):
    """Two functions that should agree on `args`, and in their gradients by all of them."""

    name: str
    ours: Callable[..., jax.Array]
    theirs: Callable[..., jax.Array]
    args: tuple[Any, ...]


def batches(calls: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [calls[i : i + size] for i in range(0, len(calls), size)]


def compare(calls: Iterable[Call], seed: int = 0, tolerance: float = TOLERANCE) -> float:
    """Asserts that outputs and gradients agree; returns the largest error.

    An error is counted in units of the largest element of the array that it is in.
    """
    calls = list(calls)
    rng = np.random.default_rng(seed)
    cts = []
    for call in calls:
        shape = jax.eval_shape(call.theirs, *call.args)
        mine = jax.eval_shape(call.ours, *call.args)
        assert (mine.shape, mine.dtype) == (shape.shape, shape.dtype), call.name
        cts.append(rng.normal(size=shape.shape).astype(np.float32).astype(shape.dtype))

    def run(args: list[Any], cts: list[Any]) -> list[Any]:
        def with_gradients(f: Callable[..., jax.Array], args: Any, ct: Any) -> Any:
            y, pull = jax.vjp(f, *args)
            return y, pull(ct)

        return [
            [with_gradients(f, *given) for f in (call.ours, call.theirs)]
            for call, *given in zip(calls, args, cts, strict=True)
        ]

    fast = jax.jit(run, compiler_options=quick())
    results = fast([call.args for call in calls], cts)
    return max(
        error(call.name, ours, theirs, tolerance)
        for call, (ours, theirs) in zip(calls, results, strict=True)
    )


def error(name: str, ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> float:
    """The largest error of `ours`, leaf by leaf; asserts that it is tolerable."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs), name
    worst = 0.0
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        where = f"{name}{jax.tree_util.keystr(path)}"
        assert (a.shape, a.dtype) == (b.shape, b.dtype), where
        a, b = (np.asarray(v).astype(np.complex128) for v in (a, b))
        assert np.isfinite(b).all(), where
        size = np.abs(b).max(initial=0.0)
        off = np.abs(a - b).max(initial=0.0)
        assert off <= tolerance * size, f"{where}: off by {off:.3g} where the largest is {size:.3g}"
        worst = max(worst, off / size if size else 0.0)
    return worst


def normal(rng: np.random.Generator, *shape: int, dtype: Any = jnp.float32) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32).astype(dtype)
