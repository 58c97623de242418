"""The operator `ConvTranspose` of ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upconv import geometry
from upconv.interop import arrays, pairs
from upconv.interop.pairs import Pair

_ONNX = (
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "pads",
    "strides",
)


def from_onnx(
    node: Any, weights: Sequence[Any], input_shape: Sequence[int | None] | None = None
) -> Pair:
    """ONNX's operator `ConvTranspose` as a layer of `upconv.linen`.

    ONNX crops `total = F + output_padding - output` pixels of the full output, whose length is
    `F`. `SAME_UPPER` takes `total // 2` of them from the start, everything else the rest of
    that. A negative total adds zeros, with `SAME_UPPER` and `SAME_LOWER` by the same formula
    and otherwise at the end, as the reference evaluator of the package `onnx` does. (ONNX Runtime
    adds none where the kernel is shorter than the stride: its outputs are shorter there than
    `input * stride`, which the standard says they are.)

    Args:
      node: an `onnx.NodeProto`, or its attributes as a dictionary.
      weights: the inputs `W`, of shape `(c_in, c_out // group, *kernel_shape)`, and `B` if
        there is one.
      input_shape: the shape of `X`, `(batch, c_in, *spatial)`. Only where `output_shape` is
        given does the layer depend on it, and is it the right one for inputs of this size alone.

    Returns:
      `(module, variables)`. The module is `channels_first`.

    Raises:
      TypeError: if an attribute has the wrong type.
      ValueError: for an operator that is not `ConvTranspose`, an attribute that is unknown or
        does not fit the others or the weights, or an `output_shape` without `input_shape`.

    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> weights = [np.ones((3, 4, 5, 5), np.float32)]
    >>> module, variables = from_onnx({"strides": [2, 2], "auto_pad": "SAME_UPPER"}, weights)
    >>> module.apply(variables, jnp.ones((1, 3, 8, 6))).shape
    (1, 4, 16, 12)
    """
    attributes = _onnx_attributes(node)
    if not 1 <= len(weights) <= 2:
        raise ValueError(f"weights must be [W] or [W, B], got {len(weights)} arrays")
    kernel, bias = pairs.kernel_and_bias(weights, use_bias=len(weights) == 2)
    rank = pairs.rank("W", kernel)
    size = kernel.shape[2:]
    given = tuple(attributes.get("kernel_shape", size))
    if given != size:
        raise ValueError(f"kernel_shape must be that of W, {size}, got {given}")

    def per_axis(name: str, default: int, minimum: int) -> tuple[int, ...]:
        return geometry.per_axis(
            name, attributes.get(name, (default,) * rank), rank, minimum=minimum
        )

    strides, dilation = per_axis("strides", 1, 1), per_axis("dilations", 1, 1)
    output_padding = per_axis("output_padding", 0, 0)
    auto_pad = attributes.get("auto_pad", "NOTSET")
    options: dict[str, Any] = {}
    if "output_shape" in attributes:
        if input_shape is None or len(input_shape) != rank + 2:
            raise ValueError(
                f"input_shape must be (batch, c_in, *spatial) with {rank} spatial axes, as "
                f"output_shape is given, got {input_shape!r}"
            )
        spatial = geometry.per_axis("input_shape", input_shape[2:], rank)
        outputs = per_axis("output_shape", 0, 1)
        lengths = zip(spatial, outputs, strides, strict=True)
        excess = [(n - 1) * s - out for n, out, s in lengths]  # of F over the output, less K
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        excess = [-s for s in strides]
    else:
        pads = geometry.per_axis(
            "pads", attributes.get("pads", (0,) * 2 * rank), 2 * rank, minimum=0
        )
        options["padding"] = tuple(zip(pads[:rank], pads[rank:], strict=True))
        options["output_padding"] = output_padding
    if not options:
        span = map(geometry.dilated, size, dilation)
        options["padding"] = tuple(
            _onnx_crop(e + k, p, auto_pad)
            for e, k, p in zip(excess, span, output_padding, strict=True)
        )
    return pairs.make(
        arrays.channels_to_end(kernel),
        bias,
        strides=strides,
        dilation_rate=dilation,
        groups=attributes.get("group", 1),
        data_format="channels_first",
        **options,
    )


def _onnx_crop(excess: int, output_padding: int, auto_pad: str) -> tuple[int, int]:
    """What ONNX crops at both ends of a full output which is longer than the output by `excess`."""
    total = excess + output_padding
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    half = total // 2 if same or total > 0 else total
    start = half if auto_pad == "SAME_UPPER" else total - half
    return start, excess - start


def _onnx_attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node, or those given, checked for what they are called."""
    if isinstance(node, Mapping):
        attributes = dict(node)
    elif hasattr(node, "op_type"):
        if node.op_type != "ConvTranspose":
            raise ValueError(f"node must be a ConvTranspose, got {node.op_type!r}")
        # A protocol buffer has a field for each type that an attribute may have.
        fields = {2: "i", 3: "s", 7: "ints"}
        attributes = {a.name: getattr(a, fields.get(a.type, "ints")) for a in node.attribute}
    else:
        raise TypeError(f"node must be an onnx.NodeProto or a dictionary, got {node!r}")
    unknown = attributes.keys() - set(_ONNX)
    if unknown:
        raise ValueError(f"node has attributes that ConvTranspose has not: {sorted(unknown)}")
    attributes = {name: tuple(v) if _listed(v) else v for name, v in attributes.items()}
    auto_pad = attributes.get("auto_pad", "NOTSET")
    auto_pad = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
    if auto_pad not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        raise ValueError(
            f"auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID, got {auto_pad!r}"
        )
    if auto_pad != "NOTSET" and "pads" in attributes:
        raise ValueError(f"pads and auto_pad exclude each other, got auto_pad={auto_pad!r}")
    return {**attributes, "auto_pad": auto_pad}


def _listed(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)
