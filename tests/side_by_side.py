"""Ours beside a peer's: values and gradients of many calls, compiled as one program.

Compiling is what such a comparison costs: one program for twenty calls takes half of what twenty
programs do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from checks import Function, normal, with_gradients

# Float32 leaves errors of 1e-7 of the largest element; a product lost or misplaced leaves 1e-1.
TOLERANCE = 1e-5


class Call(NamedTuple):
    """Pairs of functions, ours and theirs by name, that should agree on `args`.

    And in their gradients by all of them. What pairs compute alike is compiled only once.
    """

    name: str
    pairs: Mapping[str, tuple[Function, Function]]
    args: tuple[Any, ...]


def in_one_program(
    functions: Sequence[Sequence[Function]], args: Sequence[tuple[Any, ...]], cts: Sequence[Any]
) -> list[list[list[Any]]]:
    """Outputs and gradients of all `functions[i]` on `args[i]`, by one program.

    Args:
      functions: what is differentiable in all of its arguments.
      args: the arguments, trees of arrays.
      cts: what is pulled back, in the shape of the output.
    """

    def run(args: Any, cts: Any) -> Any:
        return [
            [with_gradients(f)(*given, ct) for f in alike]
            for alike, given, ct in zip(functions, args, cts, strict=True)
        ]

    return jax.jit(run)(args, cts)


def compare(calls: Iterable[Call], seed: int = 0, tolerance: float = TOLERANCE) -> float:
    """Asserts that outputs and gradients agree; returns the largest error.

    An error is counted in units of the largest element of the array that it is in.
    """
    calls = list(calls)
    rng = np.random.default_rng(seed)
    cts = []
    for call in calls:
        functions = [f for pair in call.pairs.values() for f in pair]
        shapes = [jax.eval_shape(f, *call.args) for f in functions]
        assert len({(shape.shape, shape.dtype) for shape in shapes}) == 1, call.name
        cts.append(normal(rng, *shapes[0].shape, dtype=shapes[0].dtype))
    results = in_one_program(
        [[f for pair in call.pairs.values() for f in pair] for call in calls],
        [call.args for call in calls],
        cts,
    )
    return max(
        error(f"{name} {call.name}", ours, theirs, tolerance)
        for call, found in zip(calls, results, strict=True)
        for name, ours, theirs in zip(call.pairs, found[::2], found[1::2], strict=True)
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


def pair_of_pads(rng: np.random.Generator, reach: int) -> tuple[int, int]:
    """Two pads for a kernel of that many pixels and one, such that JAX itself can do without error.

    Where the one is negative and the other positive, XLA:CPU's own convolution reads outside its
    input (openxla/xla#48713); where both are zero while another axis differs, XLA may abort as it
    simplifies JAX's gradient. `reach` less the pads is what the gradient pads by, or what
    `use_consistent_padding` makes of them.
    """
    while True:
        lo, hi = (int(i) for i in rng.integers(-2, 6, size=2))
        each = (lo, hi), (reach - lo, reach - hi)
        if all(a * b >= 0 and (a, b) != (0, 0) for a, b in each):
            return lo, hi


def is_refused(f: Function, *args: Any) -> bool:
    """Whether JAX takes the pads to leave less than nothing, or nothing."""
    try:
        return 0 in jax.eval_shape(f, *args).shape
    except ValueError as e:
        assert "Negative padding is larger" in str(e)  # noqa: PT017
        return True
