"""A task small enough to test the trainer with: one transposed convolution learns another.

Also a program, which runs the trainer on this task and, if told to, kills itself:

    python toy.py CONFIG [OPTION ...]

with KILL=batch:N in the environment before the batch of step N is drawn, with KILL=save:N as soon
as the saving of that step has begun. STOP=N sends itself SIGTERM before the batch of step N.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import checkpoint
import config as configs
import task
import train
from upconv import constraints, conv_transpose, transforms
from upconv.rules import Rule


@dataclasses.dataclass(frozen=True)
class Data:
    """Random images."""

    height: int = 4
    """Their height."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One layer."""

    filters: int = 2
    """Output channels."""


@dataclasses.dataclass(frozen=True)
class Config(configs.Config):
    """The toy."""

    data: Data = Data()
    model: Model = Model()


class State(NamedTuple):
    params: Any
    opt_state: Any


class Toy:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.shape = (3, 3, config.model.filters, 2)
        self.true = np.random.default_rng(0).normal(size=self.shape).astype(np.float32)
        self.rules = {"up/kernel": Rule(constraint=constraints.MaxNorm(0.9, axis=(0, 1, 3)))}
        self.optimizer = transforms.with_rules(optax.adam(0.05), self.rules)
        self.about = ["a toy"]

    def init(self, key: jax.Array) -> State:
        params = {"up": {"kernel": 0.1 * jax.random.normal(key, self.shape)}}
        return State(params, self.optimizer.init(params))

    def batch(self, rng: np.random.Generator) -> Any:
        size = (self.config.train.batch_size, self.config.data.height, 5, 2)
        return rng.normal(size=size).astype(np.float32)

    def step(self, state: State, batch: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        def loss_fn(params: Any) -> jax.Array:
            difference = conv_transpose(batch, params["up"]["kernel"] - self.true, strides=2)
            return task.mean(difference**2)

        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    def params(self, state: State) -> Any:
        return state.params

    def evaluate(self, state: State) -> dict[str, float]:
        return {"error": float(np.abs(state.params["up"]["kernel"] - self.true).mean())}

    def pictures(self, state: State) -> dict[str, np.ndarray]:
        kernel = np.asarray(state.params["up"]["kernel"])[..., 0, 0]
        return {"kernel": np.clip(128 + 64 * kernel, 0, 255).astype(np.uint8)}

    def baselines(self) -> dict[str, float]:
        return {"zero_error": float(np.abs(self.true).mean())}


def build(config: Config) -> Toy:
    return Toy(config)


def kill_when_told() -> None:
    """Make the process end itself where KILL says."""
    moment, _, number = os.environ.get("KILL", "").partition(":")

    def before_batch(config: Any, task: Any, mesh: Any, step: int) -> Any:
        if moment == "batch" and step == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("STOP") == str(step):
            signal.raise_signal(signal.SIGTERM)
        return draw(config, task, mesh, step)

    def after_save(self: Any, step: int, state: Any, about: Any) -> None:
        before = set(self.folder.iterdir())
        save(self, step, state, about)
        if moment == "save" and step == int(number):
            while set(self.folder.iterdir()) == before:  # it is written in the background
                time.sleep(1e-4)
            os.kill(os.getpid(), signal.SIGKILL)
        self._manager.wait_until_finished()  # steps are so quick that none would be complete

    draw, train.draw = train.draw, before_batch
    save, checkpoint.Checkpoints.save = checkpoint.Checkpoints.save, after_save


if __name__ == "__main__":
    configs.TASKS = ("toy",)
    sys.modules["toy"] = sys.modules["__main__"]
    kill_when_told()
    sys.exit(train.main())
