"""Layers of Keras 3, `tf_keras` and `tf.compat.v1.layers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from upconv import activations, constraints, geometry, initializers, regularizers
from upconv.interop import arguments, pairs
from upconv.interop.pairs import Pair

_KERAS_LAYERS = {"Conv1DTranspose": 1, "Conv2DTranspose": 2, "Conv3DTranspose": 3}
# The functions of `jax.nn` that Keras has by the same name and with the same defaults.
_SAME_ACTIVATIONS = (
    *("celu", "elu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh", "log_sigmoid", "log_softmax"),
    *("mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "sparse_plus"),
    *("sparse_sigmoid", "squareplus", "tanh"),
)
_KERAS_ACTIVATIONS: dict[str, Any] = {
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

# By module: the classes with the same fields as ours.
_KERAS_RECORDS: dict[str, dict[str, Any]] = {
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
_KERAS_FUNCTIONS = {"Zeros": jax.nn.initializers.zeros, "Ones": jax.nn.initializers.ones}
# Scale, mode and distribution. Keras takes the filters for the channels that are summed.
_KERAS_SCALINGS = {
    "GlorotNormal": (1.0, "fan_avg", "truncated_normal"),
    "GlorotUniform": (1.0, "fan_avg", "uniform"),
    "HeNormal": (2.0, "fan_in", "truncated_normal"),
    "HeUniform": (2.0, "fan_in", "uniform"),
    "LecunNormal": (1.0, "fan_in", "truncated_normal"),
    "LecunUniform": (1.0, "fan_in", "uniform"),
}
_KERAS_MODES = {"fan_in": "fan_out", "fan_out": "fan_in", "fan_avg": "fan_avg"}
_KERAS_DISTRIBUTIONS = {
    "uniform": "uniform",
    "truncated_normal": "truncated_normal",
    "normal": "truncated_normal",
    "untruncated_normal": "normal",
}
# The arguments that hold an object, and Keras's module for it.
_KERAS_OBJECTS = {
    "kernel_initializer": "keras.initializers",
    "bias_initializer": "keras.initializers",
    "kernel_regularizer": "keras.regularizers",
    "bias_regularizer": "keras.regularizers",
    "activity_regularizer": "keras.regularizers",
    "kernel_constraint": "keras.constraints",
    "bias_constraint": "keras.constraints",
}
_KERAS_PLAIN = (
    "strides",
    "padding",
    "output_padding",
    "data_format",
    "dilation_rate",
    "groups",
    "trainable",
    "name",
)
# What a config may hold beside: it is read elsewhere, or says for which inputs a layer was made.
_KERAS_REST = {"filters", "kernel_size", "use_bias", "activation", "dtype", "batch_input_shape"}


def from_keras(
    layer: Any,
    weights: Sequence[Any] | None = None,
    *,
    drop: Collection[str] = (),
    custom_objects: Mapping[str, Any] | None = None,
) -> Pair:
    """A transposed convolution of Keras 3, `tf_keras` or `tf.compat.v1.layers` as ours.

    The numbers are those of Keras on its TensorFlow backend.

    Args:
      layer: a `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` that is built; or,
        with `weights`, a config as `layer.get_config()` gives it in Keras 3.
      weights: what `layer.get_weights()` gives: the kernel, and the bias if there is one.
      drop: arguments that may be left at our defaults: `activation`, initializers, regularizers
        and constraints.
      custom_objects: our functions for Keras's by name, as for
        `keras.saving.deserialize_keras_object`.

    Returns:
      `(module, variables)`. Initializers draw from the same distribution. The dtypes are those
      of the layer's policy.

    Raises:
      TypeError: if `layer` is neither such a layer nor a config.
      ValueError: if the layer is not built, if an object in it is not Keras's own nor in
        `custom_objects`, or if an argument is unknown or does not fit the weights.

    >>> config = {"filters": 4, "kernel_size": 5, "strides": 2, "activation": "gelu"}
    >>> weights = [np.ones((5, 5, 4, 3), np.float32), np.zeros(4, np.float32)]
    >>> module, variables = from_keras(config, weights)
    >>> module.strides, module.activation, module.use_bias
    ((2, 2), GELU(approximate=False), True)
    """
    legacy = False
    if weights is None:
        rank = _KERAS_LAYERS.get(type(layer).__name__)
        root = type(layer).__module__.partition(".")[0]
        if rank is None or root not in ("keras", "tf_keras", "tensorflow"):
            raise TypeError(
                "layer must be a Conv1DTranspose, Conv2DTranspose or Conv3DTranspose of Keras, or "
                f"a config with weights, got {arguments.type_name(layer)}"
            )
        legacy = root != "keras"
        if not layer.built:
            raise ValueError(f"layer must be built to have weights, {layer.name!r} is not")
        layer, weights = layer.get_config(), layer.get_weights()
    config = arguments.mapping("layer", layer)
    known = {*_KERAS_PLAIN, *_KERAS_OBJECTS, *_KERAS_REST}
    arguments.check_keys("layer", config, known, required=("filters", "kernel_size"))
    arguments.check_drop(drop, {"activation", *_KERAS_OBJECTS}, "Keras")
    custom = custom_objects or {}
    options = {name: config[name] for name in _KERAS_PLAIN if config.get(name) is not None}
    if "activation" not in drop:
        options["activation"] = _from_keras_activation(config.get("activation"), custom, legacy)
    for name, module in _KERAS_OBJECTS.items():
        if name in config and name not in drop:
            options[name] = _from_keras_object(name, config[name], module, custom)
    kernel, bias = pairs.kernel_and_bias(weights, bool(config.get("use_bias", True)))
    rank = pairs.rank("weights[0]", kernel)
    size = geometry.per_axis("kernel_size", config["kernel_size"], rank)
    if kernel.shape[:-1] != (*size, config["filters"]):
        raise ValueError(
            f"weights[0] must have the shape (*kernel_size, filters, c_in), with {size} and "
            f"{config['filters']}, got {kernel.shape}"
        )
    policy = _from_keras_dtype(config.get("dtype"))
    if policy is not None:
        stored, options["dtype"] = policy
        if kernel.dtype != stored:
            raise ValueError(f"weights must be {stored} as dtype says, got {kernel.dtype}")
    return pairs.make(kernel, bias, **options)


def to_keras(
    module: Any,
    variables: Mapping[str, Any],
    *,
    drop: Collection[str] = (),
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Our layer as one of Keras 3, or of `tf_keras`; neither is imported.

    `layer = keras.layers.Conv2DTranspose(**config)`, or `.from_config(config)`, then
    `layer.build(input_shape)` and `layer.set_weights(weights)`.

    Keras has `"valid"` and `"same"`; another padding is converted if it crops as one of them
    does with some `output_padding`. Its TensorFlow backend has no strides together with
    dilation, and no groups.

    Args:
      module: a layer of `upconv.linen`.
      variables: what it is applied to.
      drop: arguments that may be lost: `activation`, `precision`, initializers, regularizers
        and constraints.
      custom_objects: names for functions that are not ours, under which Keras is to find its own.

    Returns:
      `(config, weights)`: what `get_config` and `get_weights` of the layer give.

    Raises:
      TypeError: if `module` is no such layer.
      ValueError: if Keras has not what the layer does, or the variables are not those of the
        layer.

    >>> import jax.numpy as jnp
    >>> from upconv import linen
    >>> module = linen.Conv2DTranspose(4, 5, strides=2, activation="relu", padding=(2, 2))
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 6, 3)))
    >>> config, weights = to_keras(module, variables)
    >>> config["padding"], config["output_padding"], config["activation"]
    ('same', (0, 0), 'relu')
    """
    kernel, bias = pairs.take_apart(module, variables)
    objects = {"activation", *_KERAS_OBJECTS}
    arguments.check_only("Keras", module, drop, also=objects)
    custom = custom_objects or {}
    padding, output_padding = _to_keras_padding(module)
    config = {
        "trainable": module.trainable,
        "dtype": _to_keras_dtype(module, kernel.dtype),
        "filters": module.filters,
        "kernel_size": module.kernel_size,
        "strides": module.strides,
        "padding": padding,
        "output_padding": output_padding,
        "data_format": module.data_format,
        "dilation_rate": module.dilation_rate,
        "use_bias": module.use_bias,
    }
    if module.name is not None:
        config["name"] = module.name
    if "activation" not in drop:
        config["activation"] = _to_keras_activation(module.activation, custom)
    for name, where in _KERAS_OBJECTS.items():
        if name not in drop:
            config[name] = _to_keras_object(name, getattr(module, name), where, custom)
    return config, [kernel] if bias is None else [kernel, bias]


def _from_keras_activation(value: Any, custom: Mapping[str, Any], legacy: bool) -> Any:
    name, config = _keras_spec("activation", value)
    if name is None:
        return None
    if name in custom:
        return custom[name]
    if name == "LeakyReLU":
        slopes = [config[key] for key in ("negative_slope", "alpha") if key in config]
        return activations.LeakyReLU(float(slopes[0] if slopes else 0.3))
    if config or name not in _KERAS_ACTIVATIONS or (legacy and name in _NOT_IN_LEGACY_KERAS):
        raise ValueError(
            f"activation {value!r} of {'the legacy ' * legacy}Keras is not known here; give ours "
            f"in custom_objects, or none with drop=('activation',)"
        )
    return _KERAS_ACTIVATIONS[name]


def _to_keras_activation(value: Any, custom: Mapping[str, Any]) -> Any:
    for name, known in custom.items():
        if known is value:
            return name
    value = getattr(jax.nn, value) if isinstance(value, str) else value
    same = (
        (jax.nn.identity, None),
        (jax.nn.leaky_relu, activations.LeakyReLU(0.01)),
        (jnp.exp, activations.Exponential()),
    )
    value = next((ours for function, ours in same if function is value), value)
    for name, ours in _KERAS_ACTIVATIONS.items():
        if value == (getattr(jax.nn, ours) if isinstance(ours, str) else ours):
            return name
    if isinstance(value, activations.LeakyReLU):
        return _keras_record("keras.layers", "LeakyReLU", {"negative_slope": value.negative_slope})
    raise ValueError(
        f"activation={value!r} is not in Keras under a name known here; name it in custom_objects, "
        f"or leave it out with drop=('activation',)"
    )


def _from_keras_object(name: str, value: Any, module: str, custom: Mapping[str, Any]) -> Any:
    called, config = _keras_spec(name, value)
    if called is None:
        return None
    if called in custom:
        return custom[called]
    missing = {k for k, v in config.items() if v is None}
    config = {k: v for k, v in config.items() if k not in ("seed", "dtype", *missing)}
    tables: list[dict[str, Any]] = [_KERAS_RECORDS[module]]
    if module == "keras.initializers":
        tables += [_KERAS_FUNCTIONS, _KERAS_SCALINGS, {"VarianceScaling": None}]
    # Older configs have glorot_uniform for GlorotUniform.
    found = {_plain(key): (key, table[key]) for table in tables for key in table}
    key, ours = found.get(_plain(called), ("", None))
    if not key:
        raise ValueError(
            f"{name}={value!r} is not known here; give ours in custom_objects, or the default "
            f"with drop=({name!r},)"
        )
    if key in _KERAS_FUNCTIONS:
        arguments.check_keys(name, config, ())
        return ours
    if "maxval" in missing:
        config["maxval"] = 1.0  # TensorFlow 1's, for floating-point numbers
    if dataclasses.is_dataclass(ours):
        arguments.check_keys(name, config, [f.name for f in dataclasses.fields(ours)])
        return cast("Any", ours)(**config)
    if ours is not None:
        arguments.check_keys(name, config, ())
        return _from_keras_scaling(name, *ours)
    arguments.check_keys(name, config, ("scale", "mode", "distribution"))
    return _from_keras_scaling(name, **config)


def _from_keras_scaling(
    name: str,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
) -> initializers.VarianceScaling:
    if mode not in _KERAS_MODES or distribution not in _KERAS_DISTRIBUTIONS:
        raise ValueError(
            f"{name} must have one of the modes {', '.join(_KERAS_MODES)} and distributions "
            f"{', '.join(_KERAS_DISTRIBUTIONS)}, got {mode!r} and {distribution!r}"
        )
    ours: Any = _KERAS_DISTRIBUTIONS[distribution]
    swapped: Any = _KERAS_MODES[mode]
    return initializers.VarianceScaling(scale, swapped, ours)


def _to_keras_object(name: str, value: Any, module: str, custom: Mapping[str, Any]) -> Any:
    if value is None and module != "keras.initializers":
        return None
    value = initializers.glorot_uniform() if value is None else value
    for key, known in custom.items():
        if known is value:
            return key
    if isinstance(value, regularizers.Orthogonal):
        raise ValueError(
            f"{name}={value!r}: Keras's takes matrices alone; drop=({name!r},) leaves it out"
        )
    for key, ours in _KERAS_RECORDS[module].items():
        if type(value) is ours:
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            fields = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
            return _keras_record(module, key, fields)
    for key, function in _KERAS_FUNCTIONS.items():
        if value is function:
            return _keras_record(module, key, {})
    if isinstance(value, initializers.VarianceScaling) and value.groups == 1:
        strides = value.strides if isinstance(value.strides, tuple) else (value.strides,)
        inverse = {
            ours: theirs for theirs, ours in _KERAS_DISTRIBUTIONS.items() if theirs != "normal"
        }
        scaling = (value.scale, _KERAS_MODES[value.mode], inverse[value.distribution])
        if set(strides) == {1}:
            for key, known_scaling in _KERAS_SCALINGS.items():
                if known_scaling == scaling:
                    return _keras_record(module, key, {})
            fields = dict(zip(("scale", "mode", "distribution"), scaling, strict=True))
            return _keras_record(module, "VarianceScaling", fields)
    raise ValueError(
        f"{name}={value!r} is not in Keras; name it in custom_objects, or leave it out with "
        f"drop=({name!r},)"
    )


def _to_keras_padding(module: Any) -> tuple[str, tuple[int, ...] | None]:
    """The padding and output padding with which Keras crops as the layer does."""
    if max(module.strides) > 1 and max(module.dilation_rate) > 1:
        raise ValueError(
            "dilation_rate goes only with strides=1 in Keras, got "
            f"dilation_rate={module.dilation_rate} and strides={module.strides}"
        )
    wanted = pairs.crops(module, "Keras")
    span = tuple(map(geometry.dilated, module.kernel_size, module.dilation_rate))
    candidates = [(module.padding, module.output_padding), ("valid", None), ("same", None)]
    for padding in ("valid", "same"):
        most = [2 * (k // 2) if padding == "same" else 0 for k in span]
        extra = tuple(m - lo - hi for m, (lo, hi) in zip(most, wanted, strict=True))
        candidates.append((padding, extra))
    for padding, extra in candidates:
        if padding not in ("valid", "same"):
            continue
        if extra is not None:
            # TensorFlow takes the size of the input from that of the output, rounded up.
            least = [int(padding == "same" and k % 2 == 0) for k in span]
            limits = zip(least, extra, module.strides, strict=True)
            if not all(low <= p < s for low, p, s in limits):
                continue
        if pairs.crops(module, "Keras", padding=padding, output_padding=extra) == wanted:
            return padding, extra
    raise ValueError(
        f"padding={module.padding!r} with output_padding={module.output_padding!r} crops "
        f"{wanted} of the full output, which neither 'valid' nor 'same' does in Keras for "
        f"kernel_size={module.kernel_size} and strides={module.strides}"
    )


def _keras_spec(name: str, value: Any) -> tuple[str | None, dict[str, Any]]:
    """The name of an object of Keras's, and its arguments."""
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


def _keras_record(module: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _from_keras_dtype(policy: Any) -> tuple[Any, Any] | None:
    """The dtypes of variables and computation that a policy stands for."""
    name, config = _keras_spec("dtype", policy)
    name = config.get("name", name)
    if name is None:
        return None
    stored, _, computed = "float32", None, name.removeprefix("mixed_")
    if not name.startswith("mixed_"):
        stored = computed
    try:
        return jnp.dtype(stored), jnp.dtype(computed)
    except TypeError:
        raise ValueError(f"dtype must be the name of a dtype or policy, got {policy!r}") from None


def _to_keras_dtype(module: Any, stored: Any) -> str:
    """The policy; parameters are kept in `stored`."""
    computed = stored if module.dtype is None else jnp.dtype(module.dtype)
    if computed == stored:
        return str(stored)
    if stored == jnp.float32 and computed in (jnp.float16, jnp.bfloat16):
        return f"mixed_{computed}"
    raise ValueError(
        f"dtype={computed} with parameters of {stored} is no policy of Keras, which mixes float32 "
        "parameters with float16 or bfloat16"
    )
