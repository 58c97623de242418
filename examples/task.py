"""What a task is: all that the trainer does not know about what it trains.

A task is a module of this folder, named in a config by `task = "autoencoder"`. It has

- `Config`, a frozen dataclass derived from `config.Config`, whose sections (frozen dataclasses too)
  are the tables that a config may have, with their defaults;
- `build`, which makes a `Task` of a `Config`, and raises `ConfigError` for mistakes that only the
  data reveal.

To train something of your own, copy one of these modules and add its name to `config.TASKS`;
README.md says which files it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import config as configs
from upconv import constraints, transforms
from upconv.rules import Constraint, Rule, named_leaves

DEVICES = "devices"
"""The mesh axis over which a batch is split."""

State = Any
"""A pytree of arrays: parameters, the optimizer's state, and whatever else a step changes."""

Batch = Any
"""A pytree of numpy arrays whose first axis is the batch."""

Figures = dict[str, float]


class Task(Protocol):
    """Something to train."""

    about: list[str]
    """Lines for the log: data, model."""
    rules: Mapping[str, Rule]
    """What the layers declare, by parameter path; reported at the end as satisfied or violated."""

    def init(self, key: jax.Array) -> State:
        """The state before the first step, decided by the key."""

    def batch(self, rng: np.random.Generator) -> Batch:
        """`train.batch_size` examples. Each step has its own generator, seeded with its number."""

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """One update, and scalars to log, `loss` among them. It is pure; the trainer compiles it.

        It runs within `jax.shard_map`: `batch` is one device's part, `state` is the same on all.
        Means over the batch must be means over all devices, see `mean`; then gradients are, too. A
        state or metric that may differ between devices is refused when the step is traced.
        """

    def params(self, state: State) -> Any:
        """The parameters, with the paths that `rules` names."""

    def evaluate(self, state: State) -> Figures:
        """Figures for held-out data. Here and below, the state is on one device."""

    def pictures(self, state: State) -> dict[str, np.ndarray]:
        """Pictures of held-out data by name, `(height, width)` or `(height, width, 3)`, uint8."""

    def baselines(self) -> Figures:
        """What the figures are to be compared with; asked for at the end."""


def build(config: configs.Config) -> Task:
    """The task that a config describes.

    Raises:
      ConfigError: for a key that does not suit the data or the model.
    """
    return import_module(config.task).build(config)


def fitting(rules: Mapping[str, Rule], params: Any) -> Mapping[str, Rule]:
    """The rules, or a ConfigError that names the key of one that cannot be applied."""
    carried_out = {"regularizer": transforms.add_regularization, "constraint": transforms.project}
    for path, rule in rules.items():
        for kind, transformation in carried_out.items():
            try:
                transformation({path: rule}).init(params)
            except ValueError as error:
                key = f"model.{path.rpartition('/')[2]}_{kind}"
                raise configs.ConfigError(str(error), key=key) from error
    return rules


def mean(x: jax.Array) -> jax.Array:
    """The mean over the batch, and over the devices among which it is split."""
    return jax.lax.pmean(jnp.mean(x), DEVICES)


def in_pieces(f: Callable[[Any], jax.Array], inputs: np.ndarray, size: int = 500) -> np.ndarray:
    """What `f` makes of many inputs, a few at a time, so that they fit into memory.

    >>> in_pieces(jnp.square, np.arange(5), size=2).tolist()
    [0, 1, 4, 9, 16]
    """
    pieces = [f(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    return np.concatenate(jax.device_get(pieces))


def constraint_report(task: Task, state: State) -> list[dict[str, Any]]:
    """Says of each constrained parameter whether it satisfies its constraint.

    Applies every constraint once more: what satisfies it does not change, except by rounding. That
    tells nothing of a constraint that goes only part of the way, such as `MinMaxNorm` at a rate
    below 1, and so changes its own results again: where it does, `satisfied` is None.
    """
    leaves = dict(named_leaves(task.params(state)))
    return [
        {
            "path": path,
            "constraint": repr(rule.constraint),
            **constraint_check(rule.constraint, rule.stacked_axes, leaves[path]),
        }
        for path, rule in task.rules.items()
        if rule.constraint is not None
    ]


def constraint_check(
    constraint: Constraint, stacked_axes: tuple[int, ...], value: jax.Array
) -> dict[str, Any]:
    """`satisfied` and `detail` of `constraint_report`, for all slices of a stacked parameter.

    >>> constraint_check(constraints.MaxNorm(1.8), (0,), jnp.ones((2, 3, 4)))
    {'satisfied': True, 'detail': 'largest norm 1.732051, 0 of 8 at the bound'}
    """

    def moves(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        once = constraint(value)
        return jnp.max(jnp.abs(once - value)), jnp.max(jnp.abs(constraint(once) - once))

    moved, again = (float(jnp.max(x)) for x in per_slice(moves, stacked_axes)(value))
    rounding = 1e-5 * float(jnp.max(jnp.abs(value)))
    satisfied = None if min(moved, again) > rounding else moved <= rounding
    detail = f"applying it again moves no weight by more than {moved:.1e}"
    if isinstance(constraint, constraints.MaxNorm):
        axis, bound = constraint.axis, constraint.max_value
        norm = per_slice(lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=axis)), stacked_axes)
        norms = norm(value)
        at_bound = int(jnp.sum(norms > 0.999 * bound))
        detail = f"largest norm {norms.max():.6f}, {at_bound} of {norms.size} at the bound"
    return {"satisfied": satisfied, "detail": detail}


def per_slice(f: Callable[[jax.Array], Any], stacked_axes: tuple[int, ...]) -> Callable[..., Any]:
    """`f` for each slice of a stacked parameter, whose axes are as `upconv.rules.Rule` has them."""
    for axis in stacked_axes:
        f = jax.vmap(f, in_axes=axis)
    return f
