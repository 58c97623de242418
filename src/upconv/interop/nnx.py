"""Layers of `upconv.nnx`: the fields and arrays of those of `upconv.linen`, held otherwise.

A layer of linen has them in collections of variables outside of it, one of nnx within itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx as flax_nnx

from upconv import nnx
from upconv.errors import type_name
from upconv.interop import arrays, pairs
from upconv.interop.pairs import LinenLayer, Pair
from upconv.layer import FIELDS, collection

NnxLayer = nnx.Conv1DTranspose | nnx.Conv2DTranspose | nnx.Conv3DTranspose

# By number of spatial axes.
_LAYERS: dict[int, type[NnxLayer]] = {
    1: nnx.Conv1DTranspose,
    2: nnx.Conv2DTranspose,
    3: nnx.Conv3DTranspose,
}


def from_nnx(layer: NnxLayer) -> Pair:
    """Converts a layer of `upconv.nnx` to one of `upconv.linen`.

    Args:
      layer: a `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` of `upconv.nnx`.

    Returns:
      `(module, variables)`.

    Raises:
      TypeError: for anything else.
      ValueError: if the arrays are not of the layer's own sizes, as those of layers that `nnx.vmap`
        stacked are not.

    >>> layer = nnx.Conv2DTranspose(3, 4, 5, rngs=flax_nnx.Rngs(0))
    >>> module, variables = from_nnx(layer)
    >>> bool((variables["params"]["kernel"] == layer.kernel[...]).all())
    True
    """
    if type(layer) not in _LAYERS.values():
        raise TypeError(
            "layer must be a Conv1DTranspose, Conv2DTranspose or Conv3DTranspose of upconv.nnx, "
            f"got {type_name(layer)}; from_flax converts a ConvTranspose"
        )
    module = pairs.LAYERS[layer.rank](**{name: getattr(layer.config, name) for name in FIELDS})
    parameters = {"kernel": layer.kernel.get_value()}
    if layer.bias is not None:
        parameters["bias"] = layer.bias.get_value()
    pairs.check_shapes(module, parameters["kernel"], parameters.get("bias"))
    return module, {collection(module.trainable): parameters}


def to_nnx(module: LinenLayer, variables: Mapping[str, Any]) -> NnxLayer:
    """Converts a layer of `upconv.linen` to one of `upconv.nnx`, which holds its variables itself.

    Args:
      module: a `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` of `upconv.linen`.
      variables: what it is applied to.

    Returns:
      The layer.

    Raises:
      TypeError: if `module` is no such layer.
      ValueError: if the variables are not those of the layer.

    >>> import jax
    >>> from upconv import linen
    >>> module = linen.Conv2DTranspose(4, 5, strides=2)
    >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 6, 3)))
    >>> to_nnx(module, variables)(jnp.ones((1, 8, 6, 3))).shape
    (1, 19, 15, 4)
    """
    kernel, bias = pairs.take_apart(module, variables)
    fields = {name: getattr(module, name) for name in FIELDS}
    # The layer is made without drawing anything, then given its values.
    layer: Any = flax_nnx.eval_shape(
        lambda: _LAYERS[module.rank](kernel.shape[-1], **fields, rngs=flax_nnx.Rngs(0))
    )
    layer.kernel.set_value(arrays.to_jax("kernel", kernel))
    if bias is not None:
        layer.bias.set_value(arrays.to_jax("bias", bias))
    if module.activity_regularizer is not None:
        layer.activity_loss.set_value(jnp.zeros((), jnp.float32))
    return layer
