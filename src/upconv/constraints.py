"""Projections of a parameter onto what is allowed, with the numbers of Keras.

Each is a frozen dataclass that is called with an array and gives one of the same shape and dtype:
hashable, comparable, printable, and safe to keep in a Flax module. Any other callable with that
signature serves as well. Norms are taken in float32 at least, and gradients are finite at
zero, too.

`axis` names the axes that one norm runs over. The default of 0 is Keras's; the norm of each filter
of a kernel `(height, width, filters, c_in)` is `axis=(0, 1, 3)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from upconv import geometry
from upconv.records import at_least_float32, real, store_number

__all__ = ["MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"]

# keras.config.epsilon(): Keras divides by the norm plus this, so that zero stays zero.
_EPSILON = 1e-7


@dataclass(frozen=True)
class MaxNorm:
    """Scales slices whose norm exceeds `max_value` down to it.

    `w * min(norm, max_value) / (norm + 1e-7)`, as in Keras.

    Args:
      max_value: the largest norm allowed, not negative.
      axis: the axes each norm is taken over; `(0, 1, 3)`: one norm per filter of a 2-D kernel.

    Called with an array of floating-point numbers, it returns one of the same shape and dtype; for
    any other it raises a TypeError.

    Raises:
      TypeError: if `max_value` is not a real number or `axis` neither an integer nor a sequence of
        them.
      ValueError: if `max_value` is negative or not finite, or an axis is named twice; for a call
        with an array that lacks an axis.

    >>> MaxNorm(1.0)(jnp.array([3.0, 4.0])).round(4).tolist()
    [0.6, 0.8]
    """

    max_value: float = 2.0
    axis: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        store_number(self, "max_value", nonnegative=True)
        _store_axis(self)

    def __call__(self, w: ArrayLike) -> jax.Array:
        """`w`, projected."""
        w = _floating(self, w)
        return _rescale(w, self.axis, lambda norm: jnp.minimum(norm, self.max_value))


@dataclass(frozen=True)
class NonNeg:
    """Replaces what is negative by 0.

    Called with a real array, it returns one of the same shape and dtype; for a complex one it
    raises a TypeError.

    >>> NonNeg()(jnp.array([-3.0, 4.0])).tolist()
    [0.0, 4.0]
    """

    def __call__(self, w: ArrayLike) -> jax.Array:
        """`w`, projected."""
        w = real(self, w)
        return jnp.maximum(w, jnp.zeros((), w.dtype))


@dataclass(frozen=True)
class UnitNorm:
    """Scales every slice to norm 1; what is zero stays zero.

    `w / (norm + 1e-7)`, as in Keras.

    Args:
      axis: the axes each norm is taken over; `(0, 1, 3)`: one norm per filter of a 2-D kernel.

    Called with an array of floating-point numbers, it returns one of the same shape and dtype; for
    any other it raises a TypeError.

    Raises:
      TypeError: if `axis` is neither an integer nor a sequence of them.
      ValueError: if an axis is named twice; for a call with an array that lacks an axis.

    >>> UnitNorm()(jnp.array([3.0, 4.0])).round(4).tolist()
    [0.6, 0.8]
    """

    axis: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        _store_axis(self)

    def __call__(self, w: ArrayLike) -> jax.Array:
        """`w`, projected."""
        return _rescale(_floating(self, w), self.axis, jnp.ones_like)


@dataclass(frozen=True)
class MinMaxNorm:
    """Brings norms between two bounds, all the way or in part.

    `w * (rate * clip(norm, min_value, max_value) + (1 - rate) * norm) / (norm + 1e-7)`, as in
    Keras; what is zero stays zero.

    Args:
      min_value: the smallest norm allowed, not negative.
      max_value: the largest, not below `min_value`.
      rate: the part of the way that one call goes, from 0 to 1.
      axis: the axes each norm is taken over; `(0, 1, 3)`: one norm per filter of a 2-D kernel.

    Called with an array of floating-point numbers, it returns one of the same shape and dtype; for
    any other it raises a TypeError.

    Raises:
      TypeError: if a bound or the rate is not a real number or `axis` neither an integer nor a
        sequence of them.
      ValueError: if not `0 <= min_value <= max_value < inf` and `0 <= rate <= 1`, or an axis is
        named twice; for a call with an array that lacks an axis.

    >>> MinMaxNorm(1.0, 2.0, rate=0.5)(jnp.array([3.0, 4.0])).round(4).tolist()
    [2.1, 2.8]
    """

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        for name in ("min_value", "max_value", "rate"):
            store_number(self, name, nonnegative=True)
        if self.min_value > self.max_value:
            raise ValueError(
                f"min_value must not be above max_value, got {self.min_value} and {self.max_value}"
            )
        if self.rate > 1:
            raise ValueError(f"rate must be from 0 to 1, got {self.rate}")
        _store_axis(self)

    def __call__(self, w: ArrayLike) -> jax.Array:
        """`w`, projected."""

        def desired(norm: jax.Array) -> jax.Array:
            clipped = jnp.clip(norm, self.min_value, self.max_value)
            return self.rate * clipped + (1 - self.rate) * norm

        return _rescale(_floating(self, w), self.axis, desired)


def _floating(record: Any, w: ArrayLike) -> jax.Array:
    """What is to be rescaled, as an array; a TypeError for integers, which would be truncated."""
    w = real(record, w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        name = type(record).__name__
        raise TypeError(f"{name} takes an array of floating-point numbers, got one of {w.dtype}")
    return w


def _rescale(
    w: jax.Array, axis: int | Sequence[int], desired: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Gives every norm along `axis` the value `desired(norm)`."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    named = {a % w.ndim for a in axes if -w.ndim <= a < w.ndim}
    if len(named) != len(axes):
        raise ValueError(f"axis must name axes of the array, none twice, got {axis} for {w.shape}")
    wide = at_least_float32(w)
    norm = _norm(wide, axis)
    return (wide * (desired(norm) / (norm + _EPSILON))).astype(w.dtype)


def _norm(w: jax.Array, axis: int | Sequence[int]) -> jax.Array:
    squared = jnp.sum(jnp.square(w), axis=axis, keepdims=True)
    zero = squared == 0
    # The slope of the root at 0 is infinite, so 0 must not enter it on either path.
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def _store_axis(record: Any) -> None:
    """Checks the axis of a frozen record and stores it as an integer or a tuple of them."""
    axis = record.axis
    several = geometry.is_sequence(axis)
    try:
        axes = [geometry.integer("axis", entry) for entry in (axis if several else [axis])]
    except TypeError:
        raise TypeError(
            f"axis must be an integer or a sequence of integers, got {axis!r}"
        ) from None
    if not 0 < len(axes) == len(set(axes)):
        raise ValueError(f"axis must name at least one axis and none twice, got {axis!r}")
    object.__setattr__(record, "axis", tuple(axes) if several else axes[0])
