"""Arrays of one library as those of another, bit by bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_jax(name: str, value: Any) -> jax.Array:
    """The same bits on a device."""
    value = np.asarray(value)
    array = jnp.asarray(value)
    if array.dtype != value.dtype:
        raise ValueError(
            f"{name} must have a dtype that JAX keeps, got {value.dtype}: set jax_enable_x64, or "
            "convert the layer first"
        )
    return array


def to_torch(value: np.ndarray, dtype: Any) -> Any:
    """The same bits as a tensor of torch."""
    import torch

    value = np.array(value, order="C")
    if dtype == torch.bfloat16:  # of which numpy's is not known there
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def to_numpy(value: Any) -> np.ndarray:
    """The same bits in numpy, of a tensor too."""
    if type(value).__module__.partition(".")[0] == "torch":
        import torch

        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(jnp.bfloat16)
        return value.numpy()
    return np.asarray(value)


def channels_to_end(kernel: np.ndarray) -> np.ndarray:
    """From PyTorch's and ONNX's `(c_in, filters // groups, *kernel_size)` to our order."""
    return kernel.transpose(*range(2, kernel.ndim), 1, 0)
