"""Bad input is refused before anything is traced, by an error that says what is wrong.

Every message names the argument and what was received.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx as flax_nnx

import upconv
from upconv import (
    activations,
    constraints,
    initializers,
    lax,
    linen,
    nnx,
    regularizers,
    transforms,
)
from upconv.layer import Layer
from upconv.rules import Rule

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
    ({"strides": np.array([2.0, 2.0])}, TypeError, ["strides[0]", "np.float64(2.0)"]),
    ({"strides": jax.ShapeDtypeStruct((2,), "int32")}, TypeError, ["strides", "ShapeDtypeStruct"]),
    ({"padding": np.array([[1, 1], [1, 1], [0, 0]])}, ValueError, ["padding", "2 entries"]),
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


def test_truth_values_are_no_numbers() -> None:
    truth = np.ones(X, bool), np.ones(KERNEL, bool)
    for x, kernel in (truth, (truth[0], floats(KERNEL)), (floats(X), truth[1])):
        with pytest.raises(TypeError, match="must hold numbers, got dtype bool"):
            upconv.conv_transpose(x, kernel)


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
        ((np.array([2, 5, 4, 0]), 4, 3), ValueError, ["input_shape", "(2, 5, 4, 0)"]),
        (((2, 5, 4, 3), 4, "3"), TypeError, ["kernel_size", "'3'"]),
        (((2, 5, 4, 3), 4, 3.0), TypeError, ["kernel_size", "3.0"]),
        (((2, 5, 4, 3), 4, True), TypeError, ["kernel_size", "True"]),
        (((2, 5, 4, 3), 4, None), TypeError, ["kernel_size", "None"]),
        ((7, 4, 3), TypeError, ["input_shape", "7"]),
        (((2, 5.0, 4, 3), 4, 3), TypeError, ["input_shape", "5.0"]),
        (((2, 5, 4, 0), 4, 3), ValueError, ["input_shape", "(2, 5, 4, 0)"]),
        (((2, 5, 4, -3), 4, 3), ValueError, ["input_shape", "(2, 5, 4, -3)"]),
        (((2, np.int64(0), 4, 3), 4, 3), ValueError, ["input", "0"]),
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


# ------------------------------------------------------------------ layers

# Arguments of the layers, for linen and nnx alike.
LAYER: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"filters": 0}, ValueError, "filters must be at least 1, got 0"),
    ({"filters": 2.0}, TypeError, "filters must be an integer, got 2.0"),
    ({"filters": True}, TypeError, "filters must be an integer, got True"),
    ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size must be .* got \(3, 3, 3\)"),
    ({"kernel_size": (3, 0)}, ValueError, r"kernel_size\[1\] must be at least 1, got 0"),
    ({"kernel_size": "3"}, TypeError, "kernel_size must be an integer, or one per .*, got '3'"),
    ({"strides": 0}, ValueError, "strides must be at least 1, got 0"),
    ({"strides": 1.5}, TypeError, "strides must be an integer, or one per .*, got 1.5"),
    ({"padding": "full"}, ValueError, "padding must be one of .*, got 'full'"),
    ({"padding": None}, TypeError, "padding"),
    ({"data_format": "NHWC"}, ValueError, "data_format must be one of .*, got 'NHWC'"),
    ({"data_format": 1}, TypeError, "data_format must be a string, got 1"),
    ({"activation": nn.PReLU}, TypeError, "activation must be an instance, got the class PReLU"),
    (
        {"kernel_constraint": constraints.MaxNorm},
        TypeError,
        "kernel_constraint must be an instance, got the class MaxNorm",
    ),
    (
        {"kernel_initializer": upconv.initializers.Normal},
        TypeError,
        "kernel_initializer must be an instance, got the class Normal",
    ),
    ({"activation": "__repr__"}, ValueError, "activation must be callable, .*got '__repr__'"),
    ({"activation": "rely"}, ValueError, "got 'rely' .did you mean 'relu'"),
    ({"activation": "_src"}, ValueError, "activation must be callable, .*got '_src'"),
    ({"activation": "initializers"}, ValueError, "activation must .*got 'initializers'"),
    ({"activation": 1}, TypeError, "activation must be callable, .*got 1"),
    ({"activation": "one_hot"}, TypeError, r"activation must take \(outputs\), got <.*one_hot"),
    (
        {"kernel_initializer": upconv.initializers.he_normal},
        TypeError,
        r"kernel_initializer must take \(key, shape, dtype\), got <.*he_normal.*; call it first",
    ),
    (
        {"bias_constraint": lambda w, axis: w},
        TypeError,
        r"bias_constraint must take \(parameter\), got <.*>$",
    ),
    ({"use_bias": None}, TypeError, "use_bias must be True or False, got None"),
    ({"trainable": 1}, TypeError, "trainable must be True or False, got 1"),
    (
        {"kernel_initializer": upconv.initializers.he_normal(strides=(2, 3))},
        ValueError,
        r"kernel_initializer must be for the layer's strides \(2, 2\), got Var.* strides=\(2, 3\)",
    ),
    (
        {"kernel_initializer": upconv.initializers.icnr(3)},
        ValueError,
        r"kernel_initializer must be for the layer's strides \(2, 2\), got ICNR\(strides=3",
    ),
    (
        {"kernel_initializer": upconv.initializers.icnr((2, 2, 2))},
        ValueError,
        "strides of kernel_initializer must be an integer or 2 integers",
    ),
    ({"activation": "linear"}, ValueError, "got 'linear' .did you mean None"),
    ({"activation": "ReLU"}, ValueError, "got 'ReLU' .did you mean 'relu'"),
    ({"kernel_initializer": "glorot"}, TypeError, "kernel_initializer must be callable or No"),
    ({"bias_initializer": 0.0}, TypeError, "bias_initializer must be callable or None, got 0"),
    ({"kernel_regularizer": 0.1}, TypeError, "kernel_regularizer must be callable or None"),
    ({"bias_regularizer": "l2"}, TypeError, "bias_regularizer must be callable or None"),
    ({"activity_regularizer": 1}, TypeError, "activity_regularizer must be callable or None"),
    ({"kernel_constraint": 2.0}, TypeError, "kernel_constraint must be callable or None"),
    ({"bias_constraint": ()}, TypeError, "bias_constraint must be callable or None"),
    ({"output_padding": 2}, ValueError, "output_padding must be .*below .* = 2 .*, got 2"),
    ({"output_padding": -1}, ValueError, "output_padding must be at least 0, got -1"),
    ({"output_padding": 0, "padding": "causal"}, ValueError, "output_padding does not go with"),
    ({"dilation_rate": 0}, ValueError, "dilation_rate must be at least 1, got 0"),
    ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    ({"groups": 4}, ValueError, "groups must divide filters, got groups=4, filters=6"),
    ({"dtype": "float33"}, TypeError, "dtype must be a dtype or .*, got 'float33'"),
    ({"dtype": jnp.int32}, ValueError, "dtype must be a floating-point dtype"),
    ({"param_dtype": bool}, ValueError, "param_dtype must be a floating-point dtype"),
    ({"param_dtype": None}, TypeError, "param_dtype must be a dtype or .*, got None"),
    ({"precision": {}}, ValueError, "precision must be None, .* got {}"),
    ({"lowering": None}, TypeError, "lowering must be a string, got None"),
    ({"lowering": "fft"}, ValueError, "lowering must be one of .*'auto'.*, got 'fft'"),
    ({"precision": "exact"}, ValueError, "precision must be .*, got 'exact'"),
    ({"precision": 3}, ValueError, "precision must be .*, got 3"),
]

MAKERS: dict[str, Callable[..., Any]] = {
    "linen": linen.Conv2DTranspose,
    "nnx": lambda **arguments: nnx.Conv2DTranspose(3, **arguments, rngs=flax_nnx.Rngs(0)),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("arguments", "error", "match"), LAYER, ids=ids)
def test_arguments_of_layers(
    arguments: dict[str, Any], error: type[Exception], match: str, make: str
) -> None:
    """When the layer is made, not when it is used."""
    with pytest.raises(error, match=match):
        MAKERS[make](**{"filters": 6, "kernel_size": (3, 2), "strides": 2, **arguments})


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "activation", ["glu", "logsumexp", jnp.max], ids=["glu", "logsumexp", "max"]
)
def test_an_activation_keeps_the_shape(make: str, activation: Any) -> None:
    """Else `compute_output_shape` would be wrong."""
    with pytest.raises(ValueError, match=r"activation must keep the shape \(2, .*, got \("):
        used(make, activation=activation)


@pytest.mark.parametrize("make", MAKERS)
def test_an_initializer_that_fails_is_named(make: str) -> None:
    for name in ("kernel_initializer", "bias_initializer"):
        made = jax.nn.initializers.he_normal if name[0] == "b" else upconv.initializers.he_normal
        with pytest.raises(TypeError) as info:
            used(make, **{name: made})
        notes = "".join(getattr(info.value, "__notes__", ())) + str(info.value)
        assert f"{name}" in notes


@pytest.mark.parametrize("rngs", [0, None, {"params": 0}], ids=str)
def test_rngs_of_nnx(rngs: Any) -> None:
    with pytest.raises(TypeError, match=r"rngs must be an nnx\.Rngs, got"):
        nnx.Conv2DTranspose(3, 4, 5, rngs=rngs)


def used(make: str, x: Any = None, **arguments: Any) -> Any:
    """A layer that is used on images, or on `x`."""
    x = jnp.ones(X) if x is None else x
    layer = MAKERS[make](filters=6, kernel_size=(3, 2), **arguments)
    if make == "nnx":
        return layer(x)
    variables = layer.init(jax.random.key(0), x)
    return layer.apply(variables, x, mutable=["losses"])


@pytest.mark.parametrize("make", MAKERS)
class TestUsedLayers:
    @pytest.mark.parametrize(
        "x", [None, "image", 3, [[[[1.0]]]], object()], ids=lambda x: type(x).__name__
    )
    def test_inputs_must_be_arrays(self, x: Any, make: str) -> None:
        layer = MAKERS[make](filters=6, kernel_size=3)
        with pytest.raises(TypeError, match=f"inputs must be an array, got {type(x).__name__}"):
            layer(x) if make == "nnx" else layer.init(jax.random.key(0), x)

    @pytest.mark.parametrize("name", ["kernel", "bias"])
    def test_an_initializer_must_give_what_it_is_asked_for(self, name: str, make: str) -> None:
        """A bias of one number would be broadcast, another dtype would spread."""

        def one(key: Any, shape: Any, dtype: Any) -> jax.Array:
            return jnp.ones((1,) * len(shape), dtype)

        def wide(key: Any, shape: Any, dtype: Any) -> jax.Array:
            return jnp.ones(shape, jnp.float32)

        with pytest.raises(ValueError, match=rf"{name}_initializer must return .*float32\[1"):
            used(make, **{f"{name}_initializer": one})
        with pytest.raises(ValueError, match=rf"{name}_initializer must .* bfloat16, got float32"):
            used(make, param_dtype=jnp.bfloat16, **{f"{name}_initializer": wide})

    def test_an_activity_regularizer_must_return_a_scalar(self, make: str) -> None:
        with pytest.raises(ValueError, match="activity_regularizer must return a scalar, got sh"):
            used(make, activity_regularizer=jnp.abs)

    def test_no_images_cost_nothing(self, make: str) -> None:
        """And are no division by zero."""
        result = used(make, jnp.ones((0, *X[1:])), activity_regularizer=regularizers.L2(1.0))
        if make == "linen":
            assert linen.losses(result[1]) == 0


# ------------------------------------------------------------------ everything else

W = np.ones((3, 2, 3, 6), np.float32)
KEY = jax.random.key(0)

REST: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Layer(4, 3, 3), ValueError, "rank must be 1, 2 or 3, got 4"),
    (lambda: linen.rules(5, W), TypeError, "module must be an instance of .*, got 5"),
    (lambda: linen.rules(linen.Conv2DTranspose, W), TypeError, "module must be an instance of"),
    (lambda: linen.losses(5), TypeError, "variables must be a mapping of collections, got 5"),
    (lambda: nnx.rules(5), TypeError, "module must be an instance of .*, got 5"),
    (lambda: nnx.losses({}), TypeError, "module must be an instance of .*, got {}"),
    (lambda: nnx.rules(nn.Dense(3)), TypeError, "module must be an instance of flax.nnx.Module"),
    (lambda: transforms.with_rules(3, {}), TypeError, "optimizer must be an optax.*, got 3"),
    (lambda: transforms.with_rules(optax.adam, {}), TypeError, "optimizer must be an optax"),
    (lambda: upconv.penalty({"w": W}, {"v": Rule()}), ValueError, "no parameter matches .* 'v'"),
    (lambda: initializers.compute_fans((3, 3, 4, 4), strides=2.5), TypeError, "strides must .*2.5"),
    (lambda: initializers.compute_fans((3, 3, 4, 4), strides=0), ValueError, "strides must .* 0"),
    (lambda: initializers.compute_fans((3, 3, 4, 4), groups=0), ValueError, "groups must .* got 0"),
    (lambda: initializers.he_normal(strides=1.5), TypeError, "strides must be .* got 1.5"),
    (lambda: initializers.he_normal(strides=0), ValueError, "strides must be at least 1, got 0"),
    (lambda: initializers.he_normal(groups=0), ValueError, "groups must be at least 1, got 0"),
    (lambda: initializers.he_normal(groups="2"), TypeError, "groups must be an integer, got '2'"),
    (lambda: initializers.bilinear("2"), TypeError, "strides must be an integer, got '2'"),
    (lambda: initializers.bilinear((2, 0)), ValueError, r"strides\[1\] must be at least 1, got 0"),
    (lambda: initializers.icnr(2, 3), TypeError, "initializer must be callable, got 3"),
    (lambda: initializers.icnr(None), TypeError, "strides must be an integer, got None"),
    (
        lambda: initializers.Normal(0.0, -1.0),
        ValueError,
        "stddev must be finite and not negative, got -1.0",
    ),
    (
        lambda: initializers.TruncatedNormal(0.0, -1.0),
        ValueError,
        "stddev must be finite and not negative",
    ),
    (lambda: initializers.Uniform(1.0, -1.0), ValueError, "minval must not be above maxval, got 1"),
    (lambda: activations.LeakyReLU("a"), TypeError, "negative_slope must be a real .*, got 'a'"),
    (lambda: activations.LeakyReLU(np.nan), ValueError, "negative_slope must be finite, got nan"),
    (lambda: activations.GELU("no"), TypeError, "approximate must be True or False, got 'no'"),
    (
        lambda: activations.SoftShrink(-1),
        ValueError,
        "threshold must be finite and not negative, got -1",
    ),
    (lambda: activations.HardShrink(None), TypeError, "threshold must be a real .*, got None"),
    (lambda: constraints.MaxNorm(1.0, axis=4)(W), ValueError, "axis must name axes .*, got 4 for"),
    (lambda: regularizers.Orthogonal()(W[0, 0, 0]), ValueError, r"rank 2 .* shape \(6,\)"),
    (lambda: regularizers.L2()(1j * W), TypeError, "L2 takes a real array, got one of complex64"),
    (lambda: regularizers.L1L2()(1j * W), TypeError, "L1L2 takes a real array"),
    (lambda: regularizers.Orthogonal()(1j * W), TypeError, "Orthogonal takes a real array"),
    (lambda: constraints.NonNeg()(1j * W), TypeError, "NonNeg takes a real array"),
    (lambda: constraints.UnitNorm()(1j * W), TypeError, "UnitNorm takes a real array"),
    (
        lambda: constraints.MaxNorm()(W.astype("int32")),
        TypeError,
        "MaxNorm takes an array of floating-point numbers, got one of int32",
    ),
    (
        lambda: transforms.penalty({"k": W}, {"k": Rule(regularizers.L2(), stacked_axes=(0, 4))}),
        ValueError,
        r"stacked_axes=\(0, 4\) of the rule for 'k' must be axes",
    ),
    (
        lambda: transforms.penalty(W, {"k": Rule(regularizers.L2())}),
        ValueError,
        "no parameter matches the rule for 'k': the parameters are one array",
    ),
    (
        lambda: nnx.Conv2DTranspose(3, 4, 5, kernel_metadata="x", rngs=flax_nnx.Rngs(0)),
        TypeError,
        "kernel_metadata must be a mapping, got 'x'",
    ),
    (
        lambda: nnx.rules(flax_nnx.Linear(3, 4, rngs=flax_nnx.Rngs(0)), jnp.ones(3)),
        TypeError,
        "wrt must be a filter of nnx, got an array",
    ),
    (
        lambda: linen.losses({"up": {"activity": jnp.ones(())}}),
        ValueError,
        "variables must hold the collection 'losses'",
    ),
    (
        lambda: upconv.output_shape((-1, 7, 5, 3), 4, 5),
        ValueError,
        r"input_shape must hold no negative sizes .*, got \(-1, 7, 5, 3\)",
    ),
    (
        lambda: upconv.conv_transpose(np.full(X, "a"), floats(KERNEL)),
        TypeError,
        "x must hold numbers, got dtype <U1",
    ),
    (
        lambda: upconv.serialization.to_config(linen.Conv2DTranspose(4, 5), custom_objects=[1]),
        TypeError,
        r"custom_objects must map names to callables, got \[1\]",
    ),
    (lambda: upconv.Conv2DTranspose, AttributeError, "layers are in upconv.linen and upconv.nnx"),
    (lambda: upconv.initializers.compute_fans(3), TypeError, "shape must be a sequence .*, got 3"),
    (
        lambda: transforms.with_rules(optax.adam, {}),
        TypeError,
        "optimizer must be an optax.*; call it first",
    ),
    (
        lambda: linen.rules(jnp.ones((99, 99))),
        TypeError,
        "module must be an instance of flax.linen.Module, got an array of shape",
    ),
    (
        lambda: upconv.initializers.he_normal()(jax.random.key(0), (3, 2, 0)),
        ValueError,
        r"shape must hold sizes above 0, .*got \(3, 2, 0\)",
    ),
    (
        lambda: upconv.linen.Conv1DTranspose(
            2, 3, kernel_initializer=nn.initializers.he_normal
        ).init(jax.random.key(0), W[0]),
        TypeError,
        "kernel_initializer must return an array, got another function",
    ),
    (
        lambda: upconv.linen.Conv2DTranspose(2, 3).compute_output_shape((None, None, 4, 3)),
        TypeError,
        "input_shape must be known but for its batch axes",
    ),
    (
        lambda: jax.eval_shape(
            lambda x: upconv.conv_transpose(x, W, output_size=9, padding=0),
            jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, n, 4, 6"), "float32"),
        ),
        ValueError,
        r"output_size must be n \+ 2 and a known number of pixels on spatial axis 0 .*, got 9",
    ),
    (
        lambda: upconv.output_shape(
            (2, 5, 4, 3), 4, 3, output_size=jax.export.symbolic_shape("h, w"), padding=0
        ),
        TypeError,
        r"output_size\[0\] must be an integer, got h",
    ),
    (
        lambda: lax.conv_transpose(W[..., :3], W, 2.0, "SAME"),
        TypeError,
        "strides must be an int.* 2.0",
    ),
    (lambda: lax.conv_transpose("x", W, (2, 2), "SAME"), TypeError, "lhs must be an array, got st"),
    (
        lambda: upconv.conv_transpose(W.astype("complex64"), W, preferred_element_type="float32"),
        ValueError,
        "preferred_element_type must be of the kind of complex64 or a wider one, .*got float32",
    ),
    (
        lambda: upconv.conv(
            W[..., :3].astype("int8"), W.astype("int8"), padding=1, preferred_element_type=bool
        ),
        ValueError,
        "preferred_element_type must be of the kind of int8 or a wider one, .*got bool",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), REST, ids=[row[2] for row in REST])
def test_the_rest(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
