"""Layers of other libraries and their weights as ours, and ours as theirs: the same numbers.

`from_` functions give `(module, variables)`, a layer of `upconv.linen` and what it computes
with; `to_` functions give `(config, weights)`, the arguments of the other library's constructor
and what its layer is then to be given. Where there is a pair of them, each takes what the other
gives::

    module, variables = from_torch(torch.nn.ConvTranspose2d(3, 4, 5))
    config, weights = to_torch(module, variables)
    module, variables = from_torch(config, weights)  # does not need torch

Layers of `upconv.nnx` come in by `from_nnx` and go out by `to_nnx`:
`to_nnx(*from_torch(layer))`, `to_keras(*from_nnx(layer))`.

Arrays keep their bits: axes are put in another order and kernels are flipped, nothing is computed.
What one library has and the other has not is a ValueError that names the argument, so that nothing
is lost unseen. `drop=("kernel_regularizer",)` says that an argument may be lost; then the rest is
converted, and what comes out lacks what was dropped. Never dropped without a word, but not carried
either, because they belong to neither what a layer computes nor how it is trained: `lowering`;
initializers, from and to PyTorch, Flax and ONNX; names where one of the two has none; and seeds.
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
