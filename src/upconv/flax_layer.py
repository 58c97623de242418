"""What Flax's `ConvTranspose` is, apart from the framework that holds its parameters.

It pads, and flips its kernel, as `jax.lax.conv_transpose` does: see `upconv.lax`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from upconv import functional, geometry, lax

Ints = int | Sequence[int]


def conv_transpose(
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
      kernel: of the shape that `kernel_shape` returns.
      bias: `(c_out,)` or `None`.
      strides, kernel_dilation: an integer, one per spatial axis, or `None` for 1.
      padding: as in `upconv.lax.conv_transpose`; or an integer, or one for each spatial axis, by
        which to pad both ends; or `"CIRCULAR"`, which adds what hangs over either end to the other.
      transpose_kernel, precision, preferred_element_type: as in `upconv.lax.conv_transpose`.

    Returns:
      `(*batch, *output, c_out)`, in the dtype of `upconv.lax.conv_transpose`, promoted with that of
        the bias.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a shape or an option does not fit, or nothing would be left of the output.

    >>> x, kernel = jnp.ones((2, 7, 3)), jnp.ones((4, 3, 8))
    >>> options = dict(kernel_dilation=None, transpose_kernel=False, precision=None)
    >>> conv_transpose(
    ...     x, kernel, None, strides=2, padding="CIRCULAR", preferred_element_type=None, **options
    ... ).shape
    (2, 14, 8)
    """
    inputs, kernel = functional.as_array("inputs", inputs), functional.as_array("kernel", kernel)
    rank = kernel.ndim - 2
    if inputs.ndim <= rank:
        raise ValueError(
            f"inputs must be (*batch, *spatial, c_in) with the {rank} spatial axes of kernel_size, "
            f"got shape {inputs.shape}"
        )
    c_in = kernel.shape[-1 if transpose_kernel else -2]
    if inputs.shape[-1] != c_in:
        raise ValueError(
            f"inputs must have {c_in} channels, as the kernel of shape {kernel.shape} has, "
            f"got shape {inputs.shape}"
        )
    strides = per_axis("strides", strides, rank)
    dilation = per_axis("kernel_dilation", kernel_dilation, rank)
    span = tuple(map(geometry.dilated, kernel.shape[:-2], dilation))
    circular = isinstance(padding, str) and padding == "CIRCULAR"
    spatial = inputs.shape[-1 - rank : -1]
    y = functional.conv_transpose(
        inputs,
        kernel if transpose_kernel else lax.mirrored_kernel(kernel),
        strides=strides,
        padding="circular" if circular else crops(padding, spatial, span, strides),
        dilation_rate=dilation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if circular and any(shift := circular_shift(span, strides, transpose_kernel)):
        y = jnp.roll(y, shift, range(-1 - rank, -1))
    return y if bias is None else functional.add_bias(y, bias, channel_axis=-1)


def kernel_shape(
    kernel_size: Ints, in_features: int, features: int, transpose_kernel: bool
) -> tuple[int, ...]:
    """The shape of the kernel of Flax's `ConvTranspose`, and of its mask.

    Args:
      kernel_size: one integer per spatial axis, of which there are 1 to 3; an integer for one axis.
      in_features: the number of input channels.
      features: the number of output channels.
      transpose_kernel: whether the kernel is that of the convolution which this transposes.

    Returns:
      `(*kernel_size, in_features, features)`, the last two exchanged with `transpose_kernel`.

    Raises:
      TypeError: if the kernel's size is not made of integers.
      ValueError: if it has more of them, or one below 1.

    >>> kernel_shape(5, in_features=3, features=8, transpose_kernel=False)
    (5, 3, 8)
    """
    rank = len(kernel_size) if geometry.is_sequence(kernel_size) else 1
    if not 1 <= rank <= 3:
        raise ValueError(f"kernel_size must have 1 to 3 spatial axes, got {kernel_size!r}")
    channels = (features, in_features) if transpose_kernel else (in_features, features)
    return (*geometry.per_axis("kernel_size", kernel_size, rank), *channels)


def crops(
    padding: geometry.Padding,
    spatial: tuple[geometry.Size, ...],
    span: tuple[int, ...],
    strides: tuple[int, ...],
) -> geometry.Padding:
    """Our padding for Flax's, which is not `"CIRCULAR"`: as `upconv.lax.crops`."""
    accepted = "'SAME', 'VALID', 'CIRCULAR', an integer or one (lo, hi) pair per spatial axis"
    return lax.crops(padding, spatial, span, strides, accepted=accepted)


def per_axis(name: str, value: Ints | None, rank: int) -> tuple[int, ...]:
    """Strides or dilations, one for each of `rank` axes; `None` is 1.

    >>> per_axis("strides", None, rank=2), per_axis("strides", 2, rank=2)
    ((1, 1), (2, 2))
    """
    return geometry.per_axis(name, 1 if value is None else value, rank)


def in_features(inputs: jax.typing.ArrayLike) -> int:
    """The channels of inputs, which must be an array that has some."""
    functional.check_array("inputs", inputs)
    shape = jnp.shape(inputs)
    if not shape:
        raise ValueError("inputs must be (*batch, *spatial, c_in), got shape ()")
    return shape[-1]


def masked(kernel: jax.Array, mask: jax.typing.ArrayLike | None) -> jax.Array:
    """The kernel times its mask, if there is one."""
    check_mask(mask, kernel.shape)
    return kernel if mask is None else kernel * mask


def check_mask(mask: jax.typing.ArrayLike | None, kernel_shape: Sequence[int]) -> None:
    """Raises a ValueError if there is a mask, and of another shape than the kernel's."""
    if mask is not None and jnp.shape(mask) != kernel_shape:
        raise ValueError(f"mask must have the kernel's shape {kernel_shape}, got {jnp.shape(mask)}")


def circular_shift(
    span: Sequence[int], strides: Sequence[int], transpose_kernel: bool
) -> tuple[int, ...]:
    """By how many pixels Flax's circular output is rolled relative to ours, per spatial axis.

    Both take half of what hangs over from the start, and we round it down. Flax rounds it up
    where it has our kernel, with `transpose_kernel`: one pixel further, if the overhang is odd.
    """
    pairs = zip(span, strides, strict=True)
    return tuple(-1 if transpose_kernel and k > s and (k - s) % 2 else 0 for k, s in pairs)
