"""Transposed convolutions for JAX: those of `tf.layers` and Keras, with fast gradients.

`conv_transpose` and `conv` are the pure functions; `upconv.linen` and `upconv.nnx` wrap them in
layers, `upconv.transforms` carries out what the layers declare. Submodules are loaded when they
are first used, so that none costs those who use another.
"""

import importlib
from typing import TYPE_CHECKING

from upconv.functional import conv, conv_transpose, output_shape

if TYPE_CHECKING:
    from upconv import activations as activations
    from upconv import constraints as constraints
    from upconv import initializers as initializers
    from upconv import interop as interop
    from upconv import lax as lax
    from upconv import linen as linen
    from upconv import nnx as nnx
    from upconv import regularizers as regularizers
    from upconv import rules as rules
    from upconv import serialization as serialization
    from upconv import transforms as transforms
    from upconv.transforms import penalty as penalty

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
    "rules",
    "serialization",
    "transforms",
)

if not TYPE_CHECKING:  # with it, any misspelling would be an attribute

    def __getattr__(name):
        if name in _SUBMODULES:
            return importlib.import_module(f"upconv.{name}")
        if name == "penalty":
            return importlib.import_module("upconv.transforms").penalty
        hint = "; layers are in upconv.linen and upconv.nnx" if name.endswith("Transpose") else ""
        raise AttributeError(f"module 'upconv' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES, "__version__"})
