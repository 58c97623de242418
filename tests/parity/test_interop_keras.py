"""Layers exchanged with the genuine ones of Keras 3, of the legacy Keras, and of TensorFlow 1."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checks import normal
from exchange import assert_close, assert_same_bits, draw_layer, integers, run
from upconv import interop, linen
from upconv.transforms import penalty

pytestmark = pytest.mark.parity

RANKS = (1, 2, 1, 2, 3)
# The legacy Keras warns of objects that are not made of its own base classes.
UNTYPED = pytest.mark.filterwarnings("ignore:The `keras.*.serialize:UserWarning")


@pytest.fixture(params=["keras", "tf_keras"])
def peer(request: pytest.FixtureRequest) -> ModuleType:
    return request.getfixturevalue(request.param)


def draw_keras(rng: np.random.Generator, rank: int) -> tuple[dict[str, Any], np.ndarray]:
    """Arguments that Keras takes on TensorFlow, and an input."""
    kernel_size = integers(rng, 1, 6, rank)
    strides, dilation = integers(rng, 1, 4, rank), (1,) * rank
    if rank < 3 and rng.random() < 0.3:
        strides, dilation = dilation, integers(rng, 1, 4, 1) * rank  # equal: the legacy Keras
    padding = str(rng.choice(["valid", "same"]))
    output_padding = None
    if rng.random() < 0.5:
        # Its backend takes back the input's size from the output's, rounded up.
        spans = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
        least = [int(padding == "same" and span % 2 == 0) for span in spans]
        if all(low < s for low, s in zip(least, strides, strict=True)):
            pairs = zip(least, strides, strict=True)
            output_padding = tuple(int(rng.integers(low, s)) for low, s in pairs)
    arguments = {
        "filters": 4,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "output_padding": output_padding,
        "dilation_rate": dilation,
        "use_bias": bool(rng.random() < 0.7),
        "bias_initializer": "random_normal",
    }
    return arguments, normal(rng, 2, *integers(rng, 4, 7, rank), 3)


def run_keras(tf: ModuleType, layer: Any, x: np.ndarray, ct: Any) -> tuple[Any, Any, Any]:
    """Outputs, and gradients in weights and input."""
    inputs = tf.Variable(x)
    with tf.GradientTape() as tape:
        y = layer(inputs)
        loss = tf.reduce_sum(y * ct)
    weights = layer.trainable_weights
    sources = [w if isinstance(w, tf.Variable) else w.value for w in weights]
    *slopes, dx = tape.gradient(loss, [*sources, inputs])
    return np.asarray(y), [np.asarray(s) for s in slopes], np.asarray(dx)


@pytest.mark.parametrize("case", range(15))
def test_both_ways(case: int, peer: ModuleType, tf: ModuleType, rng: Any, measured: Any) -> None:
    """Values and gradients; the weights that go back are those that came, bit by bit."""
    rank = RANKS[case % 5]
    arguments, x = draw_keras(rng, rank)
    theirs = getattr(peer.layers, f"Conv{rank}DTranspose")(**arguments)
    theirs.build(x.shape)
    module, variables = interop.from_keras(theirs)
    assert module.name == theirs.name
    ct = normal(rng, *module.compute_output_shape(x.shape))
    y, slopes, dx = run_keras(tf, theirs, x, ct)
    got, got_slopes, got_dx = run(module, variables, x, ct)
    _, back = interop.to_keras(module, {"params": got_slopes})
    for a, b in [(got, y), (got_dx, dx), *zip(back, slopes, strict=True)]:
        measured(f"interop, {peer.__name__}", assert_close(a, b))

    config, weights = interop.to_keras(module, variables)
    for a, b in zip(weights, theirs.get_weights(), strict=True):
        assert_same_bits(a, b)
    for rebuilt in (type(theirs)(**config), type(theirs).from_config(config)):
        assert rebuilt.get_config() == theirs.get_config()
        rebuilt.build(x.shape)
        rebuilt.set_weights(weights)
        np.testing.assert_array_equal(np.asarray(rebuilt(x)), y)
    again = interop.from_keras(config, weights)
    assert again[0] == module
    jax.tree.map(assert_same_bits, again[1], variables)


def test_our_layers(keras: ModuleType, tf: ModuleType, rng: Any, measured: Any) -> None:
    """What crops as Keras can is the same there; the rest is refused."""
    converted = 0
    for case in range(30):
        rank = case % 2 + 1
        module, variables, x = draw_layer(rng, rank)
        try:
            config, weights = interop.to_keras(module, variables)
        except ValueError as refusal:
            if not str(refusal).startswith(("padding=", "dilation_rate goes only")):
                raise
            continue
        theirs = getattr(keras.layers, f"Conv{rank}DTranspose")(**config)
        theirs.build(x.shape)
        theirs.set_weights(weights)
        y = np.asarray(theirs(x))
        measured("interop, to keras", assert_close(y, module.apply(variables, x)))
        converted += 1
    assert 6 <= converted < 30


@pytest.mark.parametrize("output_padding", [None, 0, 1, 2])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_what_keras_refuses_is_refused(padding: str, output_padding: Any, keras: Any) -> None:
    """Of all small layers, those that Keras computes on TensorFlow are given to it, no others."""
    taken = []
    for k in (1, 2, 3, 4):
        for s in (1, 2, 3):
            if output_padding is not None and output_padding >= s:
                continue
            arguments = {"strides": s, "padding": padding, "output_padding": output_padding}
            module = linen.Conv1DTranspose(4, k, **arguments, use_bias=False)
            variables = {"params": {"kernel": np.ones((k, 4, 3), np.float32)}}
            try:
                keras.layers.Conv1DTranspose(4, k, **arguments)(np.ones((2, 5, 3), np.float32))
                computed = True
            except Exception:  # TensorFlow's own
                computed = False
            try:
                interop.to_keras(module, variables)
                given = True
            except ValueError:
                given = False
            assert given == computed, (k, s)
            taken.append(computed)
    assert any(taken)


def activations_of(peer: ModuleType) -> list[str]:
    other = {"deserialize", "serialize", "get", "sparsemax", "threshold"}
    return sorted(name for name in dir(peer.activations) if name[0] != "_" and name not in other)


def test_every_activation(peer: ModuleType, tf: ModuleType) -> None:
    """Values and slopes."""
    x = np.linspace(-7, 7, 56, dtype=np.float32).reshape(4, 14)
    legacy = peer.__name__ == "tf_keras"
    names = [*activations_of(peer), *(["leaky_relu", "relu6"] if legacy else [])]
    assert len(names) > 15
    for name in names:
        theirs = peer.layers.Conv1DTranspose(4, 1, activation=name)
        theirs.build((None, 5, 3))
        if legacy and name == "hard_sigmoid":
            with pytest.raises(ValueError, match="activation='hard_sigmoid' is none of the legacy"):
                interop.from_keras(theirs)
            continue
        module, variables = interop.from_keras(theirs)
        ours = module.activation
        ours = getattr(jax.nn, ours) if isinstance(ours, str) else ours or jax.nn.identity
        inputs = tf.Variable(x)
        with tf.GradientTape() as tape:
            y = theirs.activation(inputs)
            loss = tf.reduce_sum(y * y)
        np.testing.assert_allclose(ours(x), y, rtol=1e-5, atol=1e-6, err_msg=name)
        slope = jax.grad(lambda x, f=ours: jnp.sum(f(x) ** 2))(x)
        np.testing.assert_allclose(
            slope, tape.gradient(loss, inputs), rtol=1e-4, atol=1e-5, err_msg=name
        )
        config, _ = interop.to_keras(module, variables, api=peer.__name__)
        np.testing.assert_array_equal(peer.activations.get(config["activation"])(inputs), y)


def test_activations_for_either_keras(
    peer: ModuleType, keras: ModuleType, tf_keras: ModuleType, tf: ModuleType
) -> None:
    """Those that the legacy Keras lacks, or has otherwise, are refused for it, no others."""
    x = np.linspace(-7, 7, 56, dtype=np.float32).reshape(4, 14)
    refused = set()
    for name in activations_of(keras):
        theirs = keras.layers.Conv1DTranspose(4, 1, activation=name)
        theirs.build((None, 5, 3))
        pair = interop.from_keras(theirs)
        try:
            config, _ = interop.to_keras(*pair, api=peer.__name__)
        except ValueError as refusal:
            if " is not in the legacy Keras" not in str(refusal):
                raise
            refused.add(name)
            continue
        got = peer.layers.Conv1DTranspose(**config).activation(tf.constant(x))
        np.testing.assert_allclose(got, theirs.activation(x), rtol=1e-5, atol=1e-6, err_msg=name)
    lacking = {name for name in activations_of(keras) if not legacy_has(tf_keras, name)}
    assert refused == (lacking | {"hard_sigmoid"} if peer is tf_keras else set())


def legacy_has(tf_keras: ModuleType, name: str) -> bool:
    try:
        return tf_keras.activations.get(name) is not None
    except ValueError:
        return False


def test_functions_of_tensorflow(peer: ModuleType, tf: ModuleType, keras: ModuleType) -> None:
    """Those with names of Keras's are what users of `tf.layers` give, and compute the same."""
    x = np.linspace(-7, 7, 56, dtype=np.float32).reshape(4, 14)
    found = 0
    for home in (tf.nn, tf.compat.v1.nn, *([keras.ops] if peer is keras else [])):
        for name in {*activations_of(peer), "leaky_relu", "log_softmax", "relu6", "silu"}:
            function = getattr(home, name, None)
            if function is None or function is keras.ops.gelu:
                continue
            theirs = peer.layers.Conv1DTranspose(4, 1, activation=function)
            theirs.build((None, 5, 3))
            ours = interop.from_keras(theirs)[0].activation
            ours = getattr(jax.nn, ours) if isinstance(ours, str) else ours
            np.testing.assert_allclose(ours(x), function(x), rtol=1e-5, atol=1e-6, err_msg=name)
            found += 1
    assert found > 20


def relu(x: Any) -> Any:
    return x + 1


def test_functions_of_others_that_have_names_of_keras(
    peer: ModuleType, keras: ModuleType, torch: ModuleType, rng: Any
) -> None:
    """Keras writes most of them by their bare names."""
    functions = [
        relu,
        keras.ops.gelu,
        jax.nn.gelu,
        jax.nn.leaky_relu,
        jax.nn.relu,
        torch.nn.functional.leaky_relu,
        torch.nn.functional.gelu,
    ]
    for function in functions:
        theirs = peer.layers.Conv1DTranspose(4, 3, activation=function)
        theirs.build((2, 5, 3))
        with pytest.raises(ValueError, match=r"^activation=.* is none of .*Keras's own that are"):
            interop.from_keras(theirs)
        custom = {function.__name__: jnp.cos}
        assert interop.from_keras(theirs, custom_objects=custom)[0].activation is jnp.cos
    theirs = peer.layers.Conv1DTranspose(4, 3, activation=relu)
    x = normal(rng, 2, 5, 3)
    theirs.build(x.shape)
    module, variables = interop.from_keras(theirs, custom_objects={"relu": relu})
    assert_close(module.apply(variables, x), np.asarray(theirs(x)))


def test_leaky_relu_as_a_layer(peer: ModuleType) -> None:
    x = np.linspace(-3, 3, 30, dtype=np.float32).reshape(2, 5, 3)
    theirs = peer.layers.Conv1DTranspose(4, 1, activation=peer.layers.LeakyReLU(0.3))
    theirs.build(x.shape)
    module, variables = interop.from_keras(theirs)
    assert_close(module.apply(variables, x), np.asarray(theirs(x)))
    config, weights = interop.to_keras(module, variables, api=peer.__name__)
    rebuilt = peer.layers.Conv1DTranspose(**config)
    rebuilt.build(x.shape)
    rebuilt.set_weights(weights)
    assert_close(np.asarray(rebuilt(x)), np.asarray(theirs(x)))


def test_regularizers_and_constraints(peer: ModuleType, tf: ModuleType, rng: Any) -> None:
    """The penalty, the loss of the activations, and the projected kernel."""
    regularizers, constraints = peer.regularizers, peer.constraints
    theirs = peer.layers.Conv2DTranspose(
        4,
        (3, 2),
        activation="tanh",
        kernel_regularizer=regularizers.L1L2(0.1, 0.2),
        bias_regularizer="l2",
        activity_regularizer=regularizers.L1(0.3),
        kernel_constraint=constraints.MaxNorm(1.0, axis=[0, 1, 3]),
        bias_constraint=constraints.MinMaxNorm(0.1, 0.2, 0.5),
        bias_initializer="random_normal",
    )
    x = normal(rng, 3, 5, 4, 6)
    theirs(x)
    module, variables = interop.from_keras(theirs)
    rules = linen.rules(module, x)
    _, state = module.apply(variables, x, mutable=["losses"])
    ours = penalty(variables["params"], rules) + linen.losses(state)
    np.testing.assert_allclose(ours, float(sum(theirs.losses)), rtol=1e-5)
    for name, weight in zip(("kernel", "bias"), theirs.get_weights(), strict=True):
        projected = getattr(theirs, f"{name}_constraint")(tf.constant(weight))
        got = rules[name].constraint(variables["params"][name])
        np.testing.assert_allclose(got, projected, rtol=1e-5)
    config, _ = interop.to_keras(module, variables)
    assert type(theirs)(**config).get_config() == theirs.get_config()
    with pytest.raises(ValueError, match=r"drop=\('kernel_regularizer',\) leaves it out"):
        interop.to_torch(module, variables, drop=("activation", "data_format"))


@pytest.mark.parametrize("name", ["MaxNorm", "MinMaxNorm", "UnitNorm"])
def test_the_norm_of_a_whole_parameter(name: str, peer: ModuleType, tf: ModuleType) -> None:
    """`axis=None` in Keras; its default is 0."""
    constraint = getattr(peer.constraints, name)(axis=None)
    theirs = peer.layers.Conv2DTranspose(
        4,
        (3, 2),
        kernel_constraint=constraint,
        bias_constraint=constraint,
        bias_initializer="random_normal",
    )
    theirs.build((None, 5, 4, 6))
    module, _ = interop.from_keras(theirs)
    ours = (module.kernel_constraint, module.bias_constraint)
    for weight, projection in zip(theirs.get_weights(), ours, strict=True):
        large = 99 * weight
        expected = np.asarray(constraint(tf.constant(large)))
        np.testing.assert_allclose(projection(large), expected, rtol=1e-5, atol=1e-7)
        assert not np.allclose(expected, large)


SCALINGS = ["glorot", "he", "lecun"]
INITIALIZERS: list[tuple[str, dict[str, Any]]] = [
    *((f"{family.capitalize()}Normal", {}) for family in SCALINGS),
    *((f"{family.capitalize()}Uniform", {}) for family in SCALINGS),
    *(("VarianceScaling", {"scale": 3.0, "mode": mode}) for mode in ("fan_in", "fan_out")),
    ("VarianceScaling", {"scale": 3.0, "distribution": "untruncated_normal"}),
    ("RandomNormal", {"mean": 0.3, "stddev": 0.2}),
    ("TruncatedNormal", {"mean": 0.3, "stddev": 0.2}),
    ("RandomUniform", {"minval": 0.1, "maxval": 0.4}),
    ("Constant", {"value": 0.3}),
    ("Zeros", {}),
    ("Ones", {}),
    ("Orthogonal", {"gain": 0.7}),
]


def test_initializers_draw_from_the_same_distribution(peer: ModuleType) -> None:
    shape = (5, 4, 64, 16)
    for name, arguments in INITIALIZERS:
        initializer = getattr(peer.initializers, name)(**arguments)
        theirs = peer.layers.Conv2DTranspose(64, (5, 4), kernel_initializer=initializer)
        theirs.build((None, 3, 3, 16))
        kernel = theirs.get_weights()[0]
        module, variables = interop.from_keras(theirs)
        draws = np.asarray(module.kernel_initializer(jax.random.key(0), shape))
        message = f"{name} {arguments}"
        assert abs(draws.mean() - kernel.mean()) < 0.03 * kernel.std() + 1e-6, message
        np.testing.assert_allclose(draws.std(), kernel.std(), rtol=0.03, atol=1e-6, err_msg=message)
        kurtosis = [
            np.mean((a - a.mean()) ** 4) / max(a.std() ** 4, 1e-12) for a in (draws, kernel)
        ]
        np.testing.assert_allclose(*kurtosis, rtol=0.1, err_msg=message)
        if name == "Orthogonal":
            for a in (draws.reshape(-1, 16), kernel.reshape(-1, 16)):
                np.testing.assert_allclose(a.T @ a, 0.49 * np.eye(16), atol=1e-5)
        config, _ = interop.to_keras(module, variables)
        assert type(theirs)(**config).get_config() == theirs.get_config(), message


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_dtype_policies(policy: str, keras: ModuleType, rng: Any) -> None:
    theirs = keras.layers.Conv2DTranspose(4, 3, strides=2, dtype=policy)
    x = normal(rng, 2, 4, 3, 5)
    y = theirs(x)
    module, variables = interop.from_keras(theirs)
    got = module.apply(variables, x)
    short = policy.removeprefix("mixed_")
    assert got.dtype == jnp.dtype(short)
    assert module.param_dtype == (jnp.float32 if "mixed" in policy else jnp.dtype(short))
    tolerance = 0.02 if short == "bfloat16" else 0.003
    np.testing.assert_allclose(
        got.astype(np.float32), np.asarray(keras.ops.cast(y, "float32")), atol=tolerance
    )
    config, weights = interop.to_keras(module, variables)
    assert config["dtype"] == policy
    assert keras.layers.Conv2DTranspose(**config).get_config() == theirs.get_config()
    for a, b in zip(weights, theirs.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_leaky_relu_computes_in_its_own_dtype(policy: str, peer: ModuleType, rng: Any) -> None:
    """As a layer of Keras it casts; what is written for ours does not."""
    x = normal(rng, 2, 5, 3)
    theirs = peer.layers.Conv1DTranspose(4, 3, activation=peer.layers.LeakyReLU(), dtype=policy)
    assert theirs(x).dtype == "float32"
    with pytest.raises(ValueError, match="activation must compute in the layer's bfloat16"):
        interop.from_keras(theirs)
    slopes = peer.layers.LeakyReLU(dtype="bfloat16")
    theirs = peer.layers.Conv1DTranspose(4, 3, activation=slopes, dtype=policy)
    assert theirs(x).dtype == "bfloat16"
    module, variables = interop.from_keras(theirs)
    config, weights = interop.to_keras(module, variables, api=peer.__name__)
    again = peer.layers.Conv1DTranspose(**config)
    again.build(x.shape)
    again.set_weights(weights)
    assert again(x).dtype == "bfloat16"
    np.testing.assert_array_equal(again(x), theirs(x))


def test_lambdas_are_refused_as_what_they_are(peer: ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, of lambdas
        for name in ("activation", "kernel_regularizer", "kernel_initializer"):
            theirs = peer.layers.Conv1DTranspose(
                4, 3, **{name: lambda *_, **__: np.ones((3, 4, 6))}
            )
            theirs.build((None, 5, 6))
            with pytest.raises(ValueError, match=rf"^{name} is a lambda, .*drop=\('{name}',\)"):
                interop.from_keras(theirs)
            interop.from_keras(theirs, drop=(name,))


@UNTYPED
def test_layers_of_tensorflow_1(tf: ModuleType, tf_keras: ModuleType, rng: Any) -> None:
    x = normal(rng, 2, 4, 5, 3)
    theirs = tf.compat.v1.layers.Conv2DTranspose(
        4,
        (3, 5),
        strides=(2, 1),
        padding="SAME",
        activation=tf.nn.leaky_relu,
        kernel_initializer=tf.compat.v1.random_normal_initializer(stddev=0.1),
        bias_initializer=tf.compat.v1.constant_initializer(0.2),
        kernel_regularizer=tf_keras.regularizers.L2(0.1),
        trainable=False,
        name="up",
    )
    y = theirs(x)
    module, variables = interop.from_keras(theirs)
    assert module.name == "up"
    assert list(variables) == ["non_trainable"]
    assert_close(module.apply(variables, x), y.numpy())
    config, weights = interop.to_keras(module, variables)
    rebuilt = tf_keras.layers.Conv2DTranspose(**config)
    rebuilt.build(x.shape)
    rebuilt.set_weights(weights)
    assert not rebuilt.trainable
    np.testing.assert_array_equal(rebuilt(x), y)


def test_what_is_not_a_plain_layer(peer: ModuleType) -> None:
    class Doubled(peer.layers.Conv1DTranspose):  # type: ignore[misc, name-defined]
        def call(self, inputs: Any) -> Any:
            return 2 * super().call(inputs)

    for layer in (peer.layers.Conv1D(3, 4), Doubled(3, 4), "Conv1DTranspose"):
        with pytest.raises(TypeError, match="layer must be a Conv1DTranspose, Conv2DTranspose or"):
            interop.from_keras(layer)
    with pytest.raises(ValueError, match="layer must be built to have weights, 'up' is not"):
        interop.from_keras(peer.layers.Conv1DTranspose(3, 4, name="up"))


def test_weights_are_not_given_with_a_layer(peer: ModuleType) -> None:
    theirs = peer.layers.Conv1DTranspose(4, 3)
    theirs.build((2, 5, 3))
    with pytest.raises(ValueError, match="weights must not be given with a layer, which has its"):
        interop.from_keras(theirs, theirs.get_weights())


def test_a_call_of_the_layers_own(peer: ModuleType) -> None:
    theirs = peer.layers.Conv1DTranspose(4, 3)
    theirs.build((2, 5, 3))
    theirs.call = lambda inputs: 2 * inputs
    with pytest.raises(
        ValueError, match=r"layer must compute with the call of its class, got 'conv"
    ):
        interop.from_keras(theirs)
    del theirs.call
    interop.from_keras(theirs)


def test_variables_that_are_frozen_alone(keras: ModuleType) -> None:
    for use_bias in (True, False):
        theirs = keras.layers.Conv1DTranspose(4, 3, use_bias=use_bias)
        theirs.build((2, 5, 3))
        theirs.kernel.trainable = False
        if use_bias:
            with pytest.raises(ValueError, match=r"trainable holds for .* trains only bias$"):
                interop.from_keras(theirs)
            theirs.bias.trainable = False
        assert not interop.from_keras(theirs)[0].trainable
    theirs = keras.layers.Conv1DTranspose(4, 3, trainable=False)
    theirs.build((2, 5, 3))
    theirs.bias.trainable = True  # which Keras does not heed
    assert not interop.from_keras(theirs)[0].trainable


def test_a_layer_of_tensorflow_1_that_stays_frozen(tf: ModuleType, tf_keras: ModuleType) -> None:
    """Its variables are made for no training, and its config says otherwise."""
    theirs = tf.compat.v1.layers.Conv2DTranspose(4, 3, trainable=False)
    theirs(np.ones((2, 4, 5, 3), np.float32))
    theirs.trainable = True
    assert not theirs.trainable_weights
    assert not interop.from_keras(theirs)[0].trainable


@pytest.mark.parametrize("on_layer", [True, False])
@pytest.mark.parametrize("name", ["kernel", "bias"])
@pytest.mark.parametrize("kind", ["regularizer", "constraint"])
def test_rules_that_are_set_after_building(
    kind: str, name: str, on_layer: bool, keras: ModuleType
) -> None:
    """Keras goes by those of the variables, and its config tells those of the layer."""
    rule = keras.regularizers.L2(0.1) if kind == "regularizer" else keras.constraints.NonNeg()
    theirs = keras.layers.Conv1DTranspose(4, 3)
    theirs.build((2, 5, 3))
    argument = f"{name}_{kind}"
    if on_layer:
        setattr(theirs, argument, rule)
    else:
        setattr(getattr(theirs, name), kind, rule)
    with pytest.raises(ValueError, match=rf"^{argument} must be the same .*drop=\('{argument}',\)"):
        interop.from_keras(theirs)
    assert getattr(interop.from_keras(theirs, drop=[argument])[0], argument) is None


@pytest.mark.parametrize("what", [functools.partial(np.full_like, fill_value=0.0), np.tanh])
@pytest.mark.parametrize(
    "name", ["activation", "kernel_regularizer", "activity_regularizer", "bias_constraint"]
)
def test_what_keras_cannot_write(name: str, what: Any, peer: ModuleType) -> None:
    theirs = peer.layers.Conv1DTranspose(4, 3, kernel_initializer="ones", **{name: what})
    theirs.build((2, 5, 3))
    message = rf"^{name} must be an object that Keras can write .*drop=\('{name}',\) leaves it out"
    with pytest.raises(ValueError, match=message):
        interop.from_keras(theirs, drop=["bias_regularizer"])
    module, _ = interop.from_keras(theirs, drop=[name])
    assert getattr(module, name) is None
    assert module.kernel_initializer is jax.nn.initializers.ones
    assert getattr(theirs, name) is what


def swoosh(x: Any, shape: Any = None, dtype: Any = None) -> Any:
    return x + 1


def test_custom_activations(peer: ModuleType, rng: Any) -> None:
    theirs = peer.layers.Conv1DTranspose(4, 3, activation=swoosh)
    x = normal(rng, 2, 5, 3)
    theirs.build(x.shape)
    with pytest.raises(ValueError, match=r"activation=.*swoosh.* is none of .*Keras's own that"):
        interop.from_keras(theirs)
    module, variables = interop.from_keras(theirs, custom_objects={"swoosh": swoosh})
    assert_close(module.apply(variables, x), np.asarray(theirs(x)))
    bare, _ = interop.from_keras(theirs, drop=("activation",))
    assert bare.activation is None


def l2(w: Any) -> Any:
    return 0 * w[0, 0, 0]


def zeros(shape: Any, dtype: Any = None) -> Any:
    return np.ones(shape, np.float32)


@UNTYPED
def test_objects_of_others_that_have_names_of_keras(peer: ModuleType) -> None:
    class L2(peer.regularizers.L2):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return 2 * super().__call__(x)

    @peer.saving.register_keras_serializable(package="my")
    class L1(peer.regularizers.Regularizer):  # type: ignore[misc, name-defined]
        def __init__(self, slope: float = 1.0) -> None:
            self.slope = slope

        def __call__(self, x: Any) -> Any:
            return self.slope * x[0, 0, 0]

        def get_config(self) -> dict[str, float]:
            return {"slope": self.slope}

    class NonNeg(peer.constraints.Constraint):  # type: ignore[misc, name-defined]
        pass

    class LeakyReLU(peer.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return x

    for name, value in [
        ("activation", LeakyReLU()),
        ("kernel_regularizer", L2(0.1)),
        ("kernel_regularizer", L1(0.1)),
        ("activity_regularizer", L1(0.1)),
        ("kernel_regularizer", l2),
        ("kernel_constraint", NonNeg()),
        ("kernel_initializer", zeros),
    ]:
        theirs = peer.layers.Conv1DTranspose(4, 3, **{name: value})
        theirs.build((2, 5, 3))
        with pytest.raises(ValueError, match=rf"^{name}=.* is none of .*Keras's own that are kno"):
            interop.from_keras(theirs)

    @dataclasses.dataclass(frozen=True)
    class Ours:
        slope: float

        def __call__(self, x: Any) -> Any:
            return self.slope * x[0, 0, 0]

    theirs = peer.layers.Conv1DTranspose(4, 3, kernel_regularizer=L1(0.25))
    theirs.build((2, 5, 3))
    for key in ("my>L1", "L1"):
        module, _ = interop.from_keras(theirs, custom_objects={key: Ours})
        assert module.kernel_regularizer == Ours(0.25)


class Added:
    """Of the caller's, in Keras and here alike: an activation, a constraint, an initializer."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def __call__(self, x: Any, shape: Any = None, dtype: Any = None) -> Any:
        return (
            np.full(x, self.amount, "float32") if isinstance(x, tuple | list) else x + self.amount
        )

    def get_config(self) -> dict[str, float]:
        return {"amount": self.amount}

    @classmethod
    def from_config(cls, config: dict[str, float]) -> Added:
        return cls(**config)


CUSTOM: list[tuple[str, Any, Any]] = [
    ("swoosh", swoosh, swoosh),
    ("my>swoosh", swoosh, swoosh),
    ("added", Added(0.5), Added(0.5)),
    ("Added", Added, Added(0.5)),
    ("my>Added", Added, Added(0.5)),
]


@UNTYPED
@pytest.mark.parametrize(("key", "known", "value"), CUSTOM)
@pytest.mark.parametrize(
    "name",
    ["activation", "kernel_initializer", "kernel_regularizer", "bias_constraint"],
)
def test_custom_objects_in_genuine_layers(
    name: str, key: str, known: Any, value: Any, peer: ModuleType
) -> None:
    """Keras finds them by the names that they are registered under, and we find ours again."""
    value = known if not isinstance(known, type) else value
    module = linen.Conv1DTranspose(4, 3, **{name: value})
    variables = {"params": {"kernel": np.ones((3, 4, 6), "f4"), "bias": np.ones(4, "f4")}}
    config, weights = interop.to_keras(
        module, variables, api=peer.__name__, custom_objects={key: known}
    )
    if peer.__name__ == "keras":  # the legacy one may find out later
        with pytest.raises(TypeError, match=key):
            peer.layers.Conv1DTranspose.from_config(config)
    with peer.saving.custom_object_scope({key: known}):
        made = peer.layers.Conv1DTranspose(**config)
        theirs = peer.layers.Conv1DTranspose.from_config(config)
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    for layer in (made, theirs):
        got = getattr(layer, name)
        assert got is known or (type(got) is known and got.amount == 0.5)
        np.testing.assert_array_equal(got(x), value(x))
    assert theirs.get_config()[name] == made.get_config()[name]
    again, _ = interop.from_keras(config, weights, custom_objects={key: known})
    back = getattr(again, name)
    assert back is value or (type(back) is Added and back.amount == 0.5)
