"""Layers of `upconv.nnx`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx as flax_nnx

from upconv import nnx
from upconv.interop import arguments, arrays, pairs
from upconv.interop.pairs import Pair
from upconv.layer import FIELDS, collection

_NNX_LAYERS = {1: nnx.Conv1DTranspose, 2: nnx.Conv2DTranspose, 3: nnx.Conv3DTranspose}


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
        raise TypeError(f"layer must be one of upconv.nnx, got {arguments.type_name(layer)}")
    module = pairs.LAYERS[layer.rank](**{name: getattr(layer.config, name) for name in FIELDS})
    parameters = {"kernel": layer.kernel.get_value()}
    if layer.bias is not None:
        parameters["bias"] = layer.bias.get_value()
    return module, {collection(module.trainable): parameters}


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
        lambda: _NNX_LAYERS[module.rank](kernel.shape[-1], **fields, rngs=flax_nnx.Rngs(0))
    )
    layer.kernel.set_value(arrays.to_jax("kernel", kernel))
    if bias is not None:
        layer.bias.set_value(arrays.to_jax("bias", bias))
    if module.activity_regularizer is not None:
        layer.activity_loss.set_value(jnp.zeros((), jnp.float32))
    return layer
