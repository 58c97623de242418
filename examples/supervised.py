"""The part shared by tasks that train one Flax model with Adam, on known outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import config as configs
from upconv import linen, transforms


class State(NamedTuple):
    """What a step changes."""

    params: Any
    opt_state: optax.OptState


class Supervised(ABC):
    """The part of a `task.Task` that trains.

    Args:
      model: what is trained.
      example: a batch that the model can take.
      optimizer: the config's.
      steps: how many steps there will be; the learning rate falls to 0 over them.
    """

    def __init__(
        self, model: nn.Module, example: np.ndarray, optimizer: configs.Optimizer, steps: int
    ) -> None:
        self.model, self.example = model, example
        self.rules = linen.rules(model, example)
        rate = optax.cosine_decay_schedule(optimizer.learning_rate, steps)
        self.optimizer = transforms.with_rules(optax.adam(rate), self.rules)

    @abstractmethod
    def loss(self, params: Any, batch: Any) -> jax.Array:
        """The mean loss over a batch and over the devices; see `task.mean`."""

    def init(self, key: jax.Array) -> State:
        """Fresh parameters, and Adam's moments."""
        params = self.model.init(key, self.example)["params"]
        return State(params, self.optimizer.init(params))

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """One update of the parameters."""
        loss, gradients = jax.value_and_grad(self.loss)(state.params, batch)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    def params(self, state: State) -> Any:
        """The model's parameters."""
        return state.params

    def outputs(self, params: Any, batch: Any) -> jax.Array:
        """What the model makes of a batch, in float32."""
        outputs: Any = self.model.apply({"params": params}, batch)
        return outputs.astype(jnp.float32)
