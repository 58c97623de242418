"""`conv_transpose` as `jax.lax` has it.

JAX pads the input, dilated by the strides, by `(lo, hi)` and correlates it with the kernel. So the
kernel is flipped relative to ours, unless `transpose_kernel` flips it once more. Of the full output
of `upconv.geometry` JAX crops `(K - 1 - lo, K - 1 - hi)`, with `K` the length that the dilated
kernel spans (Dumoulin and Visin, arXiv:1603.07285, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from upconv import functional, geometry

__all__ = ["conv_transpose"]

Ints = int | Sequence[int]
Array = TypeVar("Array", jax.Array, np.ndarray)

# By number of spatial axes: channels last, kernels (*kernel_size, c_in, c_out).
_DEFAULT = {
    1: ("NHC", "HIO", "NHC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NHWDC", "HWDIO", "NHWDC"),
}


def conv_transpose(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    use_consistent_padding: bool = False,
) -> jax.Array:
    """`jax.lax.conv_transpose`: its signature and its numbers, with faster gradients.

    Args:
      lhs: the input, one batch axis, one of channels and 1 to 3 spatial axes, in the order that
        `dimension_numbers` gives; by default channels last.
      rhs: the kernel, by default `(*kernel_size, c_in, c_out)`. Operands of different dtypes
        are promoted.
      strides: one integer per spatial axis, or one for all.
      padding: `"SAME"`, `"VALID"`, or per spatial axis a pair by which to pad the dilated input, or
        an integer for both ends; pads may be negative. Any other name that `jax.lax` knows is taken
        for the padding of a convolution, as there, and goes without strides.
      rhs_dilation: `None`, one integer per spatial axis, or one for all.
      dimension_numbers: `None`, three strings such as `("NCHW", "OIHW", "NCHW")`, or a
        `jax.lax.ConvDimensionNumbers`. Strides, pads and dilations follow the spatial axes in
        the kernel's order.
      transpose_kernel: whether the kernel is that of the convolution which this transposes:
        flipped, and `I` and `O` exchanged.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default the operands'.
      use_consistent_padding: whether pairs are the pads of the convolution which this transposes,
        as in PyTorch: they say how much to crop.

    Returns:
      An array in the layout that `dimension_numbers` gives the output.

    Raises:
      TypeError: if an argument has the wrong type, or `dimension_numbers` name no layout.
      ValueError: if a shape or an option does not fit, or nothing would be left of the output. The
        message names the argument.

    >>> x, kernel = jnp.ones((2, 7, 5, 3)), jnp.ones((5, 4, 3, 8))
    >>> conv_transpose(x, kernel, (2, 2), "SAME").shape
    (2, 14, 10, 8)
    >>> conv_transpose(x, kernel, (2, 2), [(1, 2), (0, 3)]).shape
    (2, 12, 9, 8)
    """
    lhs, rhs = functional.as_array("lhs", lhs), functional.as_array("rhs", rhs)
    rank = lhs.ndim - 2
    if rhs.ndim != lhs.ndim or not 1 <= rank <= 3:
        raise ValueError(
            "lhs and rhs must have the same number of axes, two beside 1 to 3 spatial ones, "
            f"got shapes {lhs.shape} and {rhs.shape}"
        )
    image, kernel, output = jax.lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, _DEFAULT[rank] if dimension_numbers is None else dimension_numbers
    )
    c_in = kernel[0] if transpose_kernel else kernel[1]
    if lhs.shape[image[1]] != rhs.shape[c_in]:
        raise ValueError(
            f"rhs must have {lhs.shape[image[1]]} input channels on axis {c_in}, as lhs of shape "
            f"{lhs.shape} has on axis {image[1]}, got shape {rhs.shape} "
            f"(dimension_numbers={dimension_numbers!r}, transpose_kernel={transpose_kernel})"
        )
    x = jnp.transpose(lhs, (image[0], *image[2:], image[1]))
    rhs = jnp.transpose(rhs, (*kernel[2:], kernel[1], kernel[0]))
    strides = geometry.per_axis("strides", strides, rank)
    dilation = 1 if rhs_dilation is None else rhs_dilation
    dilation = geometry.per_axis("rhs_dilation", dilation, rank)
    span = tuple(map(geometry.dilated, rhs.shape[:-2], dilation))
    y = functional.conv_transpose(
        x,
        rhs if transpose_kernel else mirrored_kernel(rhs),
        strides=strides,
        padding=crops(padding, x.shape[1:-1], span, strides, consistent=use_consistent_padding),
        dilation_rate=dilation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    # For each axis of the output, which axis of y it is.
    order = sorted(range(rank + 2), key=(output[0], *output[2:], output[1]).__getitem__)
    return jnp.transpose(y, order)


def crops(
    padding: Any,
    spatial: tuple[geometry.Size, ...],
    span: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    consistent: bool = False,
    accepted: str = "'SAME', 'VALID' or one (lo, hi) pair per spatial axis",
) -> geometry.Padding:
    """Our padding for JAX's: the name that we have for it, or how much it crops.

    Args:
      padding, consistent: `padding` and `use_consistent_padding` of `conv_transpose`.
      spatial, span, strides: the input's spatial size, the length that the dilated kernel spans and
        the stride, of each spatial axis.
      accepted: what the caller takes for a padding, for the error message.
    """
    rank = len(span)
    pads: Any = padding
    if isinstance(padding, str):
        if padding in ("SAME", "VALID"):
            return padding
        # JAX takes any other name for the padding of a convolution, which then has no strides.
        try:
            if consistent or strides != (1,) * rank:
                raise ValueError
            pads = jax.lax.padtype_to_pads((1,) * rank, span, strides, padding)
        except (RuntimeError, ValueError):
            without = " and use_consistent_padding" if consistent else ""
            raise ValueError(
                f"padding must be {accepted}; the other names of jax.lax go without strides"
                f"{without}, got {padding!r} with strides {strides}{without}"
            ) from None
    pads = cast("geometry.Pads", geometry.canonical_padding(pads, rank))
    if not consistent:
        pads = mirrored_pads(pads, span)
    for n, k, s, (lo, hi) in zip(spatial, span, strides, pads, strict=True):
        left = geometry.full_length(n, k, s) - lo - hi
        if isinstance(left, int) and left < 1:
            raise ValueError(
                f"padding must leave some of the output, got {padding!r} for an input {spatial}, "
                f"strides {strides} and a kernel that spans {span}"
            )
    return pads


def mirrored_pads(
    pads: Sequence[tuple[int, int]], span: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """What is cropped of the full output by pads of the dilated input, or the pads of such crops.

    Either is `K - 1` less the other, with `K` the length that the dilated kernel spans.
    """
    return tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(span, pads, strict=True))


def mirrored_kernel(kernel: Array) -> Array:
    """Our kernel from JAX's without `transpose_kernel`, or that one from ours.

    Flips the spatial axes and swaps the two of channels, which are the last.
    """
    flip = np.flip if isinstance(kernel, np.ndarray) else jnp.flip
    return flip(kernel, tuple(range(kernel.ndim - 2))).swapaxes(-1, -2)
