"""A convolution, in the form that XLA computes fast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from upconv.auto import cpu
from upconv.geometry import Size, dilated, windows
from upconv.lowering.axes import merge, merge_first, merge_last, move, pad, take_rows
from upconv.lowering.numerics import Numerics


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    num: Numerics,
    *,
    padding: Sequence[tuple[Size, Size]],
    strides: Sequence[int] | None = None,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
    stretched: bool = False,
) -> jax.Array:
    """A convolution of `(N, *space, in)` by `(*window, in // groups, out)`.

    XLA:CPU has two kernels for two dimensions, YNNPACK's and Eigen's. Where Eigen's is the faster
    one, or `stretched` says so, a zero row is put after every row of image and window: the same
    sums, but only Eigen's kernel takes them.
    """
    rank = lhs.ndim - 2
    ones = (1,) * rank
    lhs, padding, lhs_dilation = prepared(lhs, padding, lhs_dilation or ones)
    window = _Window(padding, strides or ones, lhs_dilation, rhs_dilation or ones, groups)
    if num.platform == "cpu" and rank < 3 and _is_exchanged(lhs, rhs, window):
        lhs, window, stretched = _padded_apart(lhs, window), _without_padding(window), True
        if rank == 1:
            return _convolve_as_row(lhs, rhs, num, window)
    takes_it = num.platform == "cpu" and rank == 2 and _is_for_eigen(lhs.dtype)
    if takes_it and (stretched or _is_faster_by_eigen(lhs, rhs, window)):
        window = window.stretched()
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides=window.strides,
        padding=window.padding,
        lhs_dilation=window.lhs_dilation,
        rhs_dilation=window.rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image),
        feature_group_count=window.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )


class _Window(NamedTuple):
    """How a convolution's window moves: an entry per spatial axis, but for `groups`."""

    padding: Sequence[tuple[Size, Size]]
    strides: Sequence[int]
    lhs_dilation: Sequence[int]
    rhs_dilation: Sequence[int]
    groups: int

    def stretched(self) -> _Window:
        """The same sums with a zero row after every row of image and window, in two dimensions."""
        (lo, hi), columns = self.padding

        def rows_apart(steps: Sequence[int]) -> tuple[int, int]:
            return 2 * steps[0], steps[1]

        return self._replace(
            padding=((2 * lo, 2 * hi), columns),
            strides=rows_apart(self.strides),
            lhs_dilation=rows_apart(self.lhs_dilation),
            rhs_dilation=rows_apart(self.rhs_dilation),
        )


def _convolve_as_row(lhs: jax.Array, rhs: jax.Array, num: Numerics, window: _Window) -> jax.Array:
    """One dimension as a row of two, which alone can be stretched."""
    return lax.squeeze(
        convolve(
            lax.expand_dims(lhs, (1,)),
            lax.expand_dims(rhs, (0,)),
            num,
            padding=((0, 0), *window.padding),
            strides=(1, *window.strides),
            lhs_dilation=(1, *window.lhs_dilation),
            rhs_dilation=(1, *window.rhs_dilation),
            groups=window.groups,
            stretched=True,
        ),
        (1,),
    )


def prepared(
    a: jax.Array, padding: Sequence[tuple[Size, Size]], dilation: Sequence[int]
) -> tuple[jax.Array, Sequence[tuple[int, int]], Sequence[int]]:
    """An image, its padding and its dilation, after what must not be left to a convolution.

    A convolution takes no symbolic padding; and XLA:CPU before jaxlib 0.12 reads beyond an image
    that is cropped in front and padded behind (openxla/xla#48713).
    """
    if not all(isinstance(n, int) for n in itertools.chain.from_iterable(padding)):
        ends = [(lo, hi, d - 1) for (lo, hi), d in zip(padding, dilation, strict=True)]
        padding, dilation = [(0, 0)] * len(padding), (1,) * len(padding)
    elif set(dilation) == {1} and any(lo < 0 for lo, _ in padding):
        front = [min(max(-lo, 0), n) for (lo, _), n in zip(padding, a.shape[1:-1], strict=True)]
        ends = [(-n, 0, 0) for n in front]
        padding = [(lo + n, hi) for (lo, hi), n in zip(padding, front, strict=True)]
    else:
        return a, padding, dilation
    return pad(a, [(0, 0, 0), *ends, (0, 0, 0)]), padding, dilation


def _is_exchanged(lhs: jax.Array, rhs: jax.Array, window: _Window) -> bool:
    """Whether XLA exchanges image and window, as it does where the window has more pixels.

    XLA:CPU has only a naive loop for what comes of that, unless the image is padded beforehand
    and stretched. C of 16x8x8x512 -> 12, 9x9: 0.02.
    """
    static = all(isinstance(n, int) for n in lhs.shape[1:-1])
    plain = window.groups == 1 and set(window.lhs_dilation) == {1}
    return static and plain and math.prod(rhs.shape[:-2]) > math.prod(lhs.shape[1:-1])


def _padded_apart(a: jax.Array, window: _Window) -> jax.Array:
    """An image, padded where XLA does not see that the convolution could pad it."""
    ends = [(lo, hi, 0) for lo, hi in window.padding]
    a = pad(lax.expand_dims(a, (0,)), [(0, 0, 0), (0, 0, 0), *ends, (0, 0, 0)])
    return lax.squeeze(a, (0,))


def _without_padding(window: _Window) -> _Window:
    return window._replace(padding=((0, 0),) * len(window.padding))


def _is_for_eigen(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4


# Channels that a convolution takes and gives, from which Eigen's kernel is the faster one.
EIGEN_TAKES, EIGEN_GIVES = (16, 48) if cpu.PARALLEL_YNNPACK else (8, 16)

# Products of a pixel by a tap, from which it is. T of 16x96x96x8 -> 16, 5x5: 1.5.
EIGEN_PRODUCTS = 16 * 16

# Pixels of an output up to which it is, where YNNPACK's kernel uses all cores.
EIGEN_PIXELS = 32 * 32

# Numbers of an image alone from which YNNPACK's kernel has always used all cores.
LARGE_ALONE = 4 << 20


def _is_faster_by_eigen(lhs: jax.Array, rhs: jax.Array, window: _Window) -> bool:
    """Whether XLA:CPU would take YNNPACK's kernel, but Eigen's is faster.

    YNNPACK's is taken where the output is not larger than the input. Before jaxlib 0.11 it mostly
    leaves cores idle, but does better where few channels are given. C of 16x32x32x32 -> 96, 3x3:
    0.5 by Eigen's kernel; of 64x32x32x8 -> 64, 3x3 / 2: 0.6. But of 4x64x64x32 -> 4, 3x3: 3, and of
    1x256x256x64 -> 64, 4x4 / 2: 1.1. With jaxlib 0.12, of 32x8x8x256 -> 512, 4x4 / 2: 0.9, and 0.4
    on the Xeon. But of 2x64x64x128 -> 64, 3x3: 1.15, and of 32x28x28x48 -> 3, 5x5: 4.
    """
    batch, *image = lhs.shape
    if not all(isinstance(n, int) for n in image):
        return False
    alone = isinstance(batch, int) and batch <= 1
    axes = list(zip(lhs.shape[1:], window.padding, window.rhs_dilation, rhs.shape, strict=False))
    smaller = all(lo + hi <= d * (k - 1) for _, (lo, hi), d, k in axes)
    plain = window.groups == 1 and tuple(window.lhs_dilation) == (1, 1)
    takes, gives = lhs.shape[-1], rhs.shape[-1]
    many = takes >= EIGEN_TAKES and gives >= EIGEN_GIVES and takes * gives >= EIGEN_PRODUCTS
    if not (plain and smaller and many):
        return False
    if not cpu.PARALLEL_YNNPACK:
        return not alone or lhs.size < LARGE_ALONE
    pixels = math.prod(
        windows(n + lo + hi, dilated(k, d), s)
        for (n, (lo, hi), d, k), s in zip(axes, window.strides, strict=True)
    )
    return not alone and pixels <= EIGEN_PIXELS


def convolve_planes(
    lhs: jax.Array,
    rhs: jax.Array,
    num: Numerics,
    *,
    padding: Sequence[tuple[int, int]],
    strides: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> jax.Array:
    """`convolve` of one group with one spatial axis less.

    The planes that a window meets become the channels of one: those of a volume, or the rows of an
    image.
    """
    s, *strides = strides or (1,) * (lhs.ndim - 2)
    d, *dilation = rhs_dilation or (1,) * (lhs.ndim - 2)
    (lo, hi), *padding = padding
    k = rhs.shape[0]
    n = windows(lhs.shape[1] + lo + hi, dilated(k, d), s)
    planes = take_rows(lhs, np.arange(n)[:, None] * s + np.arange(k) * d - lo)
    z = convolve(
        merge_first(merge_last(move(planes, 2, -2))),
        merge(move(rhs, 0, -3), -3),
        num,
        padding=padding,
        strides=strides,
        rhs_dilation=dilation,
    )
    return z.reshape(lhs.shape[0], n, *z.shape[1:])
