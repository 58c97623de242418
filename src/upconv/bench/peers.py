"""Who is compared: every peer by its name, and whether it can take part here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from upconv.bench import jax_peers, tensorflow_peer, torch_peer
from upconv.bench.layers import Data, LayerSpec
from upconv.bench.task import Task


class Peer(NamedTuple):
    """A library that has this layer, ours among them.

    Attributes:
      package: what must be installed.
      build: a task from a layer, its data and the name of a dtype.
      obstacle: returns why it cannot take part although it is installed, or None.
      ranks: the numbers of spatial axes that it can be measured with.
      groups: whether it has them.
    """

    package: str
    build: Callable[[LayerSpec, Data, str], Task]
    obstacle: Callable[[], str | None] = lambda: None
    ranks: tuple[int, ...] = (1, 2, 3)
    groups: bool = True

    def has(self, layer: LayerSpec) -> bool:
        """Whether it can be measured with a layer of this kind."""
        return layer.rank in self.ranks and (self.groups or layer.groups == 1)


PEERS = {
    "upconv": Peer("upconv", partial(jax_peers.task, jax_peers.our_layer)),
    "flax": Peer("flax", partial(jax_peers.task, jax_peers.flax_layer), groups=False),
    "lax": Peer("jax", partial(jax_peers.task, jax_peers.lax_layer)),
    "equinox": Peer("equinox", jax_peers.equinox_task),
    "keras": Peer(
        "keras", partial(jax_peers.task, jax_peers.keras_layer), jax_peers.keras_obstacle,
        groups=False,
    ),
    "torch": Peer("torch", torch_peer.task, torch_peer.obstacle),
    "torch_channels_last": Peer(
        # In one dimension PyTorch has only one layout.
        "torch", partial(torch_peer.task, channels_last=True), torch_peer.obstacle, ranks=(2, 3)
    ),
    "tensorflow": Peer(
        "tensorflow", tensorflow_peer.task, tensorflow_peer.obstacle, groups=False
    ),
}  # fmt: skip
OURS, ON_JAX = "upconv", ("flax", "lax", "equinox", "keras")
TORCH = ("torch", "torch_channels_last")
ELSEWHERE = (*TORCH, "tensorflow")
# Only these compute second derivatives: the rest would take minutes, and no goal asks for theirs.
SECOND_ORDER = (OURS, *TORCH)


def why_not(name: str) -> str | None:
    """Why a peer cannot take part here, or None."""
    if importlib.util.find_spec(PEERS[name].package) is None:
        return "it is not installed"
    return PEERS[name].obstacle()


def present(peers: Iterable[str], say: Callable[[str], None] = print) -> list[str]:
    """Us, and those of the peers that can take part."""
    chosen = [OURS]
    for name in peers:
        if name != OURS:
            reason = why_not(name)
            if reason:
                say(f"{name} is left out: {reason}")
            else:
                chosen.append(name)
    return chosen
