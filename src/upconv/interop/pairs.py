"""A layer of ours with its variables, what every conversion returns or takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.core import meta

from upconv import geometry, linen
from upconv.errors import type_name
from upconv.interop import arguments, arrays
from upconv.layer import LONG, collection

LinenLayer = linen.Conv1DTranspose | linen.Conv2DTranspose | linen.Conv3DTranspose
Pair = tuple[LinenLayer, dict[str, Any]]

# By number of spatial axes.
LAYERS: dict[int, type[LinenLayer]] = {
    1: linen.Conv1DTranspose,
    2: linen.Conv2DTranspose,
    3: linen.Conv3DTranspose,
}


def make(kernel: np.ndarray, bias: np.ndarray | None, **options: Any) -> Pair:
    """Our layer for a kernel `(*kernel_size, filters // groups, c_in)`, and its variables."""
    groups = geometry.integer("groups", options.get("groups", 1), minimum=1)
    *kernel_size, filters, c_in = kernel.shape
    if c_in % groups:
        raise ValueError(f"groups must divide the {c_in} input channels, got {groups}")
    filters *= groups
    options["groups"] = groups
    module = LAYERS[len(kernel_size)](
        filters,
        tuple(kernel_size),
        use_bias=bias is not None,
        param_dtype=jnp.dtype(kernel.dtype),
        **options,
    )
    parameters = {"kernel": arrays.to_jax("kernel", kernel)}
    if bias is not None:
        if bias.shape != (filters,):
            raise ValueError(f"bias must have the shape ({filters},), got {bias.shape}")
        parameters["bias"] = arrays.to_jax("bias", bias)
    return module, {collection(module.trainable): parameters}


def take_apart(module: Any, variables: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Kernel and bias of our layer, once they are seen to be its own."""
    if type(module) not in LAYERS.values():
        raise TypeError(
            "module must be a Conv1DTranspose, Conv2DTranspose or Conv3DTranspose of "
            f"upconv.linen, got {type_name(module)}; from_flax converts a "
            "ConvTranspose, from_nnx the other layers of upconv.nnx"
        )
    home = collection(module.trainable)
    if home not in arguments.mapping("variables", variables):
        raise ValueError(f"variables must have {home!r}, got {sorted(variables)}")
    found = arguments.mapping(f"variables[{home!r}]", meta.unbox(variables[home]))
    names = ["kernel", "bias"] if module.use_bias else ["kernel"]
    arguments.check_parameters("variables", found, names)
    kernel, bias = kernel_and_bias([found[name] for name in names], names)
    check_shapes(module, kernel, bias)
    return kernel, bias


def check_shapes(module: Any, kernel: Any, bias: Any | None) -> None:
    """Raises a ValueError unless these arrays are of the sizes that our layer has."""
    channels = (module.filters // module.groups, kernel.shape[-1] if kernel.ndim else 0)
    for name, array, shape in (
        ("kernel", kernel, (*module.kernel_size, *channels)),
        ("bias", bias, (module.filters,)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")


def crops(module: Any, peer: str, **changes: Any) -> geometry.Pads:
    """How much our layer crops at both ends of the full output, whatever the size of its input.

    Zeros that it adds instead count as negative.
    """
    names = ("strides", "padding", "output_padding", "dilation_rate")
    options = {name: getattr(module, name) for name in names} | changes
    if options["padding"] == "circular":
        raise ValueError(f"padding='circular' is not in {peer}")
    long = (LONG,) * module.rank
    return geometry.transposed(long, module.kernel_size, **options).pads


def span(module: Any) -> tuple[int, ...]:
    """How many pixels our layer's dilated kernel spans, per spatial axis."""
    return tuple(map(geometry.dilated, module.kernel_size, module.dilation_rate))


def kernel_and_bias(
    weights: Sequence[Any], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The weights of any library as arrays of numpy, once they are seen to have one dtype.

    Args:
      weights: the kernel, and the bias if there is one.
      names: what the caller calls each.
    """
    found = [arrays.to_numpy(name, value) for name, value in zip(names, weights, strict=True)]
    for name, array in zip(names, found, strict=True):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must have a floating-point dtype, got {array.dtype}")
        if array.dtype != found[0].dtype:
            raise ValueError(
                f"{' and '.join(names)} must have one dtype, got {found[0].dtype} and {array.dtype}"
            )
    return found[0], found[1] if len(found) > 1 else None


def rank(name: str, kernel: np.ndarray) -> int:
    """The number of a kernel's spatial axes, if it has 1 to 3 of them."""
    spatial = kernel.ndim - 2
    if not 1 <= spatial <= 3:
        raise ValueError(f"{name} must have 1 to 3 spatial axes and two more, got {kernel.shape}")
    return spatial
