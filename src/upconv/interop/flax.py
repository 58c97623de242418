"""Layers of Flax, `flax.linen.ConvTranspose` and `flax.nnx.ConvTranspose`, and our drop-ins.

Explicit padding pads the dilated input, and without `transpose_kernel` the kernel is flipped
relative to ours and its last two axes are swapped. `upconv.lax` knows this convention, which is
that of `jax.lax.conv_transpose`, and `upconv.flax_layer` Flax's own of `"CIRCULAR"`
(`flax/linen/linear.py`); here are the names of arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as flax_linen
from flax import nnx as flax_nnx
from flax.core import meta

from upconv import flax_layer, geometry, lax, linen, nnx
from upconv.errors import shown, type_name
from upconv.interop import arguments, arrays, pairs
from upconv.interop.pairs import LinenLayer, Pair
from upconv.layer import LONG

FlaxLayer = (
    flax_linen.ConvTranspose | flax_nnx.ConvTranspose | linen.ConvTranspose | nnx.ConvTranspose
)

# The arguments of its constructors that have a counterpart here, and their defaults.
_ARGUMENTS: dict[str, Any] = {
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
_NNX_ARGUMENTS = {"in_features", "out_features"}
# Those that have none, and are not read where they change nothing. Initializers are for kernels of
# another layout than ours.
_ABSENT = ("mask", "preferred_element_type")
_NOT_READ = {"kernel_init", "bias_init", "rngs"}
# Those that must fit: our layer promotes as Flax's does by itself, and the variables have a dtype.
_CHECKED = {"param_dtype", "promote_dtype"}
_PROMOTIONS = (None, flax_linen.dtypes.promote_dtype, flax_nnx.nn.dtypes.promote_dtype)
# Arguments of ours that Flax lacks, and the value that its layers behave as.
_ONLY: dict[str, Any] = {
    "groups": 1,
    "data_format": "channels_last",
    "activation": None,
    **dict.fromkeys(arguments.RULES),
    "trainable": True,
}
_PADDINGS = {"same": "SAME", "valid": "VALID", "circular": "CIRCULAR"}


def from_flax(
    layer: FlaxLayer | Mapping[str, Any], variables: Mapping[str, Any] | None = None
) -> Pair:
    """Converts a `flax.linen.ConvTranspose` or `flax.nnx.ConvTranspose` to one of `upconv.linen`.

    To keep Flax's own arguments and parameters, change the import instead:
    `upconv.linen.ConvTranspose`, `upconv.nnx.ConvTranspose`.

    Args:
      layer: a layer of either kind, Flax's or ours of the same name; or the arguments of the
        constructor of either kind as a dictionary.
      variables: those of a linen layer or a dictionary: `{"params": {"kernel": ..., "bias": ...}}`,
        or what is in it. An nnx layer has its own.

    Returns:
      `(module, variables)`.

    Raises:
      TypeError: if `layer` is neither such a layer nor a dictionary.
      ValueError: if the layer has what ours lacks (`mask`, `preferred_element_type`,
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
    config, variables = _read(layer, variables)
    if variables is None:
        raise ValueError("variables must be given with a linen layer or a dictionary")
    if "out_features" in config:
        config["features"] = config["out_features"]
    known = {*_ARGUMENTS, *_NNX_ARGUMENTS, *_ABSENT, *_NOT_READ, *_CHECKED}
    arguments.check_keys("layer", config, known, required=("features", "kernel_size"))
    for name in _ABSENT:
        if config.get(name) is not None:
            raise ValueError(
                f"{name} is not in this package's layer, got {shown(config[name])}; "
                "upconv.linen.ConvTranspose and upconv.nnx.ConvTranspose have it"
            )
    if config.get("promote_dtype") not in _PROMOTIONS:
        raise ValueError(f"promote_dtype must be Flax's own, got {config['promote_dtype']!r}")
    return _make({**_ARGUMENTS, **config}, arguments.mapping("variables", variables))


def to_flax(
    module: LinenLayer,
    variables: Mapping[str, Any],
    *,
    transpose_kernel: bool = False,
    api: str = "linen",
    drop: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts our layer to a `flax.linen.ConvTranspose` or `flax.nnx.ConvTranspose`.

    For linen, `layer = flax.linen.ConvTranspose(**config)` and `layer.apply(weights, x)`; for
    nnx, `layer = flax.nnx.ConvTranspose(**config, rngs=rngs)` and
    `flax.nnx.update(layer, weights)`.

    Args:
      module: a layer of `upconv.linen`.
      variables: what it is applied to.
      transpose_kernel: Flax's argument: whether its kernel is in our order, or flipped and with its
        last two axes swapped.
      api: `"linen"` or `"nnx"`.
      drop: arguments that may be lost: `activation`, `data_format` (Flax has
        `"channels_last"`), `trainable`, regularizers and constraints.

    Returns:
      `(config, weights)`; the weights are `{"params": {"kernel": ..., "bias": ...}}` for linen
      and what is in it for nnx.

    Raises:
      TypeError: if `module` is no such layer.
      ValueError: if Flax cannot do what the layer does, or the variables are not those of the
        layer.

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
    arguments.check_only("Flax", _ONLY, module, drop)
    features = {"features": module.filters, "name": module.name}
    if api == "nnx":
        features = {"in_features": kernel.shape[-1], "out_features": module.filters}
    config = {
        **features,
        "kernel_size": module.kernel_size,
        "strides": module.strides,
        "padding": _to_padding(module, transpose_kernel),
        "kernel_dilation": module.dilation_rate,
        "use_bias": module.use_bias,
        "dtype": module.dtype,
        "param_dtype": kernel.dtype,
        "precision": module.precision,
        "transpose_kernel": transpose_kernel,
    }
    kernel = kernel if transpose_kernel else lax.mirrored_kernel(kernel)
    weights = {"kernel": arrays.to_jax("kernel", kernel)}
    if bias is not None:
        weights["bias"] = arrays.to_jax("bias", bias)
    return config, {"params": weights} if api == "linen" else weights


def _read(
    layer: Any, variables: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The arguments of a layer, or those given, and its variables."""
    if type(layer) in (flax_linen.ConvTranspose, linen.ConvTranspose):
        own = {"features": layer.features, "name": layer.name}
    elif type(layer) in (flax_nnx.ConvTranspose, nnx.ConvTranspose):
        if variables is not None:
            raise ValueError("variables must not be given with an nnx layer, which has its own")
        own = {"features": layer.out_features}
        variables = {"kernel": layer.kernel.get_value()}
        if layer.bias is not None:
            variables["bias"] = layer.bias.get_value()
    elif isinstance(layer, Mapping):
        return dict(arguments.mapping("layer", layer)), variables
    else:
        raise TypeError(
            "layer must be a ConvTranspose of flax.linen or flax.nnx, or a dictionary of its "
            f"arguments, got {type_name(layer)}"
        )
    # Not its param_dtype: a layer applies to variables of any.
    names = {*_ARGUMENTS, *_ABSENT, "promote_dtype"} - {"features", "name"}
    return {name: getattr(layer, name) for name in names} | own, variables


def _make(config: Mapping[str, Any], variables: Mapping[str, Any]) -> Pair:
    """Our layer with the arguments of Flax's, all of them, and its variables."""
    found = arguments.mapping("variables['params']", variables.get("params", variables))
    names = ["kernel", "bias"] if config["use_bias"] else ["kernel"]
    arguments.check_parameters("variables", found, names)
    kernel, bias = pairs.kernel_and_bias([meta.unbox(found[name]) for name in names], names)
    rank = pairs.rank("kernel", kernel)
    transposed = config["transpose_kernel"]
    ours = kernel if transposed else lax.mirrored_kernel(kernel)
    c_in, dtype = config.get("in_features") or ours.shape[-1], config.get("param_dtype")
    shape = flax_layer.kernel_shape(config["kernel_size"], c_in, config["features"], transposed)
    if kernel.shape != shape:
        raise ValueError(
            f"kernel must have the shape {shape} of kernel_size, features, in_features={c_in} and "
            f"transpose_kernel={transposed}, got {kernel.shape}"
        )
    size = shape[:-2]
    strides, dilation = (
        geometry.per_axis(name, 1 if config[name] is None else config[name], rank)
        for name in ("strides", "kernel_dilation")
    )
    if dtype is not None and jnp.dtype(dtype) != kernel.dtype:
        raise ValueError(
            f"kernel must be {jnp.dtype(dtype)} as param_dtype says, got {kernel.dtype}"
        )
    span = tuple(map(geometry.dilated, size, dilation))
    return pairs.make(
        ours,
        bias,
        strides=strides,
        padding=_from_padding(config["padding"], span, strides, transposed),
        dilation_rate=dilation,
        dtype=config["dtype"],
        precision=config["precision"],
        name=config["name"],
    )


def _from_padding(
    padding: Any, span: tuple[int, ...], strides: tuple[int, ...], transpose_kernel: bool
) -> geometry.Padding:
    """Our padding for Flax's."""
    if isinstance(padding, str) and padding == "CIRCULAR":
        _check_circular(span, strides, transpose_kernel)
        return padding
    long = (LONG,) * len(span)
    return flax_layer.crops(padding, long, span, strides)


def _to_padding(module: Any, transpose_kernel: bool) -> str | geometry.Pads:
    """Flax's padding for that of our layer, by name if it has one."""
    span = pairs.span(module)
    if module.padding == "circular":
        _check_circular(span, module.strides, transpose_kernel)
    if module.padding in _PADDINGS and module.output_padding is None:
        return _PADDINGS[module.padding]
    return lax.mirrored_pads(pairs.crops(module, "Flax"), span)


def _check_circular(span: Sequence[int], strides: Sequence[int], transpose_kernel: bool) -> None:
    """Raises a ValueError where Flax's circular output is not aligned as ours."""
    if any(flax_layer.circular_shift(span, strides, transpose_kernel)):
        raise ValueError(
            "padding='CIRCULAR' with transpose_kernel=True is one pixel further in Flax where the "
            f"kernel exceeds the stride by an odd number, got {span} and {strides}"
        )
