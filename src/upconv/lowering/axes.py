"""Axes: moved, merged, split, padded, taken apart."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from upconv.geometry import Geometry, Size


def pad(a: jax.Array, ends: Sequence[tuple[Size, Size, int]]) -> jax.Array:
    """`lax.pad` with zeros, where there is anything to pad or crop."""
    if all(isinstance(n, int) and n == 0 for n in itertools.chain.from_iterable(ends)):
        return a
    return lax.pad(a, jnp.zeros((), a.dtype), ends)


def move(a: jax.Array, source: int, destination: int) -> jax.Array:
    """`jnp.moveaxis`, which would be traced as a function of its own, at ten times the cost."""
    order = list(range(a.ndim))
    order.insert(destination % a.ndim, order.pop(source % a.ndim))
    return a.transpose(order)


def merge(a: jax.Array, axis: int) -> jax.Array:
    """Merges an axis and the next."""
    axis %= a.ndim
    return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])


merge_first = functools.partial(merge, axis=0)

merge_last = functools.partial(merge, axis=-2)


def box(a: jax.Array, start: Sequence[int], size: Sequence[int]) -> jax.Array:
    """What lies from `start` on along the first axes, as long as `size` says."""
    rest = a.shape[len(start) :]
    stop = map(operator.add, start, size)
    return lax.slice(a, (*start, *[0] * len(rest)), (*stop, *rest))


def split_groups(a: jax.Array, groups: Size) -> jax.Array:
    """The last axis as `(groups, channels of one group)`."""
    return a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)


def swapped(w: jax.Array, g: Geometry) -> jax.Array:
    """A kernel `(*k, co, groups * ci)` as T convolves by it: `(*k, ci, groups * co)`."""
    r = g.rank
    w = split_groups(w, g.groups).transpose(*range(r), r + 2, r + 1, r)
    return merge_last(w)


def take_rows(y: jax.Array, row: np.ndarray, axis: int = 1) -> jax.Array:
    """`(..., rows, ...)` to `(..., *row.shape, ...)`; zeros for rows outside of the image."""
    before, rest = y.shape[:axis], y.shape[axis + 1 :]
    if np.array_equal(row.ravel(), np.arange(y.shape[axis])):  # as they are
        return y.reshape(*before, *row.shape, *rest)
    ends = [(0, 0, 0)] * y.ndim
    ends[axis] = (max(0, -row.min()), max(0, row.max() + 1 - y.shape[axis]), 0)
    y = lax.gather(
        pad(y, ends),
        (row + ends[axis][0]).reshape(-1, 1),
        lax.GatherDimensionNumbers(tuple(i for i in range(y.ndim) if i != axis), (axis,), (axis,)),
        (*before, 1, *rest),
        mode="promise_in_bounds",  # a check would cost more compilation than all the rest
    )
    return y.reshape(*before, *row.shape, *rest)
