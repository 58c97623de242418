"""What Keras's configs name: activations, initializers, regularizers and constraints.

An object stands there as its name, or as a dictionary with a `class_name` and the arguments of its
constructor. Most of Keras's own have a counterpart of ours that computes the same; an object of
somebody else may have the name of one of them, and is told from it by its module and by the name
under which it is registered (`keras/src/saving/serialization_lib.py` of Keras 3). Initializers that
scale by fans take the layer's filters for the channels that are summed: `fan_in` is our `fan_out`,
and the other way round (`compute_fans` in `keras/src/initializers/random_initializers.py`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from upconv import activations, constraints, initializers, regularizers
from upconv.interop import arguments

# The packages that Keras's own layers and objects are of, with their modules of activations.
ACTIVATIONS_OF = {
    "keras": "keras.activations",
    "tf_keras": "tf_keras.activations",
    "tensorflow": "tensorflow.python.keras.activations",
}

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
# The legacy Keras has another hard_sigmoid, linear between -2.5 and 2.5, and none of the others.
_NOT_IN_LEGACY_KERAS = {
    *("hard_sigmoid", "celu", "glu", "hard_shrink", "hard_silu", "hard_swish", "hard_tanh"),
    *("log_sigmoid", "soft_shrink", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh_shrink"),
}
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


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an entry of a config says of an object.

    Attributes:
      name: that of its class, or its own if it is a function.
      config: the arguments of the class's constructor.
      keys: the names under which `custom_objects` may have it.
      genuine: whether it is said to be Keras's own, or TensorFlow's.
    """

    name: str
    config: dict[str, Any]
    keys: tuple[str, ...]
    genuine: bool


def parse(argument: str, value: Any) -> Spec | None:
    """Reads an entry of a config of Keras, that of this argument; `None` if there is no object."""
    if value is None:
        return None
    if isinstance(value, str):
        return Spec(value, {}, (value,), genuine=True)
    if _is_lambda(value):
        raise ValueError(
            f"{argument} is a lambda, which Keras stores as bytecode; leave it out with "
            f"drop=({argument!r},) and give our layer a function that does the same"
        )
    called = value.get("class_name") if isinstance(value, Mapping) else None
    config = (value.get("config") or {}) if called else None
    if not (isinstance(called, str) and isinstance(config, str | Mapping)):
        raise ValueError(
            f"{argument} must be a name or a dictionary with a class_name, as in Keras's configs, "
            f"got {value!r}"
        )
    if isinstance(config, str):
        # So Keras writes functions that are not its own: they have a name, and no arguments.
        return Spec(config, {}, (config, config.rpartition(">")[2]), genuine=False)
    registered = value.get("registered_name") or called
    package = str(value.get("module", "keras")).partition(".")[0]  # older configs name no module
    genuine = registered == called and package in ACTIVATIONS_OF
    return Spec(called, dict(config), (registered, called), genuine)


def policy(argument: str, value: Any) -> tuple[Any, Any] | None:
    """The dtypes of variables and computation that a policy stands for."""
    spec = parse(argument, value)
    if spec is None:
        return None
    name = spec.config.get("name", spec.name) if spec.genuine else ""
    computed = name.removeprefix("mixed_")
    stored = "float32" if name.startswith("mixed_") else computed
    try:
        return jnp.dtype(stored), jnp.dtype(computed)
    except TypeError:
        raise ValueError(
            f"{argument} must be the name of a dtype or a policy of Keras's own, got {value!r}"
        ) from None


def _is_lambda(value: Any) -> bool:
    """Whether Keras wrote a lambda there; of one that is an activation it writes the code alone."""
    if not isinstance(value, Mapping):
        return False
    return value.get("class_name") == "__lambda__" or value.keys() == {"value"}


# ------------------------------------------------------------------ activations


def activation_of(layer: Any, value: Any, package: str) -> Any:
    """What the config of a live layer should hold for its activation, where it holds `value`.

    Keras writes its own functions by their bare names, but also those of others that have the same
    names; the layer itself has the function.
    """
    homes = [sys.modules.get(ACTIVATIONS_OF[package])]
    # The functions in these that Keras's activations have by the same name compute the same, but
    # for one.
    if tensorflow := sys.modules.get("tensorflow"):
        homes += [tensorflow.nn, tensorflow.compat.v1.nn]
    ops = getattr(sys.modules.get("keras"), "ops", None)
    if package == "keras":
        homes.append(ops)
    function = layer.activation
    for name in _ACTIVATIONS:
        if function is not getattr(ops, "gelu", None) and any(
            getattr(home, name, None) is function for home in homes
        ):
            return name
    return _function(value, function.__module__) if isinstance(value, str) else value


def from_activation(value: Any, custom: Mapping[str, Any], legacy: bool, computed: Any) -> Any:
    """Our activation for Keras's, or the legacy Keras's, in a layer that computes in a dtype."""
    spec = parse("activation", value)
    if spec is None:
        return None
    if any(key in custom for key in spec.keys):
        return _from_custom("activation", spec, custom)
    if spec.genuine and spec.name == "LeakyReLU":
        # A layer of its own, which casts what it is given to the dtype of its policy.
        cast = policy("activation", spec.config.get("dtype"))
        if cast is not None and cast[1] != computed:
            raise ValueError(
                f"activation must compute in the layer's {computed}, got a LeakyReLU that casts to "
                f"{cast[1]}; give it the dtype {str(computed)!r} in Keras, or leave it out with "
                "drop=('activation',)"
            )
        slopes = [spec.config[key] for key in ("negative_slope", "alpha") if key in spec.config]
        return activations.LeakyReLU(float(slopes[0] if slopes else 0.3))
    known = _activations(legacy)
    if spec.config or not spec.genuine or spec.name not in known:
        raise _unknown("activation", value, spec, "the legacy Keras" if legacy else "Keras")
    return known[spec.name]


def to_activation(given: Any, custom: Mapping[str, Any], legacy: bool, computed: Any) -> Any:
    """Keras's activation for ours, or the legacy Keras's, in a layer that computes in a dtype."""
    record = _to_custom("activation", given, custom)
    if record is not None:
        return record
    value = getattr(jax.nn, given) if isinstance(given, str) else given
    value = next((ours for function, ours in _SYNONYMS if function is value), value)
    known = _activations(legacy)
    for name, ours in known.items():
        if value == (getattr(jax.nn, ours) if isinstance(ours, str) else ours):
            return name
    if isinstance(value, activations.LeakyReLU):
        slope = "alpha" if legacy else "negative_slope"
        fields = {slope: value.negative_slope, "dtype": str(computed)}
        return _record("keras.layers", "LeakyReLU", fields)
    named = known.get(getattr(value, "__name__", ""))
    hint = f" (Keras's of that name is {named!r} here)" if named is not None else ""
    raise ValueError(
        f"activation={given!r} is not in {'the legacy Keras' if legacy else 'Keras'} under a name "
        f"known here{hint}; name it in custom_objects, or leave it out with drop=('activation',)"
    )


def _activations(legacy: bool) -> dict[str, Any]:
    """Ours for Keras's by name, or for the legacy Keras's."""
    left_out = _NOT_IN_LEGACY_KERAS if legacy else ()
    return {name: ours for name, ours in _ACTIVATIONS.items() if name not in left_out}


# ------------------------------------------------------------------ the rest


def from_object(name: str, value: Any, custom: Mapping[str, Any], ndim: int) -> Any:
    """Our initializer, regularizer or constraint for Keras's.

    Args:
      name: the argument that it is.
      value: what the config holds.
      custom: objects of ours for those that are not Keras's own.
      ndim: the number of axes of the parameter that it is for.
    """
    spec = parse(name, value)
    if spec is None:
        return None
    if any(key in custom for key in spec.keys):
        return _from_custom(name, spec, custom)
    key = _names(HOMES[name]).get(_plain(spec.name)) if spec.genuine else None
    if key is None:
        raise _unknown(name, value, spec)
    # None stands for the default, except where it asks for one norm of the whole parameter, and in
    # TensorFlow 1 for an upper bound of 1.
    nones: dict[str, Any] = {"axis": tuple(range(ndim)), "maxval": 1.0}
    filled = {k: nones.get(k) if v is None else v for k, v in spec.config.items()}
    given = {k: v for k, v in filled.items() if v is not None and k not in ("seed", "dtype")}
    if key in _RECORDS[HOMES[name]]:
        ours = _RECORDS[HOMES[name]][key]
        arguments.check_keys(name, given, [field.name for field in dataclasses.fields(ours)])
        return _made(name, ours, given)
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
    record = _to_custom(name, value, custom)
    if record is not None:
        return record
    if isinstance(value, regularizers.Orthogonal) and home == "keras.regularizers":
        raise ValueError(
            f"{name}={value!r}: Keras's takes only matrices; drop=({name!r},) leaves it out"
        )
    for key, ours in _RECORDS[home].items():
        if type(value) is ours:
            fields = _fields(value)
            fields = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
            return _record(home, key, fields)
    record = _to_initializer(value) if home == "keras.initializers" else None
    if record is not None:
        return record
    hint = ""
    if home == "keras.initializers" and str(getattr(value, "__module__", "")).startswith("jax"):
        hint = "; upconv.initializers has JAX's as objects, he_normal() for one"
    raise ValueError(
        f"{name}={value!r} is not in Keras{hint}; name it in custom_objects, or leave it out with "
        f"drop=({name!r},)"
    )


def _to_initializer(value: Any) -> dict[str, Any] | None:
    """Keras's initializer for one of ours that is no record of the same fields, if there is one."""
    for key, function in _FUNCTIONS.items():
        if value is function:
            return _record("keras.initializers", key, {})
    if isinstance(value, initializers.VarianceScaling) and _has_plain_fans(value):
        return _to_scaling(value)
    return None


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


def _to_scaling(value: initializers.VarianceScaling) -> dict[str, Any]:
    inverse = {ours: theirs for theirs, ours in _DISTRIBUTIONS.items() if theirs != "normal"}
    scaling = (value.scale, _MODES[value.mode], inverse[value.distribution])
    for key, known in _SCALINGS.items():
        if known == scaling:
            return _record("keras.initializers", key, {})
    fields = dict(zip(("scale", "mode", "distribution"), scaling, strict=True))
    return _record("keras.initializers", "VarianceScaling", fields)


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


def _unknown(name: str, value: Any, spec: Spec, peer: str = "Keras") -> ValueError:
    return ValueError(
        f"{name}={value!r} is none of {peer}'s own that are known here; give ours as "
        f"custom_objects[{spec.keys[0]!r}], or the default with drop=({name!r},)"
    )


def _made(name: str, cls: Callable[..., Any], config: dict[str, Any]) -> Any:
    """An object of a class of ours, with the arguments that Keras's has."""
    make = getattr(cls, "from_config", None)
    try:
        return cls(**config) if make is None else make(config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} has arguments that {cls.__qualname__} does not take: {error}; give another in "
            f"custom_objects, or the default with drop=({name!r},)"
        ) from error


# ------------------------------------------------------------------ custom objects


def _from_custom(name: str, spec: Spec, custom: Mapping[str, Any]) -> Any:
    """What the caller has for an object that the config names."""
    key = next(key for key in spec.keys if key in custom)
    value = custom[key]
    if isinstance(value, type):
        return _made(name, value, spec.config)
    if spec.config:
        raise ValueError(
            f"custom_objects[{key!r}] must be a class, to be made with the arguments "
            f"{spec.config} of {name}, got {value!r}"
        )
    return value


def _to_custom(name: str, value: Any, custom: Mapping[str, Any]) -> dict[str, Any] | None:
    """How Keras writes an object of the caller's: by its name alone, or as its class."""
    for key, known in custom.items():
        if known is value:
            return _function(key, "builtins")
        if type(value) is known:
            if hasattr(value, "get_config"):
                config = value.get_config()
            elif dataclasses.is_dataclass(value):
                config = _fields(value)
            else:
                raise ValueError(
                    f"{name} must have a get_config or be a dataclass, as custom_objects[{key!r}] "
                    f"is its class, got {value!r}"
                )
            # Registered under "package>name", the class is called by what follows the package.
            called = key.rpartition(">")[2]
            return {**_record(None, called, config), "registered_name": key}
    return None


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass by name."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _function(name: str, module: str) -> dict[str, Any]:
    return {**_record(module, "function", name), "registered_name": "function"}


def _record(module: str | None, name: str, config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}
