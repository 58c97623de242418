"""`conv_transpose` as `jax.lax` has it, and what Flax's `ConvTranspose` makes of it.

JAX pads the input, dilated by the strides, by `(lo, hi)` and correlates it with the kernel. So the
kernel is flipped against ours, unless `transpose_kernel` flips it once more. Of the full output of
`upconv.geometry` JAX crops `(K - 1 - lo, K - 1 - hi)`, with `K` the length that the dilated kernel
spans (Dumoulin and Visin, arXiv:1603.07285, section 4).
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
      strides: one integer per spatial axis.
      padding: `"SAME"`, `"VALID"`, or per spatial axis a pair by which to pad the dilated
        input; pads may be negative. Any other name that `jax.lax` knows is taken for the padding of
        a convolution, as there, and goes without strides.
      rhs_dilation: `None`, or one integer per spatial axis.
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
    functional.check_array("lhs", lhs)
    functional.check_array("rhs", rhs)
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
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
    y = _channels_last(
        x,
        rhs,
        transpose_kernel,
        strides=strides,
        padding=_crops(padding, x.shape[1:-1], span, strides, consistent=use_consistent_padding),
        dilation_rate=dilation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    # For each axis of the output, which axis of y it is.
    order = sorted(range(rank + 2), key=(output[0], *output[2:], output[1]).__getitem__)
    return jnp.transpose(y, order)


# ------------------------------------------------------------------ for the layers like Flax's


def flax_conv_transpose(
    inputs: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike | None,
    *,
    strides: Ints | None,
    padding: geometry.Padding,
    kernel_dilation: Ints | None,
    transpose_kernel: bool,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: jax.typing.DTypeLike | None,
) -> jax.Array:
    """What Flax's `ConvTranspose` computes from its inputs and parameters, given its fields.

    Args:
      inputs: `(*batch, *spatial, c_in)`, any number of batch axes.
      kernel: of the shape that `flax_kernel_shape` returns.
      bias: `(c_out,)` or `None`.
      strides, kernel_dilation: an integer, one per spatial axis, or `None` for 1.
      padding: as in `conv_transpose`, or how much to pad both ends, or `"CIRCULAR"`, which
        wraps what hangs over round and takes half of `K - stride` from the start, rounded up
        with `transpose_kernel` and down without.
      transpose_kernel, precision, preferred_element_type: as in `conv_transpose`.

    Returns:
      `(*batch, *output, c_out)`, in the dtype of `conv_transpose`, promoted with the bias's.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a shape or an option does not fit, or nothing would be left of the output.

    >>> x, kernel = jnp.ones((2, 7, 3)), jnp.ones((4, 3, 8))
    >>> options = dict(kernel_dilation=None, transpose_kernel=False, precision=None)
    >>> flax_conv_transpose(
    ...     x, kernel, None, strides=2, padding="CIRCULAR", preferred_element_type=None, **options
    ... ).shape
    (2, 14, 8)
    """
    inputs, kernel = jnp.asarray(inputs), jnp.asarray(kernel)
    rank = kernel.ndim - 2
    if inputs.ndim <= rank:
        raise ValueError(
            f"inputs must be (*batch, *spatial, c_in) with the {rank} spatial axes of kernel_size, "
            f"got shape {inputs.shape}"
        )
    strides = geometry.per_axis("strides", 1 if strides is None else strides, rank)
    dilation = 1 if kernel_dilation is None else kernel_dilation
    dilation = geometry.per_axis("kernel_dilation", dilation, rank)
    span = tuple(map(geometry.dilated, kernel.shape[:-2], dilation))
    circular = isinstance(padding, str) and padding == "CIRCULAR"
    y = _channels_last(
        inputs,
        kernel,
        transpose_kernel,
        strides=strides,
        padding="circular"
        if circular
        else _crops(padding, inputs.shape[-1 - rank : -1], span, strides),
        dilation_rate=dilation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    shift = circular_shift(span, strides, transpose_kernel)
    if circular and any(shift):
        y = jnp.roll(y, shift, range(-1 - rank, -1))
    return y if bias is None else functional.add_bias(y, bias, channel_axis=-1)


def flax_kernel_shape(
    kernel_size: Ints, in_features: int, features: int, transpose_kernel: bool, mask: Any = None
) -> tuple[int, ...]:
    """The shape of the kernel of Flax's `ConvTranspose`, and of its mask.

    Args:
      kernel_size: one integer per spatial axis, of which there are 1 to 3; an integer for one axis.
      in_features: the number of input channels.
      features: the number of output channels.
      transpose_kernel: whether the kernel is that of the convolution which this transposes.
      mask: `None`, or what the kernel is to be multiplied by.

    Returns:
      `(*kernel_size, in_features, features)`, the last two exchanged with `transpose_kernel`.

    Raises:
      TypeError: if the kernel's size is not made of integers.
      ValueError: if there are more spatial axes, or the mask has another shape.

    >>> flax_kernel_shape(5, in_features=3, features=8, transpose_kernel=False)
    (5, 3, 8)
    """
    rank = len(kernel_size) if geometry.is_sequence(kernel_size) else 1
    if not 1 <= rank <= 3:
        raise ValueError(f"kernel_size must have 1 to 3 spatial axes, got {kernel_size!r}")
    channels = (features, in_features) if transpose_kernel else (in_features, features)
    shape = (*geometry.per_axis("kernel_size", kernel_size, rank), *channels)
    check_mask(mask, shape)
    return shape


def flax_in_features(inputs: jax.typing.ArrayLike) -> int:
    """The channels of inputs, which must be an array that has some."""
    functional.check_array("inputs", inputs)
    shape = jnp.shape(inputs)
    if not shape:
        raise ValueError("inputs must be (*batch, *spatial, c_in), got shape ()")
    return shape[-1]


def check_mask(mask: jax.typing.ArrayLike | None, kernel_shape: Sequence[int]) -> None:
    """Raises a ValueError if there is a mask, and of another shape than the kernel's."""
    if mask is not None and jnp.shape(mask) != kernel_shape:
        raise ValueError(f"mask must have the kernel's shape {kernel_shape}, got {jnp.shape(mask)}")


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


def circular_shift(
    span: Sequence[int], strides: Sequence[int], transpose_kernel: bool
) -> tuple[int, ...]:
    """By how many pixels Flax's circular output is rolled against ours, per spatial axis.

    Both take half of what hangs over from the start, and we round it down. Flax rounds it up
    where it has our kernel, with `transpose_kernel`: one pixel further, if the overhang is odd.
    """
    pairs = zip(span, strides, strict=True)
    return tuple(-1 if transpose_kernel and k > s and (k - s) % 2 else 0 for k, s in pairs)


def _channels_last(
    x: jax.Array, kernel: jax.Array, transpose_kernel: bool, **options: Any
) -> jax.Array:
    """Applies our function, with channels last, to a kernel with axes `(*kernel_size, I, O)`."""
    kernel = kernel if transpose_kernel else mirrored_kernel(kernel)
    return functional.conv_transpose(x, kernel, **options)


def _crops(
    padding: Any,
    spatial: tuple[geometry.Size, ...],
    span: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    consistent: bool = False,
) -> geometry.Padding:
    """Our padding for JAX's: the name that we have for it, or how much it crops."""
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
            raise ValueError(
                "padding must be 'SAME', 'VALID' or one (lo, hi) pair per spatial axis; the other "
                "names of jax.lax go without strides and without use_consistent_padding; "
                f"got {padding!r} with strides {strides}"
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
