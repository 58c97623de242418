"""Ten regularized and constrained training steps beside TensorFlow's layer and Keras's, live."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from upconv import constraints, regularizers
from upconv.linen import Conv2DTranspose, losses, rules
from upconv.transforms import penalty, with_rules

pytestmark = pytest.mark.parity

STEPS = 10
LAYER = {"filters": 4, "kernel_size": (3, 4), "strides": (2, 3), "padding": "same"}

# What kernel and bias are constrained to: a name and arguments that ours and Keras's share.
CONSTRAINTS: dict[str, tuple[tuple[str, dict[str, Any]] | None, ...]] = {
    "none": (None, None),
    "max_norm": (("MaxNorm", {"max_value": 0.6}), ("MaxNorm", {"max_value": 0.1})),
    "max_norm_filters": (("MaxNorm", {"max_value": 1.1, "axis": [0, 1, 3]}), None),
    "non_neg": (("NonNeg", {}), ("NonNeg", {})),
    "unit_norm": (("UnitNorm", {"axis": [0, 1, 3]}), ("UnitNorm", {})),
    "min_max_norm": (("MinMaxNorm", {"min_value": 0.4, "max_value": 0.5, "axis": [0, 1]}), None),
    "min_max_norm_rate": (
        ("MinMaxNorm", {"min_value": 0.4, "max_value": 0.5, "rate": 0.3}),
        ("MinMaxNorm", {"min_value": 0.1, "max_value": 0.2, "rate": 0.9}),
    ),
}
REGULARIZERS = {
    "kernel_regularizer": ("L1L2", {"l1": 0.02, "l2": 0.03}),
    "bias_regularizer": ("L2", {"l2": 0.1}),
    "activity_regularizer": ("L2", {"l2": 0.01}),
}
# Optax adds epsilon after the bias correction, Keras before it: only one too small to matter makes
# the two alike. (At Keras's 1e-7 Adam itself, not the layer, differs by 5e-4 after ten steps.)
OPTIMIZERS = {
    "sgd": (optax.sgd(0.1), "SGD", {"learning_rate": 0.1}),
    "momentum": (optax.sgd(0.05, momentum=0.9), "SGD", {"learning_rate": 0.05, "momentum": 0.9}),
    "adam": (optax.adam(0.02, eps=1e-12), "Adam", {"learning_rate": 0.02, "epsilon": 1e-12}),
}


def arguments(library: Any, constraint: str) -> dict[str, Any]:
    """The layer's regularizers and constraints, made by the given library."""
    made = {k: getattr(library.regularizers, name)(**a) for k, (name, a) in REGULARIZERS.items()}
    for key, declared in zip(("kernel", "bias"), CONSTRAINTS[constraint], strict=True):
        if declared is not None:
            name, fields = declared
            made[f"{key}_constraint"] = getattr(library.constraints, name)(**fields)
    return made


@functools.cache
def data() -> tuple[np.ndarray, ...]:
    """Inputs, targets, kernel and bias."""
    rng = np.random.default_rng(17)
    shapes = (3, 5, 4, 2), (3, 10, 12, 4), (3, 4, 4, 2), (4,)
    return tuple((rng.normal(size=s) * 0.7).astype(np.float32) for s in shapes)


@functools.cache
def ours(constraint: str, optimizer: str) -> tuple[list[np.ndarray], list[float]]:
    """Kernel and bias after the steps, and the loss at each of them."""
    x, target, kernel, bias = data()

    class library:  # noqa: N801
        regularizers = regularizers
        constraints = constraints

    module = Conv2DTranspose(**LAYER, **arguments(library, constraint))
    declared = rules(module, x)
    transform = with_rules(OPTIMIZERS[optimizer][0], declared)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        outputs, state = module.apply({"params": params}, x, mutable=["losses"])
        value = jnp.mean((outputs - target) ** 2) + losses(state)
        return value, value + penalty(params, declared)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        (_, total), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, total

    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    state, totals = transform.init(params), []
    for _ in range(STEPS):
        params, state, total = step(params, state)
        totals.append(float(total))
    return [np.asarray(params["kernel"]), np.asarray(params["bias"])], totals


def theirs(
    tf: ModuleType, library: ModuleType, layer: Any, optimizer: str
) -> tuple[list[np.ndarray], list[float]]:
    x, target, kernel, bias = data()
    layer(x)
    layer.set_weights([kernel, bias])
    _, name, settings = OPTIMIZERS[optimizer]
    stepper = getattr(library.optimizers, name)(**settings)
    totals = []
    for _ in range(STEPS):
        with tf.GradientTape() as tape:
            total = tf.reduce_mean((layer(x) - target) ** 2) + tf.add_n(layer.losses)
        weights = layer.trainable_variables
        # Keras 3 keeps TensorFlow's variables in variables of its own.
        gradients = tape.gradient(
            total, [w if isinstance(w, tf.Variable) else w.value for w in weights]
        )
        stepper.apply_gradients(zip(gradients, weights, strict=True))
        totals.append(float(total))
    return layer.get_weights(), totals


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("peer", ["tf_layers", "keras"])
@pytest.mark.many
def test_training(peer: str, constraint: str, optimizer: str, request: Any, measured: Any) -> None:
    tf = request.getfixturevalue("tf")
    library = request.getfixturevalue("tf_keras" if peer == "tf_layers" else "keras")
    layers = tf.compat.v1.layers if peer == "tf_layers" else library.layers
    layer = layers.Conv2DTranspose(**LAYER, **arguments(library, constraint))
    weights, totals = theirs(tf, library, layer, optimizer)
    our_weights, our_totals = ours(constraint, optimizer)
    error = max(np.abs(a - b).max() for a, b in zip(our_weights, weights, strict=True))
    assert measured(f"weights after {STEPS} steps, {peer}, {optimizer}", error) <= 1e-4
    np.testing.assert_allclose(our_totals, totals, rtol=1e-4)


@pytest.mark.parametrize("constraint", [name for name in CONSTRAINTS if name != "none"])
def test_the_constraints_bind(constraint: str) -> None:
    """Otherwise the comparison above would prove little."""
    free, _ = ours("none", "sgd")
    bound, _ = ours(constraint, "sgd")
    assert np.abs(free[0] - bound[0]).max() > 1e-2
