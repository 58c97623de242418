"""Layers of other libraries and their weights as ours, and ours as theirs: the same numbers.

`from_` functions give `(module, variables)`, a layer of `upconv.linen` and what it computes
with; `to_` functions give `(config, weights)`, the arguments of the other library's constructor
and what its layer is then to be given. Where there is a pair of them, each takes what the other
gives::

    module, variables = from_torch(torch.nn.ConvTranspose2d(3, 4, 5))
    config, weights = to_torch(module, variables)
    module, variables = from_torch(config, weights)  # does not need torch

Layers of `upconv.nnx` come in by `from_nnx` and go out by `to_nnx`:
`to_nnx(*from_torch(layer))`, `to_keras(*from_nnx(layer))`.

Arrays keep their bits: axes are put in another order and kernels are flipped, nothing is computed.
What one library has and the other has not is a ValueError that names the argument, so that nothing
is lost unseen. `drop=("kernel_regularizer",)` says that an argument may be lost; then the rest is
converted, and what comes out lacks what was dropped. Never dropped without a word, but not carried
either, because they belong to neither what a layer computes nor how it is trained: `lowering`;
initializers, from and to PyTorch, Flax and ONNX; names where one of the two has none; and seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as flax_linen
from flax import nnx as flax_nnx
from flax.core import meta

from upconv import activations, constraints, geometry, initializers, lax, linen, nnx, regularizers
from upconv.layer import FIELDS, LONG, collection

__all__ = [
    "from_flax",
    "from_keras",
    "from_nnx",
    "from_onnx",
    "from_torch",
    "to_flax",
    "to_keras",
    "to_nnx",
    "to_torch",
]

Pair = tuple[Any, dict[str, Any]]
Crops = tuple[tuple[int, int], ...]

_LAYERS = {1: linen.Conv1DTranspose, 2: linen.Conv2DTranspose, 3: linen.Conv3DTranspose}
_NNX_LAYERS = {1: nnx.Conv1DTranspose, 2: nnx.Conv2DTranspose, 3: nnx.Conv3DTranspose}
_RULES = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)
# What a library has one value of, which is then no argument there.
_ONLY: dict[str, dict[str, Any]] = {
    "Keras": {"groups": 1, "precision": None},
    "PyTorch": {
        "data_format": "channels_first",
        "activation": None,
        **dict.fromkeys(_RULES),
        "trainable": True,
        "precision": None,
    },
    "Flax": {
        "groups": 1,
        "data_format": "channels_last",
        "activation": None,
        **dict.fromkeys(_RULES),
        "trainable": True,
    },
}
# Without groups the kernel has another shape.
_ESSENTIAL = {"groups"}


# ------------------------------------------------------------------ Keras

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
                f"a config with weights, got {_kind(layer)}"
            )
        legacy = root != "keras"
        if not layer.built:
            raise ValueError(f"layer must be built to have weights, {layer.name!r} is not")
        layer, weights = layer.get_config(), layer.get_weights()
    config = _mapping("layer", layer)
    known = {*_KERAS_PLAIN, *_KERAS_OBJECTS, *_KERAS_REST}
    _check_keys("layer", config, known, required=("filters", "kernel_size"))
    _check_drop(drop, {"activation", *_KERAS_OBJECTS}, "Keras")
    custom = custom_objects or {}
    options = {name: config[name] for name in _KERAS_PLAIN if config.get(name) is not None}
    if "activation" not in drop:
        options["activation"] = _from_keras_activation(config.get("activation"), custom, legacy)
    for name, module in _KERAS_OBJECTS.items():
        if name in config and name not in drop:
            options[name] = _from_keras_object(name, config[name], module, custom)
    kernel, bias = _kernel_and_bias(weights, bool(config.get("use_bias", True)))
    rank = _rank("weights[0]", kernel)
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
    return _pair(kernel, bias, **options)


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

    >>> module = linen.Conv2DTranspose(4, 5, strides=2, activation="relu", padding=(2, 2))
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 6, 3)))
    >>> config, weights = to_keras(module, variables)
    >>> config["padding"], config["output_padding"], config["activation"]
    ('same', (0, 0), 'relu')
    """
    kernel, bias = _weights(module, variables)
    objects = {"activation", *_KERAS_OBJECTS}
    _check_only("Keras", module, drop, also=objects)
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
        _check_keys(name, config, ())
        return ours
    if "maxval" in missing:
        config["maxval"] = 1.0  # TensorFlow 1's, for floating-point numbers
    if dataclasses.is_dataclass(ours):
        _check_keys(name, config, [f.name for f in dataclasses.fields(ours)])
        return cast("Any", ours)(**config)
    if ours is not None:
        _check_keys(name, config, ())
        return _from_keras_scaling(name, *ours)
    _check_keys(name, config, ("scale", "mode", "distribution"))
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
    wanted = _crops(module, "Keras")
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
        if _crops(module, "Keras", padding=padding, output_padding=extra) == wanted:
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


# ------------------------------------------------------------------ PyTorch

_TORCH_LAYERS = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
# Arguments of its constructor and their defaults.
_TORCH: dict[str, Any] = {
    "in_channels": None,
    "out_channels": None,
    "kernel_size": None,
    "stride": 1,
    "padding": 0,
    "output_padding": 0,
    "groups": 1,
    "bias": True,
    "dilation": 1,
    "padding_mode": "zeros",
    "device": None,
    "dtype": None,
}


def from_torch(layer: Any, weights: Mapping[str, Any] | None = None) -> Pair:
    """`torch.nn.ConvTranspose1d`, `2d` or `3d` as a layer of `upconv.linen`.

    Args:
      layer: the layer; or, with `weights`, the arguments of its constructor as a dictionary.
      weights: what `layer.state_dict()` gives: `weight` and, if there is one, `bias`, tensors
        or arrays.

    Returns:
      `(module, variables)`. The module is `channels_first`, and not trainable if the layer's
      parameters do not require gradients.

    Raises:
      TypeError: if `layer` is neither such a layer nor a dictionary.
      ValueError: if an argument is unknown or does not fit the weights; if the layer computes its
        weight from others (`torch.nn.utils.parametrize`), or trains one of weight and bias alone.

    >>> config = {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "stride": 2, "padding": 2}
    >>> weights = {"weight": np.ones((3, 4, 5, 5), np.float32), "bias": np.zeros(4, np.float32)}
    >>> module, variables = from_torch(config, weights)
    >>> module.padding, variables["params"]["kernel"].shape
    (((2, 2), (2, 2)), (5, 5, 4, 3))
    """
    trainable = True
    if weights is None:
        home, name = type(layer).__module__, type(layer).__name__
        if hasattr(layer, "parametrizations"):
            raise ValueError(
                f"layer must hold its weight itself, got a {name} that computes it from others: "
                "torch.nn.utils.parametrize.remove_parametrizations makes it a plain one"
            )
        if not home.startswith("torch.nn.modules.") or name not in _TORCH_LAYERS:
            raise TypeError(
                f"layer must be one of {', '.join(_TORCH_LAYERS)} of torch.nn, or the arguments of "
                f"one with weights, got {_kind(layer)}"
            )
        weights = layer.state_dict()
        required = {parameter.requires_grad for parameter in layer.parameters()}
        if len(required) > 1:
            raise ValueError(
                "trainable is one of weight and bias together, got a layer with requires_grad of "
                "one alone"
            )
        trainable = required != {False}
        plain = _TORCH.keys() - {"bias", "device", "dtype"}
        layer = {name: getattr(layer, name) for name in plain} | {"bias": layer.bias is not None}
    config = _mapping("layer", layer)
    required_names = ("in_channels", "out_channels", "kernel_size")
    _check_keys("layer", config, _TORCH, required=required_names)
    config = {**_TORCH, **config}
    names = ["weight", "bias"] if config["bias"] else ["weight"]
    _check_keys("weights", _mapping("weights", weights), names, required=names)
    kernel, bias = _kernel_and_bias([weights[name] for name in names], bool(config["bias"]))
    rank = _rank("weight", kernel)
    groups = geometry.integer("groups", config["groups"], minimum=1)
    size = geometry.per_axis("kernel_size", config["kernel_size"], rank)
    shape = (config["in_channels"], config["out_channels"] // groups, *size)
    if kernel.shape != shape:
        raise ValueError(f"weight must have the shape {shape}, got {kernel.shape}")
    if config["padding_mode"] != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', got {config['padding_mode']!r}")
    dtype = str(config["dtype"]).removeprefix("torch.")
    if config["dtype"] is not None and dtype != str(kernel.dtype):
        raise ValueError(f"weight must be {dtype} as dtype says, got {kernel.dtype}")
    padding = geometry.per_axis("padding", config["padding"], rank, minimum=0)
    return _pair(
        _last_two_first(kernel),
        bias,
        strides=config["stride"],
        padding=tuple((p, p) for p in padding),
        output_padding=config["output_padding"],
        dilation_rate=config["dilation"],
        groups=groups,
        data_format="channels_first",
        trainable=trainable,
    )


def to_torch(
    module: Any, variables: Mapping[str, Any], *, drop: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our layer as `torch.nn.ConvTranspose1d`, `2d` or `3d`.

    `layer = torch.nn.ConvTranspose2d(**config)` and `layer.load_state_dict(weights)`.

    PyTorch crops alike at both ends and then adds `output_padding` at the end, so it can crop
    less at the end than at the start, and not more: a kernel of 5 at stride 2 with `"same"` is
    not there, one of 4 is.

    Args:
      module: a layer of `upconv.linen`.
      variables: what it is applied to.
      drop: arguments that may be lost: `activation`, `data_format` (PyTorch has
        `"channels_first"`), `dtype`, `precision`, `trainable`, regularizers and
        constraints.

    Returns:
      `(config, weights)`. Where torch is installed it is imported, the weights are tensors and
      `config["dtype"]` is one of torch's; elsewhere they are arrays of numpy and a name.

    Raises:
      TypeError: if `module` is no such layer.
      ValueError: if PyTorch has not what the layer does, or the variables are not those of the
        layer.

    >>> module = linen.Conv2DTranspose(4, 4, 2, padding="same", data_format="channels_first")
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 3, 8, 6)))
    >>> config, weights = to_torch(module, variables)
    >>> config["padding"], config["output_padding"], tuple(weights["weight"].shape)
    ((1, 1), (0, 0), (3, 4, 4, 4))
    """
    kernel, bias = _weights(module, variables)
    _check_only("PyTorch", module, drop, also={"dtype"})
    computed = kernel.dtype if module.dtype is None else jnp.dtype(module.dtype)
    if "dtype" not in drop and computed != kernel.dtype:
        raise ValueError(
            f"dtype={computed} must be that of the parameters in PyTorch, {kernel.dtype}; "
            "drop=('dtype',) leaves it out"
        )
    crops = _crops(module, "PyTorch")
    limits = map(max, module.strides, module.dilation_rate)
    for (lo, hi), limit in zip(crops, limits, strict=True):
        if lo < 0 or not 0 <= lo - hi < limit:
            raise ValueError(
                f"padding={module.padding!r} crops {crops} of the full output; PyTorch crops at "
                "both ends alike, less an output_padding below max(stride, dilation)"
            )
    weights = {"weight": kernel.transpose(-1, -2, *range(kernel.ndim - 2))}
    if bias is not None:
        weights["bias"] = bias
    config = {
        "in_channels": kernel.shape[-1],
        "out_channels": module.filters,
        "kernel_size": module.kernel_size,
        "stride": module.strides,
        "padding": tuple(lo for lo, _ in crops),
        "output_padding": tuple(lo - hi for lo, hi in crops),
        "groups": module.groups,
        "bias": module.use_bias,
        "dilation": module.dilation_rate,
        "dtype": str(kernel.dtype),
    }
    try:
        import torch
    except ImportError:
        return config, weights
    config["dtype"] = getattr(torch, config["dtype"])
    return config, {name: _tensor(value, config["dtype"]) for name, value in weights.items()}


def _tensor(value: np.ndarray, dtype: Any) -> Any:
    import torch

    value = np.array(value, order="C")
    if dtype == torch.bfloat16:  # of which numpy's is not known there
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _numpy(value: Any) -> np.ndarray:
    """The same bits in numpy, of a tensor too."""
    if type(value).__module__.partition(".")[0] == "torch":
        import torch

        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(jnp.bfloat16)
        return value.numpy()
    return np.asarray(value)


# ------------------------------------------------------------------ Flax

# Arguments of its constructor that have a counterpart here, and their defaults.
_FLAX: dict[str, Any] = {
    "features": None,
    "kernel_size": None,
    "strides": None,
    "padding": "SAME",
    "kernel_dilation": None,
    "use_bias": True,
    "dtype": None,
    "precision": None,
    "transpose_kernel": False,
    "name": None,
}
_FLAX_NNX = {"in_features", "out_features"}
# Those that have none here. Initializers read the other layout.
_FLAX_REST = {"mask": None, "preferred_element_type": None}
_FLAX_IGNORED = {"kernel_init", "bias_init", "param_dtype", "promote_dtype", "rngs"}


def from_flax(layer: Any, variables: Mapping[str, Any] | None = None) -> Pair:
    """`flax.linen.ConvTranspose` or `flax.nnx.ConvTranspose` as a layer of `upconv.linen`.

    To keep Flax's own arguments and parameters, change the import instead:
    `upconv.linen.ConvTranspose`, `upconv.nnx.ConvTranspose`.

    Args:
      layer: a layer of either kind, Flax's or ours of the same name; or the arguments of the
        constructor of either kind as a dictionary.
      variables: of a linen layer or a dictionary: `{"params": {"kernel": ..., "bias": ...}}`,
        or what is in it. An nnx layer has its own.

    Returns:
      `(module, variables)`.

    Raises:
      TypeError: if `layer` is neither such a layer nor a dictionary.
      ValueError: if the layer has what ours has not (`mask`, `preferred_element_type`,
        `promote_dtype`, a `"CIRCULAR"` of odd overhang with `transpose_kernel`), or an
        argument is unknown or does not fit the variables.

    >>> layer = flax_linen.ConvTranspose(4, (5, 5), strides=(2, 2))
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 8, 6, 3)))
    >>> module, variables = from_flax(layer, variables)
    >>> module.padding, variables["params"]["kernel"].shape
    ('same', (5, 5, 4, 3))
    """
    names = (_FLAX.keys() - {"features", "name"}) | _FLAX_REST.keys()
    defaults = (flax_linen.dtypes.promote_dtype, flax_nnx.nn.dtypes.promote_dtype)
    if type(layer) in (flax_linen.ConvTranspose, linen.ConvTranspose):
        kind = {"features": layer.features, "name": layer.name}
    elif type(layer) in (flax_nnx.ConvTranspose, nnx.ConvTranspose):
        if variables is not None:
            raise ValueError("variables must not be given with an nnx layer, which has its own")
        kind = {"features": layer.out_features}
        variables = {"kernel": layer.kernel.get_value()}
        if layer.bias is not None:
            variables["bias"] = layer.bias.get_value()
    elif isinstance(layer, Mapping):
        kind = {}
    else:
        raise TypeError(
            "layer must be a ConvTranspose of flax.linen or flax.nnx, or a dictionary of its "
            f"arguments, got {_kind(layer)}"
        )
    if kind:
        if layer.promote_dtype not in defaults:
            raise ValueError(f"promote_dtype must be Flax's own, got {layer.promote_dtype!r}")
        layer = {name: getattr(layer, name) for name in names} | kind
    if variables is None:
        raise ValueError("variables must be given with a linen layer or a dictionary")
    config = dict(layer)
    _check_keys("layer", config, {*_FLAX, *_FLAX_NNX, *_FLAX_REST, *_FLAX_IGNORED})
    if "out_features" in config:
        config["features"] = config["out_features"]
    _check_keys("layer", config, config, required=("features", "kernel_size"))
    for name in _FLAX_REST:
        if config.get(name) is not None:
            raise ValueError(
                f"{name} is not in this package's layer, got {config[name]!r}; "
                "upconv.linen.ConvTranspose and upconv.nnx.ConvTranspose have it"
            )
    config = {**_FLAX, **config}
    return _pair_of_flax(config, _mapping("variables", variables))


def _pair_of_flax(config: dict[str, Any], variables: Mapping[str, Any]) -> Pair:
    arrays = _mapping("variables['params']", variables.get("params", variables))
    names = ["kernel", "bias"] if config["use_bias"] else ["kernel"]
    _check_keys("variables", arrays, names, required=names)
    kernel, bias = _kernel_and_bias([meta.unbox(arrays[n]) for n in names], config["use_bias"])
    size = config["kernel_size"]
    rank = _rank("kernel", kernel)
    per_axis = geometry.per_axis
    size = per_axis("kernel_size", size if isinstance(size, Sequence) else (size,), rank)
    strides = per_axis("strides", 1 if config["strides"] is None else config["strides"], rank)
    dilation = config["kernel_dilation"]
    dilation = per_axis("kernel_dilation", 1 if dilation is None else dilation, rank)
    transposed = config["transpose_kernel"]
    if not transposed:
        kernel = lax.mirrored_kernel(kernel)
    if kernel.shape[:-1] != (*size, config["features"]):
        raise ValueError(
            f"kernel must have kernel_size={size}, features={config['features']} and "
            f"transpose_kernel={transposed}, got the shape {np.shape(arrays['kernel'])}"
        )
    span = tuple(map(geometry.dilated, size, dilation))
    padding = config["padding"]
    if padding == "CIRCULAR":
        _check_circular(span, strides, transposed)
    elif isinstance(padding, str) and padding not in ("SAME", "VALID"):
        raise ValueError(f"padding must be 'SAME', 'VALID', 'CIRCULAR' or pads, got {padding!r}")
    elif not isinstance(padding, str):
        pads: Any = geometry.canonical_padding(padding, rank)
        padding = lax.mirrored_pads(pads, span)
    return _pair(
        kernel,
        bias,
        strides=strides,
        padding=padding,
        dilation_rate=dilation,
        dtype=config["dtype"],
        precision=config["precision"],
        name=config["name"],
    )


def to_flax(
    module: Any,
    variables: Mapping[str, Any],
    *,
    transpose_kernel: bool = False,
    api: str = "linen",
    drop: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our layer as `flax.linen.ConvTranspose` or `flax.nnx.ConvTranspose`.

    For linen, `layer = flax.linen.ConvTranspose(**config)` and `layer.apply(weights, x)`; for
    nnx, `layer = flax.nnx.ConvTranspose(**config, rngs=rngs)` and
    `flax.nnx.update(layer, weights)`.

    Args:
      module: a layer of `upconv.linen`.
      variables: what it is applied to.
      transpose_kernel: Flax's argument: whether its kernel is in our order, or flipped and with its
        last two axes exchanged.
      api: `"linen"` or `"nnx"`.
      drop: arguments that may be lost: `activation`, `data_format` (Flax has
        `"channels_last"`), `trainable`, regularizers and constraints.

    Returns:
      `(config, weights)`; the weights are `{"params": {"kernel": ..., "bias": ...}}` for linen
      and what is in it for nnx.

    Raises:
      TypeError: if `module` is no such layer.
      ValueError: if Flax has not what the layer does, or the variables are not those of the layer.

    >>> module = linen.Conv1DTranspose(4, 5, strides=2, padding="causal")
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 3)))
    >>> config, weights = to_flax(module, variables)
    >>> config["padding"], weights["params"]["kernel"].shape
    (((4, 1),), (5, 3, 4))
    """
    if api not in ("linen", "nnx"):
        raise ValueError(f"api must be 'linen' or 'nnx', got {api!r}")
    kernel, bias = _weights(module, variables)
    _check_only("Flax", module, drop)
    span = tuple(map(geometry.dilated, module.kernel_size, module.dilation_rate))
    named = {"same": "SAME", "valid": "VALID", "circular": "CIRCULAR"}
    if module.padding == "circular":
        _check_circular(span, module.strides, transpose_kernel)
    padding: Any = named.get(module.padding) if isinstance(module.padding, str) else None
    if padding is None or module.output_padding is not None:
        padding = lax.mirrored_pads(_crops(module, "Flax"), span)
    features = {"features": module.filters, "name": module.name}
    if api == "nnx":
        features = {"in_features": kernel.shape[-1], "out_features": module.filters}
    config = {
        **features,
        "kernel_size": module.kernel_size,
        "strides": module.strides,
        "padding": padding,
        "kernel_dilation": module.dilation_rate,
        "use_bias": module.use_bias,
        "dtype": module.dtype,
        "param_dtype": kernel.dtype,
        "precision": module.precision,
        "transpose_kernel": transpose_kernel,
    }
    weights = {
        "kernel": _array("kernel", kernel if transpose_kernel else lax.mirrored_kernel(kernel))
    }
    if bias is not None:
        weights["bias"] = _array("bias", bias)
    return config, {"params": weights} if api == "linen" else weights


def _check_circular(span: Sequence[int], strides: Sequence[int], transpose_kernel: bool) -> None:
    """Flax takes the larger half of the overhang from the start if its kernel is in our order."""
    if any(lax.circular_shift(span, strides, transpose_kernel)):
        raise ValueError(
            "padding='CIRCULAR' with transpose_kernel=True is another pixel further in Flax where "
            f"the kernel outlasts the stride by an odd number, got {span} and {strides}"
        )


# ------------------------------------------------------------------ upconv.nnx


def from_nnx(layer: Any) -> Pair:
    """A layer of `upconv.nnx` as one of `upconv.linen`.

    Args:
      layer: a `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` of `upconv.nnx`.

    Returns:
      `(module, variables)`.

    Raises:
      TypeError: for anything else.

    >>> layer = nnx.Conv2DTranspose(3, 4, 5, rngs=flax_nnx.Rngs(0))
    >>> module, variables = from_nnx(layer)
    >>> bool((variables["params"]["kernel"] == layer.kernel[...]).all())
    True
    """
    if type(layer) not in _NNX_LAYERS.values():
        raise TypeError(f"layer must be one of upconv.nnx, got {_kind(layer)}")
    module = _LAYERS[layer.rank](**{name: getattr(layer.config, name) for name in FIELDS})
    arrays = {"kernel": layer.kernel.get_value()}
    if layer.bias is not None:
        arrays["bias"] = layer.bias.get_value()
    return module, {collection(module.trainable): arrays}


def to_nnx(module: Any, variables: Mapping[str, Any]) -> Any:
    """A layer of `upconv.linen` as one of `upconv.nnx`, which holds its variables itself.

    Args:
      module: a `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` of `upconv.linen`.
      variables: what it is applied to.

    Returns:
      The layer.

    Raises:
      TypeError: if `module` is no such layer.
      ValueError: if the variables are not those of the layer.

    >>> module = linen.Conv2DTranspose(4, 5, strides=2)
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 6, 3)))
    >>> to_nnx(module, variables)(jnp.ones((1, 8, 6, 3))).shape
    (1, 19, 15, 4)
    """
    kernel, bias = _weights(module, variables)
    fields = {name: getattr(module, name) for name in FIELDS}
    # The layer is made without drawing anything, then given its values.
    layer: Any = flax_nnx.eval_shape(
        lambda: _NNX_LAYERS[module.rank](kernel.shape[-1], **fields, rngs=flax_nnx.Rngs(0))
    )
    layer.kernel.set_value(_array("kernel", kernel))
    if bias is not None:
        layer.bias.set_value(_array("bias", bias))
    if module.activity_regularizer is not None:
        layer.activity_loss.set_value(jnp.zeros((), jnp.float32))
    return layer


# ------------------------------------------------------------------ ONNX

_ONNX = (
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "pads",
    "strides",
)


def from_onnx(
    node: Any, weights: Sequence[Any], input_shape: Sequence[int | None] | None = None
) -> Pair:
    """ONNX's operator `ConvTranspose` as a layer of `upconv.linen`.

    ONNX crops `total = F + output_padding - output` pixels of the full output, whose length is
    `F`. `SAME_UPPER` takes `total // 2` of them from the start, everything else the rest of
    that. A negative total adds zeros, with `SAME_UPPER` and `SAME_LOWER` by the same formula
    and otherwise at the end, as the reference evaluator of the package `onnx` does. (ONNX Runtime
    adds none where the kernel is shorter than the stride: its outputs are shorter there than
    `input * stride`, which the standard says they are.)

    Args:
      node: an `onnx.NodeProto`, or its attributes as a dictionary.
      weights: the inputs `W`, of shape `(c_in, c_out // group, *kernel_shape)`, and `B` if
        there is one.
      input_shape: the shape of `X`, `(batch, c_in, *spatial)`. Only where `output_shape` is
        given does the layer depend on it, and is it the right one for inputs of this size alone.

    Returns:
      `(module, variables)`. The module is `channels_first`.

    Raises:
      TypeError: if an attribute has the wrong type.
      ValueError: for an operator that is not `ConvTranspose`, an attribute that is unknown or
        does not fit the others or the weights, or an `output_shape` without `input_shape`.

    >>> weights = [np.ones((3, 4, 5, 5), np.float32)]
    >>> module, variables = from_onnx({"strides": [2, 2], "auto_pad": "SAME_UPPER"}, weights)
    >>> module.apply(variables, jnp.ones((1, 3, 8, 6))).shape
    (1, 4, 16, 12)
    """
    attributes = _onnx_attributes(node)
    if not 1 <= len(weights) <= 2:
        raise ValueError(f"weights must be [W] or [W, B], got {len(weights)} arrays")
    kernel, bias = _kernel_and_bias(weights, use_bias=len(weights) == 2)
    rank = _rank("W", kernel)
    size = kernel.shape[2:]
    given = tuple(attributes.get("kernel_shape", size))
    if given != size:
        raise ValueError(f"kernel_shape must be that of W, {size}, got {given}")

    def per_axis(name: str, default: int, minimum: int) -> tuple[int, ...]:
        return geometry.per_axis(
            name, attributes.get(name, (default,) * rank), rank, minimum=minimum
        )

    strides, dilation = per_axis("strides", 1, 1), per_axis("dilations", 1, 1)
    output_padding = per_axis("output_padding", 0, 0)
    auto_pad = attributes.get("auto_pad", "NOTSET")
    options: dict[str, Any] = {}
    if "output_shape" in attributes:
        if input_shape is None or len(input_shape) != rank + 2:
            raise ValueError(
                f"input_shape must be (batch, c_in, *spatial) with {rank} spatial axes, as "
                f"output_shape is given, got {input_shape!r}"
            )
        spatial = geometry.per_axis("input_shape", input_shape[2:], rank)
        outputs = per_axis("output_shape", 0, 1)
        lengths = zip(spatial, outputs, strides, strict=True)
        excess = [(n - 1) * s - out for n, out, s in lengths]  # of F over the output, less K
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        excess = [-s for s in strides]
    else:
        pads = geometry.per_axis(
            "pads", attributes.get("pads", (0,) * 2 * rank), 2 * rank, minimum=0
        )
        options["padding"] = tuple(zip(pads[:rank], pads[rank:], strict=True))
        options["output_padding"] = output_padding
    if not options:
        span = map(geometry.dilated, size, dilation)
        options["padding"] = tuple(
            _onnx_crop(e + k, p, auto_pad)
            for e, k, p in zip(excess, span, output_padding, strict=True)
        )
    return _pair(
        _last_two_first(kernel),
        bias,
        strides=strides,
        dilation_rate=dilation,
        groups=attributes.get("group", 1),
        data_format="channels_first",
        **options,
    )


def _onnx_crop(excess: int, output_padding: int, auto_pad: str) -> tuple[int, int]:
    """What ONNX crops at both ends of a full output which is longer than the output by `excess`."""
    total = excess + output_padding
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    half = total // 2 if same or total > 0 else total
    start = half if auto_pad == "SAME_UPPER" else total - half
    return start, excess - start


def _onnx_attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node, or those given, checked for what they are called."""
    if isinstance(node, Mapping):
        attributes = dict(node)
    elif hasattr(node, "op_type"):
        if node.op_type != "ConvTranspose":
            raise ValueError(f"node must be a ConvTranspose, got {node.op_type!r}")
        # A protocol buffer has a field for each type that an attribute may have.
        fields = {2: "i", 3: "s", 7: "ints"}
        attributes = {a.name: getattr(a, fields.get(a.type, "ints")) for a in node.attribute}
    else:
        raise TypeError(f"node must be an onnx.NodeProto or a dictionary, got {node!r}")
    unknown = attributes.keys() - set(_ONNX)
    if unknown:
        raise ValueError(f"node has attributes that ConvTranspose has not: {sorted(unknown)}")
    attributes = {name: tuple(v) if _listed(v) else v for name, v in attributes.items()}
    auto_pad = attributes.get("auto_pad", "NOTSET")
    auto_pad = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
    if auto_pad not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        raise ValueError(
            f"auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID, got {auto_pad!r}"
        )
    if auto_pad != "NOTSET" and "pads" in attributes:
        raise ValueError(f"pads and auto_pad exclude each other, got auto_pad={auto_pad!r}")
    return {**attributes, "auto_pad": auto_pad}


# ------------------------------------------------------------------ ours


def _pair(kernel: np.ndarray, bias: Any, **options: Any) -> Pair:
    """Our layer for a kernel `(*kernel_size, filters // groups, c_in)`, and its variables."""
    groups = geometry.integer("groups", options.get("groups", 1), minimum=1)
    *kernel_size, filters, c_in = kernel.shape
    if c_in % groups:
        raise ValueError(f"groups must divide the {c_in} input channels, got {groups}")
    filters *= groups
    options["groups"] = groups
    module = _LAYERS[len(kernel_size)](
        filters,
        tuple(kernel_size),
        use_bias=bias is not None,
        param_dtype=jnp.dtype(kernel.dtype),
        **options,
    )
    arrays = {"kernel": _array("kernel", kernel)}
    if bias is not None:
        if bias.shape != (filters,):
            raise ValueError(f"bias must have the shape ({filters},), got {bias.shape}")
        arrays["bias"] = _array("bias", bias)
    return module, {collection(module.trainable): arrays}


def _weights(module: Any, variables: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Kernel and bias of our layer, which are its own."""
    if type(module) not in _LAYERS.values():
        hint = "; from_nnx gives one for a layer of upconv.nnx"
        raise TypeError(f"module must be a layer of upconv.linen, got {_kind(module)}{hint}")
    home = collection(module.trainable)
    if home not in _mapping("variables", variables):
        raise ValueError(f"variables must have {home!r}, got {sorted(variables)}")
    arrays = _mapping(f"variables[{home!r}]", meta.unbox(variables[home]))
    names = ["kernel", "bias"] if module.use_bias else ["kernel"]
    _check_keys("variables", arrays, names, required=names)
    kernel, bias = _kernel_and_bias([arrays[name] for name in names], module.use_bias)
    channels = (module.filters // module.groups, kernel.shape[-1] if kernel.ndim else 0)
    for name, array, shape in (
        ("kernel", kernel, (*module.kernel_size, *channels)),
        ("bias", bias, (module.filters,)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    return kernel, bias


def _crops(module: Any, peer: str, **changes: Any) -> Crops:
    """What the layer crops at both ends of the full output, whatever the size of its input.

    Zeros that it adds instead count as negative.
    """
    names = ("strides", "padding", "output_padding", "dilation_rate")
    options = {name: getattr(module, name) for name in names} | changes
    if options["padding"] == "circular":
        raise ValueError(f"padding='circular' is not in {peer}")
    long = (LONG,) * len(module.kernel_size)
    return geometry.transposed(long, module.kernel_size, **options).pads


def _kernel_and_bias(
    weights: Sequence[Any], use_bias: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    if len(weights) != 1 + use_bias:
        raise ValueError(
            f"weights must be {'kernel and bias' if use_bias else 'the kernel alone'}, as use_bias "
            f"is {use_bias}, got {len(weights)} arrays"
        )
    kernel, bias = _numpy(weights[0]), _numpy(weights[1]) if use_bias else None
    if bias is not None and bias.dtype != kernel.dtype:
        raise ValueError(
            f"kernel and bias must have one dtype, got {kernel.dtype} and {bias.dtype}"
        )
    return kernel, bias


def _array(name: str, value: Any) -> jax.Array:
    """The same bits on a device."""
    value = np.asarray(value)
    array = jnp.asarray(value)
    if array.dtype != value.dtype:
        raise ValueError(
            f"{name} must have a dtype that JAX keeps, got {value.dtype}: set jax_enable_x64, or "
            "convert the layer first"
        )
    return array


def _last_two_first(kernel: np.ndarray) -> np.ndarray:
    """From PyTorch's and ONNX's `(c_in, filters // groups, *kernel_size)` to our order."""
    return kernel.transpose(*range(2, kernel.ndim), 1, 0)


def _rank(name: str, kernel: np.ndarray) -> int:
    rank = kernel.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(f"{name} must have 1 to 3 spatial axes and two more, got {kernel.shape}")
    return rank


def _check_only(peer: str, module: Any, drop: Collection[str], also: Collection[str] = ()) -> None:
    """Raises where the layer has what the peer has not, unless it may be lost."""
    only = _ONLY[peer]
    _check_drop(drop, {*(only.keys() - _ESSENTIAL), *also}, peer)
    for name, value in only.items():
        got = getattr(module, name)
        if got != value and name not in drop:
            hint = "" if name in _ESSENTIAL else f"; drop=({name!r},) leaves it out"
            raise ValueError(f"{name}={got!r} is not in {peer}, which has {value!r} alone{hint}")


def _check_drop(drop: Collection[str], allowed: Collection[str], peer: str) -> None:
    if isinstance(drop, str):
        raise TypeError(f"drop must be a sequence of names, got {drop!r}")
    unknown = set(drop) - set(allowed)
    if unknown:
        raise ValueError(
            f"drop may name {', '.join(sorted(allowed))} with {peer}, got {sorted(unknown)}"
        )


def _check_keys(
    name: str, value: Mapping[str, Any], known: Collection[str], required: Collection[str] = ()
) -> None:
    unknown, lacking = value.keys() - set(known), set(required) - value.keys()
    if unknown:
        raise ValueError(f"{name} has {sorted(unknown)}, which is unknown here")
    if lacking:
        raise ValueError(f"{name} lacks {sorted(lacking)}, got {sorted(value)}")


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dictionary, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _listed(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)
