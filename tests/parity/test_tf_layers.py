"""Our layer held live against the genuine `tf.compat.v1.layers.Conv2DTranspose`."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upconv.linen import Conv2DTranspose, losses, rules
from upconv.regularizers import L1, L1L2, L2
from upconv.transforms import penalty

pytestmark = pytest.mark.parity

CASES = 120
ACTIVATIONS = (None, "relu", "tanh", "sigmoid", "softplus", "elu")


@pytest.fixture(scope="session")
def seed(tf: ModuleType, tf_keras: ModuleType) -> Any:
    return tf.compat.v1.layers.Conv2DTranspose


def draw(rng: np.random.Generator) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A random input shape and arguments that TensorFlow's layer takes as ours does."""
    spatial, kernel_size, strides = (rng.integers(1, high, 2) for high in (8, 6, 5))
    batch, c_in, filters = (int(n) for n in rng.integers(1, 6, 3))
    if rng.random() < 0.3:
        kernel_size, strides = int(kernel_size[0]), int(strides[0])
    else:
        kernel_size, strides = kernel_size.tolist(), tuple(strides.tolist())
    arguments = {
        "filters": filters,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": str(rng.choice(["valid", "same", "VALID", "Same"])),
        "data_format": str(rng.choice(["channels_last", "channels_first"])),
        "use_bias": bool(rng.random() < 0.8),
    }
    spatial = tuple(spatial.tolist())
    last = arguments["data_format"] == "channels_last"
    return (batch, *spatial, c_in) if last else (batch, c_in, *spatial), arguments


def both(
    seed: Any,
    shape: tuple[int, ...],
    ours: dict[str, Any],
    theirs: dict[str, Any],
    rng: np.random.Generator,
) -> tuple[np.ndarray, Any, Conv2DTranspose, dict[str, Any]]:
    """An input, the genuine layer, and ours with its weights."""
    x = rng.normal(size=shape).astype(np.float32)
    layer = seed(**theirs)
    layer(x)
    weights = [rng.normal(size=w.shape, scale=0.3).astype(np.float32) for w in layer.get_weights()]
    layer.set_weights(weights)
    params = dict(zip(("kernel", "bias"), map(jnp.asarray, weights), strict=False))
    return x, layer, Conv2DTranspose(**ours), {"params": params}


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.many
def test_values(case: int, seed: Any, tf: ModuleType, measured: Any) -> None:
    rng = np.random.default_rng(case)
    shape, arguments = draw(rng)
    activation = ACTIVATIONS[case % len(ACTIVATIONS)]
    ours = {**arguments, "activation": activation}
    theirs = {**arguments, "activation": activation and getattr(tf.nn, activation)}
    x, layer, module, variables = both(seed, shape, ours, theirs, rng)
    expected = layer(x).numpy()
    got = jax.jit(module.apply)(variables, x)
    assert got.shape == expected.shape
    assert tuple(layer.compute_output_shape(shape)) == module.compute_output_shape(shape)
    assert measured("values, tf.layers", np.abs(got - expected).max()) <= 1e-5


REGULARIZERS = [
    (None, None, ()),
    (L1(0.3), "L1", (0.3,)),
    (L2(0.2), "L2", (0.2,)),
    (L1L2(0.3, 0.2), "L1L2", (0.3, 0.2)),
]


@pytest.mark.parametrize("case", range(12))
def test_losses(case: int, seed: Any, tf_keras: ModuleType) -> None:
    """Of kernel, bias and activity; the last is divided by the batch size."""
    rng = np.random.default_rng(1000 + case)
    shape, arguments = draw(rng)
    arguments["use_bias"] = True
    ours, theirs = dict(arguments), dict(arguments)
    for i, name in enumerate(("kernel", "bias", "activity")):
        mine, peer, factors = REGULARIZERS[(case // (1, 2, 3)[i] + i + 1) % len(REGULARIZERS)]
        ours[f"{name}_regularizer"] = mine
        theirs[f"{name}_regularizer"] = peer and getattr(tf_keras.regularizers, peer)(*factors)
    x, layer, module, variables = both(seed, shape, ours, theirs, rng)
    layer(x)
    _, state = module.apply(variables, x, mutable=["losses"])
    total = penalty(variables["params"], rules(module, x)) + losses(state)
    np.testing.assert_allclose(total, sum(float(loss) for loss in layer.losses), rtol=1e-5)
    # TensorFlow lists the activity's first.
    activity = float(layer.losses[0]) if ours["activity_regularizer"] else 0.0
    np.testing.assert_allclose(losses(state), activity, rtol=1e-5)


def test_signature(seed: Any) -> None:
    """Names, order and defaults, read from the real class."""
    theirs = inspect.signature(seed).parameters
    ours = inspect.signature(Conv2DTranspose).parameters
    names = [name for name in theirs if name not in ("name", "kwargs")]
    assert list(ours)[: len(names)] == names
    for name in (*names, "name"):
        if name == "strides":
            assert Conv2DTranspose(1, 1).strides == theirs[name].default
        elif name == "bias_initializer":  # zeros: an object of another kind
            assert type(theirs[name].default).__name__ == "Zeros"
            assert ours[name].default is jax.nn.initializers.zeros
        else:
            assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 2)])
def test_default_initializers(kernel_size: tuple[int, int], seed: Any) -> None:
    """The same distribution: uniform to the same limit, for the bias too if it is told None."""
    arguments = {"filters": 400, "kernel_size": kernel_size, "bias_initializer": None}
    x = np.zeros((1, 3, 3, 150), np.float32)
    layer = seed(**arguments)
    layer(x)
    params = Conv2DTranspose(**arguments).init(jax.random.key(5), x)["params"]
    for name, theirs in zip(("kernel", "bias"), layer.get_weights(), strict=True):
        ours = np.asarray(params[name])
        assert ours.shape == theirs.shape
        few = ours.size < 1000
        np.testing.assert_allclose(
            np.abs(ours).max(), np.abs(theirs).max(), rtol=3e-2 if few else 1e-3
        )
        np.testing.assert_allclose(ours.var(), theirs.var(), rtol=0.2 if few else 2e-2)


def test_frozen(seed: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)
    layer = seed(3, 2, trainable=False)
    layer(x)
    assert layer.trainable_variables == []
    variables = Conv2DTranspose(3, 2, trainable=False).init(jax.random.key(0), x)
    assert {w.shape for w in layer.non_trainable_variables} == {
        w.shape for w in jax.tree.leaves(variables.pop("non_trainable"))
    }
    assert variables == {}


def test_deprecated_attributes(seed: Any) -> None:
    layer, module = seed(3, 2), Conv2DTranspose(3, 2)
    for unused in (layer, module):
        with pytest.raises(ValueError, match="scope_name"):
            unused.scope_name  # noqa: B018
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert module.graph is None
    # In eager mode TensorFlow warns and then goes on to refuse.
    with pytest.warns(UserWarning, match="deprecated"), pytest.raises(RuntimeError):
        layer.graph  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"strides": 0}, "strides"),
        ({"padding": "full"}, "padding"),
        ({"data_format": "NHWC"}, "data_format"),
        ({"filters": -1}, "filters"),
    ],
)
def test_both_refuse(arguments: dict[str, Any], name: str, seed: Any) -> None:
    arguments = {"filters": 3, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError, match=name):
        seed(**arguments)
    with pytest.raises(ValueError, match=name):
        Conv2DTranspose(**arguments)
