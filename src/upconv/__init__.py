"""The transposed-convolution layer that JAX lacks.

`conv_transpose` and `conv` are the pure functions; `upconv.linen` and `upconv.nnx` wrap them in
layers, `upconv.transforms` carries out what the layers declare. Submodules are loaded when they
are first used, so that none costs those who use another.
"""

import importlib
from typing import Any

from upconv.functional import conv, conv_transpose, output_shape

__version__ = "0.1.0"
__all__ = ["conv", "conv_transpose", "output_shape", "penalty"]

_SUBMODULES = (
    "activations",
    "constraints",
    "initializers",
    "interop",
    "lax",
    "linen",
    "nnx",
    "regularizers",
    "serialization",
    "transforms",
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"upconv.{name}")
    if name == "penalty":
        return importlib.import_module("upconv.transforms").penalty
    raise AttributeError(f"module 'upconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *_SUBMODULES, "penalty"))
