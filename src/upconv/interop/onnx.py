"""The operator `ConvTranspose` of ONNX, as its standard and its reference evaluator have it.

The kernel is PyTorch's, `(c_in, c_out // group, *kernel_shape)`, and so are the strides, dilations
and explicit pads, which say how much to crop. `SAME_UPPER`, `SAME_LOWER` and `output_shape` say how
long the output is instead, and halve what is to be cropped by rules of their own (the page
`docs/Operators.md` of the repository `onnx/onnx`; `onnx/reference/ops/op_conv_transpose.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upconv import geometry
from upconv.interop import arguments, arrays, pairs
from upconv.interop.pairs import Pair

_ATTRIBUTES = (
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "pads",
    "strides",
)
_SAME = ("SAME_UPPER", "SAME_LOWER")
_AUTO_PADS = ("NOTSET", *_SAME, "VALID")
# A protocol buffer has a field for each type that an attribute may have; of an integer, a string
# and integers, by the numbers in `onnx.AttributeProto.AttributeType`.
_ATTRIBUTE_FIELDS = {2: "i", 3: "s", 7: "ints"}
# Where ONNX's own operators are; others may have an operator of the same name.
_DOMAINS = ("", "ai.onnx")


def from_onnx(
    node: Any, weights: Sequence[Any], input_shape: Sequence[int | None] | None = None
) -> Pair:
    """Converts ONNX's operator `ConvTranspose` to a layer of `upconv.linen`.

    ONNX crops `total = F + output_padding - output` pixels of the full output, whose length is
    `F`. `SAME_UPPER` takes `total // 2` of them from the start, everything else the rest of
    that. A negative total adds zeros: with `SAME_UPPER` and `SAME_LOWER` by the same formula
    and otherwise at the end, as the reference evaluator of the package `onnx` does. (ONNX Runtime
    adds none where the kernel is shorter than the stride: its outputs are shorter there than
    `input * stride`, the length that the standard gives. With `SAME_UPPER` and an `output_shape`
    that exceeds the full output by an odd number, it adds the odd zero at the end.) Where
    `output_shape` is given, `pads` are ignored, as the standard says and against the reference
    evaluator, which uses them. The rule is that of version 11 and later of the operator, whose
    version a node does not tell; ONNX Runtime uses it for older models, too.

    Args:
      node: an `onnx.NodeProto`, or its attributes as a dictionary.
      weights: the inputs `W`, of shape `(c_in, c_out // group, *kernel_shape)`, and `B` if the
        node has one; each an array, or an `onnx.TensorProto`.
      input_shape: the shape of `X`, `(batch, c_in, *spatial)`. It is needed and read only where
        `output_shape` is given; the layer is then right for inputs of this size alone.

    Returns:
      `(module, variables)`. The module is `channels_first`.

    Raises:
      TypeError: if an attribute or an axis of `input_shape` has the wrong type, or `weights` are
        no list of arrays.
      ValueError: for an operator that is not ONNX's `ConvTranspose`, an attribute that is unknown,
        refers to one of a function, or does not fit the others or the weights, weights that are not
        the node's inputs after `X`, or an `output_shape` without an `input_shape` that fits.

    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> weights = [np.ones((3, 4, 5, 5), np.float32)]
    >>> module, variables = from_onnx({"strides": [2, 2], "auto_pad": "SAME_UPPER"}, weights)
    >>> module.apply(variables, jnp.ones((1, 3, 8, 6))).shape
    (1, 4, 16, 12)
    """
    attributes = _attributes(node)
    groups = geometry.integer("group", attributes.get("group", 1), minimum=1)
    if not 1 <= len(arguments.sequence("weights", weights)) <= 2:
        raise ValueError(f"weights must be [W] or [W, B], got {len(weights)} arrays")
    # A dictionary of attributes does not tell; an input that is left out has an empty name.
    inputs = None if isinstance(node, Mapping) else [name for name in node.input[1:] if name]
    if inputs is not None and len(weights) != len(inputs):
        raise ValueError(
            f"weights must be the node's inputs after X, {inputs}, got {len(weights)} arrays"
        )
    kernel, bias = pairs.kernel_and_bias(weights, ("W", "B")[: len(weights)])
    rank = pairs.rank("W", kernel)
    filters = kernel.shape[1] * groups
    if bias is not None and bias.shape != (filters,):
        raise ValueError(
            f"B must have the shape ({filters},), got {bias.shape}: weights are W and B, without X"
        )
    size = kernel.shape[2:]
    given = tuple(attributes.get("kernel_shape", size))
    if given != size:
        raise ValueError(f"kernel_shape must be that of W, {size}, got {given}")
    strides = _per_axis(attributes, "strides", rank, default=1)
    dilation = _per_axis(attributes, "dilations", rank, default=1)
    span = tuple(map(geometry.dilated, size, dilation))
    return pairs.make(
        arrays.channels_to_end(kernel),
        bias,
        strides=strides,
        dilation_rate=dilation,
        groups=groups,
        data_format="channels_first",
        **_padding(attributes, span, strides, kernel.shape[0], input_shape),
    )


def _padding(
    attributes: Mapping[str, Any],
    span: tuple[int, ...],
    strides: tuple[int, ...],
    c_in: int,
    input_shape: Sequence[int | None] | None,
) -> dict[str, Any]:
    """Our arguments for what the operator crops."""
    rank = len(span)
    output_padding = _per_axis(attributes, "output_padding", rank, default=0)
    auto_pad = attributes["auto_pad"]
    if "output_shape" in attributes:
        spatial = _spatial(input_shape, c_in, rank)
        outputs = _per_axis(attributes, "output_shape", rank, default=1)
        lengths = zip(spatial, outputs, strides, span, strict=True)
        excess = [geometry.full_length(n, k, s) - out for n, out, s, k in lengths]
    elif auto_pad in _SAME:
        excess = [k - s for k, s in zip(span, strides, strict=True)]
    else:
        pads = attributes.get("pads", (0,) * 2 * rank)
        if _listed(pads) and len(pads) != 2 * rank:
            raise ValueError(
                f"pads must be a start and an end per axis, {2 * rank} integers, got {pads}"
            )
        pads = geometry.per_axis("pads", pads, 2 * rank, minimum=0)
        crops = tuple(zip(pads[:rank], pads[rank:], strict=True))
        return {"padding": crops, "output_padding": output_padding}
    each = zip(excess, output_padding, strict=True)
    return {"padding": tuple(_crop(e, p, auto_pad) for e, p in each)}


def _crop(excess: int, output_padding: int, auto_pad: str) -> tuple[int, int]:
    """What ONNX crops at both ends of a full output which is longer than the output by `excess`."""
    total = excess + output_padding
    half = total // 2 if auto_pad in _SAME or total > 0 else total
    start = half if auto_pad == "SAME_UPPER" else total - half
    return start, excess - start


def _spatial(input_shape: Sequence[int | None] | None, c_in: int, rank: int) -> tuple[int, ...]:
    """The spatial axes of the input's shape, which must be given."""
    if input_shape is None or len(input_shape) != rank + 2 or input_shape[1] not in (None, c_in):
        raise ValueError(
            f"input_shape must be (batch, {c_in}, *spatial) with {rank} spatial axes, as "
            f"output_shape is given, got {input_shape!r}"
        )
    axes = range(2, rank + 2)
    return tuple(geometry.integer(f"input_shape[{i}]", input_shape[i], minimum=1) for i in axes)


def _per_axis(
    attributes: Mapping[str, Any], name: str, rank: int, *, default: int
) -> tuple[int, ...]:
    """An attribute with an integer for each spatial axis, of at least its default."""
    value = attributes.get(name, (default,) * rank)
    return geometry.per_axis(name, value, rank, minimum=default)


def _attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node, or those given, once `auto_pad` is seen to fit."""
    attributes = _read(node)
    attributes = {name: tuple(v) if _listed(v) else v for name, v in attributes.items()}
    auto_pad = attributes.get("auto_pad", "NOTSET")
    auto_pad = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
    if auto_pad not in _AUTO_PADS:
        raise ValueError(
            f"auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID, got {auto_pad!r}"
        )
    if auto_pad != "NOTSET" and "pads" in attributes:
        raise ValueError(f"pads and auto_pad exclude each other, got auto_pad={auto_pad!r}")
    return {**attributes, "auto_pad": auto_pad}


def _read(node: Any) -> dict[str, Any]:
    """The attributes by name, all of them known, as they stand in the node or the dictionary."""
    if isinstance(node, Mapping):
        return _known(dict(arguments.mapping("node", node)))
    if not hasattr(node, "op_type"):
        raise TypeError(f"node must be an onnx.NodeProto or a dictionary, got {node!r}")
    if node.op_type != "ConvTranspose" or node.domain not in _DOMAINS:
        of = f" of the domain {node.domain!r}" if node.domain else ""
        raise ValueError(f"node must be a ConvTranspose of ONNX's own, got {node.op_type!r}{of}")
    found = _known({attribute.name: attribute for attribute in node.attribute})
    return {name: _value(attribute) for name, attribute in found.items()}


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    unknown = attributes.keys() - set(_ATTRIBUTES)
    if unknown:
        raise ValueError(
            f"node has attributes that ConvTranspose lacks: {sorted(unknown)}"
            f"{arguments.meant(unknown, _ATTRIBUTES)}"
        )
    return attributes


def _value(attribute: Any) -> Any:
    """What a node's attribute holds."""
    if attribute.ref_attr_name:
        raise ValueError(
            f"{attribute.name} must stand in the node, got a reference to "
            f"{attribute.ref_attr_name!r} of the function that the node is in"
        )
    if attribute.type not in _ATTRIBUTE_FIELDS:
        raise ValueError(
            f"{attribute.name} must be an integer, integers or a string, got the type "
            f"{attribute.type} of onnx.AttributeProto"
        )
    return getattr(attribute, _ATTRIBUTE_FIELDS[attribute.type])


def _listed(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)
