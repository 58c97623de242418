"""Strips of images, which a sum over images takes as images, all at once or piece by piece.

A strip is some rows of `x` and all rows of `y` that they meet, so that G is the sum of G of strips.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from upconv.auto import cpu
from upconv.geometry import Geometry, cdiv
from upconv.lowering.axes import merge_first, pad, take_rows
from upconv.lowering.loops import repeat
from upconv.lowering.numerics import Numerics, Way, accumulator

# How many images, or strips of them, one sum should have. With 4 strips, which stretching does not
# help, 2x64x64x128 -> 64, 3x3 / 2 takes 2.5 times as long, and with 16 of them 1.3. Products of
# numbers are summed over as many parts.
IMAGES = 8

# Bytes of `y` in a piece; what would make fewer than four pieces is not cut.
PIECE = 4 << 20


def in_strips(
    at_once: Way,
    x: jax.Array,
    y: jax.Array,
    g: Geometry,
    num: Numerics,
    *,
    in_pieces: bool = True,
) -> jax.Array:
    """G, or what becomes G by a sum, of as many strips as `at_once` does well with."""
    rows, pieces = _cut(x.shape[0], y.nbytes if in_pieces else 0, g)
    if rows == g.input_size[0] and pieces == 1:
        return at_once(x, y, g, num)
    strip, met = _strip(g, rows)
    x = _strips_of_input(x, strip, met)
    if pieces > 1:
        return _sum_of_pieces(at_once, pieces, x, y, strip, met, num)
    return at_once(x, _strips_of_output(y, met), strip, num)


def _cut(images: int, size: int, g: Geometry) -> tuple[int, int]:
    """How many rows of `x` a strip has, and in how many pieces `y`, of `size` bytes, is taken."""
    n = g.input_size[0]
    taps = g.phase_taps[0]
    # Neighbouring strips both meet `taps - 1` strides of rows: fewer than half of a strip's, or,
    # where an image alone is slow, fewer than all. 16x16x21 -> 21, 32x32 / 16, with jaxlib 0.12:
    # 0.4; with 0.10.2 it was 0.8, for twice the memory.
    allowed = (2 * taps, taps) if cpu.PARALLEL_YNNPACK else (2 * taps,)
    enough = [r for r in allowed if r < n and images * cdiv(n, r) >= IMAGES]
    least = enough[0] if enough else n
    pieces = cdiv(size, PIECE) if size >= 4 * PIECE else 1
    pieces = min(pieces, max(images * cdiv(n, least) // IMAGES, 1))
    rows = max(cdiv(n, cdiv(IMAGES * pieces, max(images, 1))), least)
    strips = cdiv(n, rows)
    return rows, next((p for p in range(pieces, 1, -1) if images * strips % p == 0), 1)


def _strip(g: Geometry, rows: int) -> tuple[Geometry, np.ndarray]:
    """The geometry of a strip, and the rows of `y` that each meets: `(strips, rows met)`."""
    strips, s = cdiv(g.input_size[0], rows), g.strides[0]
    met = (rows - 1) * s + g.span[0]
    strip = g.with_axis(0, input_size=rows, crop=0, output_size=met)
    return strip, np.arange(strips)[:, None] * rows * s + np.arange(met) - g.crop[0]


def _strips_of_input(x: jax.Array, strip: Geometry, met: np.ndarray) -> jax.Array:
    """The strips of `x`, as images; zeros fill up the last."""
    strips, (rows, *_) = met.shape[0], strip.input_size
    x = pad(x, [(0, 0, 0), (0, rows * strips - x.shape[1], 0), *[(0, 0, 0)] * (x.ndim - 2)])
    return x.reshape(x.shape[0] * strips, rows, *x.shape[2:])


def _strips_of_output(y: jax.Array, met: np.ndarray) -> jax.Array:
    """What the strips meet of `y`, as images."""
    return merge_first(take_rows(y, met))


def _sum_of_pieces(
    at_once: Way,
    pieces: int,
    x: jax.Array,
    y: jax.Array,
    strip: Geometry,
    met: np.ndarray,
    num: Numerics,
) -> jax.Array:
    """The sum over strips of `x`, one piece of them after another, with what each meets of `y`."""
    height = y.shape[1]
    inside = np.clip(met, 0, height - 1)
    row = np.arange(y.shape[0])[:, None, None] * height + inside
    there = np.broadcast_to(met == inside, row.shape)
    y = merge_first(y)
    of_rows = lax.GatherDimensionNumbers((2, *range(3, y.ndim + 1)), (0,), (0,))
    stacks = [
        a.reshape(pieces, -1, *a.shape[rest:])
        for a, rest in ((x, 1), (jnp.asarray(row, np.int32), 2), (jnp.asarray(there), 2))
    ]
    wide = num._replace(dtype=accumulator(num.dtype))

    def of_piece(i: jax.Array) -> jax.Array:
        x, row, there = (_take_piece(stack, i) for stack in stacks)
        part = lax.gather(
            y,
            lax.expand_dims(row, (2,)),
            of_rows,
            (1, *y.shape[1:]),
            mode="promise_in_bounds",  # a check would be a loop of its own
        )
        there = lax.broadcast_in_dim(there, part.shape, (0, 1))
        part = lax.select(there, part, jnp.zeros_like(part))
        return at_once(x, part, strip, wide)

    one = jax.eval_shape(of_piece, jnp.int32(0))
    start = jnp.zeros(one.shape, one.dtype)
    total = repeat(pieces, lambda i, total: lax.add(total, of_piece(i)), start)
    return total.astype(num.dtype)


def _take_piece(a: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(a, i, keepdims=False, allow_negative_indices=False)
