"""A counted loop of XLA's, which is compiled once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def repeat(
    times: int, step: Callable[[jax.Array, jax.Array], jax.Array], start: jax.Array
) -> jax.Array:
    """What `step(i, value)` makes of `start`, for each `i` below `times`.

    By `while_loop`, because `fori_loop` becomes a `scan`, which makes further calls inside a call
    that XLA does not inline.
    """

    def counted(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, value = state
        return lax.add(i, jnp.int32(1)), step(i, value)

    def remain(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return lax.lt(state[0], jnp.int32(times))

    return lax.while_loop(remain, counted, (jnp.int32(0), start))[1]
