"""Initializers: the moments that their formulas promise, and what the special kernels compute."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracle import conv_transpose
from upconv import initializers

SHAPE = (5, 4, 48, 32)  # 48 filters, 32 channels

# name, what the variance is over the fans
FAMILIES = [
    ("glorot", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    ("he", lambda fan_in, _: 2 / fan_in),
    ("lecun", lambda fan_in, _: 1 / fan_in),
]


def draw(initializer: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> np.ndarray:
    return np.asarray(initializer(jax.random.key(7), shape, dtype))


@pytest.mark.parametrize(
    ("strides", "groups", "fans"),
    [
        (1, 1, (32 * 5 * 4, 48 * 5 * 4)),
        (2, 1, (32 * 3 * 2, 48 * 5 * 4)),
        ((2, 3), 1, (32 * 3 * 2, 48 * 5 * 4)),
        ((7, 1), 1, (32 * 1 * 4, 48 * 5 * 4)),
        (2, 4, (8 * 3 * 2, 48 * 5 * 4)),
    ],
)
def test_fans(strides: Any, groups: int, fans: tuple[int, int]) -> None:
    assert initializers.compute_fans(SHAPE, strides=strides, groups=groups) == fans


def test_fans_are_how_many_products_are_summed() -> None:
    """Ones in, ones as kernel: the layer itself counts them."""
    kernel = np.ones((5, 4, 3, 2))
    counts = conv_transpose(np.ones((1, 9, 8, 2)), kernel, strides=(2, 3), padding="same")
    fan_in, _ = initializers.compute_fans(kernel.shape, strides=(2, 3))
    assert counts.max() == fan_in


def test_fans_of_a_bias() -> None:
    assert initializers.compute_fans((48,)) == (48, 48)


@pytest.mark.parametrize(("family", "variance"), FAMILIES)
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(("strides", "groups"), [(1, 1), ((2, 3), 1), (2, 4)])
def test_moments(family: str, variance: Any, distribution: str, strides: Any, groups: int) -> None:
    initializer = getattr(initializers, f"{family}_{distribution}")(strides=strides, groups=groups)
    kernel = draw(initializer, SHAPE)
    expected = variance(*initializers.compute_fans(SHAPE, strides=strides, groups=groups))
    error = 6 * np.sqrt(2 / kernel.size)  # six standard errors of a normal's variance
    np.testing.assert_allclose(kernel.var(), expected, rtol=error)
    np.testing.assert_allclose(kernel.mean(), 0, atol=6 * np.sqrt(expected / kernel.size))
    # Uniform: as wide as its variance says. Normal: cut at two standard deviations of the uncut.
    width = np.sqrt(3) if distribution == "uniform" else 2 / 0.8796256610342398
    np.testing.assert_allclose(np.abs(kernel).max(), width * np.sqrt(expected), rtol=1e-2)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
def test_variance_scaling(mode: Any, distribution: Any) -> None:
    initializer = initializers.VarianceScaling(0.7, mode, distribution, strides=2)
    fan_in, fan_out = initializers.compute_fans(SHAPE, strides=2)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    kernel = draw(initializer, SHAPE)
    np.testing.assert_allclose(kernel.var(), 0.7 / fan, rtol=6 * np.sqrt(2 / kernel.size))
    np.testing.assert_allclose(kernel.mean(), 0, atol=6 * np.sqrt(0.7 / fan / kernel.size))
    widest = {"truncated_normal": (2.2, 2.3), "normal": (3.5, 7), "uniform": (1.7, 1.74)}
    low, high = widest[distribution]
    assert low < np.abs(kernel).max() / np.sqrt(0.7 / fan) < high


# Normal: cut at two standard deviations of the uncut, which keeps 0.774 of its variance.
@pytest.mark.parametrize(
    ("initializer", "mean", "stddev", "lowest", "highest"),
    [
        (initializers.Normal(0.3, 0.2), 0.3, 0.2, (-1, -0.4), (1, 1.6)),
        (initializers.TruncatedNormal(0.3, 0.2), 0.3, 0.175925, (-0.1, -0.098), (0.698, 0.7)),
        (initializers.Uniform(0.1, 0.4), 0.25, 0.3 / np.sqrt(12), (0.1, 0.101), (0.399, 0.4)),
        (initializers.Constant(0.3), 0.3, 0, (0.3, 0.3), (0.3, 0.3)),
    ],
    ids=str,
)
def test_moments_of_what_no_fan_scales(
    initializer: Any, mean: float, stddev: float, lowest: Any, highest: Any
) -> None:
    kernel = draw(initializer, SHAPE).astype(np.float64)
    np.testing.assert_allclose(kernel.mean(), mean, atol=6 * stddev / np.sqrt(kernel.size) + 1e-7)
    np.testing.assert_allclose(kernel.std(), stddev, rtol=6 / np.sqrt(kernel.size), atol=1e-7)
    for extreme, (low, high) in ((kernel.min(), lowest), (kernel.max(), highest)):
        assert low - 1e-6 <= extreme <= high + 1e-6


def test_orthogonal() -> None:
    kernel = draw(initializers.Orthogonal(0.7), (3, 2, 4, 5)).reshape(-1, 5)
    np.testing.assert_allclose(kernel.T @ kernel, 0.49 * np.eye(5), atol=1e-5)


def test_agrees_with_jax_without_strides() -> None:
    for name in ("glorot_uniform", "he_uniform", "lecun_uniform"):
        ours = draw(getattr(initializers, name)(), SHAPE)
        jaxs = draw(getattr(jax.nn.initializers, name)(in_axis=-1, out_axis=-2), SHAPE)
        np.testing.assert_allclose(ours, jaxs, rtol=1e-6, atol=1e-8, err_msg=name)


def test_activations_keep_their_variance(rng: np.random.Generator) -> None:
    """Why strides count: without them, stride 2 quarters the variance."""
    x = rng.normal(size=(4, 12, 10, 32))
    kernel = draw(initializers.lecun_normal(strides=2), (4, 4, 48, 32))
    inside = conv_transpose(x, kernel, strides=2, padding="same")[:, 2:-2, 2:-2]
    np.testing.assert_allclose(inside.var(), 1, rtol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype(dtype: Any) -> None:
    for make in (
        initializers.glorot_uniform,
        initializers.he_normal,
        lambda: initializers.icnr(2),
        lambda: initializers.bilinear(2),
    ):
        assert draw(make(), (4, 4, 3, 3), dtype).dtype == dtype


def linear(*lengths: int) -> np.ndarray:
    """A linear function of the position, with another slope along each axis."""
    return sum(
        (i + 2) * g for i, g in enumerate(np.meshgrid(*map(np.arange, lengths), indexing="ij"))
    )


@pytest.mark.parametrize(
    ("kernel_size", "strides"),
    [((4, 6), (2, 3)), ((3, 5), (2, 3)), ((4, 3), (2, 2)), ((7, 8), (2, 4)), ((1, 2), (1, 1))],
)
def test_bilinear_reproduces_linear_functions(
    kernel_size: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    kernel = draw(initializers.bilinear(strides), (*kernel_size, 1, 1))
    x = linear(9, 8)
    y = conv_transpose(x[None, ..., None], kernel, strides=strides)[0, ..., 0]
    border = [(k + 1, y.shape[i] - k - 1) for i, k in enumerate(kernel_size)]
    inside = y[tuple(slice(*b) for b in border)]
    steps = [np.diff(inside, axis=axis) for axis in (0, 1)]
    np.testing.assert_allclose(steps[0], 2 / strides[0], rtol=1e-5)
    np.testing.assert_allclose(steps[1], 3 / strides[1], rtol=1e-5)


@pytest.mark.parametrize("strides", [(2, 3), (3, 4), (1, 5)])
def test_bilinear_is_the_resize_of_jax(strides: tuple[int, int], rng: np.random.Generator) -> None:
    kernel_size = tuple(2 * s - s % 2 for s in strides)
    kernel = draw(initializers.bilinear(strides), (*kernel_size, 3, 3))
    x = rng.normal(size=(2, 6, 5, 3))
    y = conv_transpose(x, kernel, strides=strides, padding="same")
    resized = jax.image.resize(jnp.asarray(x, jnp.float32), y.shape, "bilinear")
    inside = tuple(slice(s, -s) for s in strides)
    np.testing.assert_allclose(y[:, *inside], resized[:, *inside], atol=1e-5)


@pytest.mark.parametrize("groups", [2, 6])
def test_bilinear_with_groups_is_bilinear_on_each_channel(
    groups: int, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(1, 5, 4, 6))
    grouped = draw(initializers.bilinear(2, groups=groups), (4, 4, 6 // groups, 6))
    full = draw(initializers.bilinear(2), (4, 4, 6, 6))
    np.testing.assert_allclose(
        conv_transpose(x, grouped, strides=2, groups=groups),
        conv_transpose(x, full, strides=2),
        atol=1e-12,
    )


def test_icnr_makes_blocks(rng: np.random.Generator) -> None:
    kernel = draw(initializers.icnr((2, 3)), (4, 3, 5, 2))
    y = conv_transpose(rng.normal(size=(1, 5, 4, 2)), kernel, strides=(2, 3))
    blocks = y.reshape(1, y.shape[1] // 2, 2, y.shape[2] // 3, 3, 5)
    np.testing.assert_allclose(blocks, blocks[:, :, :1, :, :1] + 0 * blocks, atol=1e-12)
    assert blocks[:, :, 0, :, 0].std() > 0.1


def test_icnr_draws_the_coarse_kernel_with_its_own_initializer() -> None:
    base = initializers.glorot_normal()
    kernel = draw(initializers.icnr(2, base), (6, 4, 5, 2))
    np.testing.assert_array_equal(kernel[::2, ::2], draw(base, (3, 2, 5, 2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: initializers.glorot_uniform(strides=[2, 1]),
        lambda: initializers.he_normal(groups=2),
        lambda: initializers.bilinear([2, 3]),
        lambda: initializers.icnr(2, initializers.lecun_normal()),
    ],
)
def test_is_a_value(make: Any) -> None:
    initializer = make()
    assert initializer == make()
    assert hash(initializer) == hash(make())
    assert pickle.loads(pickle.dumps(initializer)) == initializer


@pytest.mark.parametrize(
    ("initializer", "shape", "match"),
    [
        (initializers.he_normal(strides=(2, 2)), (3, 2, 5), r"strides .* or 1 integer, .*\(2, 2\)"),
        (initializers.he_normal(groups=3), (3, 2, 5), "groups must divide the 5 input .*, got 3"),
        (initializers.he_normal(), (), r"shape must have at least one axis, got \(\)"),
        (initializers.bilinear(3), (4, 2, 2), "kernel size of at least 5 .* got 4"),
        (initializers.bilinear(2), (4, 2, 3), "as many filters as channels, got 2 and 3"),
        (initializers.bilinear(2, groups=2), (4, 2, 2), "as many .* as channels, got 4 and 2"),
        (initializers.icnr(2), (4, 5, 2, 3), r"multiple of the strides, got \[4, 5\] and \[2, 2\]"),
    ],
)
def test_bad_shapes(initializer: Any, shape: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        initializer(jax.random.key(0), shape)
