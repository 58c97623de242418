"""Layers of PyTorch, `torch.nn.ConvTranspose1d`, `2d` and `3d`.

The kernel is ours with its last two axes in front, `(c_in, filters // groups, *kernel_size)`, and
the channels of images come first. `padding` crops alike at both ends, and `output_padding`, which
is less than the stride or the dilation, is added at the end: the output has the length
`(n - 1) s - 2 padding + d (k - 1) + output_padding + 1` (documentation of
`torch.nn.ConvTranspose2d`; `torch/nn/modules/conv.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from upconv import geometry
from upconv.errors import type_name
from upconv.interop import arguments, arrays, pairs
from upconv.interop.pairs import LinenLayer, Pair

_LAYERS = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
# The arguments of its constructor and their defaults.
_ARGUMENTS: dict[str, Any] = {
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
# Where modules keep what else runs, forward and backward, and parameters what runs backward.
_HOOKS = (
    *("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"),
    "_post_accumulate_grad_hooks",
)
# What takes a hook of `torch.nn.utils` off again, by the module that it is of.
_REMEDIES = {
    "torch.nn.utils.weight_norm": "torch.nn.utils.remove_weight_norm",
    "torch.nn.utils.spectral_norm": "torch.nn.utils.remove_spectral_norm",
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove",
}
# Arguments of ours that PyTorch lacks, and the value that its layers behave as.
_ONLY: dict[str, Any] = {
    "data_format": "channels_first",
    "activation": None,
    **dict.fromkeys(arguments.RULES),
    "trainable": True,
    "precision": None,
}


def from_torch(layer: Any, weights: Mapping[str, Any] | None = None) -> Pair:
    """Converts a `torch.nn.ConvTranspose1d`, `2d` or `3d` to a layer of `upconv.linen`.

    Args:
      layer: the layer; or, with `weights`, the arguments of its constructor as a dictionary.
      weights: what `layer.state_dict()` returns: `weight` and, if there is one, `bias`, tensors
        or arrays.

    Returns:
      `(module, variables)`. The module is `channels_first`, and not trainable if the layer's
      parameters do not require gradients.

    Raises:
      TypeError: if `layer` is neither such a layer nor a dictionary.
      ValueError: if an argument is unknown or does not fit the weights; if the layer computes its
        weight from others (`torch.nn.utils.parametrize`, `weight_norm`, `prune`), has hooks or a
        `forward` of its own, trains only one of weight and bias, or has no weights yet
        (`LazyConvTranspose2d`, the device `"meta"`); or if weights are given with a layer.

    >>> import numpy as np
    >>> config = {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "stride": 2, "padding": 2}
    >>> weights = {"weight": np.ones((3, 4, 5, 5), np.float32), "bias": np.zeros(4, np.float32)}
    >>> module, variables = from_torch(config, weights)
    >>> module.padding, variables["params"]["kernel"].shape
    (((2, 2), (2, 2)), (5, 5, 4, 3))
    """
    trainable = True
    if weights is None:
        layer, weights, trainable = _read(layer)
    required = ("in_channels", "out_channels", "kernel_size")
    given = arguments.config_with_weights(layer, "state_dict")
    arguments.check_keys("layer", given, _ARGUMENTS, required=required)
    config = {**_ARGUMENTS, **given}
    names = ["weight", "bias"] if config["bias"] else ["weight"]
    arguments.check_parameters("weights", arguments.mapping("weights", weights), names)
    kernel, bias = pairs.kernel_and_bias([weights[name] for name in names], names)
    rank = pairs.rank("weight", kernel)
    groups = geometry.integer("groups", config["groups"], minimum=1)
    size = geometry.per_axis("kernel_size", config["kernel_size"], rank)
    filters = geometry.integer("out_channels", config["out_channels"], minimum=1)
    if filters % groups:
        raise ValueError(f"groups must divide out_channels={filters}, got {groups}")
    shape = (config["in_channels"], filters // groups, *size)
    if kernel.shape != shape:
        raise ValueError(f"weight must have the shape {shape}, got {kernel.shape}")
    if config["padding_mode"] != "zeros":
        raise ValueError(f"padding_mode must be 'zeros', got {config['padding_mode']!r}")
    dtype = kernel.dtype if config["dtype"] is None else _from_dtype(config["dtype"])
    if dtype != kernel.dtype:
        raise ValueError(f"weight must be {dtype} as dtype says, got {kernel.dtype}")
    padding = geometry.per_axis("padding", config["padding"], rank, minimum=0)
    return pairs.make(
        arrays.channels_to_end(kernel),
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
    module: LinenLayer, variables: Mapping[str, Any], *, drop: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts our layer to a `torch.nn.ConvTranspose1d`, `2d` or `3d`.

    `layer = torch.nn.ConvTranspose2d(**config)` and `layer.load_state_dict(weights)`.

    PyTorch crops alike at both ends and then adds `output_padding` at the end, so it can crop
    less at the end than at the start, but not more: it has `"same"` at stride 2 for a kernel of
    4, and not for one of 5.

    Args:
      module: a layer of `upconv.linen`.
      variables: what it is applied to.
      drop: arguments that may be lost: `activation`, `data_format` (PyTorch has
        `"channels_first"`), `dtype`, `precision`, `trainable`, regularizers and
        constraints.

    Returns:
      `(config, weights)`. If torch is installed it is imported, the weights are tensors and
      `config["dtype"]` is one of torch's; if not, they are arrays of numpy and a name.

    Raises:
      TypeError: if `module` is no such layer.
      ValueError: if PyTorch cannot do what the layer does, or the variables are not those of the
        layer.

    >>> import jax
    >>> from upconv import linen
    >>> module = linen.Conv2DTranspose(4, 4, 2, padding="same", data_format="channels_first")
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 3, 8, 6)))
    >>> config, weights = to_torch(module, variables)
    >>> config["padding"], config["output_padding"], tuple(weights["weight"].shape)
    ((1, 1), (0, 0), (3, 4, 4, 4))
    """
    kernel, bias = pairs.take_apart(module, variables)
    arguments.check_only("PyTorch", _ONLY, module, drop, also={"dtype"})
    computed = kernel.dtype if module.dtype is None else jnp.dtype(module.dtype)
    if "dtype" not in drop and computed != kernel.dtype:
        raise ValueError(
            f"dtype={computed} must be that of the parameters in PyTorch, {kernel.dtype}; "
            "drop=('dtype',) leaves it out"
        )
    crops = _crops(module)
    weights = {"weight": arrays.channels_to_front(kernel)}
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
    return _as_tensors(config, weights)


def _read(layer: Any) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Arguments and weights of a layer of PyTorch, and whether it is trained."""
    home, name = type(layer).__module__, type(layer).__name__
    if hasattr(layer, "parametrizations"):
        raise ValueError(
            f"layer must hold its weight itself, got a {name} that computes it from others: "
            "torch.nn.utils.parametrize.remove_parametrizations makes it a plain one"
        )
    own = home.startswith("torch.nn.modules.")
    if own and name.startswith("Lazy") and name.removeprefix("Lazy") in _LAYERS:
        raise ValueError(f"layer must have its weights, got a {name}: run it once first")
    if not own or name not in _LAYERS:
        raise TypeError(
            f"layer must be one of {', '.join(_LAYERS)} of torch.nn, or the arguments of "
            f"one with weights, got {type_name(layer)}"
        )
    if "forward" in vars(layer):
        raise ValueError(
            f"layer must compute with the forward of its class, got a {name} with one of its own, "
            f"{layer.forward!r}: `del layer.forward` takes it off"
        )
    owners = (layer, *layer.parameters())
    kept = [getattr(owner, kind, None) or {} for owner in owners for kind in _HOOKS]
    hooks = [hook for by_handle in kept for hook in by_handle.values()]
    if hooks:
        remedies = {
            _REMEDIES.get(type(hook).__module__, "their handles' remove()") for hook in hooks
        }
        raise ValueError(
            "layer must have no hooks, which may change what it computes or how it is trained, "
            f"got a {name} with {hooks}: take them off by {' and '.join(sorted(remedies))}"
        )
    trained = {parameter.requires_grad for parameter in layer.parameters()}
    if len(trained) > 1:
        raise ValueError(
            "trainable holds for weight and bias alike, got a layer with requires_grad of one alone"
        )
    plain = _ARGUMENTS.keys() - {"bias", "device", "dtype"}
    config = {name: getattr(layer, name) for name in plain} | {"bias": layer.bias is not None}
    return config, layer.state_dict(), trained != {False}


def _from_dtype(dtype: Any) -> np.dtype:
    """A dtype of torch's or numpy's, or the name of one, as one of numpy's."""
    # torch's own print as `torch.float32`; those of numpy and JAX may be types, which do not.
    named = type(dtype).__module__ == "torch" or isinstance(dtype, str)
    try:
        return jnp.dtype(str(dtype).removeprefix("torch.") if named else dtype)
    except TypeError:
        raise ValueError(f"dtype must be a dtype or the name of one, got {dtype!r}") from None


def _crops(module: Any) -> geometry.Pads:
    """What the layer crops at both ends, if PyTorch can."""
    crops = pairs.crops(module, "PyTorch")
    limits = map(max, module.strides, module.dilation_rate)
    for (lo, hi), limit in zip(crops, limits, strict=True):
        if lo < 0 or not 0 <= lo - hi < limit:
            raise ValueError(
                f"padding={module.padding!r} crops {crops} of the full output; PyTorch crops "
                "both ends alike, less an output_padding below max(stride, dilation)"
            )
    return crops


def _as_tensors(
    config: dict[str, Any], weights: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same with torch's dtype and tensors, if torch is installed."""
    try:
        import torch
    except ImportError:
        return config, weights
    dtype = getattr(torch, config["dtype"])
    tensors = {name: arrays.to_torch(value, dtype) for name, value in weights.items()}
    return {**config, "dtype": dtype}, tensors
