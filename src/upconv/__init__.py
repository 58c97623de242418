"""The transposed convolution that JAX lacks."""

from upconv.functional import conv, conv_transpose, output_shape

__all__ = ["conv", "conv_transpose", "output_shape"]
