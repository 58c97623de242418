"""Our layer, and those of Flax, `jax.lax`, Equinox and Keras, all on JAX.

They differ in how `(x, kernel)` becomes `y`, and in layout.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from upconv import linen
from upconv.bench.layers import Data, LayerSpec
from upconv.bench.task import Task

Apply = Callable[[jax.Array, jax.Array], Any]
Arrange = Callable[[np.ndarray], np.ndarray]


def task(
    make: Callable[[LayerSpec, str], Apply],
    layer: LayerSpec,
    data: Data,
    dtype: str,
    *,
    arrange: tuple[Arrange, Arrange] = (np.asarray, np.asarray),
    channel_axis: int = -1,
) -> Task:
    """The task of a peer on JAX; `arrange` puts inputs and kernels into its layout."""
    apply = make(layer, dtype)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # Quartic in x and kernel together, since y is bilinear: its Hessian is not constant.
        return jnp.sum(jnp.square(apply(x, kernel)))

    def hvp(x: jax.Array, kernel: jax.Array, dx: jax.Array, dkernel: jax.Array) -> Any:
        return jax.jvp(jax.grad(loss, argnums=(0, 1)), (x, kernel), (dx, dkernel))[1]

    arrays = [
        jnp.asarray(put(a), dtype) for put, a in zip(itertools.cycle(arrange), data, strict=False)
    ]
    step = jax.value_and_grad(loss, argnums=(0, 1))
    return Task(
        {
            "forward": functools.partial(jax.jit(apply), *arrays[:2]),
            "step": functools.partial(jax.jit(step), *arrays[:2]),
            "hvp": functools.partial(jax.jit(hvp), *arrays),
        },
        jax.block_until_ready,
        channel_axis,
        lambda: jax.jit(step).lower(*arrays[:2]).compile(),
    )


def our_layer(layer: LayerSpec, dtype: str) -> Apply:
    """That of `upconv.linen`."""
    classes = (linen.Conv1DTranspose, linen.Conv2DTranspose, linen.Conv3DTranspose)
    module = classes[layer.rank - 1](
        layer.filters,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        use_bias=False,
        groups=layer.groups,
    )
    return lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x)


def flax_layer(layer: LayerSpec, dtype: str) -> Apply:
    """That of Flax linen."""
    module = nn.ConvTranspose(
        layer.filters,
        layer.kernel_size,
        layer.strides,
        layer.padding.upper(),
        use_bias=False,
        transpose_kernel=True,
    )
    return lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x)


def lax_layer(layer: LayerSpec, dtype: str) -> Apply:
    """The function of `jax.lax`; of groups, which it does not take, the convolution behind it."""
    if layer.groups > 1:
        return _lax_groups(layer)
    space = "DHW"[-layer.rank :]
    return lambda x, kernel: jax.lax.conv_transpose(
        x,
        kernel,
        layer.strides,
        layer.padding.upper(),
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        transpose_kernel=True,
    )


def _lax_groups(layer: LayerSpec) -> Apply:
    r = layer.rank
    image = (0, r + 1, *range(1, r + 1))
    numbers = jax.lax.ConvDimensionNumbers(image, (r, r + 1, *range(r)), image)
    ends = zip(layer.kernel_size, layer.geometry.pads, strict=True)
    padding = [(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in ends]

    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            _groups_of_filters(kernel, layer),
            window_strides=(1,) * r,
            padding=padding,
            lhs_dilation=layer.strides,
            feature_group_count=layer.groups,
            dimension_numbers=numbers,
        )

    return apply


def _groups_of_filters(kernel: Any, layer: LayerSpec) -> Any:
    """The flipped kernel of groups, `(*kernel_size, filters, c_in // groups)`."""
    r = layer.rank
    kernel = kernel.reshape(*kernel.shape[: r + 1], layer.groups, -1)
    flipped = kernel[(slice(None, None, -1),) * r].swapaxes(r, r + 1)
    return flipped.reshape(*layer.kernel_size, layer.filters, -1)


def equinox_layer(layer: LayerSpec, dtype: str) -> Apply:
    """That of Equinox, which is for one example and has channels first."""
    import equinox as eqx

    module = eqx.nn.ConvTranspose(
        layer.rank,
        layer.input_shape[-1],
        layer.filters,
        layer.kernel_size,
        layer.strides,
        layer.padding.upper(),
        groups=layer.groups,
        use_bias=False,
        key=jax.random.key(0),
    )
    return lambda x, kernel: jax.vmap(eqx.tree_at(lambda m: m.weight, module, kernel))(x)


def _equinox_input(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def equinox_task(layer: LayerSpec, data: Data, dtype: str) -> Task:
    """Equinox's task: kernels are `(filters, c_in // groups, *kernel_size)`, and not flipped."""

    def arranged(kernel: np.ndarray) -> np.ndarray:
        return np.moveaxis(_groups_of_filters(kernel, layer), (-2, -1), (0, 1))

    arrange = (_equinox_input, arranged)
    return task(equinox_layer, layer, data, dtype, arrange=arrange, channel_axis=1)


@functools.cache
def import_keras() -> Any:
    """Keras, on JAX unless it was imported before."""
    os.environ["KERAS_BACKEND"] = "jax"  # read when it is first imported
    import keras

    return keras


def keras_obstacle() -> str | None:
    """Why Keras cannot take part although it is installed, or None."""
    backend = import_keras().backend.backend()
    return None if backend == "jax" else f"it was already imported, with the backend {backend}"


def keras_layer(layer: LayerSpec, dtype: str) -> Apply:
    """That of Keras, without its state."""
    layers = import_keras().layers
    classes = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
    module = classes[layer.rank - 1](
        layer.filters,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        data_format="channels_last",
        use_bias=False,
        dtype=dtype,
    )
    module.build(layer.input_shape)
    return lambda x, kernel: module.stateless_call([kernel], [], x)[0]
