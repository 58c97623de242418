"""Bad input is refused before anything is traced, by an error that says what is wrong.

Every message names the argument and what was received.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import upconv

X, KERNEL, Y = (2, 5, 4, 3), (3, 2, 6, 3), (2, 5, 4, 6)

# Arguments that both `conv_transpose` and `conv` and `output_shape` take; the error; its words.
SHARED: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"strides": 0}, ValueError, ["strides", "0"]),
    ({"strides": (2, -1)}, ValueError, ["strides", "-1"]),
    ({"strides": (2,)}, ValueError, ["strides", "(2,)", "2"]),
    ({"strides": [1, 2, 3]}, ValueError, ["strides", "[1, 2, 3]", "2"]),
    ({"strides": ()}, ValueError, ["strides", "()"]),
    ({"strides": 2.0}, TypeError, ["strides", "2.0"]),
    ({"strides": (2, 1.5)}, TypeError, ["strides", "1.5"]),
    ({"strides": True}, TypeError, ["strides", "True"]),
    ({"strides": (True, 2)}, TypeError, ["strides", "True"]),
    ({"strides": "2"}, TypeError, ["strides", "'2'"]),
    ({"strides": None}, TypeError, ["strides", "None"]),
    ({"dilation_rate": 0}, ValueError, ["dilation_rate", "0"]),
    ({"dilation_rate": (1, -2)}, ValueError, ["dilation_rate", "-2"]),
    ({"dilation_rate": (1, 2, 3)}, ValueError, ["dilation_rate", "(1, 2, 3)", "2"]),
    ({"dilation_rate": 1.0}, TypeError, ["dilation_rate", "1.0"]),
    ({"dilation_rate": False}, TypeError, ["dilation_rate", "False"]),
    ({"padding": "full"}, ValueError, ["padding", "'full'", "same", "valid", "circular"]),
    ({"padding": ""}, ValueError, ["padding", "''"]),
    ({"padding": None}, TypeError, ["padding", "None"]),
    ({"padding": 1.0}, TypeError, ["padding", "1.0"]),
    ({"padding": True}, TypeError, ["padding", "True"]),
    ({"padding": (1,)}, ValueError, ["padding", "(1,)", "2"]),
    ({"padding": (1, 1, 1)}, ValueError, ["padding", "(1, 1, 1)"]),
    ({"padding": ((1, 1),)}, ValueError, ["padding", "((1, 1),)"]),
    ({"padding": ((1, 1), (1,))}, ValueError, ["padding", "(1,)"]),
    ({"padding": ((1, 1), (1, 2, 3))}, ValueError, ["padding", "(1, 2, 3)"]),
    ({"padding": ((1, 1), (1, 2.0))}, TypeError, ["padding", "2.0"]),
    ({"padding": ("same", "valid")}, TypeError, ["padding", "'same'"]),
    ({"padding": ((True, 0), (0, 0))}, TypeError, ["padding", "True"]),
    ({"groups": 0}, ValueError, ["groups", "0"]),
    ({"groups": -1}, ValueError, ["groups", "-1"]),
    ({"groups": 1.0}, TypeError, ["groups", "1.0"]),
    ({"groups": True}, TypeError, ["groups", "True"]),
    ({"groups": (1, 1)}, TypeError, ["groups", "(1, 1)"]),
    ({"data_format": "NHWC"}, ValueError, ["data_format", "'NHWC'", "channels_last"]),
    ({"data_format": None}, TypeError, ["data_format", "None"]),
    ({"data_format": 1}, TypeError, ["data_format", "1"]),
]

# Of `conv_transpose` and `output_shape`.
OUTPUT: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"output_padding": 1}, ValueError, ["output_padding", "1"]),
    ({"output_padding": 2, "strides": 2}, ValueError, ["output_padding", "2"]),
    ({"output_padding": (0, 3), "strides": (4, 3)}, ValueError, ["output_padding", "3"]),
    ({"output_padding": 3, "strides": 2, "dilation_rate": 3}, ValueError, ["output_padding", "3"]),
    ({"output_padding": -1, "strides": 2}, ValueError, ["output_padding", "-1"]),
    ({"output_padding": (0,), "strides": 2}, ValueError, ["output_padding", "(0,)"]),
    ({"output_padding": 1.0, "strides": 2}, TypeError, ["output_padding", "1.0"]),
    ({"output_padding": True, "strides": 2}, TypeError, ["output_padding", "True"]),
    ({"output_padding": "same", "strides": 2}, TypeError, ["output_padding", "'same'"]),
    (
        {"output_padding": 1, "strides": 2, "padding": "causal"},
        ValueError,
        ["output_padding", "causal", "1"],
    ),
    (
        {"output_padding": 0, "strides": 2, "padding": "circular"},
        ValueError,
        ["output_padding", "circular", "0"],
    ),
    ({"output_size": 3, "padding": "same"}, ValueError, ["output_size", "3"]),
    ({"output_size": (10, 9), "strides": 2, "padding": "same"}, ValueError, ["output_size", "9"]),
    ({"output_size": (10, 5), "strides": 2, "padding": "same"}, ValueError, ["output_size", "5"]),
    ({"output_size": (13, 8), "strides": 2}, ValueError, ["output_size", "13"]),
    ({"output_size": (10, 8), "strides": 2}, ValueError, ["output_size", "10"]),
    ({"output_size": (10, 7), "strides": 2, "padding": "causal"}, ValueError, ["output_size", "7"]),
    (
        {"output_size": (9, 8), "strides": 2, "padding": "circular"},
        ValueError,
        ["output_size", "9"],
    ),
    ({"output_size": 0}, ValueError, ["output_size", "0"]),
    ({"output_size": (7,)}, ValueError, ["output_size", "(7,)"]),
    ({"output_size": 7.0}, TypeError, ["output_size", "7.0"]),
    ({"output_size": True}, TypeError, ["output_size", "True"]),
    (
        {"output_size": (12, 8), "output_padding": 1, "strides": 2},
        ValueError,
        ["output_size", "output_padding", "(12, 8)"],
    ),
    ({"padding": 4}, ValueError, ["padding", "4", "output"]),
    ({"padding": ((0, 0), (2, 3))}, ValueError, ["padding", "output"]),
]

# Of `conv_transpose` and `conv`.
COMPUTED: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"lowering": "fft"}, ValueError, ["lowering", "'fft'", "auto", "subpixel", "matmul", "lax"]),
    ({"lowering": None}, (TypeError, ValueError), ["lowering", "None"]),
    ({"lowering": 1}, (TypeError, ValueError), ["lowering", "1"]),
    ({"precision": "exact"}, ValueError, ["precision", "exact"]),
    (
        {"preferred_element_type": "float31"},
        (TypeError, ValueError),
        ["preferred_element_type", "float31"],
    ),
    ({"preferred_element_type": object()}, (TypeError, ValueError), ["preferred_element_type"]),
]

# Shapes of x and kernel, other arguments.
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], list[str]]] = [
    # the rank of the kernel says how many axes there are: 1, 2 or 3
    (X, (3, 6), {}, ["kernel", "(3, 6)"]),
    (X, (3,), {}, ["kernel", "(3,)"]),
    (X, (), {}, ["kernel", "()"]),
    ((2, 3, 3, 3, 3, 3), (1, 1, 1, 1, 6, 3), {}, ["kernel", "(1, 1, 1, 1, 6, 3)"]),
    # and x must have them all
    ((5, 3), KERNEL, {}, ["x", "(5, 3)"]),
    ((3,), (2, 6, 3), {}, ["x", "(3,)"]),
    # channels
    ((2, 5, 4, 7), KERNEL, {}, ["x", "kernel", "7", "3"]),
    ((2, 5, 4, 3), KERNEL, {"data_format": "channels_first"}, ["x", "kernel", "5", "3"]),
    (X, KERNEL, {"groups": 2}, ["groups", "2", "3"]),
    ((2, 5, 4, 4), (3, 2, 6, 4), {"groups": 3}, ["groups", "3", "4"]),
    ((2, 5, 4, 0), (3, 2, 6, 0), {}, ["kernel", "(3, 2, 6, 0)"]),
    (X, (3, 2, 0, 3), {}, ["kernel", "(3, 2, 0, 3)"]),
    # empty axes: of the kernel and of the image
    (X, (0, 2, 6, 3), {}, ["kernel", "0"]),
    ((2, 0, 4, 3), KERNEL, {}, ["input", "0"]),
    ((2, 5, 0, 3), KERNEL, {}, ["input", "0"]),
]

Call = Callable[..., Any]


def floats(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def names(error: pytest.ExceptionInfo[Exception], words: list[str]) -> None:
    """Every word stands in the message, by itself."""
    message = str(error.value)
    for word in words:
        start, end = (
            r"(?<![\w.])" if word[:1].isalnum() else "",
            r"(?!\w)" if word[-1:].isalnum() else "",
        )
        assert re.search(start + re.escape(word) + end, message), f"{word!r} is not in: {message}"


def ids(row: Any) -> str:
    return re.sub(r"0x\w+", "", str(row)) if isinstance(row, dict) else ""


@pytest.mark.parametrize(("arguments", "error", "words"), SHARED + OUTPUT + COMPUTED, ids=ids)
def test_conv_transpose(arguments: dict[str, Any], error: Any, words: list[str]) -> None:
    with pytest.raises(error) as info:
        upconv.conv_transpose(floats(X), floats(KERNEL), **arguments)
    names(info, words)


@pytest.mark.parametrize(("arguments", "error", "words"), SHARED + COMPUTED, ids=ids)
def test_conv(arguments: dict[str, Any], error: Any, words: list[str]) -> None:
    with pytest.raises(error) as info:
        upconv.conv(floats(Y), floats(KERNEL), **arguments)
    names(info, words)


@pytest.mark.parametrize(("arguments", "error", "words"), SHARED + OUTPUT, ids=ids)
def test_output_shape(arguments: dict[str, Any], error: Any, words: list[str]) -> None:
    with pytest.raises(error) as info:
        upconv.output_shape(X, 6, (3, 2), **arguments)
    names(info, words)


@pytest.mark.parametrize(("x", "kernel", "arguments", "words"), SHAPES, ids=str)
def test_shapes(
    x: tuple[int, ...], kernel: tuple[int, ...], arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError) as info:
        upconv.conv_transpose(floats(x), floats(kernel), **arguments)
    names(info, words)


@pytest.mark.parametrize("lowering", ["auto", "input_dilation", "subpixel", "matmul", "lax"])
def test_before_tracing(lowering: str) -> None:
    """Under a transformation the same error comes out, and nothing has been computed for it."""
    x, kernel = floats((2, 5, 4, 7)), floats(KERNEL)
    for transform in (jax.jit, jax.grad, lambda f: jax.vmap(f, (0, None))):
        f = transform(lambda x, w: jnp.sum(upconv.conv_transpose(x, w, lowering=lowering)))
        with pytest.raises(ValueError, match="channels"):
            f(x, kernel)


@pytest.mark.parametrize(
    ("y", "kernel", "arguments", "words"),
    [
        (Y, (3, 6), {}, ["kernel", "(3, 6)"]),
        (Y, (1, 1, 1, 1, 6, 3), {}, ["kernel", "(1, 1, 1, 1, 6, 3)"]),
        ((4, 6), KERNEL, {}, ["y", "(4, 6)"]),
        ((2, 5, 4, 7), KERNEL, {}, ["y", "kernel", "7", "6"]),
        (Y, KERNEL, {"data_format": "channels_first"}, ["y", "kernel", "5", "6"]),
        (Y, KERNEL, {"groups": 2}, ["groups", "2"]),
        ((2, 0, 4, 6), KERNEL, {}, ["input", "0"]),
        ((2, 2, 4, 6), KERNEL, {}, ["output", "kernel"]),
        ((2, 5, 4, 6), KERNEL, {"dilation_rate": 5}, ["output", "kernel"]),
        (Y, KERNEL, {"padding": "circular", "strides": 2}, ["circular", "2", "5"]),
        (Y, (0, 2, 6, 3), {}, ["kernel", "0"]),
    ],
    ids=str,
)
def test_shapes_of_conv(
    y: tuple[int, ...], kernel: tuple[int, ...], arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError) as info:
        upconv.conv(floats(y), floats(kernel), **arguments)
    names(info, words)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (((2, 5, 4, 3), 0, 3), ValueError, ["filters", "0"]),
        (((2, 5, 4, 3), -4, 3), ValueError, ["filters", "-4"]),
        (((2, 5, 4, 3), 4.0, 3), TypeError, ["filters", "4.0"]),
        (((2, 5, 4, 3), True, 3), TypeError, ["filters", "True"]),
        (((2, 5, 4, 3), 4, 0), ValueError, ["kernel_size", "0"]),
        (((2, 5, 4, 3), 4, (3, -1)), ValueError, ["kernel_size", "-1"]),
        (((2, 5, 4, 3), 4, (3, 2.0)), TypeError, ["kernel_size", "2.0"]),
        (((2, 5, 4, 3), 4, ()), ValueError, ["kernel_size", "()"]),
        (((2, 5, 4, 3), 4, (1, 1, 1, 1)), ValueError, ["kernel_size", "(1, 1, 1, 1)"]),
        (((2, 5, 4, 3), 4, "3"), TypeError, ["kernel_size", "'3'"]),
        (((2, 5, 4, 3), 4, 3.0), TypeError, ["kernel_size", "3.0"]),
        (((2, 5, 4, 3), 4, True), TypeError, ["kernel_size", "True"]),
        (((2, 5, 4, 3), 4, None), TypeError, ["kernel_size", "None"]),
        ((7, 4, 3), TypeError, ["input_shape", "7"]),
        (((2, 5.0, 4, 3), 4, 3), TypeError, ["input_shape", "5.0"]),
        (((2, 5, 4, 0), 4, 3), ValueError, ["input_shape", "(2, 5, 4, 0)"]),
        (((4, 3), 4, (3, 3)), ValueError, ["input_shape", "(4, 3)"]),
        (((4, 3), 4, 3), ValueError, ["input_shape", "(4, 3)"]),
        (((2, 2, 2, 2, 2, 2, 3), 4, 3), ValueError, ["(2, 2, 2, 2, 2, 2, 3)"]),
        (((2, 0, 4, 3), 4, 3), ValueError, ["input", "0"]),
    ],
    ids=str,
)
def test_arguments_of_output_shape(
    arguments: tuple[Any, ...], error: Any, words: list[str]
) -> None:
    with pytest.raises(error) as info:
        upconv.output_shape(*arguments)
    names(info, words)


@pytest.mark.parametrize("groups", [2, 4])
def test_filters_that_the_groups_do_not_divide(groups: int) -> None:
    with pytest.raises(ValueError) as info:
        upconv.output_shape((2, 5, 4, 8), 9, 3, groups=groups)
    names(info, ["groups", str(groups), "9"])


def test_sizes_are_keywords() -> None:
    with pytest.raises(TypeError):
        upconv.conv_transpose(floats(X), floats(KERNEL), 2)  # type: ignore[misc]
    with pytest.raises(TypeError):
        upconv.conv(floats(Y), floats(KERNEL), 2)  # type: ignore[misc]
    with pytest.raises(TypeError, match="output_padding"):
        upconv.conv(floats(Y), floats(KERNEL), output_padding=1)  # type: ignore[call-arg]


def test_integers_of_numpy_are_integers() -> None:
    y = upconv.conv_transpose(
        floats(X), floats(KERNEL), strides=np.int64(2), padding=(np.int32(1), (0, np.uint8(1)))
    )
    assert y.shape == (2, 9, 7, 6)
    assert upconv.output_shape(X, np.int64(6), np.int64(3), groups=np.int32(3)) == (2, 7, 6, 6)


@pytest.mark.parametrize("x", ["image", None, object()], ids=["str", "None", "object"])
def test_what_is_no_array(x: Any) -> None:
    with pytest.raises(TypeError):
        upconv.conv_transpose(x, floats(KERNEL))
    with pytest.raises(TypeError):
        upconv.conv_transpose(floats(X), x)
