"""Layers of Flax, linen and nnx."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as flax_linen
from flax import nnx as flax_nnx
from flax.core import meta

from upconv import geometry, lax, linen, nnx
from upconv.interop import arguments, arrays, pairs
from upconv.interop.pairs import Pair

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

    >>> import jax
    >>> import jax.numpy as jnp
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
            f"arguments, got {arguments.type_name(layer)}"
        )
    if kind:
        if layer.promote_dtype not in defaults:
            raise ValueError(f"promote_dtype must be Flax's own, got {layer.promote_dtype!r}")
        layer = {name: getattr(layer, name) for name in names} | kind
    if variables is None:
        raise ValueError("variables must be given with a linen layer or a dictionary")
    config = dict(layer)
    arguments.check_keys("layer", config, {*_FLAX, *_FLAX_NNX, *_FLAX_REST, *_FLAX_IGNORED})
    if "out_features" in config:
        config["features"] = config["out_features"]
    arguments.check_keys("layer", config, config, required=("features", "kernel_size"))
    for name in _FLAX_REST:
        if config.get(name) is not None:
            raise ValueError(
                f"{name} is not in this package's layer, got {config[name]!r}; "
                "upconv.linen.ConvTranspose and upconv.nnx.ConvTranspose have it"
            )
    config = {**_FLAX, **config}
    return _pair_of_flax(config, arguments.mapping("variables", variables))


def _pair_of_flax(config: dict[str, Any], variables: Mapping[str, Any]) -> Pair:
    arrays = arguments.mapping("variables['params']", variables.get("params", variables))
    names = ["kernel", "bias"] if config["use_bias"] else ["kernel"]
    arguments.check_keys("variables", arrays, names, required=names)
    kernel, bias = pairs.kernel_and_bias([meta.unbox(arrays[n]) for n in names], config["use_bias"])
    size = config["kernel_size"]
    rank = pairs.rank("kernel", kernel)
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
    return pairs.make(
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

    >>> import jax
    >>> import jax.numpy as jnp
    >>> module = linen.Conv1DTranspose(4, 5, strides=2, padding="causal")
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 3)))
    >>> config, weights = to_flax(module, variables)
    >>> config["padding"], weights["params"]["kernel"].shape
    (((4, 1),), (5, 3, 4))
    """
    if api not in ("linen", "nnx"):
        raise ValueError(f"api must be 'linen' or 'nnx', got {api!r}")
    kernel, bias = pairs.take_apart(module, variables)
    arguments.check_only("Flax", module, drop)
    span = tuple(map(geometry.dilated, module.kernel_size, module.dilation_rate))
    named = {"same": "SAME", "valid": "VALID", "circular": "CIRCULAR"}
    if module.padding == "circular":
        _check_circular(span, module.strides, transpose_kernel)
    padding: Any = named.get(module.padding) if isinstance(module.padding, str) else None
    if padding is None or module.output_padding is not None:
        padding = lax.mirrored_pads(pairs.crops(module, "Flax"), span)
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
        "kernel": arrays.to_jax(
            "kernel", kernel if transpose_kernel else lax.mirrored_kernel(kernel)
        )
    }
    if bias is not None:
        weights["bias"] = arrays.to_jax("bias", bias)
    return config, {"params": weights} if api == "linen" else weights


def _check_circular(span: Sequence[int], strides: Sequence[int], transpose_kernel: bool) -> None:
    """Flax takes the larger half of the overhang from the start if its kernel is in our order."""
    if any(lax.circular_shift(span, strides, transpose_kernel)):
        raise ValueError(
            "padding='CIRCULAR' with transpose_kernel=True is another pixel further in Flax where "
            f"the kernel outlasts the stride by an odd number, got {span} and {strides}"
        )
