"""The sizes of section 4 of the design: by hand, by the oracle, and by other people's formulas.

`test_properties.py` draws others.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from jax import export

import oracle
import upconv
from cases import CASES, Case
from upconv import geometry

# n, k, s, d, padding, output_padding: output length and what is cropped in front, worked by hand.
BY_HAND = [
    # valid: full, but never shorter than n strides
    (4, 3, 2, 1, "valid", None, 9, 0),
    (4, 2, 2, 1, "valid", None, 8, 0),
    (4, 1, 3, 1, "valid", None, 12, 0),
    (1, 2, 5, 1, "valid", None, 5, 0),
    (4, 3, 2, 3, "valid", None, 13, 0),
    (4, 3, 2, 1, "valid", 1, 10, 0),
    (4, 1, 3, 1, "valid", 0, 10, 0),
    (4, 1, 3, 1, "valid", 2, 12, 0),
    # same: n strides; the crop is shared, the larger half at the end
    (4, 3, 2, 1, "same", None, 8, 0),
    (4, 4, 2, 1, "same", None, 8, 1),
    (4, 5, 2, 1, "same", None, 8, 1),
    (4, 6, 2, 1, "same", None, 8, 2),
    (4, 2, 3, 1, "same", None, 12, 0),
    (4, 3, 1, 1, "same", None, 4, 1),
    (4, 4, 1, 1, "same", None, 4, 1),
    (1, 16, 8, 1, "same", None, 8, 4),
    (4, 3, 2, 3, "same", None, 8, 2),
    (4, 3, 2, 1, "same", 0, 7, 1),
    (4, 3, 2, 1, "same", 1, 8, 0),
    (4, 4, 2, 1, "same", 0, 6, 2),
    (4, 4, 2, 1, "same", 1, 7, 1),
    (4, 5, 3, 1, "same", 2, 12, 1),
    (4, 3, 2, 2, "same", 1, 8, 1),
    # same_lower: the larger half in front
    (4, 3, 2, 1, "same_lower", None, 8, 1),
    (4, 4, 2, 1, "same_lower", None, 8, 1),
    (4, 5, 2, 1, "same_lower", None, 8, 2),
    (4, 2, 3, 1, "same_lower", None, 12, 0),
    (4, 3, 2, 1, "same_lower", 1, 8, 1),
    (4, 4, 2, 1, "same_lower", 1, 7, 2),
    # explicit
    (4, 3, 2, 1, (0, 0), None, 9, 0),
    (4, 1, 3, 1, (0, 0), None, 10, 0),
    (4, 4, 2, 1, (1, 1), None, 8, 1),
    (4, 4, 2, 1, (2, 1), None, 7, 2),
    (4, 3, 2, 1, (1, 1), 1, 8, 1),
    (4, 3, 2, 2, (0, 3), None, 8, 0),
    (4, 3, 2, 5, (2, 2), 4, 17, 2),
    (4, 2, 2, 1, (3, 1), None, 4, 3),
    (4, 3, 2, 1, (-2, -1), None, 12, -2),
    # causal: n strides from the start on
    (4, 5, 2, 1, "causal", None, 8, 0),
    (4, 1, 3, 1, "causal", None, 12, 0),
    (4, 3, 1, 4, "causal", None, 4, 0),
    # circular: aligned as same
    (4, 4, 2, 1, "circular", None, 8, 1),
    (4, 5, 2, 1, "circular", None, 8, 1),
    (1, 6, 2, 1, "circular", None, 2, 2),
    (4, 2, 3, 1, "circular", None, 12, 0),
]

# One row of pixels, 1 2, through one kernel, 1 10 100, with stride 2. In full: 1 10 102 20 200.
ROWS = [
    ({}, [1, 10, 102, 20, 200]),
    ({"output_padding": 1}, [1, 10, 102, 20, 200, 0]),
    ({"padding": "same"}, [1, 10, 102, 20]),
    ({"padding": "SAME", "output_padding": 0}, [10, 102, 20]),
    ({"padding": "same", "output_size": 3}, [10, 102, 20]),
    ({"padding": "same_lower"}, [10, 102, 20, 200]),
    ({"padding": 1}, [10, 102, 20]),
    ({"padding": 1, "output_padding": 1}, [10, 102, 20, 200]),
    ({"padding": ((0, 2),)}, [1, 10, 102]),
    ({"padding": ((2, 0),)}, [102, 20, 200]),
    ({"padding": ((1, 0),), "output_size": 5}, [10, 102, 20, 200, 0]),
    ({"padding": ((-1, 0),)}, [0, 1, 10, 102, 20, 200]),
    ({"padding": -1}, [0, 1, 10, 102, 20, 200, 0]),
    ({"padding": "causal"}, [1, 10, 102, 20]),
    ({"padding": "circular"}, [201, 10, 102, 20]),
]


def output_length(n: int, k: int, s: int, d: int, padding: Any, **rest: Any) -> int:
    """The library's output length of one axis."""
    pads = padding if isinstance(padding, str) else (padding,)
    shape = upconv.output_shape(
        (2, n, 3), 5, (k,), strides=s, padding=pads, dilation_rate=d, **rest
    )
    assert shape[0] == 2
    assert shape[2] == 5
    return shape[1]


@pytest.mark.parametrize(("n", "k", "s", "d", "padding", "p", "out", "start"), BY_HAND)
def test_sizes_by_hand(
    n: int, k: int, s: int, d: int, padding: Any, p: int | None, out: int, start: int
) -> None:
    assert output_length(n, k, s, d, padding, output_padding=p) == out
    assert oracle.out_length(n, k, s, d, padding, p) == out
    pads = padding if isinstance(padding, str) else (padding,)
    axis = geometry.transposed(
        (n,), (k,), strides=s, padding=pads, output_padding=p, dilation_rate=d
    )
    assert (axis.output_size, axis.crop) == ((out,), (start,))
    assert oracle.out_start(n, k, s, d, padding, out) == start


@pytest.mark.parametrize(("layer", "row"), ROWS, ids=str)
def test_rows_by_hand(layer: dict[str, Any], row: list[int]) -> None:
    x = np.array([[[1], [2]]], np.float32)
    kernel = np.array([1, 10, 100], np.float32).reshape(3, 1, 1)
    assert upconv.conv_transpose(x, kernel, strides=2, **layer)[0, :, 0].tolist() == row
    assert oracle.conv_transpose(x, kernel, strides=2, **layer)[0, :, 0].tolist() == row
    assert upconv.output_shape(x.shape, 1, 3, strides=2, **layer) == (1, len(row), 1)


def test_every_length_of_one_axis() -> None:
    paddings = ["valid", "same", "same_lower", "causal", "circular", (0, 0), (1, 1), (0, 2), (3, 1)]
    space = itertools.product([1, 2, 3, 5], [1, 2, 3, 4, 6], [1, 2, 3, 4], [1, 2, 3], paddings)
    for n, k, s, d, padding in space:
        fixed = padding in ("causal", "circular")
        for p in [None] if fixed else [None, *range(max(s, d))]:
            expected = oracle.out_length(n, k, s, d, padding, p)
            if expected > 0:
                got = output_length(n, k, s, d, padding, output_padding=p)
                assert got == expected, (n, k, s, d, padding, p)
            else:
                with pytest.raises(ValueError, match="output"):
                    output_length(n, k, s, d, padding, output_padding=p)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_shape_of_cases(case: Case) -> None:
    shape = upconv.output_shape(case.x_shape, case.c_out, case.kernel_size, **case.layer)
    assert shape == case.y_shape
    first = (*case.batch, case.c_in, *case.spatial)
    shape = upconv.output_shape(
        first, case.c_out, case.kernel_size, data_format="channels_first", **case.layer
    )
    assert shape == (*case.batch, case.c_out, *case.output)


def test_an_integer_kernel_size_means_one_batch_axis() -> None:
    assert upconv.output_shape((7, 5, 3), 4, 3, strides=2) == (7, 11, 4)
    assert upconv.output_shape((7, 5, 6, 3), 4, 3, strides=2) == (7, 11, 13, 4)
    assert upconv.output_shape((7, 5, 6, 2, 3), 4, 3, strides=2) == (7, 11, 13, 5, 4)
    assert upconv.output_shape((7, 5, 6, 2, 3), 4, (3,), strides=2) == (7, 5, 6, 5, 4)
    assert upconv.output_shape(
        (7, 3, 5, 6), 4, 3, strides=(1, 2), padding="same", data_format="channels_first"
    ) == (7, 4, 5, 12)


@pytest.mark.parametrize("p", [0, 1, 2, 5])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("s", [1, 2, 3])
def test_pytorch_formula(s: int, d: int, p: int) -> None:
    for n, k, o in itertools.product([3, 7], [3, 4, 6], range(max(s, d))):
        expected = (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        if expected > 0:
            assert output_length(n, k, s, d, (p, p), output_padding=o) == expected


def test_keras_formula() -> None:
    # keras.src.backend.common.backend_utils, compute_conv_transpose_output_length
    for n, k, s in itertools.product([1, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3]):
        assert output_length(n, k, s, 1, "valid") == n * s + max(k - s, 0)
        assert output_length(n, k, s, 1, "same") == n * s
        for p in range(s):
            assert output_length(n, k, s, 1, "valid", output_padding=p) == (n - 1) * s + k + p
            same = (n - 1) * s + k - 2 * (k // 2) + p
            if same > 0:
                assert output_length(n, k, s, 1, "same", output_padding=p) == same


def test_output_size_round_trip() -> None:
    # What an output padding can reach can be asked for by its size; nothing below or above it.
    for n, k, s, d, padding in itertools.product(
        [1, 3], [1, 2, 3, 5], [1, 2, 3], [1, 2], ["valid", (1, 0), (0, 2)]
    ):
        lengths = [oracle.out_length(n, k, s, d, padding, p) for p in range(max(s, d))]
        lengths.append(oracle.out_length(n, k, s, d, padding, None))
        for size in range(1, max(lengths) + 3):
            if size in lengths:
                assert output_length(n, k, s, d, padding, output_size=size) == size
            else:
                with pytest.raises(ValueError, match="output_size"):
                    output_length(n, k, s, d, padding, output_size=size)


@pytest.mark.parametrize("padding", ["same", "same_lower"])
def test_output_size_of_same(padding: str) -> None:
    # As in TensorFlow: the sizes whose `same` convolution has `n` positions.
    for n, k, s in itertools.product([1, 3], [1, 2, 4, 5], [1, 2, 3]):
        for size in range((n - 1) * s + 1, n * s + 1):
            assert output_length(n, k, s, 1, padding, output_size=size) == size


@pytest.mark.parametrize(
    ("m", "k", "s", "d", "padding", "n"),
    [
        (9, 3, 2, 1, "valid", 4),
        (10, 3, 2, 1, "valid", 4),
        (11, 3, 2, 1, "valid", 5),
        (3, 3, 5, 1, "valid", 1),
        (9, 3, 1, 4, "valid", 1),
        (7, 4, 2, 1, "same", 4),
        (8, 4, 2, 1, "same", 4),
        (1, 5, 3, 1, "same_lower", 1),
        (7, 4, 2, 1, (1, 1), 3),
        (8, 4, 2, 1, (2, 1), 4),
        (7, 5, 3, 1, "causal", 3),
        (6, 5, 3, 1, "circular", 2),
    ],
)
def test_positions_of_conv_by_hand(m: int, k: int, s: int, d: int, padding: Any, n: int) -> None:
    pads = padding if isinstance(padding, str) else (padding,)
    y, kernel = np.zeros((2, m, 5), np.float32), np.zeros((k, 5, 3), np.float32)
    x = upconv.conv(y, kernel, strides=s, padding=pads, dilation_rate=d)
    assert x.shape == (2, n, 3)
    assert oracle.in_length(m, k, s, d, padding) == n


class TestSymbolicSizes:
    """`output_shape` with sizes that are known only by name."""

    @pytest.mark.parametrize(
        ("layer", "expected"),
        [
            ({"kernel_size": 4, "strides": 2, "padding": "same"}, ("n", "2*h", "2*w", 5)),
            ({"kernel_size": 3, "strides": 2}, ("n", "2*h + 1", "2*w + 1", 5)),
            ({"kernel_size": 2, "strides": (2, 3)}, ("n", "2*h", "3*w", 5)),
            ({"kernel_size": 4, "strides": 2, "padding": 1}, ("n", "2*h", "2*w", 5)),
            (
                {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 0},
                ("n", "2*h - 1", "2*w - 1", 5),
            ),
            (
                {"kernel_size": (3, 2), "padding": ((1, 0), (0, 0)), "dilation_rate": (2, 3)},
                ("n", "h + 3", "w + 3", 5),
            ),
            ({"kernel_size": 5, "strides": (1, 2), "padding": "causal"}, ("n", "h", "2*w", 5)),
            ({"kernel_size": 5, "strides": (1, 2), "padding": "circular"}, ("n", "h", "2*w", 5)),
        ],
        ids=str,
    )
    def test_expressions(self, layer: dict[str, Any], expected: tuple[Any, ...]) -> None:
        scope = export.SymbolicScope(["h >= 2", "w >= 2"])
        n, h, w = export.symbolic_shape("n, h, w", scope=scope)
        layer = dict(layer)
        shape = upconv.output_shape((n, h, w, 3), 5, layer.pop("kernel_size"), **layer)
        names = ", ".join(str(d) for d in expected)
        assert shape == tuple(export.symbolic_shape(names, scope=scope))

    def test_channels_first(self) -> None:
        n, h, w = export.symbolic_shape("n, h, w")
        shape = upconv.output_shape(
            (n, 3, h, w), 5, 4, strides=2, padding="same", data_format="channels_first"
        )
        assert shape == (n, 5, 2 * h, 2 * w)
