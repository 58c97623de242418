"""What Keras's configs name: activations, initializers, regularizers and constraints.

An object stands there as its name, or as a dictionary with a `class_name` and the arguments of its
constructor. Most have a counterpart of ours that computes the same. Initializers that scale by fans
take the layer's filters for the channels that are summed: `fan_in` is our `fan_out`, and the other
way round (`compute_fans` in `keras/src/initializers/random_initializers.py` of Keras 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from upconv import activations, constraints, initializers, regularizers
from upconv.interop import arguments

# The arguments that hold an object, activations apart, and Keras's module for it.
HOMES = {
    "kernel_initializer": "keras.initializers",
    "bias_initializer": "keras.initializers",
    "kernel_regularizer": "keras.regularizers",
    "bias_regularizer": "keras.regularizers",
    "activity_regularizer": "keras.regularizers",
    "kernel_constraint": "keras.constraints",
    "bias_constraint": "keras.constraints",
}

# The functions of `jax.nn` that Keras has by the same name and with the same defaults.
_SAME_ACTIVATIONS = (
    *("celu", "elu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh", "log_sigmoid", "log_softmax"),
    *("mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "sparse_plus"),
    *("sparse_sigmoid", "squareplus", "tanh"),
)
_ACTIVATIONS: dict[str, Any] = {
    "linear": None,
    **{name: name for name in _SAME_ACTIVATIONS},
    "softsign": "soft_sign",
    "swish": "silu",
    "hard_swish": "hard_silu",
    "exponential": activations.Exponential(),
    "gelu": activations.GELU(),
    "leaky_relu": activations.LeakyReLU(),
    "hard_shrink": activations.HardShrink(),
    "soft_shrink": activations.SoftShrink(),
    "tanh_shrink": activations.TanhShrink(),
}
# The legacy Keras has another function of this name, which is linear between -2.5 and 2.5.
_NOT_IN_LEGACY_KERAS = {"hard_sigmoid"}
# Functions of JAX, and what stands for them in that table.
_SYNONYMS = (
    (jax.nn.identity, None),
    (jax.nn.leaky_relu, activations.LeakyReLU(0.01)),
    (jnp.exp, activations.Exponential()),
)

# By module: the classes with the same fields as ours.
_RECORDS: dict[str, dict[str, Any]] = {
    "keras.initializers": {
        "Constant": initializers.Constant,
        "Orthogonal": initializers.Orthogonal,
        "RandomNormal": initializers.Normal,
        "RandomUniform": initializers.Uniform,
        "TruncatedNormal": initializers.TruncatedNormal,
    },
    "keras.regularizers": {
        "L1": regularizers.L1,
        "L2": regularizers.L2,
        "L1L2": regularizers.L1L2,
        "OrthogonalRegularizer": regularizers.Orthogonal,
    },
    "keras.constraints": {
        "MaxNorm": constraints.MaxNorm,
        "MinMaxNorm": constraints.MinMaxNorm,
        "NonNeg": constraints.NonNeg,
        "UnitNorm": constraints.UnitNorm,
    },
}
_FUNCTIONS = {"Zeros": jax.nn.initializers.zeros, "Ones": jax.nn.initializers.ones}
# Scale, mode and distribution.
_SCALINGS = {
    "GlorotNormal": (1.0, "fan_avg", "truncated_normal"),
    "GlorotUniform": (1.0, "fan_avg", "uniform"),
    "HeNormal": (2.0, "fan_in", "truncated_normal"),
    "HeUniform": (2.0, "fan_in", "uniform"),
    "LecunNormal": (1.0, "fan_in", "truncated_normal"),
    "LecunUniform": (1.0, "fan_in", "uniform"),
}
_MODES = {"fan_in": "fan_out", "fan_out": "fan_in", "fan_avg": "fan_avg"}
_DISTRIBUTIONS = {
    "uniform": "uniform",
    "truncated_normal": "truncated_normal",
    "normal": "truncated_normal",
    "untruncated_normal": "normal",
}


def spec(name: str, value: Any) -> tuple[str | None, dict[str, Any]]:
    """The name of an object in a config of Keras, and its arguments; `None` if there is none."""
    if value is None or isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and isinstance(value.get("class_name"), str):
        config = value.get("config")
        if value["class_name"] == "function" and isinstance(config, str):
            return config, {}
        return value["class_name"], dict(config or {})
    raise ValueError(
        f"{name} must be a name or a dictionary with a class_name, as in Keras's configs, got "
        f"{value!r}"
    )


# ------------------------------------------------------------------ activations


def from_activation(value: Any, custom: Mapping[str, Any], legacy: bool) -> Any:
    """Our activation for Keras's, or for the legacy Keras's."""
    name, config = spec("activation", value)
    if name is None:
        return None
    if name in custom:
        return custom[name]
    if name == "LeakyReLU":
        slopes = [config[key] for key in ("negative_slope", "alpha") if key in config]
        return activations.LeakyReLU(float(slopes[0] if slopes else 0.3))
    if config or name not in _ACTIVATIONS or (legacy and name in _NOT_IN_LEGACY_KERAS):
        raise ValueError(
            f"activation {value!r} of {'the legacy Keras' if legacy else 'Keras'} is not known "
            "here; give ours in custom_objects, or none with drop=('activation',)"
        )
    return _ACTIVATIONS[name]


def to_activation(value: Any, custom: Mapping[str, Any]) -> Any:
    """Keras's activation for ours."""
    for name, known in custom.items():
        if known is value:
            return name
    value = getattr(jax.nn, value) if isinstance(value, str) else value
    value = next((ours for function, ours in _SYNONYMS if function is value), value)
    for name, ours in _ACTIVATIONS.items():
        if value == (getattr(jax.nn, ours) if isinstance(ours, str) else ours):
            return name
    if isinstance(value, activations.LeakyReLU):
        return _record("keras.layers", "LeakyReLU", {"negative_slope": value.negative_slope})
    raise ValueError(
        f"activation={value!r} is not in Keras under a name known here; name it in custom_objects, "
        "or leave it out with drop=('activation',)"
    )


# ------------------------------------------------------------------ the rest


def from_object(name: str, value: Any, custom: Mapping[str, Any]) -> Any:
    """Our initializer, regularizer or constraint for Keras's, which is the argument `name`."""
    called, config = spec(name, value)
    if called is None:
        return None
    if called in custom:
        return custom[called]
    key = _names(HOMES[name]).get(_plain(called))
    if key is None:
        raise ValueError(
            f"{name}={value!r} is not known here; give ours in custom_objects, or the default "
            f"with drop=({name!r},)"
        )
    given = {k: v for k, v in config.items() if v is not None and k not in ("seed", "dtype")}
    if key in _RECORDS[HOMES[name]]:
        ours = _RECORDS[HOMES[name]][key]
        if config.get("maxval", 0.0) is None:
            given["maxval"] = 1.0  # TensorFlow 1's, for floating-point numbers
        arguments.check_keys(name, given, [field.name for field in dataclasses.fields(ours)])
        return ours(**given)
    if key == "VarianceScaling":
        arguments.check_keys(name, given, ("scale", "mode", "distribution"))
        return _from_scaling(name, **given)
    arguments.check_keys(name, given, ())
    return _FUNCTIONS[key] if key in _FUNCTIONS else _from_scaling(name, *_SCALINGS[key])


def to_object(name: str, value: Any, custom: Mapping[str, Any]) -> Any:
    """Keras's initializer, regularizer or constraint for ours, which is the argument `name`."""
    home = HOMES[name]
    if value is None and home != "keras.initializers":
        return None
    value = initializers.glorot_uniform() if value is None else value
    for key, known in custom.items():
        if known is value:
            return key
    if isinstance(value, regularizers.Orthogonal):
        raise ValueError(
            f"{name}={value!r}: Keras's takes only matrices; drop=({name!r},) leaves it out"
        )
    for key, ours in _RECORDS[home].items():
        if type(value) is ours:
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            fields = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
            return _record(home, key, fields)
    for key, function in _FUNCTIONS.items():
        if value is function:
            return _record(home, key, {})
    if isinstance(value, initializers.VarianceScaling) and _has_plain_fans(value):
        return _to_scaling(home, value)
    raise ValueError(
        f"{name}={value!r} is not in Keras; name it in custom_objects, or leave it out with "
        f"drop=({name!r},)"
    )


def _from_scaling(
    name: str,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
) -> initializers.VarianceScaling:
    if mode not in _MODES or distribution not in _DISTRIBUTIONS:
        raise ValueError(
            f"{name} must have one of the modes {', '.join(_MODES)} and distributions "
            f"{', '.join(_DISTRIBUTIONS)}, got {mode!r} and {distribution!r}"
        )
    ours: Any = _DISTRIBUTIONS[distribution]
    swapped: Any = _MODES[mode]
    return initializers.VarianceScaling(scale, swapped, ours)


def _to_scaling(home: str, value: initializers.VarianceScaling) -> dict[str, Any]:
    inverse = {ours: theirs for theirs, ours in _DISTRIBUTIONS.items() if theirs != "normal"}
    scaling = (value.scale, _MODES[value.mode], inverse[value.distribution])
    for key, known in _SCALINGS.items():
        if known == scaling:
            return _record(home, key, {})
    fields = dict(zip(("scale", "mode", "distribution"), scaling, strict=True))
    return _record(home, "VarianceScaling", fields)


def _has_plain_fans(value: initializers.VarianceScaling) -> bool:
    """Whether it counts fans as Keras does, which knows neither strides nor groups there."""
    strides = value.strides if isinstance(value.strides, tuple) else (value.strides,)
    return value.groups == 1 and set(strides) == {1}


def _names(home: str) -> dict[str, str]:
    """Keras's names for what is known here of one of its modules, by their plain spelling."""
    names = [*_RECORDS[home]]
    if home == "keras.initializers":
        names += [*_FUNCTIONS, *_SCALINGS, "VarianceScaling"]
    return {_plain(name): name for name in names}


def _plain(name: str) -> str:
    """One spelling for all: older configs have `glorot_uniform` for `GlorotUniform`."""
    return name.replace("_", "").lower()


def _record(module: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}
