"""What an NVIDIA GPU is given: lowered for one, which needs none, and computed by a CPU."""

from __future__ import annotations

import re
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import figures
import oracle
import upconv
from cases import CASES, Case, draw
from checks import (
    OF_CUDA,
    OF_CUDA_AS_IF_LARGE,
    C,
    assert_maps,
    eps,
    layer,
    limited,
    with_gradients,
)
from upconv.auto.problem import CONVOLUTIONS


@pytest.mark.parametrize("limits", [OF_CUDA, OF_CUDA_AS_IF_LARGE], ids=["as they are", "as large"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.many
def test_case(case: Case, limits: Any, rng: np.random.Generator) -> None:
    args = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    with limited(limits):
        results = jax.jit(with_gradients(layer(case)))(*args)
    assert_maps(results, case, args, C * eps(np.float32))


def lowered(
    x: tuple[int, ...], w: tuple[int, ...], dtype: Any = jnp.float32, **options: Any
) -> str:
    """The program of a forward pass and both gradients."""
    f = partial(upconv.conv_transpose, **options)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, w)]
    args = (*arrays, jax.eval_shape(f, *arrays))
    return jax.jit(with_gradients(f)).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def operations(text: str) -> dict[str, int]:
    return {name: text.count(f"stablehlo.{name}") for name in ("convolution", "dot_general")}


ONLY_CONVOLUTIONS = {"convolution": 3, "dot_general": 0}
ONLY_PRODUCTS = {"convolution": 0, "dot_general": 3}


def test_large_layers_are_convolutions_that_cudnn_has() -> None:
    text = lowered((64, 16, 16, 128), (4, 4, 64, 128), strides=2, padding="same")
    assert operations(text) == ONLY_CONVOLUTIONS
    windows = re.findall(r"window = {([^}]*)}", text)
    assert [sorted(re.findall(r"\w+_dilate = \[2, 2\]|stride = \[2, 2\]", w)) for w in windows] == [
        ["lhs_dilate = [2, 2]"], ["rhs_dilate = [2, 2]"], ["stride = [2, 2]"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        pytest.param((1, 96, 96, 56), (9, 9, 1, 56), {"strides": 3}, id="few products"),
        pytest.param((1, 16, 16, 21), (32, 32, 21, 21), {"strides": 16}, id="ragged channels"),
        pytest.param((8, 32, 32, 128), (4, 4, 1, 128), {"groups": 128}, id="depthwise"),
        pytest.param((1, 16, 16, 4096), (3, 3, 32, 4096), {"groups": 64}, id="vmapped kernels"),
    ],
)
def test_what_cudnn_is_slow_for_is_a_product(
    x: tuple[int, ...], w: tuple[int, ...], options: dict[str, Any]
) -> None:
    text = lowered(x, w, **{"strides": 2, "padding": "same", **options})
    assert operations(text) == ONLY_PRODUCTS


def test_integers_are_products_of_every_size(rng: np.random.Generator) -> None:
    """cuDNN has no kernel for them, and XLA:GPU none of its own: it would not compile."""
    f = partial(upconv.conv_transpose, strides=2)
    x, w = (jax.ShapeDtypeStruct((64, 32, 32, 64), jnp.int32), jnp.zeros((3, 3, 64, 64), jnp.int32))
    for g in (f, partial(upconv.conv, strides=2)):
        text = jax.jit(g).trace(x, w).lower(lowering_platforms=("cuda",)).as_text()
        assert operations(text) == {"convolution": 0, "dot_general": 1}
    x, w = rng.integers(-9, 9, (2, 5, 4, 3)), rng.integers(-9, 9, (3, 3, 5, 3))
    with limited(OF_CUDA_AS_IF_LARGE):
        np.testing.assert_array_equal(f(x, w), oracle.conv_transpose(x, w, strides=2))


@pytest.mark.parametrize("preferred", [None, jnp.int32])
def test_narrow_integers_are_multiplied_as_wide_ones(preferred: Any) -> None:
    """XLA:GPU has doubled products of int8 whose sums were to be int32."""
    x, w = (jax.ShapeDtypeStruct((2, 5, 4, 3), jnp.int8), jnp.zeros((3, 3, 5, 3), jnp.int8))
    f = partial(upconv.conv_transpose, preferred_element_type=preferred)
    text = jax.jit(f).trace(x, w).lower(lowering_platforms=("cuda",)).as_text()
    (product,) = (line for line in text.splitlines() if "stablehlo.dot_general" in line)
    assert set(re.findall(r"x(i\d+)>", product)) == {"i32"}
    assert jax.eval_shape(f, x, w).dtype == (preferred or jnp.int8)


def test_a_dilated_kernel_gradient_is_a_product() -> None:
    """cuDNN would take 42 times as long."""
    text = lowered((16, 96, 96, 64), (3, 3, 64, 64), strides=2, dilation_rate=2, padding="same")
    assert "rhs_dilate = [2, 2]" in text  # of the strided convolution, which cuDNN has
    assert operations(text) == {"convolution": 2, "dot_general": 1}


def test_a_kernel_larger_than_its_image_is_not_left_to_xla() -> None:
    """It exchanges the two, and finds no kernel in cuDNN for what comes of that."""
    text = lowered((8, 16, 16, 64), (32, 32, 64, 64), strides=16, padding="same")
    assert "lhs_dilate = [16, 16]" not in text


@pytest.mark.parametrize("stride", [1, 2])
def test_volumes_are_convolved_as_planes(stride: int) -> None:
    """Of which XLA has the channels last in cuDNN's kernels."""
    shapes = (2, 32, 32, 32, 32), (4, 4, 4, 64, 32)
    text = lowered(*shapes, strides=stride, padding="same")
    images = re.findall(r"dim_numbers = \[(.*?)\]x", text)
    assert sorted(image.count(",") for image in images) == [3, 3, 4]  # one is G, as a whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("map_", "most", "least"),
    [("conv_transpose", 1.03, 2.6), ("conv", 1.02, 1.5), ("correlate_kernel", 1.05, 1.5)],
)
def test_the_ways_taken_are_nearly_the_fastest(
    map_: str, dtype: str, most: float, least: float
) -> None:
    """Of those that an H100 was timed with: over the best of them, and under convolutions."""
    over, under = [], []
    for timed in figures.record("h100")["maps"]:
        if timed["dtype"] == dtype:
            times = timed["us"][map_]
            time = times[getattr(figures.taken(timed), map_)]
            over.append(time / min(times.values()))
            under.append(times[getattr(CONVOLUTIONS, map_)] / time)
    assert len(over) > 100
    assert statistics.geometric_mean(over) < most
    assert statistics.geometric_mean(under) > least
