"""What the frozen records that a layer declares have in common.

They hold numbers, checked once and kept as Python floats, so that equal records are equal and
hash alike; and those that sum take real arrays, and sum in float32 at least.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def store_number(record: Any, name: str, *, nonnegative: bool = False) -> None:
    """Checks a number of a frozen dataclass and stores it as a float.

    Args:
      record: the dataclass, in its `__post_init__`.
      name: of its attribute.
      nonnegative: whether it must not be negative.

    Raises:
      TypeError: if it is not a real number, or is a bool.
      ValueError: if it is not finite, or negative where it must not be. Both name the attribute.
    """
    value = getattr(record, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        hint = "; of what JAX computes, write a function" if isinstance(value, jax.Array) else ""
        raise TypeError(f"{name} must be a real number, got {value!r}{hint}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (nonnegative and number < 0):
        raise ValueError(
            f"{name} must be finite{' and not negative' if nonnegative else ''}, got {value!r}"
        )
    object.__setattr__(record, name, number)


def real(record: Any, x: ArrayLike) -> jax.Array:
    """What a record is called with, as an array.

    Raises:
      TypeError: if it is complex. It names the record.
    """
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"{type(record).__name__} takes a real array, got one of {x.dtype}")
    return x


def at_least_float32(x: ArrayLike) -> jax.Array:
    """An array as it is, or in float32 where it is narrower or holds integers.

    >>> at_least_float32(jnp.ones(3, jnp.bfloat16)).dtype
    dtype('float32')
    """
    x = jnp.asarray(x)
    with jax.numpy_dtype_promotion("standard"):  # whatever the caller's arrays are held to
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
