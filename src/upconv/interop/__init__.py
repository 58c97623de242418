"""Layers of other libraries and their weights as ours, and ours as theirs: the same numbers.

`from_` functions return `(module, variables)`, a layer of `upconv.linen` and its variables; `to_`
functions return `(config, weights)`, the arguments of the other library's constructor and what to
load into the layer that it makes. Where there are both, each takes what the other returns::

    module, variables = from_torch(torch.nn.ConvTranspose2d(3, 4, 5))
    config, weights = to_torch(module, variables)
    module, variables = from_torch(config, weights)  # does not need torch

Layers of `upconv.nnx` come in by `from_nnx` and go out by `to_nnx`:
`to_nnx(*from_torch(layer))`, `to_keras(*from_nnx(layer))`.

Arrays keep their bits: axes are put in another order and kernels are flipped, but nothing is
computed. They must be concrete: under `jax.jit` or `jax.eval_shape` a conversion is a TypeError.
Whatever one library has and the other lacks raises a ValueError that names the argument,
so that no part of what a layer computes, or of how it is trained, is lost unseen.
`drop=("kernel_regularizer",)` allows an argument to be lost; the rest is then converted without it.
Some things are left out silently: `lowering`; initializers, from and to PyTorch, Flax and ONNX;
names, from ONNX and where one of the two has none; seeds, devices and input shapes; what Flax keeps
beside an array, boxes such as `nn.Partitioned` and the metadata of nnx's variables.
"""

from upconv.interop.flax import from_flax, to_flax
from upconv.interop.keras import from_keras, to_keras
from upconv.interop.nnx import from_nnx, to_nnx
from upconv.interop.onnx import from_onnx
from upconv.interop.torch import from_torch, to_torch

__all__ = [
    "from_flax",
    "from_keras",
    "from_nnx",
    "from_onnx",
    "from_torch",
    "to_flax",
    "to_keras",
    "to_nnx",
    "to_torch",
]
