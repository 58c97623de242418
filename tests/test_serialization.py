"""Layers through JSON and back: equal ones, with every object of this package in them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from upconv import activations, constraints, initializers, linen, nnx, regularizers
from upconv.layer import Layer
from upconv.serialization import VERSION, from_config, to_config

ICNR = initializers.ICNR(2, initializers.Normal(0.5, 2.0))

# Each argument, with values other than its default.
ARGUMENTS: dict[str, list[Any]] = {
    "filters": [6],
    "kernel_size": [(2, 4)],
    "strides": [2, [1, 3]],
    "padding": ["SAME", "causal", 1, ((1, 0), 2)],
    "data_format": ["Channels_First"],
    "activation": [
        "relu",
        jax.nn.relu,
        jnp.exp,
        jnp.sin,
        activations.LeakyReLU(0.3),
        activations.GELU(approximate=True),
        activations.Exponential(),
        activations.SoftShrink(0.25),
        activations.HardShrink(),
        activations.TanhShrink(),
    ],
    "use_bias": [False],
    "kernel_initializer": [
        initializers.VarianceScaling(2.0, "fan_out", "normal", [2, 2], 2),
        initializers.he_normal(strides=2),
        initializers.Bilinear((2, 2)),
        ICNR,
        initializers.Orthogonal(0.5),
    ],
    "bias_initializer": [
        None,
        jax.nn.initializers.ones,
        initializers.Constant(0.1),
        initializers.Normal(1.0, 2.0),
        initializers.TruncatedNormal(1.0, 2.0),
        initializers.Uniform(1.0, 2.0),
    ],
    "kernel_regularizer": [regularizers.L1(0.1), regularizers.Orthogonal(0.1, "columns")],
    "bias_regularizer": [regularizers.L2(1e-4)],
    "activity_regularizer": [regularizers.L1L2(0.1, 0.2)],
    "kernel_constraint": [constraints.MaxNorm(1.0, (0, 1, 3)), constraints.MinMaxNorm(0.1, 2, 0.3)],
    "bias_constraint": [constraints.NonNeg(), constraints.UnitNorm(-1)],
    "trainable": [False],
    "output_padding": [0, (0, 0)],
    "dilation_rate": [2, (3, 1)],
    "groups": [2],
    "dtype": [jnp.bfloat16, "float32"],
    "param_dtype": [np.float16, "bfloat16", jnp.dtype("float16")],
    "precision": [
        "highest",
        jax.lax.Precision.HIGH,
        ("default", jax.lax.Precision.HIGHEST),
        ["high", "highest"],
        jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
    ],
    "lowering": ["matmul"],
}
CASES = [
    pytest.param(name, value, id=f"{name}-{i}")
    for name, values in ARGUMENTS.items()
    for i, value in enumerate(values)
]
DEFAULTS: dict[str, Any] = {"filters": 8, "kernel_size": (4, 6)}
# What an argument goes with.
WITH = {"kernel_initializer": {"strides": 2}}
MODULES = (activations, constraints, initializers, regularizers)


def through_json(config: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(config, allow_nan=False)
    assert json.loads(text) == config  # nothing that JSON would spell otherwise
    return json.loads(text)


def test_every_argument_and_every_object_is_among_the_cases() -> None:
    assert set(ARGUMENTS) == {f.name for f in dataclasses.fields(Layer)} - {"rank"}
    used = {type(value) for values in ARGUMENTS.values() for value in values}
    for module in MODULES:
        for name in module.__all__:
            if dataclasses.is_dataclass(getattr(module, name)):
                assert getattr(module, name) in used, name


@pytest.mark.parametrize(("name", "value"), CASES)
def test_linen_layers_come_back_equal(name: str, value: Any) -> None:
    layer = linen.Conv2DTranspose(**DEFAULTS | WITH.get(name, {}) | {name: value})
    config = to_config(layer)
    back = from_config(through_json(config))
    assert back == layer
    assert hash(back) == hash(layer)
    assert getattr(back, name) == getattr(layer, name)
    assert type(back) is linen.Conv2DTranspose
    assert to_config(back) == config
    assert config[name] != to_config(linen.Conv2DTranspose(**DEFAULTS))[name]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_nnx_layers_come_back_equal(name: str) -> None:
    arguments = DEFAULTS | WITH.get(name, {}) | {name: ARGUMENTS[name][0]}
    layer = nnx.Conv2DTranspose(8, **arguments, rngs=flax_nnx.Rngs(0))
    config = to_config(layer)
    back = from_config(through_json(config), rngs=flax_nnx.Rngs(0))
    assert back.config == layer.config
    assert back.in_features == 8
    assert to_config(back) == config
    np.testing.assert_array_equal(back.kernel[...], layer.kernel[...])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_and_names(rank: int) -> None:
    layer = getattr(linen, f"Conv{rank}DTranspose")(4, 3, name="up")
    config = through_json(to_config(layer))
    assert config["version"] == VERSION == 1
    assert config["class"] == f"upconv.linen.Conv{rank}DTranspose"
    assert from_config(config) == layer
    assert from_config(config).name == "up"


def test_a_layer_read_back_computes_the_same() -> None:
    layer = linen.Conv2DTranspose(4, 4, 2, "same", activation="gelu", kernel_initializer=ICNR)
    x = jax.random.normal(jax.random.key(1), (2, 5, 3, 2))
    variables = layer.init(jax.random.key(0), x)
    back = from_config(through_json(to_config(layer)))
    again = back.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["kernel"], again["params"]["kernel"])
    np.testing.assert_array_equal(layer.apply(variables, x), back.apply(variables, x))


def test_a_config_may_leave_defaults_out() -> None:
    config = {"version": 1, "class": "upconv.linen.Conv2DTranspose", **DEFAULTS}
    assert from_config(config) == linen.Conv2DTranspose(**DEFAULTS)


def swoosh(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(x)


def test_custom_objects_go_by_the_names_given() -> None:
    layer = linen.Conv1DTranspose(4, 3, activation=swoosh, kernel_constraint=swoosh)
    config = through_json(to_config(layer, custom_objects={"swoosh": swoosh}))
    assert config["activation"] == config["kernel_constraint"] == {"custom": "swoosh"}
    assert from_config(config, custom_objects={"swoosh": swoosh}) == layer
    with pytest.raises(ValueError, match="activation names the unknown custom 'swoosh'"):
        from_config(config)


class Mine(initializers.Normal):
    """Equal in its fields to what it is not."""


def drawn(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


@pytest.mark.parametrize(
    "value",
    [
        drawn,
        lambda key, shape, dtype: jnp.zeros(shape, dtype),
        jax.nn.initializers.normal(0.1),
        initializers.ICNR(2, swoosh),
        Mine(stddev=0.2),
    ],
    ids=["function", "lambda", "closure", "nested", "subclass"],
)
def test_what_has_no_name_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"kernel_initializer.* must be .* custom_objects"):
        to_config(linen.Conv1DTranspose(4, 3, 2, kernel_initializer=value))


def test_an_initializer_that_jax_made_is_said_to_have_a_counterpart() -> None:
    layer = linen.Conv1DTranspose(4, 3, kernel_initializer=jax.nn.initializers.he_normal())
    with pytest.raises(ValueError, match=r"upconv\.initializers has .*, he_normal\(\) for one$"):
        to_config(layer)


def test_a_custom_object_is_not_what_it_equals() -> None:
    custom, equal = initializers.ICNR(2, swoosh), initializers.ICNR(2, swoosh)
    assert custom == equal
    for value in (custom, equal):
        layer = linen.Conv1DTranspose(4, 3, 2, kernel_initializer=value)
        if value is custom:
            config = to_config(layer, custom_objects={"mine": custom})
            assert config["kernel_initializer"] == {"custom": "mine"}
        else:
            with pytest.raises(ValueError, match="custom_objects"):
                to_config(layer, custom_objects={"mine": custom})


class MyLayer(linen.Conv1DTranspose):
    """A layer that a config of its base would not describe."""


@pytest.mark.parametrize(
    "layer",
    [
        linen.ConvTranspose(4, (3,)),
        MyLayer(4, 3),
        nnx.Conv2DTranspose,
        None,
        {"version": 1},
    ],
    ids=["drop-in", "subclass", "class", "none", "config"],
)
def test_only_layers_are_written(layer: Any) -> None:
    with pytest.raises(TypeError, match=r"layer must be one of upconv\.linen\.Conv1DTranspose"):
        to_config(layer)


GOOD = to_config(linen.Conv2DTranspose(4, 3, kernel_regularizer=regularizers.L2(0.1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": None}, "version must be 1, got None"),
        ({"version": 2}, "version must be 1, got 2"),
        ({"version": True}, "version must be 1, got True"),
        ({"version": 1.0}, r"version must be 1, got 1\.0"),
        ({"class": ["x"]}, r"class must be one of .*, got \['x'\]"),
        ({"class": "Conv2DTranspose"}, r"class must be one of upconv\.linen\.\S+, .*, got 'Conv2D"),
        ({"class": None}, "class must be one of"),
        ({"in_features": 3}, r"unknown keys \['in_features'\]"),
        ({"stride": 3}, r"unknown keys \['stride'\]"),
        ({"filters": 0}, "filters must be at least 1"),
        ({"dtype": "float31"}, "dtype must be the name of a dtype, got 'float31'"),
        ({"activation": "rleu"}, "activation must be callable.*'relu'"),
        ({"activation": {}}, "activation must have one of the keys class, function, enum, custom"),
        ({"activation": {"function": "os.system"}}, "unknown function 'os.system'"),
        ({"activation": {"function": "jax.nn._relu"}}, "unknown function"),
        ({"activation": {"function": "jax.numpy.save"}}, "unknown function 'jax.numpy.save'"),
        ({"activation": {"function": "jax.numpy.float32"}}, "unknown function"),
        ({"activation": {"function": "jax.nn.relu", "x": 1}}, r"unknown keys \['x'\]"),
        ({"activation": {"function": "jax.nn.relu", "x": 1, 3: 4}}, r"unknown keys \['3', 'x'\]"),
        ({"activation": {"function": "jax.nn.relu", "class": "x"}}, "must have one of the keys"),
        ({"precision": {"enum": "Precision.MOST"}}, "precision names the unknown enum"),
        ({"precision": {"enum": "os.name"}}, "precision names the unknown enum"),
        (
            {"kernel_regularizer": {"class": "L2"}},
            "kernel_regularizer names the unknown class 'L2'",
        ),
        (
            {"kernel_regularizer": {"class": "regularizers.L2", "l1": 1}},
            r"kernel_regularizer has unknown keys \['l1'\]",
        ),
        ({"kernel_regularizer": {"class": "regularizers.L2", "l2": -1}}, "l2 must be finite and"),
        (
            {"kernel_initializer": {"class": "initializers.ICNR"}},
            r"kernel_initializer lacks the keys \['strides'\]",
        ),
        (
            {"kernel_initializer": {"class": "initializers.ICNR", "strides": {"class": 3}}},
            "kernel_initializer.strides names the unknown class 3",
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_config(GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: 4, "x": 1}, "config must have strings for keys, got 3"),
        ({"name": 3}, "name must be a string or None, got 3"),
    ],
)
def test_bad_types(change: dict[Any, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        from_config(GOOD | change)


@pytest.mark.parametrize("key", ["version", "class", "filters", "kernel_size"])
def test_missing_keys(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        from_config({k: v for k, v in GOOD.items() if k != key})


def test_rngs_are_for_nnx() -> None:
    layer = nnx.Conv2DTranspose(3, 4, 3, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"rngs must be given for a layer of upconv\.nnx"):
        from_config(to_config(layer))
    with pytest.raises(ValueError, match="and for no other"):
        from_config(GOOD, rngs=flax_nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"config must be a dictionary, got '\{\}'"):
        from_config("{}")  # type: ignore[arg-type]
