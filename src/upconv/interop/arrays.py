"""Arrays of one library as those of another: the same bits, perhaps in another order."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upconv.errors import type_name


def to_jax(name: str, value: Any) -> jax.Array:
    """The same bits on a device; raises a ValueError where JAX would round them."""
    value = np.asarray(value)
    array = jnp.asarray(value)
    if array.dtype != value.dtype:
        raise ValueError(
            f"{name} must have a dtype that JAX keeps, got {value.dtype}: set jax_enable_x64, or "
            "convert the layer first"
        )
    return array


def to_torch(value: np.ndarray, dtype: Any) -> Any:
    """The same bits in a tensor of its own, of this dtype of torch's."""
    import torch

    value = np.array(value, order="C")
    if dtype == torch.bfloat16:  # torch does not know numpy's
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def to_numpy(name: str, value: Any) -> np.ndarray:
    """The same bits in numpy, also of a tensor.

    Raises:
      TypeError: for what holds no numbers.
      ValueError: for a tensor without numbers, with some that numpy does not have, or which is not
        dense.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} must be a concrete array, got one that JAX traces, of shape {value.shape}: "
            "convert outside of jax.jit, jax.eval_shape and other transformations"
        )
    package = type(value).__module__.partition(".")[0]
    if package == "onnx" and type(value).__name__ == "TensorProto":
        return sys.modules["onnx"].numpy_helper.to_array(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_tensor(name, value)
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"{name} must be an array of numbers, got {type_name(value)}")
    return array


def _from_tensor(name: str, value: Any) -> np.ndarray:
    import torch

    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on torch's device 'meta'")
    try:
        plain = value.detach().cpu().resolve_conj().resolve_neg()
        if value.dtype == torch.bfloat16:
            return plain.view(torch.int16).numpy().view(jnp.bfloat16)
        return plain.numpy()
    except (TypeError, RuntimeError, ValueError) as error:  # of float8, or sparse, for one
        raise ValueError(
            f"{name} must be a dense tensor with numbers, of bfloat16 or a dtype of numpy's, got a "
            f"{type(value).__name__} of {value.dtype}: {error}"
        ) from error


def channels_to_end(kernel: np.ndarray) -> np.ndarray:
    """Our kernel from PyTorch's and ONNX's, of shape `(c_in, filters // groups, *kernel_size)`."""
    return kernel.transpose(*range(2, kernel.ndim), 1, 0)


def channels_to_front(kernel: np.ndarray) -> np.ndarray:
    """PyTorch's kernel from ours, of shape `(*kernel_size, filters // groups, c_in)`."""
    return kernel.transpose(-1, -2, *range(kernel.ndim - 2))
