"""What a peer is asked to do with a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

KINDS = ("forward", "step", "hvp")


class Task(NamedTuple):
    """One layer of one peer.

    Attributes:
      calls: by kind, what is timed; `step` returns the loss and the two gradients.
      wait: blocks until the result of a call is ready.
      channel_axis: of the output.
      compile: traces and compiles the training step from scratch, for peers on JAX.
      aligned: whether it crops the same pixels as we do, so that its loss is ours.
    """

    calls: dict[str, Callable[[], Any]]
    wait: Callable[[Any], Any]
    channel_axis: int = -1
    compile: Callable[[], jax.stages.Compiled] | None = None
    aligned: bool = True
