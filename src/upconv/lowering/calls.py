"""Calls that XLA does not inline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def kept_apart(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` as a call that XLA does not inline: nothing outside is fused with its result."""

    def inner(*args: jax.Array) -> Any:
        with set_xla_metadata(inlineable=None):  # the call is marked, not what is inside it
            return fun(*args)

    def outer(*args: jax.Array) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jax.jit(inner)(*args)

    return outer
