"""What `supervised.Supervised` makes of a model: what is minimized, and what it cannot train."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import config as configs
import task
import train
from supervised import Supervised
from upconv.linen import Conv1DTranspose

pytestmark = pytest.mark.program

EXAMPLE = np.zeros((1, 4, 3), np.float32)


class Regression(Supervised):
    """Learns ones, by the squared error and a weight times the squares of the outputs."""

    def __init__(self, model: nn.Module, weight: float = 0.0) -> None:
        self.weight = weight
        super().__init__(model, EXAMPLE, configs.Optimizer(learning_rate=0.1), 10)

    def loss(self, outputs: jax.Array, batch: Any) -> jax.Array:
        return task.mean((outputs - 1) ** 2) + self.weight * task.mean(
            jnp.sum(outputs**2, axis=(1, 2))
        )


def trained(made: Any, rng: np.random.Generator) -> tuple[Any, list[float]]:
    """The parameters after a few steps, and the losses."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (task.DEVICES,))
    step, state, losses = train.make_step(made, mesh), made.init(jax.random.key(0)), []
    for _ in range(5):
        state, metrics = step(state, rng.normal(size=(6, 4, 3)).astype(np.float32))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


def test_activity_regularizers_join_what_is_minimized_and_not_the_loss() -> None:
    layers = [
        Conv1DTranspose(2, 3, activity_regularizer=lambda y: 0.3 * jnp.sum(y**2)),
        Conv1DTranspose(2, 3),
    ]
    made = [Regression(layers[0]), Regression(layers[1], weight=0.3), Regression(layers[1])]
    (ours, loss), (expected, whole), (without, _) = (
        trained(one, np.random.default_rng(0)) for one in made
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, expected)
    assert not np.allclose(ours["kernel"], without["kernel"], rtol=1e-2)
    assert loss[0] < whole[0]


@pytest.mark.parametrize(
    ("layer", "collection"),
    [
        (nn.BatchNorm(use_running_average=False), "batch_stats of BatchNorm"),
        (Conv1DTranspose(2, 3, trainable=False), "of Conv1DTranspose"),
    ],
    ids=["BatchNorm", "not trainable"],
)
def test_a_model_with_other_variables_is_refused(layer: nn.Module, collection: str) -> None:
    with pytest.raises(ValueError, match=f"must have no variables but params, got .*{collection}"):
        Regression(layer)
