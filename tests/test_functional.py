"""Values and derivatives of `conv_transpose` and `conv`, by every lowering, against the oracle.

Here are the cases of a table; `test_properties.py` draws others. All lowerings of a case are
compiled as one program, which takes a third of the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import upconv
from cases import CASES, Case, by_name, draw
from checks import (
    AS_IF_LARGE,
    C_SHORT,
    OF_CUDA_AS_IF_LARGE,
    Adjoint,
    C,
    Function,
    assert_maps,
    assert_rounding,
    convolution,
    curvature,
    eps,
    layer,
    limited,
    normal,
    second_orders,
    with_gradients,
)
from upconv import functional, lowering
from upconv.auto import cpu

LOWERINGS = ("auto", "input_dilation", "subpixel", "matmul", "lax")

# One or two of everything, where a test is dear.
FEW = by_name(
    "1d_circular_odd",
    "1d_dilation_gcd2",
    "1d_k2_s3_same",
    "2d_groups",
    "2d_k4_s2_same",
    "2d_op_same",
    "2d_pairs",
    "2d_unequal_valid",
    "3d_dilation",
)


def by_every_lowering(make: Callable[[str], Function]) -> Callable[..., dict[str, Any]]:
    """What each lowering makes of the same arguments, by its name."""
    return jax.jit(lambda *args: {name: make(name)(*args) for name in LOWERINGS})


LAX_PADDINGS = {"valid": "VALID", "same": "SAME", "same_lower": "SAME_LOWER"}


def lax_convolution(case: Case) -> Function:
    """`conv` in the words of `jax.lax`, which knows neither circular nor causal padding."""
    spec = ("NWC", "NHWC", "NDHWC")[case.rank - 1]
    pads: Any = LAX_PADDINGS.get(str(case.padding).lower())
    ends: list[tuple[int, int]] = []
    if pads is None:
        # Cropped by hand: XLA:CPU may read beyond the image where it is to (openxla/xla#48713).
        pads, ends = [(0, 0)] * case.rank, oracle.paddings(case.padding, case.rank)
    window = tuple(
        slice(max(-lo, 0), n + max(lo, 0) + hi if hi < 0 else None)
        for (lo, hi), n in zip(ends, case.output, strict=False)
    )

    def run(y: jax.Array, w: jax.Array) -> jax.Array:
        y = y.reshape(-1, *y.shape[len(case.batch) :])
        if ends:
            positive = [(max(lo, 0), max(hi, 0)) for lo, hi in ends]
            y = jnp.pad(y, [(0, 0), *positive, (0, 0)])[(slice(None), *window)]
        x = jax.lax.conv_general_dilated(
            y,
            w,
            oracle.per_axis(case.strides, case.rank),
            pads,
            rhs_dilation=oracle.per_axis(case.dilation_rate, case.rank),
            dimension_numbers=(spec, spec[1:-1] + "IO", spec),
            feature_group_count=case.groups,
        )
        return x.reshape(*case.batch, *x.shape[1:])

    return run


def check_case(case: Case, rng: np.random.Generator, subtests: Any) -> None:
    """Both functions, both gradients of each, by every lowering."""
    back = Adjoint(case)
    x, w, y = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    z = x if back.x_shape == case.x_shape else draw(rng, back.x_shape)[0]

    def both(name: str) -> Function:
        def run(x: Any, w: Any, y: Any, z: Any) -> Any:
            up = with_gradients(layer(case, name))(x, w, y)
            down = with_gradients(convolution(case, name))(y, w, z)
            return up, down

        return run

    in_lax = case.padding not in ("circular", "causal")

    @jax.jit
    def run(x: Any, w: Any, y: Any, z: Any) -> Any:
        results = {name: both(name)(x, w, y, z) for name in LOWERINGS}
        return results, lax_convolution(case)(y, w) if in_lax else None

    results, theirs = run(x, w, y, z)
    unit = C * eps(np.float32)
    for name, (up, down) in results.items():
        with subtests.test(lowering=name):
            assert_maps(up, case, (x, w, y), unit)
            assert_maps(down, back, (y, w, z), unit)
        if in_lax:
            # Not by way of the oracle: <lax.conv(y, w), z> = <y, conv_transpose(z, w)>.
            with subtests.test(lowering=name, against="lax.conv_general_dilated"):
                scale = back.gather(abs(y), abs(w))
                assert_rounding(down[0], np.float64(theirs), scale, 2 * unit)
                left, right = np.vdot(np.float64(theirs), z), np.vdot(y, np.float64(down[1]))
                assert abs(left - right) <= 2 * unit * np.vdot(scale, abs(z))


def test_a_window_that_xla_takes_for_groups(rng: np.random.Generator, subtests: Any) -> None:
    """At which XLA:CPU ends the process, if it is left to it (found by `make fuzz`)."""
    case = Case("", (4, 3), (2, 5), strides=(2, 1), padding=(1, 0), output_size=(6, 7), batch=(7,))
    args = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    got = by_every_lowering(lambda name: with_gradients(layer(case, name)))(*args)
    for name, results in got.items():
        with subtests.test(lowering=name):
            assert_maps(results, case, args, C * eps(np.float32))


@pytest.fixture
def as_if_large() -> Iterator[None]:
    """Has "auto" take for small shapes, which compile fast, what it takes for large ones.

    What it takes for small ones is tried by the tests that do without this.
    """
    with limited(AS_IF_LARGE):
        yield


@pytest.mark.usefixtures("as_if_large")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.many
def test_case(case: Case, rng: np.random.Generator, subtests: Any) -> None:
    check_case(case, rng, subtests)


@pytest.mark.parametrize(("k", "s", "pads"), [(5, 2, (4, 1)), (3, 2, (2, -1)), (5, 3, (4, 0))])
def test_a_phase_that_begins_beyond_the_image(
    k: int, s: int, pads: tuple[int, int], rng: np.random.Generator
) -> None:
    """XLA:CPU before jaxlib 0.12 reads past it, where YNNPACK computes: with few channels."""
    x = rng.integers(-3, 4, (16, 32, 32, 8)).astype(np.float32)
    w = rng.integers(-3, 4, (k, k, 16, 8)).astype(np.float32)
    with limited({cpu: {"SMALL_PRODUCT": 0, "FRESH": 0, "WIDE": 0}}):
        y = upconv.conv_transpose(x, w, strides=s, padding=(pads, pads))
    want = oracle.conv_transpose(x, w, strides=s, padding=(pads, pads))
    np.testing.assert_array_equal(y, want)  # sums of integers are exact
    with limited({cpu: {"SMALL_PRODUCT": 0, "FRESH": 0, "WIDE": 0}}):
        one = upconv.conv_transpose(x[:, :1], w, strides=s, padding=((k - 1, 0), pads))
    want = oracle.conv_transpose(x[:, :1], w, strides=s, padding=((k - 1, 0), pads))
    np.testing.assert_array_equal(one, want)


@pytest.mark.parametrize(
    ("size", "k", "s", "pads"),
    [(1, 1, 2, (-1, 1)), (2, 3, 1, (-2, 4)), (2, 2, 1, (-3, 6)), (4, 3, 2, (-1, 3))],
)
def test_an_image_that_is_cropped_in_front_and_padded_behind(
    size: int, k: int, s: int, pads: tuple[int, int], rng: np.random.Generator, subtests: Any
) -> None:
    """Which XLA:CPU before jaxlib 0.12 reads beyond; sometimes nothing of it is left."""
    y = rng.integers(-3, 4, (3, size, 8)).astype(np.float32)
    w = rng.integers(-3, 4, (k, 8, 4)).astype(np.float32)
    want = oracle.conv(y, w, strides=s, padding=(pads,))
    kernel = oracle.correlate_kernel(want, y, (k,), strides=s, padding=(pads,))
    for name in LOWERINGS:
        with subtests.test(lowering=name):
            f = partial(upconv.conv, y, strides=s, padding=(pads,), lowering=name)
            got, pull = jax.vjp(f, w)
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(pull(got)[0], kernel)


@pytest.mark.parametrize(
    ("size", "k"), [((2, 3), (5, 4)), ((4, 4), (1, 17)), ((1, 5), (2, 3)), ((5,), (11,))]
)
def test_a_window_of_more_pixels_than_the_image(
    size: tuple[int, ...], k: tuple[int, ...], rng: np.random.Generator, subtests: Any
) -> None:
    """Which XLA takes for the image: XLA:CPU has only a naive loop for that."""
    y = rng.integers(-3, 4, (3, *size, 4)).astype(np.float32)
    w = rng.integers(-3, 4, (*k, 4, 20)).astype(np.float32)
    x = oracle.conv(y, w, padding="same")
    for name in LOWERINGS:
        with subtests.test(lowering=name):
            options = {"padding": "same", "lowering": name}
            got, pull = jax.vjp(partial(upconv.conv, y, **options), w)
            np.testing.assert_array_equal(got, x)
            np.testing.assert_array_equal(
                pull(got)[0], oracle.correlate_kernel(x, y, k, padding="same")
            )
            back = upconv.conv_transpose(x, w, **options)
            np.testing.assert_array_equal(back, oracle.conv_transpose(x, w, padding="same"))
    step = jax.jit(partial(upconv.conv, padding="same")).lower(y, w).compile()
    assert "rhs_reversal" not in step.as_text()


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_multiplied_as_matrices_and_rounded_once(
    stride: int, rng: np.random.Generator
) -> None:
    y = rng.integers(-3, 4, (2, 8, 6, 16))
    w = rng.integers(-3, 4, (3, 4, 16, 24))
    for f, reference, a in (
        (upconv.conv, oracle.conv, y),
        (upconv.conv_transpose, oracle.conv_transpose, rng.integers(-3, 4, (2, 4, 3, 24))),
    ):
        got = jax.jit(partial(f, strides=stride)).lower(
            jnp.asarray(a, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
        )
        assert "stablehlo.convolution" not in got.as_text()
        result = got.compile()(jnp.asarray(a, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16))
        want = reference(a.astype(np.float32), w.astype(np.float32), strides=stride)
        np.testing.assert_array_equal(result, jnp.asarray(want, jnp.bfloat16))


@pytest.mark.parametrize("preset", ["TF32_TF32_F32", "BF16_BF16_F32_X9", "F16_F16_F32"])
def test_presets_that_no_cpu_has(preset: str, rng: np.random.Generator, subtests: Any) -> None:
    """A model that asks a GPU for them runs on CPU as well, as it does with plain convolutions."""
    x, w, y = normal(rng, 2, 5, 4, 3), normal(rng, 3, 2, 6, 3), normal(rng, 2, 11, 8, 6)

    def both(name: str, precision: str | None = preset) -> Function:
        f = partial(upconv.conv_transpose, strides=2, lowering=name, precision=precision)
        return lambda x, w, y: with_gradients(f)(x, w, y)

    want = jax.jit(both("lax", None))(x, w, y)
    for name, got in by_every_lowering(both)(x, w, y).items():
        with subtests.test(lowering=name):
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    with jax.default_matmul_precision(preset):
        for a, b in zip(jax.jit(both("matmul", None))(x, w, y), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_pixel_is_no_convolution(rank: int, stride: int) -> None:
    """A generator's first layer: a convolution would multiply little but padding."""
    x, w = np.zeros((4, *(1,) * rank, 6), np.float32), np.zeros((*(4,) * rank, 5, 6), np.float32)
    lowered = jax.jit(partial(upconv.conv_transpose, strides=stride)).lower(x, w)
    assert "stablehlo.dot_general" in lowered.as_text()
    assert "stablehlo.convolution" not in lowered.as_text()
    assert "stablehlo.add" not in lowered.as_text()  # no product of a single pixel meets another


@pytest.mark.parametrize("case", by_name("2d_dilation", "3d_plain"), ids=str)
def test_zeros_between_taps_are_not_multiplied(case: Case) -> None:
    """At stride 1, where a convolution can put the taps apart itself."""
    case = dataclasses.replace(case, dilation_rate=2, c_in=8, c_out=8)
    shapes = (jax.ShapeDtypeStruct(s, "float32") for s in (case.x_shape, case.kernel_shape))
    text = jax.jit(layer(case, "subpixel")).lower(*shapes).as_text()
    assert "rhs_dilate = [2, " in text
    assert "stablehlo.pad" not in text


@pytest.mark.parametrize("images", [8, 11])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("groups", "filters"), [(32, 1), (16, 3)])
def test_narrow_groups_move_no_windows(groups: int, filters: int, stride: int, images: int) -> None:
    """There are `k * k` times as many numbers in the windows as there are pixels."""
    x = jax.ShapeDtypeStruct((images, 13, 16, 32), "float32")
    w = jax.ShapeDtypeStruct((4, 4, filters, 32), "float32")
    f = partial(upconv.conv_transpose, strides=stride, padding="same", groups=groups)
    y = jax.eval_shape(f, x, w)
    for transposed in (
        lambda x, w, y: f(x, w),
        lambda x, w, y: jax.linear_transpose(lambda x: f(x, w), x)(y),
        lambda x, w, y: jax.linear_transpose(lambda w: f(x, w), w)(y),
    ):
        lowered = jax.jit(transposed).lower(x, w, y)
        assert "stablehlo.dot_general" not in lowered.as_text()
        memory = lowered.compile().memory_analysis()
        assert memory.temp_size_in_bytes < 6 * y.size * y.dtype.itemsize


def test_groups_of_16_bits_are_converted_once() -> None:
    """And not all of them for every one, as XLA:CPU does inside a loop."""
    x = jax.ShapeDtypeStruct((2, 8, 6, 32), "bfloat16")
    w = jax.ShapeDtypeStruct((5, 5, 2, 32), "bfloat16")
    text = jax.jit(partial(upconv.conv_transpose, groups=4)).lower(x, w).as_text()
    taken = [line for line in text.splitlines() if "dynamic_slice" in line]
    assert len(taken) == 2
    assert "bf16" not in "".join(taken)


@pytest.mark.parametrize("padding", ["same", ((0, 3), (2, 1))])
def test_rows_are_channels_of_few(
    padding: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """What fills no vector by itself: at stride 1, which no name gives."""
    (case,) = by_name("2d_pairs")
    case = dataclasses.replace(
        case, strides=1, padding=padding, c_in=3, c_out=7, groups=1, dilation_rate=(2, 1)
    )
    args = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    seen = taken_ways(monkeypatch)
    with limited({cpu: {"SMALL_PRODUCT": 0, "MEMORY": 0}}):
        results = jax.jit(with_gradients(layer(case)))(*args)
    assert ("T", "planes") in seen
    assert_maps(results, case, args, C * eps(np.float32))


def operations(case: Case, name: str = "auto") -> int:
    """How many there are in the program of all three maps."""
    shapes = case.x_shape, case.kernel_shape, case.y_shape
    args = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    text = jax.jit(with_gradients(layer(case, name))).lower(*args).as_text()
    return text.count("stablehlo.")


class TestReach:
    """A lowering that no case reaches by value would be one that nobody has tried."""

    def test_every_name(self) -> None:
        assert set(lowering.LOWERINGS) == set(LOWERINGS)

    def test_every_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        every = {(map_, way) for map_, table in TABLES.items() for way in table}
        seen = taken_ways(monkeypatch)
        for name in LOWERINGS:
            # By name a lowering is the same for every shape; "auto" is not.
            lower(name, FEW)
        small = {"SMALL_PRODUCT": 0, "SMALL_IN_3D": 0, "MEMORY": 0}
        with limited({cpu: {**small, "PRODUCTS_OF_GROUPS": (0, 0, 0)}}):
            lower("auto", CASES)
        with limited(OF_CUDA_AS_IF_LARGE):  # as in `test_cuda.py`
            lower("auto", CASES)
        assert seen == every

    @pytest.mark.parametrize("name", ["input_dilation", "subpixel"])
    def test_one_for_the_transpose_alone_leaves_the_gradients_to_auto(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = taken_ways(monkeypatch)
        lower("auto", FEW)
        by_auto = seen.copy()
        seen.clear()
        lower(name, FEW)
        assert seen == {("T", name), *((map_, way) for map_, way in by_auto if map_ != "T")}

    @pytest.mark.parametrize(
        "case",
        [
            Case("long", (50,), (401,), padding="same", c_in=4, c_out=2),
            Case("long_groups", (9, 8), (31, 21), padding="same", c_in=4, c_out=4, groups=4),
            Case("long_volume", (4, 4, 4), (8, 8, 8), padding="same", c_in=4, c_out=1),
            Case("far", (50,), (3,), padding="same", c_in=4, c_out=4, groups=4, dilation_rate=128),
        ],
        ids=str,
    )
    def test_long_kernels_are_soon_compiled(self, case: Case) -> None:
        """There are not as many operations as a kernel has taps: XLA takes them one by one.

        Of a depthwise layer there are as many products as a row of its kernel has taps, of some ten
        operations each, in all three maps.
        """
        products = 3 * case.kernel_size[-1] if case.groups == case.c_in else 0
        assert operations(case) < 150 + 10 * products

    def test_taps_far_apart_are_soon_compiled(self) -> None:
        """By products windows are gathered: there is no slice for each stride that is spanned."""
        case = Case("far", (50,), (3,), padding="same", c_in=4, c_out=2, dilation_rate=128)
        assert operations(case, "matmul") < 60

    @pytest.mark.parametrize(("c_out", "halved"), [(192, False), (256, True), (257, False)])
    def test_overlaps_of_many_filters_are_soon_compiled(
        self, c_out: int, halved: bool, rng: np.random.Generator
    ) -> None:
        """LLVM takes long for a loop over 256 filters, and less for one over half as many."""
        case = Case("", (3, 4), (4, 3), strides=2, padding="same", c_in=5, c_out=c_out, batch=(2,))
        x, w = draw(rng, case.x_shape, case.kernel_shape)
        compiled = jax.jit(layer(case)).lower(x, w).compile()
        assert_rounding(
            compiled(x, w), case.scatter(x, w), case.scatter(abs(x), abs(w)), C * eps(np.float32)
        )
        loop = (*case.y_shape[:-1], 2, c_out // 2) if halved else case.y_shape
        assert f"f32[{','.join(map(str, loop))}]{{" in compiled.as_text()
        assert (f",2,{c_out // 2}]" in compiled.as_text()) == halved


TABLES = {"T": lowering.CONV_TRANSPOSE, "C": lowering.CONV, "G": lowering.CORRELATE_KERNEL}


def taken_ways(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """A set that gets the map and the name of every way that is lowered from now on."""
    seen: set[tuple[str, str]] = set()
    for map_, table in TABLES.items():
        for way, function in list(table.items()):

            def spy(*args: Any, f: Any = function, key: Any = (map_, way)) -> Any:
                seen.add(key)
                return f(*args)

            monkeypatch.setitem(table, way, spy)
    return seen


def lower(name: str, cases: Sequence[Case]) -> None:
    """Forward pass and both gradients of the cases, uncompiled."""
    jax.clear_caches()
    for case in cases:
        shapes = case.x_shape, case.kernel_shape, case.y_shape
        args = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
        jax.jit(with_gradients(layer(case, name))).lower(*args)


def products(make: Callable[[str], Function], u: np.ndarray) -> Function:
    """Hessian-vector products of `sum(u f^2) / 2`, whose Hessian mixes both arguments."""

    def both(name: str) -> Function:
        def loss(a: Any, b: Any) -> jax.Array:
            return jnp.sum(u * make(name)(a, b) ** 2) / 2

        return lambda *args: [way(*args) for way in second_orders(loss)]

    return by_every_lowering(both)


def assert_curvature(
    results: list[Any], truth: Case | Adjoint, args: tuple[Any, ...], u: np.ndarray
) -> None:
    """Float64 through and through: three roundings of sums, one after the other."""
    unit = 3 * C * eps(np.float64)
    want, scale = curvature(truth, *args, u), curvature(truth, *map(abs, args), abs(u))
    for result in results:
        for got, *expected in zip(result, want, scale, strict=True):
            assert got.dtype == np.float64
            assert_rounding(got, *expected, unit)


@pytest.mark.parametrize("case", FEW[::2], ids=str)
def test_second_order(case: Case, rng: np.random.Generator, subtests: Any) -> None:
    shapes = case.x_shape, case.kernel_shape
    *args, u = draw(rng, *shapes, *shapes, case.y_shape, dtype=np.float64)
    with jax.enable_x64(True):
        got = products(partial(layer, case), u)(*args)
    for name, results in got.items():
        with subtests.test(lowering=name):
            assert_curvature(results, case, args, u)


@pytest.mark.parametrize("case", FEW[1::2], ids=str)
def test_second_order_of_conv(case: Case, rng: np.random.Generator, subtests: Any) -> None:
    back = Adjoint(case)
    shapes = case.y_shape, case.kernel_shape
    *args, u = draw(rng, *shapes, *shapes, back.x_shape, dtype=np.float64)
    with jax.enable_x64(True):
        got = products(partial(convolution, case), u)(*args)
    for name, results in got.items():
        with subtests.test(lowering=name):
            assert_curvature(results, back, args, u)


@pytest.mark.parametrize("case", FEW[::3], ids=str)
def test_float64(case: Case, rng: np.random.Generator, subtests: Any) -> None:
    args = draw(rng, case.x_shape, case.kernel_shape, case.y_shape, dtype=np.float64)
    with jax.enable_x64(True):
        got = by_every_lowering(lambda name: with_gradients(layer(case, name)))(*args)
    for name, results in got.items():
        with subtests.test(lowering=name):
            assert all(a.dtype == np.float64 for a in results)
            assert_maps(results, case, args, C * eps(np.float64))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("case", by_name("1d_circular_odd", "2d_k5_s2_same", "2d_groups"), ids=str)
def test_16_bits(case: Case, dtype: Any, rng: np.random.Generator, subtests: Any) -> None:
    args = draw(rng, case.x_shape, case.kernel_shape, case.y_shape, dtype=dtype)
    got = by_every_lowering(lambda name: with_gradients(layer(case, name)))(*args)
    for name, results in got.items():
        with subtests.test(lowering=name):
            assert all(a.dtype == dtype for a in results)
            assert_maps(results, case, args, C_SHORT * eps(dtype))


@pytest.mark.parametrize("padding", ["same", "circular"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
def test_integers_keep_their_width(
    dtype: str, padding: str, rng: np.random.Generator, subtests: Any
) -> None:
    x, w = (rng.integers(0, 3, shape).astype(dtype) for shape in ((2, 5, 3), (3, 4, 3)))
    want = oracle.conv_transpose(x, w, strides=2, padding=padding)
    for name in LOWERINGS:
        with subtests.test(lowering=name):
            y = upconv.conv_transpose(x, w, strides=2, padding=padding, lowering=name)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("jit", [False, True], ids=["eagerly", "compiled"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_gradient_of_a_narrow_bias(dtype: str, jit: bool) -> None:
    """It is summed in 32 bits, as in 16 it would grow no more after 256 or 2048 equal terms."""

    def loss(bias: jax.Array, y: jax.Array) -> jax.Array:
        return functional.add_bias(y, bias, -1).astype("float32").sum()

    bias, y = jnp.zeros(3, dtype), jnp.zeros((2, 64, 32, 3), dtype)
    gradient = (jax.jit if jit else lambda f: f)(jax.grad(loss))(bias, y)
    assert gradient.dtype == dtype
    assert gradient.tolist() == [4096] * 3


@pytest.mark.parametrize("preferred", ["int8", "int32", "float32"])
def test_integers_of_4_bits(preferred: str, rng: np.random.Generator, subtests: Any) -> None:
    """They promote to nothing wider by themselves."""
    x, w = (rng.integers(-3, 3, shape) for shape in ((2, 5, 3), (3, 4, 3)))
    want = oracle.conv_transpose(x, w, strides=2)
    x, w = jnp.asarray(x, "int4"), jnp.asarray(w, "int4")
    for name in ("auto", "matmul"):
        with subtests.test(lowering=name):
            f = partial(upconv.conv_transpose, strides=2, lowering=name)
            y = f(x, w, preferred_element_type=preferred)
            assert y.dtype == preferred
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize(
    ("dtype", "preferred"),
    [("float8_e4m3fn", "float32"), ("float32", "complex64"), ("int32", "float32")],
)
def test_a_result_of_another_kind(
    dtype: str, preferred: str, rng: np.random.Generator, subtests: Any
) -> None:
    x, w = (rng.integers(-2, 3, shape).astype(dtype) for shape in ((2, 5, 3), (3, 4, 3)))
    want = oracle.conv_transpose(np.float64(x), np.float64(w), strides=2)
    for name in LOWERINGS:
        with subtests.test(lowering=name):
            options = {"strides": 2, "lowering": name, "preferred_element_type": preferred}
            y = upconv.conv_transpose(x, w, **options)
            assert y.dtype == preferred
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("spelled", ["float64", np.float64, np.dtype("float64"), jnp.float64])
def test_a_preferred_dtype_that_is_not_enabled(spelled: Any, rng: np.random.Generator) -> None:
    x, w = draw(rng, (2, 5, 3), (3, 4, 3))
    with pytest.warns(
        UserWarning, match="float64 needs jax_enable_x64; it is truncated to float32"
    ):
        y = upconv.conv_transpose(x, w, preferred_element_type=spelled)
    assert y.dtype == jnp.float32
    with jax.enable_x64(True):
        y = upconv.conv_transpose(x, w, preferred_element_type=spelled)
    assert y.dtype == jnp.float64


def test_a_type_of_python_is_as_wide_as_jax_has_it(rng: np.random.Generator) -> None:
    x, w = draw(rng, (2, 5, 3), (3, 4, 3))
    y = upconv.conv_transpose(x, w, preferred_element_type=float)  # a warning would be an error
    assert y.dtype == jnp.float32


def test_gradients_of_float8_operands(rng: np.random.Generator, subtests: Any) -> None:
    x, w, ct = (
        rng.integers(-2, 3, shape).astype(np.float32)
        for shape in ((2, 5, 3), (3, 4, 3), (2, 11, 4))
    )
    want = oracle.conv(ct, w, strides=2), oracle.correlate_kernel(x, ct, w.shape[:-2], strides=2)
    narrow = [jnp.asarray(a, jnp.float8_e5m2) for a in (x, w)]
    for name in LOWERINGS:
        with subtests.test(lowering=name):

            def layer(x: jax.Array, w: jax.Array, name: str = name) -> jax.Array:
                return upconv.conv_transpose(
                    x, w, strides=2, lowering=name, preferred_element_type="float32"
                )

            _, pull = jax.vjp(layer, *narrow)
            for got, exact in zip(pull(jnp.asarray(ct)), want, strict=True):
                assert got.dtype == jnp.float8_e5m2
                np.testing.assert_array_equal(got, exact.astype(got.dtype))


def test_gradient_of_a_real_operand_beside_a_complex_one(rng: np.random.Generator) -> None:
    x, w, v = draw(rng, (2, 5, 3), (3, 4, 3), (3, 4, 3))
    w = w + 1j * v

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(upconv.conv_transpose(x, w, strides=2)) ** 2)

    def parts(x: jax.Array) -> jax.Array:
        real, imag = (upconv.conv_transpose(x, part, strides=2) for part in (w.real, w.imag))
        return jnp.sum(real**2 + imag**2)

    got, want = jax.grad(loss)(x), jax.grad(parts)(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("strides", "dilation_rate"), [(1, 1), (2, 2)])
def test_16_bits_accumulate_in_32(strides: int, dilation_rate: int, subtests: Any) -> None:
    # Many a 1 beside one 256: added up in bfloat16 they vanish, for 256 + 1 is 256 there.
    x, w = np.ones((1, 65, 1), jnp.bfloat16), np.ones((65, 1, 1), jnp.bfloat16)
    x[0, 0] = w[0] = 256
    sizes = {"strides": strides, "dilation_rate": dilation_rate}
    y = np.ones(oracle.conv_transpose(x, w, **sizes).shape, jnp.bfloat16)
    want = [
        oracle.conv_transpose(x, w, **sizes),
        oracle.conv(y, w, **sizes),
        oracle.correlate_kernel(x, y, (65,), **sizes),
    ]
    f = partial(upconv.conv_transpose, **sizes)
    made = by_every_lowering(lambda name: with_gradients(partial(f, lowering=name)))(x, w, y)
    for name, got in made.items():
        with subtests.test(lowering=name):
            # As near as bfloat16 can be.
            for a, b in zip(got, want, strict=True):
                assert a.dtype == jnp.bfloat16
                assert_rounding(a, b, np.abs(b), eps(jnp.bfloat16) / 2)


@pytest.mark.parametrize("case", by_name("1d_circular_odd", "2d_groups", "3d_pads"), ids=str)
def test_integers(case: Case, rng: np.random.Generator, subtests: Any) -> None:
    x = rng.integers(-100, 100, case.x_shape, np.int32)
    w = rng.integers(-100, 100, case.kernel_shape, np.int32)
    for name in LOWERINGS:
        with subtests.test(lowering=name):
            y = jax.jit(layer(case, name))(x, w)
            assert y.dtype == np.int32
            assert np.array_equal(y, case.scatter(x, w))


def test_narrow_integers_into_wide(rng: np.random.Generator, subtests: Any) -> None:
    (case,) = by_name("2d_k4_s2_same")
    x = rng.integers(-100, 100, case.x_shape, np.int8)
    w = rng.integers(-100, 100, case.kernel_shape, np.int8)
    for name in LOWERINGS:
        with subtests.test(lowering=name):
            y = jax.jit(layer(case, name, preferred_element_type=jnp.int32))(x, w)
            assert y.dtype == np.int32
            assert np.array_equal(y, case.scatter(x, w))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(
    ("x_dtype", "w_dtype", "preferred", "y_dtype"),
    [
        ("bfloat16", "float32", None, "float32"),
        ("float32", "bfloat16", None, "float32"),
        ("float16", "bfloat16", None, "float32"),
        ("bfloat16", "bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_mixed_dtypes(
    x_dtype: str,
    w_dtype: str,
    preferred: str | None,
    y_dtype: str,
    lowering: str,
    rng: np.random.Generator,
) -> None:
    """The result is what was asked for or promoted to; a gradient has its operand's dtype."""
    (case,) = by_name("2d_k4_s2_same")
    shapes = case.x_shape, case.kernel_shape, case.y_shape
    dtypes = [jnp.dtype(d) for d in (x_dtype, w_dtype, y_dtype)]
    x, w, y = (a.astype(d) for a, d in zip(draw(rng, *shapes), dtypes, strict=True))

    @jax.jit
    def run(x: Any, w: Any, y: Any) -> Any:
        options = {"lowering": lowering, "preferred_element_type": preferred}
        up = with_gradients(layer(case, **options))(x, w, y)
        down = with_gradients(convolution(case, **options))(x_like(y), w, x.astype(y.dtype))
        return up, down

    def x_like(y: Any) -> Any:
        return y.astype(x.dtype)

    up, down = run(x, w, y)
    order = [dtypes[2], dtypes[0], dtypes[1]]
    for results, truth, operands in (
        (up, case, (x, w, y)),
        (down, Adjoint(case), (x_like(y), w, x.astype(y.dtype))),
    ):
        assert [a.dtype for a in results] == order
        a, w, ct = (np.asarray(o, np.float64) for o in operands)
        scales = truth.maps(abs(a), abs(w), abs(ct))
        # As exact as the result can be written down.
        for got, want, scale in zip(results, truth.maps(a, w, ct), scales, strict=True):
            assert_rounding(got, want, scale, C * eps(np.float32) + eps(got.dtype))


@pytest.mark.parametrize(
    ("precision", "told"),
    [("highest", "HIGHEST"), (jax.lax.Precision.HIGH, "HIGH"), ("float32", "HIGHEST")],
)
def test_precision(precision: Any, told: str, subtests: Any) -> None:
    """Whatever does the multiplying, in both directions, is told."""
    (case,) = by_name("2d_k4_s2_same")
    shapes = case.x_shape, case.kernel_shape, case.y_shape
    args = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    for name in LOWERINGS:
        with subtests.test(lowering=name):
            for function, (a, b, c) in ((layer, args), (convolution, (args[2], args[1], args[0]))):
                f = with_gradients(function(case, name, precision=precision))
                heavy = list(multiplications(jax.jit(f).lower(a, b, c).as_text()))
                assert len(heavy) >= 3
                assert all(f"<{told}>" in line or f" {told}" in line for line in heavy), heavy
                plain = with_gradients(function(case, name))
                heavy = list(multiplications(jax.jit(plain).lower(a, b, c).as_text()))
                assert not any("HIGH" in line for line in heavy)


def multiplications(text: str) -> Iterator[str]:
    """The lines of a program that hold a convolution or a matrix product."""
    for line in text.splitlines():
        if "stablehlo.convolution" in line or "stablehlo.dot" in line:
            yield line


@pytest.mark.parametrize(
    "case",
    by_name("1d_k16_s8_same", "2d_groups", "2d_two_batch_axes", "2d_no_batch", "3d_pads"),
    ids=str,
)
def test_channels_first(case: Case, rng: np.random.Generator, subtests: Any) -> None:
    args = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    first = partial(np.moveaxis, source=-1, destination=-1 - case.rank)
    last = partial(np.moveaxis, source=-1 - case.rank, destination=-1)
    x, w, y = first(args[0]), args[1], first(args[2])

    def both(name: str) -> Function:
        def run(x: Any, w: Any, y: Any) -> Any:
            up = with_gradients(layer(case, name, data_format="channels_first"))(x, w, y)
            return up, convolution(case, name, data_format="Channels_First")(y, w)

        return run

    unit = C * eps(np.float32)
    for name, ((up, gx, gw), down) in by_every_lowering(both)(x, w, y).items():
        with subtests.test(lowering=name):
            assert_maps([last(up), last(gx), gw], case, args, unit)
            want, scale = (Adjoint(case).gather(f(args[2]), f(w)) for f in (np.array, np.abs))
            assert_rounding(last(down), want, scale, unit)
