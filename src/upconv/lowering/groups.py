"""Groups, one after another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from upconv.geometry import Geometry
from upconv.lowering.calls import kept_apart
from upconv.lowering.loops import repeat
from upconv.lowering.numerics import Numerics, Way, accumulator


def one_by_one(compute: Way, a: jax.Array, b: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """A map, by `compute` for one group after another, which the last axes hold.

    In 32 bits, because in a loop XLA:CPU converts all groups of 16 bits again for each of them.
    Kept apart, because a group's pixels are far from each other among those of all, and are moved
    faster once. G of 8x32x32x128 -> 64, 4x4 / 2, in 8 groups: 0.5.
    """
    alone = dataclasses.replace(g, groups=1)
    wide = num._replace(dtype=accumulator(num.dtype))
    a, b = (c.astype(accumulator(c.dtype)) for c in (a, b))

    @kept_apart
    def of_one(a: jax.Array, b: jax.Array) -> jax.Array:
        return compute(a, b, alone, wide)

    def of_group(i: jax.Array) -> jax.Array:
        return of_one(_group(a, i, g.groups), _group(b, i, g.groups))

    def put(i: jax.Array, result: jax.Array) -> jax.Array:
        part = of_group(i)
        return lax.dynamic_update_slice_in_dim(
            result, part, lax.mul(i, jnp.int32(part.shape[-1])), -1, allow_negative_indices=False
        )

    one = jax.eval_shape(of_group, jnp.int32(0))
    start = jnp.zeros((*one.shape[:-1], g.groups * one.shape[-1]), one.dtype)
    return repeat(g.groups, put, start).astype(num.dtype)


def _group(a: jax.Array, i: jax.Array, groups: int) -> jax.Array:
    width = a.shape[-1] // groups
    start = lax.mul(i, jnp.int32(width))
    return lax.dynamic_slice_in_dim(a, start, width, -1, allow_negative_indices=False)
