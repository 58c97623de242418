"""Groups, one after another."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def one_by_one(
    compute: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, b: jax.Array, groups: int
) -> jax.Array:
    """What `compute` makes of each group of `a` and `b`; the last axes hold the groups."""
    operands = [(c, c.shape[-1] // groups) for c in (a, b)]
    one = jax.eval_shape(
        compute, *(jax.ShapeDtypeStruct((*c.shape[:-1], width), c.dtype) for c, width in operands)
    )

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, result = state
        part = compute(*(_group(c, i, width) for c, width in operands))
        start = (*[jnp.int32(0)] * (one.ndim - 1), i * jnp.int32(one.shape[-1]))
        result = lax.dynamic_update_slice(result, part, start, allow_negative_indices=False)
        return lax.add(i, jnp.int32(1)), result

    zero = jnp.zeros((*one.shape[:-1], groups * one.shape[-1]), one.dtype)
    start = (jnp.int32(0), zero)
    _, result = lax.while_loop(lambda state: lax.lt(state[0], jnp.int32(groups)), step, start)
    return result


def _group(a: jax.Array, i: jax.Array, width: int) -> jax.Array:
    start = (*[jnp.int32(0)] * (a.ndim - 1), lax.mul(i, jnp.int32(width)))
    return lax.dynamic_slice(a, start, (*a.shape[:-1], width), allow_negative_indices=False)
