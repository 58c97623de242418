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
from task import fitting, mean
from upconv import linen, transforms


class State(NamedTuple):
    """What a step changes."""

    params: Any
    opt_state: optax.OptState


class Supervised(ABC):
    """The part of a `task.Task` that trains.

    Regularizers of parameters and of activities join what is minimized, not the loss that is
    logged. The model may have no variables but parameters.

    Args:
      model: what is trained.
      example: a batch that the model can take.
      optimizer: the config's.
      steps: how many steps there will be; the learning rate falls to 0 over them.
    """

    def __init__(
        self, model: nn.Module, example: np.ndarray, optimizer: configs.Optimizer, steps: int
    ) -> None:
        made = jax.eval_shape(model.init, jax.random.key(0), example)
        # Activity regularizers sow losses; no step needs those of the one before.
        if others := made.keys() - {"params", "losses"}:
            raise ValueError(
                f"model must have no variables but params, got {', '.join(sorted(others))} of "
                f"{type(model).__name__}: its task needs a state and a step of its own"
            )
        self.model, self.example = model, example
        self.rules = fitting(linen.rules(model, example), made["params"])
        rate = optax.cosine_decay_schedule(optimizer.learning_rate, steps)
        self.optimizer = transforms.with_rules(optax.adam(rate), self.rules)

    @abstractmethod
    def loss(self, outputs: jax.Array, batch: Any) -> jax.Array:
        """The mean loss of outputs, in float32, over a batch and over the devices; see `mean`."""

    def inputs(self, batch: Any) -> Any:
        """What the model is shown of a batch: all of it."""
        return batch

    def init(self, key: jax.Array) -> State:
        """Fresh parameters, and Adam's moments."""
        params = self.model.init(key, self.example)["params"]
        return State(params, self.optimizer.init(params))

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """One update of the parameters."""

        def minimized(params: Any) -> tuple[jax.Array, jax.Array]:
            inputs = self.inputs(batch)
            outputs: Any
            outputs, sown = self.model.apply({"params": params}, inputs, mutable=["losses"])
            loss = self.loss(outputs.astype(jnp.float32), batch)
            return loss + mean(linen.losses(sown)), loss

        (_, loss), gradients = jax.value_and_grad(minimized, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    def params(self, state: State) -> Any:
        """The model's parameters."""
        return state.params

    def outputs(self, params: Any, inputs: Any) -> jax.Array:
        """What the model makes of inputs, in float32."""
        outputs: Any = self.model.apply({"params": params}, inputs)
        return outputs.astype(jnp.float32)
