"""Layers of Keras 3, of `tf_keras` and of `tf.compat.v1.layers`, as TensorFlow computes them.

The kernel is ours, `(*kernel_size, filters, c_in)`, and `"valid"` and `"same"` crop as ours do,
with and without an `output_padding`. Groups are missing, and strides do not go with dilation
(`keras/src/layers/convolutional/base_conv_transpose.py` and
`keras/src/backend/common/backend_utils.py` of Keras 3). `upconv.interop.keras_objects` knows what
its configs name: activations, initializers, regularizers and constraints.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from upconv import geometry
from upconv.errors import type_name
from upconv.interop import arguments, keras_objects, pairs
from upconv.interop.pairs import LinenLayer, Pair

_LAYERS = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_APIS = ("keras", "tf_keras")
# Arguments of ours that Keras lacks, and the value that its layers behave as.
_ONLY: dict[str, Any] = {"groups": 1, "precision": None}
_PLAIN = (
    "strides",
    "padding",
    "output_padding",
    "data_format",
    "dilation_rate",
    "groups",
    "trainable",
    "name",
)
_OBJECTS = {"activation", *keras_objects.HOMES}
# What else a config may hold: it is read on its own, or says for which inputs a layer was made.
_REST = {"filters", "kernel_size", "use_bias", "dtype", "batch_input_shape"}


def from_keras(
    layer: Any,
    weights: Sequence[Any] | None = None,
    *,
    drop: Collection[str] = (),
    custom_objects: Mapping[str, Any] | None = None,
) -> Pair:
    """Converts a transposed convolution of Keras 3, `tf_keras` or `tf.compat.v1.layers` to ours.

    The numbers are those of Keras on its TensorFlow backend.

    Args:
      layer: a `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` that is built; or,
        with `weights`, a config as `layer.get_config()` returns it in Keras 3.
      weights: what `layer.get_weights()` returns: the kernel, and the bias if there is one.
      drop: arguments that may be left at our defaults: `activation`, initializers, regularizers
        and constraints.
      custom_objects: functions, classes or other objects of yours that are to be taken for those
        that are not Keras's own, by the name of the function or class there, or by that under which
        it is registered, `"package>name"`. A class is called with the arguments that the config
        holds, or its `from_config` with all of them, as `keras.saving.deserialize_keras_object`
        does. Anything else is taken as it is, which is a ValueError where the config holds
        arguments: they would be lost. A name of Keras's own may be given too; yours is then taken.
        What Keras cannot write, such as a `functools.partial` or an object without `get_config`,
        has no name to be given by: drop it.

    Returns:
      `(module, variables)`. Initializers draw from the same distribution. The dtypes are those
      of the layer's policy.

    Raises:
      TypeError: if `layer` is neither such a layer nor a config, or `custom_objects` no dictionary.
      ValueError: if the layer is not built or has a `call` of its own, if an object in it is
        neither in `custom_objects` nor Keras's own (nor an activation of `tf.nn` or, but for
        `gelu`, of `keras.ops`), or one that Keras cannot write, if a `LeakyReLU` as the activation
        has another dtype than the layer computes in, if a variable has another regularizer or
        constraint than the layer, or only one of them is trained, if weights are given with a
        layer, or if an argument is unknown or does not fit the weights.

    >>> config = {"filters": 4, "kernel_size": 5, "strides": 2, "activation": "gelu"}
    >>> weights = [np.ones((5, 5, 4, 3), np.float32), np.zeros(4, np.float32)]
    >>> module, variables = from_keras(config, weights)
    >>> module.strides, module.activation, module.use_bias
    ((2, 2), GELU(approximate=False), True)
    """
    arguments.check_drop(drop, _OBJECTS, "Keras")
    custom = _custom(custom_objects)
    legacy = False
    if weights is None:
        layer, weights, legacy = _read(layer, drop)
    config = arguments.config_with_weights(layer, "get_weights")
    known = {*_PLAIN, *_OBJECTS, *_REST}
    arguments.check_keys("layer", config, known, required=("filters", "kernel_size"))
    options = {name: config[name] for name in _PLAIN if config.get(name) is not None}
    use_bias = bool(config.get("use_bias", True))
    if len(arguments.sequence("weights", weights)) != 1 + use_bias:
        raise ValueError(
            f"weights must be {'kernel and bias' if use_bias else 'the kernel alone'}, as use_bias "
            f"is {use_bias}, got {len(weights)} arrays"
        )
    kernel, bias = pairs.kernel_and_bias(weights, ("weights[0]", "weights[1]")[: len(weights)])
    rank = pairs.rank("weights[0]", kernel)
    size = geometry.per_axis("kernel_size", config["kernel_size"], rank)
    if kernel.shape[:-1] != (*size, config["filters"]):
        raise ValueError(
            f"weights[0] must have the shape (*kernel_size, filters, c_in), with {size} and "
            f"{config['filters']}, got {kernel.shape}"
        )
    computed = kernel.dtype
    policy = keras_objects.policy("dtype", config.get("dtype"))
    if policy is not None:
        stored, computed = policy
        options["dtype"] = computed
        if kernel.dtype != stored:
            raise ValueError(f"weights must be {stored} as dtype says, got {kernel.dtype}")
    if "activation" not in drop:
        activation = config.get("activation")
        options["activation"] = keras_objects.from_activation(activation, custom, legacy, computed)
    for name in keras_objects.HOMES:
        if name in config and name not in drop:
            ndim = kernel.ndim if name.startswith("kernel") else 1
            options[name] = keras_objects.from_object(name, config[name], custom, ndim)
    return pairs.make(kernel, bias, **options)


def to_keras(
    module: LinenLayer,
    variables: Mapping[str, Any],
    *,
    api: str = "keras",
    drop: Collection[str] = (),
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Converts our layer to one of Keras 3, or of `tf_keras`; neither is imported.

    `layer = keras.layers.Conv2DTranspose(**config)`, or `.from_config(config)`, then
    `layer.build(input_shape)` and `layer.set_weights(weights)`.

    Keras has `"valid"` and `"same"`; another padding is converted if it crops as one of them
    does with some `output_padding`. Its TensorFlow backend has no strides together with
    dilation, and no groups.

    Args:
      module: a layer of `upconv.linen`.
      variables: what it is applied to.
      api: `"keras"` for Keras 3, or `"tf_keras"`, which has fewer activations, another
        `hard_sigmoid`, and another name for the slope of a `LeakyReLU`.
      drop: arguments that may be lost: `activation`, `precision`, initializers, regularizers
        and constraints.
      custom_objects: functions, classes or other objects of yours, by the names under which Keras
        is to find their counterparts. A class stands for all its objects; each is written with the
        arguments that its `get_config()` returns or, if it is a dataclass, with its fields, and
        Keras passes them to `from_config` of the class that it finds. Anything else is written as
        its name alone. Register the counterparts with
        `keras.saving.register_keras_serializable`, which names them `"package>name"`, or make the
        layer within `keras.saving.custom_object_scope({name: counterpart})`.

    Returns:
      `(config, weights)`: what `get_config` and `get_weights` of the layer return.

    Raises:
      TypeError: if `module` is no such layer, or `custom_objects` no dictionary.
      ValueError: if `api` is neither of the two, if Keras cannot do what the layer does, or if the
        variables are not those of the layer.

    >>> import jax
    >>> from upconv import linen
    >>> module = linen.Conv2DTranspose(4, 5, strides=2, activation="relu", padding=(2, 2))
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 6, 3)))
    >>> config, weights = to_keras(module, variables)
    >>> config["padding"], config["output_padding"], config["activation"]
    ('same', (0, 0), 'relu')
    """
    if api not in _APIS:
        raise ValueError(f"api must be {' or '.join(map(repr, _APIS))}, got {api!r}")
    kernel, bias = pairs.take_apart(module, variables)
    arguments.check_only("Keras", _ONLY, module, drop, also=_OBJECTS)
    custom = _custom(custom_objects)
    padding, output_padding = _to_padding(module)
    computed = kernel.dtype if module.dtype is None else jnp.dtype(module.dtype)
    config = {
        "trainable": module.trainable,
        "dtype": _to_policy(computed, kernel.dtype),
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
        legacy = api == "tf_keras"
        config["activation"] = keras_objects.to_activation(
            module.activation, custom, legacy, computed
        )
    for name in keras_objects.HOMES:
        if name not in drop:
            config[name] = keras_objects.to_object(name, getattr(module, name), custom)
    return config, [kernel] if bias is None else [kernel, bias]


def _custom(custom_objects: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if custom_objects is None else arguments.mapping("custom_objects", custom_objects)


def _read(layer: Any, drop: Collection[str]) -> tuple[dict[str, Any], list[Any], bool]:
    """Config and weights of a layer of Keras, and whether it is one of the legacy Keras."""
    root = type(layer).__module__.partition(".")[0]
    if type(layer).__name__ not in _LAYERS or root not in keras_objects.ACTIVATIONS_OF:
        raise TypeError(
            "layer must be a Conv1DTranspose, Conv2DTranspose or Conv3DTranspose of Keras, or "
            f"a config with weights, got {type_name(layer)}"
        )
    if not layer.built:
        raise ValueError(f"layer must be built to have weights, {layer.name!r} is not")
    if "call" in vars(layer):
        raise ValueError(
            f"layer must compute with the call of its class, got {layer.name!r} with one of its "
            f"own, {layer.call!r}: `del layer.call` takes it off"
        )
    _check_rules(layer, drop)
    config = _config(layer, drop)
    config["activation"] = keras_objects.activation_of(layer, config["activation"], root)
    config["trainable"] = _is_trained(layer)
    return config, layer.get_weights(), root != "keras"


def _config(layer: Any, drop: Collection[str]) -> dict[str, Any]:
    """A layer's config; a function stands for what may be dropped, where Keras cannot write it.

    It writes all of a layer or nothing.
    """
    try:
        return layer.get_config()
    except Exception:  # of any kind, and it tells no argument
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the legacy Keras, that these are functions
            for name in sorted(_OBJECTS - set(drop)):
                try:
                    _without(layer, _OBJECTS - {name}).get_config()
                except Exception as error:
                    raise ValueError(
                        f"{name} must be an object that Keras can write into a config, got "
                        f"{getattr(layer, name)!r} ({error}); drop=({name!r},) leaves it out"
                    ) from error
            return _without(layer, drop).get_config()


def _without(layer: Any, drop: Collection[str]) -> Any:
    """The layer with a function in place of what is dropped, to be read alone: it shares the rest.

    Keras writes functions by their names.
    """
    bare = object.__new__(type(layer))
    # Where the legacy Keras has a property, the field's name begins with an underscore.
    dropped = [name for name in vars(layer) if name.removeprefix("_") in drop]
    vars(bare).update(vars(layer) | dict.fromkeys(dropped, _without))
    return bare


def _check_rules(layer: Any, drop: Collection[str]) -> None:
    """Raises a ValueError where a variable has another rule than its layer, unless it is dropped.

    Variables of Keras 3 have a regularizer and a constraint of their own, those of TensorFlow a
    constraint. Keras goes by these, and writes the layer's into its config.
    """
    for name in ("kernel", "bias") if layer.use_bias else ("kernel",):
        for kind in ("regularizer", "constraint"):
            argument = f"{name}_{kind}"
            declared = getattr(layer, argument)
            got = getattr(getattr(layer, name), kind, declared)
            if got is not declared and argument not in drop:
                raise ValueError(
                    f"{argument} must be the same in the layer and in its variable, by which Keras "
                    f"goes, got {declared!r} and {got!r}; drop=({argument!r},) leaves it out"
                )


def _is_trained(layer: Any) -> bool:
    """Whether Keras trains the layer, whose variables it can freeze one by one."""
    trained = layer.trainable_weights
    if trained and len(trained) < len(layer.weights):
        raise ValueError(
            "trainable holds for kernel and bias alike, got a layer that trains only "
            f"{', '.join(weight.name for weight in trained)}"
        )
    return bool(trained)


# ------------------------------------------------------------------ padding


def _to_padding(module: Any) -> tuple[str, tuple[int, ...] | None]:
    """The padding and output padding with which Keras crops as our layer does."""
    if max(module.strides) > 1 and max(module.dilation_rate) > 1:
        raise ValueError(
            "dilation_rate goes only with strides=1 in Keras, got "
            f"dilation_rate={module.dilation_rate} and strides={module.strides}"
        )
    wanted = pairs.crops(module, "Keras")
    for padding, extra in _candidates(module, wanted):
        computed = _is_computed(module, padding, extra)
        changes = {"padding": padding, "output_padding": extra}
        if computed and pairs.crops(module, "Keras", **changes) == wanted:
            return padding, extra
    raise ValueError(
        f"padding={module.padding!r} with output_padding={module.output_padding!r} crops "
        f"{wanted} of the full output, which neither 'valid' nor 'same' does in Keras for "
        f"kernel_size={module.kernel_size} and strides={module.strides}"
    )


def _candidates(module: Any, wanted: geometry.Pads) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Paddings with output paddings that may crop as wanted: our own, none, what the length asks.

    With an output padding of 0, `"same"` crops `2 (K // 2)` of the full output, `"valid"` nothing.
    """
    if module.padding in ("valid", "same"):
        yield module.padding, module.output_padding
    yield from (("valid", None), ("same", None))
    for padding in ("valid", "same"):
        most = [2 * (k // 2) if padding == "same" else 0 for k in pairs.span(module)]
        yield padding, tuple(m - lo - hi for m, (lo, hi) in zip(most, wanted, strict=True))


def _is_computed(module: Any, padding: str, output_padding: tuple[int, ...] | None) -> bool:
    """Whether TensorFlow takes it: it finds the input's length from the output's, rounded up."""
    if output_padding is None:
        return True
    least = [int(padding == "same" and k % 2 == 0) for k in pairs.span(module)]
    limits = zip(least, output_padding, module.strides, strict=True)
    return all(low <= p < s for low, p, s in limits)


# ------------------------------------------------------------------ dtypes


def _to_policy(computed: Any, stored: Any) -> str:
    """The policy of a layer that computes in `computed` and keeps its parameters in `stored`."""
    if computed == stored:
        return str(stored)
    if stored == jnp.float32 and computed in (jnp.float16, jnp.bfloat16):
        return f"mixed_{computed}"
    raise ValueError(
        f"dtype={computed} with parameters of {stored} is no policy of Keras, which mixes float32 "
        "parameters with float16 or bfloat16"
    )
