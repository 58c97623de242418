"""Every transformation of JAX goes through `conv_transpose` and `conv`, and means what it should.

Values are compared with the oracle, or with `lowering="lax"`, which is plain `lax` under JAX's own
rules. What needs several devices is in `test_devices.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import oracle
import upconv
from cases import CASES, Case, by_name, draw
from checks import (
    AS_IF_LARGE,
    PLAIN,
    Function,
    close,
    convolution,
    layer,
    limited,
    loss,
    with_gradients,
)
from upconv import auto, geometry

OURS = ("auto", "input_dilation", "subpixel", "matmul")
SOME = by_name("1d_circular_odd", "2d_unequal", "2d_groups", "3d_dilation")
(TINY,) = by_name("1d_k4_s3_same")


def operands(case: Case, rng: np.random.Generator, dtype: Any = np.float32) -> tuple[Any, ...]:
    """x, kernel and a cotangent of the output."""
    return draw(rng, case.x_shape, case.kernel_shape, case.y_shape, dtype=dtype)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects what JAX compiles meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class TestCompilation:
    def test_jit_compiles_once(self, rng: np.random.Generator) -> None:
        x, w, ct = operands(PLAIN, rng)
        traces = []

        @jax.jit
        def step(x: jax.Array, w: jax.Array, ct: jax.Array) -> Any:
            traces.append(1)
            return with_gradients(layer())(x, w, ct)

        with compilations() as first:
            y, gx, gw = step(x, w, ct)
        close([y, gx, gw], PLAIN.maps(x, w, ct))
        with compilations() as second:
            y, gx, gw = step(2 * x, w, ct)
        close([y, gx, gw], PLAIN.maps(2 * x, w, ct))
        assert first
        assert not second
        assert len(traces) == 1

    def test_eager_calls_compile_once(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        upconv.conv_transpose(x, w, strides=[2, 3], padding="same")
        with compilations() as again:
            # Said in other words, it is still the same layer.
            y = upconv.conv_transpose(
                x + 1, w, strides=(2, 3), padding="SAME", dilation_rate=[1, 1]
            )
        close(y, oracle.conv_transpose(x + 1, w, strides=(2, 3), padding="same"))
        assert not again

    @pytest.mark.parametrize("lowering", [*OURS, "lax"])
    def test_disable_jit(self, lowering: str, rng: np.random.Generator) -> None:
        x, w, ct = operands(PLAIN, rng)
        with jax.disable_jit():
            y, pull = jax.vjp(layer(PLAIN, lowering), x, w)
            close([y, *pull(ct)], PLAIN.maps(x, w, ct))

    def test_ahead_of_time(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        compiled = jax.jit(layer()).lower(x, w).compile()
        close(compiled(x, w), PLAIN.scatter(x, w))

    def test_eval_shape(self) -> None:
        x, w = (jax.ShapeDtypeStruct(s, "float32") for s in (PLAIN.x_shape, PLAIN.kernel_shape))
        assert jax.eval_shape(layer(), x, w).shape == PLAIN.y_shape

    def test_donated(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        given = jnp.array(w)

        @partial(jax.jit, donate_argnums=1)
        def update(x: jax.Array, w: jax.Array) -> jax.Array:
            return w - jax.grad(loss(layer()), argnums=1)(x, w)

        new = update(x, given)
        assert given.is_deleted()
        close(new, w - PLAIN.correlate(x, np.cos(PLAIN.scatter(x, w))))

    def test_make_jaxpr(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        ours = jax.make_jaxpr(layer())(x, w)
        assert "conv_general_dilated" not in str(ours)
        close(jax.core.eval_jaxpr(ours.jaxpr, ours.consts, x, w)[0], PLAIN.scatter(x, w))
        # The way out, for tools that read jaxprs: nothing of ours is left in it.
        theirs = jax.make_jaxpr(jax.grad(loss(layer(PLAIN, "lax")), (0, 1)))(x, w)
        assert "conv_general_dilated" in str(theirs)
        assert "upconv" not in str(theirs)


class TestFirstOrder:
    @pytest.mark.parametrize("case", SOME, ids=str)
    def test_grad(self, case: Case, rng: np.random.Generator) -> None:
        x, w, ct = operands(case, rng)
        y = case.scatter(x, w)
        value, (gx, gw) = jax.value_and_grad(loss(layer(case)), (0, 1))(x, w)
        assert abs(value - np.sin(y).sum()) < 1e-3
        close([gx, gw], [case.gather(np.cos(y), w), case.correlate(x, np.cos(y))])
        (gy,) = jax.grad(loss(convolution(case)), (0,))(ct, w)
        x = oracle.conv(ct, w, **case.convolution)
        close(gy, oracle.conv_transpose(np.cos(x), w, **case.convolution, output_size=case.output))

    @pytest.mark.parametrize("case", SOME, ids=str)
    def test_jvp_and_linearize(self, case: Case, rng: np.random.Generator) -> None:
        x, w, _ = operands(case, rng)
        dx, dw, _ = operands(case, rng)
        slope = case.scatter(dx, w) + case.scatter(x, dw)
        close(jax.jvp(layer(case), (x, w), (dx, dw)), (case.scatter(x, w), slope))
        y, push = jax.linearize(layer(case), x, w)
        close([y, push(dx, dw)], [case.scatter(x, w), slope])
        only = jax.jvp(lambda w: layer(case)(x, w), (w,), (dw,))[1]
        close(only, case.scatter(x, dw))

    @pytest.mark.parametrize("lowering", [*OURS, "lax"])
    @pytest.mark.parametrize("case", SOME, ids=str)
    def test_linear_transpose(self, case: Case, lowering: str, rng: np.random.Generator) -> None:
        x, w, ct = operands(case, rng)
        f = layer(case, lowering)
        close(jax.linear_transpose(lambda x: f(x, w), x)(ct), [case.gather(ct, w)])
        close(jax.linear_transpose(lambda w: f(x, w), w)(ct), [case.correlate(x, ct)])

    def test_transposing_twice_is_the_map_itself(self, rng: np.random.Generator) -> None:
        x, w, ct = operands(PLAIN, rng)
        pull = jax.linear_transpose(lambda x: layer()(x, w), x)
        again = jax.linear_transpose(lambda ct: pull(ct)[0], ct)
        close(again(x), [PLAIN.scatter(x, w)])

    def test_one_array_as_both_operands(self, rng: np.random.Generator) -> None:
        # The gradient of a bilinear map on the diagonal is the sum of both.
        (a,) = draw(rng, (3, 4, 4))
        ct = rng.normal(size=(3, 7, 4)).astype(np.float32)
        layer = {"strides": 1, "padding": ((0, 0),)}
        f = lambda a: upconv.conv_transpose(a, a, **layer)  # noqa: E731
        ct = ct[:, : f(a).shape[1]]
        got = jax.vjp(f, a)[1](ct)[0]
        close(got, oracle.conv(ct, a, **layer) + oracle.correlate_kernel(a, ct, (3,), **layer))

    def test_jacobians(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(TINY, rng)
        ours, theirs = layer(TINY), layer(TINY, "lax")
        for jacobian in (jax.jacfwd, jax.jacrev):
            close(jacobian(ours, (0, 1))(x, w), jacobian(theirs, (0, 1))(x, w))


HESSIANS = {
    "forward over reverse": lambda f: jax.jacfwd(jax.jacrev(f, (0, 1)), (0, 1)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f, (0, 1)), (0, 1)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f, (0, 1)), (0, 1)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f, (0, 1)), (0, 1)),
    "jax.hessian": lambda f: jax.hessian(f, (0, 1)),
}


class TestHigherOrder:
    @pytest.mark.parametrize("mode", HESSIANS)
    @pytest.mark.parametrize("make", [layer, convolution])
    def test_hessian(self, make: Any, mode: str, rng: np.random.Generator) -> None:
        x, w, ct = operands(TINY, rng)
        a = x if make is layer else ct
        ours = jax.jit(HESSIANS[mode](loss(make(TINY))))(a, w)
        theirs = jax.jit(jax.hessian(loss(make(TINY, "lax")), (0, 1)))(a, w)
        close(ours, theirs)

    @pytest.mark.parametrize("lowering", OURS)
    def test_third_order(self, lowering: str, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        dx, dw, _ = operands(PLAIN, rng)

        def third(name: str) -> Any:
            def along(f: Function) -> Function:
                return lambda x, w: jax.jvp(f, (x, w), (dx, dw))[1]

            gradient = jax.grad(along(along(loss(layer(PLAIN, name)))), (0, 1))
            return jax.jit(gradient)(x, w)

        close(third(lowering), third("lax"), 1e-4)

    def test_gradient_penalty(self, rng: np.random.Generator) -> None:
        # As of a GAN: the gradient in the kernel of a norm of the gradient in the image.
        x, w, _ = operands(PLAIN, rng)

        def penalty(name: str) -> Function:
            def f(w: jax.Array) -> jax.Array:
                gx = jax.grad(loss(layer(PLAIN, name)))(x, w)
                return jnp.sqrt(jnp.sum(gx**2))

            return f

        close(jax.grad(penalty("auto"))(w), jax.grad(penalty("lax"))(w))


def loop(f: Callable[..., np.ndarray], axes: tuple[int | None, ...], *args: Any) -> np.ndarray:
    """`vmap` as a Python loop, the mapped axis first."""
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    return np.stack(
        [
            f(
                *(
                    a if axis is None else np.take(a, i, axis)
                    for a, axis in zip(args, axes, strict=True)
                )
            )
            for i in range(size)
        ]
    )


def stack(trees: list[Any]) -> Any:
    """One tree with all of them, along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


VMAPS: list[tuple[int | None, int | None]] = [
    (0, None),
    (None, 0),
    (0, 0),
    (1, None),
    (-1, 1),
    (2, -1),
    (None, -2),
]


class TestVmap:
    @pytest.mark.parametrize(
        ("case", "axes"),
        # Every way to map on one case, the essential ones on the others.
        [(case, axes) for case in SOME for axes in VMAPS[: 7 if case.groups > 1 else 3]],
        ids=str,
    )
    def test_values_and_gradients(
        self, case: Case, axes: tuple[int | None, int | None], rng: np.random.Generator
    ) -> None:
        x, w, ct = operands(case, rng)
        x, w = (
            a if axis is None else np.stack([a, 2 * a[::-1], -a], axis % (a.ndim + 1))
            for a, axis in zip((x, w), axes, strict=True)
        )
        cts = np.stack([ct, ct + 1, ct[::-1]])

        def run(x: Any, w: Any, ct: Any) -> Any:
            y, pull = jax.vjp(layer(case), x, w)
            z, back = jax.vjp(convolution(case), ct, w)
            return y, *pull(ct), z, *back(jnp.sin(z))

        got = jax.jit(jax.vmap(run, (*axes, 0)))(x, w, cts)
        y = loop(case.scatter, axes, x, w)
        gx = loop(case.gather, (0, axes[1]), cts, w)
        gw = loop(case.correlate, (axes[0], 0), x, cts)
        forth = partial(oracle.conv, **case.convolution)
        back = partial(oracle.conv_transpose, **case.convolution, output_size=case.output)
        kernel = partial(oracle.correlate_kernel, kernel_size=case.kernel_size, **case.convolution)
        z = loop(forth, (0, axes[1]), cts, w)
        gy = loop(back, (0, axes[1]), np.sin(z), w)
        gk = loop(kernel, (0, 0), np.sin(z), cts)
        close(got, (y, gx, gw, z, gy, gk))

    @pytest.mark.parametrize("lowering", [*OURS, "lax"])
    @pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
    def test_every_lowering(self, axes: Any, lowering: str, rng: np.random.Generator) -> None:
        (case,) = by_name("2d_groups")
        x, w, ct = operands(case, rng)
        x, w = (
            a if axis is None else np.stack([a, 2 * a[::-1]])
            for a, axis in zip((x, w), axes, strict=True)
        )

        def run(x: Any, w: Any) -> Any:
            y, pull = jax.vjp(layer(case, lowering), x, w)
            return y, *pull(ct)

        y = loop(case.scatter, axes, x, w)
        gx = loop(lambda x, w: case.gather(ct, w), axes, x, w)
        gw = loop(lambda x, w: case.correlate(x, ct), axes, x, w)
        close(jax.jit(jax.vmap(run, axes))(x, w), (y, gx, gw))

    def test_out_axes(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        xs = np.stack([x, 2 * x, -x])
        want = loop(PLAIN.scatter, (0, None), xs, w)
        for out in (0, 1, 3, -1):
            got = jax.vmap(layer(), (0, None), out_axes=out)(xs, w)
            close(got, np.moveaxis(want, 0, out))

    def test_nested(self, rng: np.random.Generator) -> None:
        (case,) = by_name("2d_groups")
        x, w, ct = operands(case, rng)
        xs, ws = np.stack([x, 2 * x[::-1]]), np.stack([w, w[::-1], -w])

        def run(x: Any, w: Any) -> Any:
            y, pull = jax.vjp(layer(case), x, w)
            return y, *pull(ct)

        # Every image with every kernel, and each with its own, twice over.
        got = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(xs, ws)
        want = [[tuple(case.maps(x, w, ct)) for w in ws] for x in xs]
        close(got, stack([stack(row) for row in want]))
        xs, ws = np.stack([xs] * 3) * np.arange(1, 4).reshape(3, *[1] * 5), np.stack([ws[:2]] * 3)
        got = jax.vmap(jax.vmap(run))(xs.astype(np.float32), ws)
        want = [
            [tuple(case.maps(x, w, ct)) for x, w in zip(a, b, strict=True)]
            for a, b in zip(xs, ws, strict=True)
        ]
        close(got, stack([stack(row) for row in want]))

    def test_per_example_gradients(self, rng: np.random.Generator) -> None:
        (case,) = by_name("2d_groups")
        x, w, _ = operands(case, rng)
        single = loss(layer(case))
        got = jax.vmap(jax.grad(single, argnums=1), (0, None))(x, w)
        each = [
            case.correlate(x[i : i + 1], np.cos(case.scatter(x[i : i + 1], w)))
            for i in range(len(x))
        ]
        close(got, np.stack(each))
        whole = jax.grad(single, argnums=1)(x, w)
        close(got.sum(0), whole)

    def test_gradient_of_vmap(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        ws = np.stack([w, -w, 3 * w])
        got = jax.grad(loss(jax.vmap(layer(), (None, 0))), (0, 1))(x, ws)
        gx = sum(PLAIN.gather(np.cos(PLAIN.scatter(x, w)), w) for w in ws)
        gw = np.stack([PLAIN.correlate(x, np.cos(PLAIN.scatter(x, w))) for w in ws])
        close(got, (gx, gw), 1e-4)

    def test_an_ensemble_of_one_and_of_none(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        for xs, ws in ((x[None], w[None]), (np.stack([x] * 3)[:0], np.stack([w] * 3)[:0])):
            y = jax.vmap(layer())(xs, ws)
            assert y.shape == (len(xs), *PLAIN.y_shape)
            if len(xs):
                close(y[0], PLAIN.scatter(x, w))

    def test_named_axis(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        xs = np.stack([x, 2 * x])

        def step(x: Any) -> Any:
            return jax.lax.psum(jax.grad(loss(layer()), 1)(x, w), "ensemble")

        want = sum(PLAIN.correlate(x, np.cos(PLAIN.scatter(x, w))) for x in xs)
        close(jax.vmap(step, axis_name="ensemble")(xs), np.stack([want, want]))


POLICIES = {
    "default": None,
    "everything": jax.checkpoint_policies.everything_saveable,
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots without batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("up"),
}


class TestControl:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_checkpoint(self, policy: str, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        back = rng.normal(size=(*PLAIN.kernel_size, 3, 2)).astype(np.float32)

        def net(name: str, x: Any, w: Any) -> Any:
            from jax.ad_checkpoint import checkpoint_name

            h = checkpoint_name(jnp.tanh(layer(PLAIN, name)(x, w)), "up")
            return jnp.tanh(layer(PLAIN, name)(h, back))

        saved = jax.checkpoint(partial(net, "auto"), policy=POLICIES[policy])
        got = jax.jit(jax.grad(loss(saved), (0, 1)))(x, w)
        close(got, jax.grad(loss(partial(net, "lax")), (0, 1))(x, w))

    def test_scan_over_layers(self, rng: np.random.Generator) -> None:
        (x,) = draw(rng, (2, 4, 3, 2))
        ws = rng.normal(size=(5, 3, 2, 2, 2)).astype(np.float32) / 3

        def net(name: str, x: Any, ws: Any) -> Any:
            def body(h: Any, w: Any) -> Any:
                h = upconv.conv_transpose(h, w, padding="same", lowering=name)
                return jnp.tanh(h), None

            return jax.lax.scan(body, x, ws)[0]

        got = jax.jit(jax.grad(loss(partial(net, "auto")), (0, 1)))(x, ws)
        close(got, jax.grad(loss(partial(net, "lax")), (0, 1))(x, ws))

    def test_scan_over_images(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        xs = np.stack([x, 2 * x, -x])

        def total(w: Any) -> Any:
            def body(sum_: Any, x: Any) -> Any:
                return sum_ + loss(layer())(x, w), None

            return jax.lax.scan(body, jnp.float32(0), xs)[0]

        close(jax.grad(total)(w), sum(PLAIN.correlate(x, np.cos(PLAIN.scatter(x, w))) for x in xs))
        hessian = jax.jvp(jax.grad(total), (w,), (w,))[1]
        assert jnp.isfinite(hessian).all()

    def test_cond_and_switch(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)

        @jax.jit
        def step(which: Any, w: Any) -> Any:
            def f(w: Any) -> Any:
                ways = [lambda w: loss(layer())(x, w), lambda w: loss(layer())(2 * x, w)]
                return jax.lax.cond(which > 0, *ways[::-1], w) + jax.lax.switch(which, ways, w)

            return jax.grad(f)(w)

        for which in (0, 1):
            scaled = (1 + which) * x
            close(step(which, w), 2 * PLAIN.correlate(scaled, np.cos(PLAIN.scatter(scaled, w))))

    def test_loops(self, rng: np.random.Generator) -> None:
        (case,) = by_name("1d_circular_s1")
        (x,) = draw(rng, case.x_shape)
        w = rng.normal(size=(3, 3, 3)).astype(np.float32) / 3
        f = partial(upconv.conv_transpose, padding="circular")
        got = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, h: f(h, w), x))(x)
        want = x
        for _ in range(3):
            want = oracle.conv_transpose(want, w, padding="circular")
        close(got, want)
        close(jax.lax.map(lambda x: f(x, w), np.stack([x, 2 * x])), np.stack([
            oracle.conv_transpose(x, w, padding="circular"),
            oracle.conv_transpose(2 * x, w, padding="circular"),
        ]))  # fmt: skip

    def test_custom_derivatives_around_it(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)

        @jax.custom_vjp
        def f(x: Any, w: Any) -> Any:
            return layer()(x, w)

        def forward(x: Any, w: Any) -> Any:
            return jax.vjp(layer(), x, w)

        f.defvjp(forward, lambda pull, ct: pull(2 * ct))
        got = jax.jit(jax.grad(loss(f), (0, 1)))(x, w)
        ct = 2 * np.cos(PLAIN.scatter(x, w))
        close(got, (PLAIN.gather(ct, w), PLAIN.correlate(x, ct)))


class TestExport:
    @pytest.mark.parametrize(
        "name",
        ["2d_unequal", "2d_k2_s3_valid", "2d_groups", "2d_pairs", "2d_circular", "2d_op_same"],
    )
    def test_symbolic_sizes(self, name: str, rng: np.random.Generator) -> None:
        (case,) = by_name(name)
        scope = export.SymbolicScope(["n >= 1", "h >= 3", "w >= 3"])
        shape = export.symbolic_shape(f"n, h, w, {case.c_in}", scope=scope)
        args = [jax.ShapeDtypeStruct(s, "float32") for s in (shape, case.kernel_shape)]

        def step(x: Any, w: Any) -> Any:
            results = []
            for lowering in (*OURS, "lax"):
                y, pull = jax.vjp(layer(case, lowering), x, w)
                results.append([y, *pull(jnp.sin(y))])
            return results

        exported = export.export(jax.jit(step))(*args)
        for size in ((1, 3, 4), (3, 6, 5)):
            x, w = draw(rng, (*size, case.c_in), case.kernel_shape)
            y = case.scatter(x, w)
            gx = oracle.conv(np.sin(y), w, **case.convolution, input_size=size[1:])
            gw = oracle.correlate_kernel(x, np.sin(y), case.kernel_size, **case.convolution)
            for got in exported.call(x, w):
                close(got, [y, gx, gw])

    @pytest.mark.parametrize(
        ("size", "sizes"),
        [
            (lambda h, w: (2 * h, 3 * w), {"padding": "same"}),
            (lambda h, w: (2 * h - 1, 3 * w - 2), {"padding": "same_lower"}),
            (lambda h, w: (2 * h + 2, 3 * w + 1), {}),
            (lambda h, w: (2 * h, 3 * w), {"padding": (1, (2, 0)), "dilation_rate": (1, 2)}),
            (lambda h, w: (2 * h, 3 * w), {"padding": "circular"}),
        ],
        ids=["same", "same_lower", "valid", "pairs", "circular"],
    )
    def test_a_symbolic_output_size(
        self, size: Any, sizes: dict[str, Any], rng: np.random.Generator
    ) -> None:
        """Which is PyTorch's way to say which of several sizes is meant."""
        scope = export.SymbolicScope(["h >= 3", "w >= 3"])
        shape = export.symbolic_shape("2, h, w, 3", scope=scope)
        options = {"strides": (2, 3), **sizes}

        def f(x: Any, w: Any) -> Any:
            return upconv.conv_transpose(x, w, output_size=size(*x.shape[1:3]), **options)

        kernel_shape = (4, 3, 5, 3)
        args = [jax.ShapeDtypeStruct(s, "float32") for s in (shape, kernel_shape)]
        exported = export.export(jax.jit(f))(*args)
        for h, w in ((3, 4), (6, 3)):
            x, kernel = draw(rng, (2, h, w, 3), kernel_shape)
            want = oracle.conv_transpose(x, kernel, output_size=size(h, w), **options)
            close(exported.call(x, kernel), want)

    @pytest.mark.parametrize("limits", [{}, AS_IF_LARGE], ids=["as they are", "as if large"])
    @pytest.mark.parametrize("case", [c for c in CASES if len(c.batch) == 1][2::4], ids=str)
    @pytest.mark.many
    def test_a_symbolic_batch(self, case: Case, limits: Any, rng: np.random.Generator) -> None:
        """Its ways are those of a usual batch, as far as they can do without knowing it."""
        (n,) = export.symbolic_shape("n")

        def step(x: Any, w: Any) -> Any:
            y, pull = jax.vjp(layer(case), x, w)
            return [y, *pull(jnp.sin(y))]

        shapes = (n, *case.spatial, case.c_in), case.kernel_shape
        with limited(limits):
            exported = export.export(jax.jit(step))(
                *(jax.ShapeDtypeStruct(s, "float32") for s in shapes)
            )
        for images in (1, 3):
            x, w = draw(rng, (images, *case.spatial, case.c_in), case.kernel_shape)
            close(exported.call(x, w), case.maps(x, w, np.sin(case.scatter(x, w))))

    @pytest.mark.parametrize("groups", [1, 2])
    def test_a_symbolic_number_of_layers(self, groups: int, rng: np.random.Generator) -> None:
        """What `vmap` makes of the axis is a symbolic number of groups."""
        (n,) = export.symbolic_shape("n")
        case = Case("", (5, 4), (3, 2), strides=2, c_in=4, c_out=6, groups=groups, batch=(2,))

        def ensemble(x: Any, w: Any) -> Any:
            y, pull = jax.vjp(jax.vmap(layer(case)), x, w)
            return [y, *pull(jnp.sin(y))]

        shapes = (n, *case.x_shape), (n, *case.kernel_shape)
        args = [jax.ShapeDtypeStruct(s, "float32") for s in shapes]
        exported = export.export(jax.jit(ensemble), platforms=("cpu", "cuda", "tpu"))(*args)
        x, w = draw(rng, (3, *case.x_shape), (3, *case.kernel_shape))
        got = exported.call(x, w)
        for i in range(3):
            y = case.scatter(x[i], w[i])
            close([a[i] for a in got], [y, *case.maps(x[i], w[i], np.sin(y))[1:]])

    def test_kernel_gradients_of_a_symbolic_number_of_examples(
        self, rng: np.random.Generator
    ) -> None:
        (n,) = export.symbolic_shape("n")
        each = jax.jit(jax.vmap(jax.grad(loss(layer()), 1), (0, None)))
        args = [
            jax.ShapeDtypeStruct(s, "float32")
            for s in ((n, *PLAIN.x_shape[1:]), PLAIN.kernel_shape)
        ]
        exported = export.export(each)(*args)
        x, w = draw(rng, (3, *PLAIN.x_shape[1:]), PLAIN.kernel_shape)
        want = [PLAIN.correlate(a, np.cos(PLAIN.scatter(a, w))) for a in x[:, None]]
        close(list(exported.call(x, w)), want)

    @pytest.mark.parametrize("platform", auto.RULES)
    def test_the_ways_of_a_symbolic_batch(self, platform: str) -> None:
        (n,) = export.symbolic_shape("n")
        for case in CASES:
            g = geometry.transposed(case.spatial, case.kernel_size, **case.layer)
            usual, symbolic = (
                auto.ways(g, batch, case.kernel_shape, np.dtype("float32"), platform)
                for batch in (auto.USUAL_BATCH, n)
            )
            assert symbolic[:2] == usual[:2]
            assert symbolic.correlate_kernel in ("matmul", "backward_filter")

    @pytest.mark.parametrize("sizes", ["c, 6", "3, o", "c, o"])
    @pytest.mark.parametrize("lowering", [*OURS, "lax"])
    def test_symbolic_channels(self, lowering: str, sizes: str, rng: np.random.Generator) -> None:
        c, o = export.symbolic_shape(sizes)

        def step(x: Any, w: Any) -> Any:
            f = partial(upconv.conv_transpose, strides=2, padding="same", lowering=lowering)
            y, pull = jax.vjp(f, x, w)
            return [y, *pull(jnp.sin(y))]

        args = [jax.ShapeDtypeStruct(s, "float32") for s in ((2, 5, 4, c), (3, 2, o, c))]
        exported = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*args)
        case = Case("", (5, 4), (3, 2), strides=2, padding="same", c_in=3, c_out=6, batch=(2,))
        x, w = draw(rng, case.x_shape, case.kernel_shape)
        y = case.scatter(x, w)
        close(exported.call(x, w), case.maps(x, w, np.sin(y)))

    @pytest.mark.parametrize("name", ["2d_unequal", "2d_circular"])
    def test_symbolic_sizes_of_conv(self, name: str, rng: np.random.Generator) -> None:
        (case,) = by_name(name)
        scope = export.SymbolicScope(["n >= 1", "h >= 3", "w >= 3"])
        steps = oracle.per_axis(case.strides, 2)
        shape = export.symbolic_shape(f"n, {steps[0]}*h, {steps[1]}*w, {case.c_out}", scope=scope)
        y = jax.ShapeDtypeStruct(shape, "float32")
        w = jax.ShapeDtypeStruct(case.kernel_shape, "float32")
        exported = export.export(jax.jit(convolution(case)))(y, w)
        for size in ((1, 3, 4), (3, 6, 5)):
            y, w = draw(
                rng,
                (size[0], *np.multiply(steps, size[1:]).tolist(), case.c_out),
                case.kernel_shape,
            )
            close(exported.call(y, w), oracle.conv(y, w, **case.convolution))

    @pytest.mark.parametrize("padding", ["valid", "same", "same_lower", (1, 0)])
    def test_sizes_of_conv_that_no_stride_need_divide(
        self, padding: Any, rng: np.random.Generator
    ) -> None:
        """What is padded is not known then, nor how much of the end no window reaches."""
        scope = export.SymbolicScope(["n >= 1", "h >= 4", "w >= 4"])
        y = jax.ShapeDtypeStruct(export.symbolic_shape("n, h, w, 4", scope=scope), "float32")
        w = jax.ShapeDtypeStruct((3, 4, 4, 5), "float32")
        options = {"strides": (2, 3), "padding": padding}

        def step(y: Any, w: Any) -> Any:
            results = []
            for lowering in (*OURS, "lax"):
                x, pull = jax.vjp(partial(upconv.conv, **options, lowering=lowering), y, w)
                results.append([x, *pull(jnp.sin(x))])
            return results

        exported = export.export(jax.jit(step))(y, w)
        for size in ((7, 9), (8, 5)):
            y, w = draw(rng, (2, *size, 4), (3, 4, 4, 5))
            x = oracle.conv(y, w, **options)
            gy = oracle.conv_transpose(np.sin(x), w, **options, output_size=size)
            gw = oracle.correlate_kernel(np.sin(x), y, (3, 4), **options)
            for got in exported.call(y, w):
                close(got, [x, gy, gw])

    def test_derivatives_of_the_exported(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        (n,) = export.symbolic_shape("n")
        args = (
            jax.ShapeDtypeStruct((n, *x.shape[1:]), "float32"),
            jax.ShapeDtypeStruct(w.shape, "float32"),
        )
        exported = export.export(jax.jit(layer()))(*args)
        y = PLAIN.scatter(x, w)
        got = jax.grad(loss(exported.call), (0, 1))(x, w)
        close(got, (PLAIN.gather(np.cos(y), w), PLAIN.correlate(x, np.cos(y))))

    def test_other_platforms(self) -> None:
        # The rules of all platforms go into one artefact, whatever this machine is.
        x, w = (jax.ShapeDtypeStruct(s, "float32") for s in (PLAIN.x_shape, PLAIN.kernel_shape))
        step = jax.jit(jax.grad(loss(layer()), (0, 1)))
        exported = export.export(step, platforms=("cpu", "cuda", "rocm", "tpu"))(x, w)
        assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")


class TestModes:
    def test_x64(self, rng: np.random.Generator) -> None:
        with jax.enable_x64(True):
            x, w, ct = operands(PLAIN, rng, np.float64)
            y, pull = jax.vjp(jax.jit(layer()), x, w)
            got = [y, *pull(ct)]
            assert all(a.dtype == np.float64 for a in got)
            close(got, PLAIN.maps(x, w, ct), 1e-14)
            # Single precision stays single.
            assert layer()(np.float32(x), np.float32(w)).dtype == np.float32

    @pytest.mark.parametrize("lowering", [*OURS, "lax"])
    @pytest.mark.parametrize(
        "case", by_name("2d_unequal", "2d_groups", "2d_groups_depthwise"), ids=str
    )
    def test_no_images(self, case: Case, lowering: str, rng: np.random.Generator) -> None:
        _, w, _ = operands(case, rng)
        for batch in ((0,), (2, 0)):
            x = np.zeros((*batch, *case.x_shape[1:]), np.float32)
            y, pull = jax.vjp(jax.jit(layer(case, lowering)), x, w)
            gx, gw = pull(y)
            assert y.shape == (*batch, *case.y_shape[1:])
            assert gx.shape == x.shape
            assert np.array_equal(gw, np.zeros_like(w))
            assert jax.jit(convolution(case, lowering))(y, w).shape == x.shape

    def test_debug_nans(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        step = jax.jit(jax.grad(loss(layer()), (0, 1)))
        nan = jnp.asarray(x).at[0, 0, 0, 0].set(np.nan)
        with jax.debug_nans(True):
            y = PLAIN.scatter(x, w)
            close(step(x, w), (PLAIN.gather(np.cos(y), w), PLAIN.correlate(x, np.cos(y))))
            for run in (layer(), step):
                with pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered"):
                    run(nan, w)
        infinite = nan.at[0, 0, 0, 0].set(np.inf)
        with jax.debug_infs(True), pytest.raises(FloatingPointError, match="upconv_conv_transpose"):
            layer()(infinite, w)

    @pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
    def test_the_default_precision_is_that_of_tracing(
        self, platform: str, rng: np.random.Generator
    ) -> None:
        def run(x: jax.Array, w: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):
                return layer()(x, w)

        x, w, ct = operands(PLAIN, rng)
        traced = jax.jit(with_gradients(run)).trace(x, w, ct)
        text = traced.lower(lowering_platforms=(platform,)).as_text("hlo")
        maps = re.findall(r" (?:convolution|dot)\(.*", text)
        assert len(maps) >= 3
        assert all("operand_precision={highest,highest}" in computed for computed in maps)

    def test_64_bits_in_a_context(self, rng: np.random.Generator) -> None:
        x, w, ct = operands(PLAIN, rng)

        def inside(x: jax.Array, w: jax.Array) -> jax.Array:
            with jax.enable_x64(True):
                return layer()(x.astype("float64"), w.astype("float64")).astype("float32")

        close(jax.jit(inside)(x, w), PLAIN.scatter(x, w))
        with jax.enable_x64(True):
            y, pull = jax.vjp(layer(), *(jnp.asarray(a, "float64") for a in (x, w)))
            cotangent = jnp.asarray(ct, "float64")
        got = [y, *pull(cotangent)]  # outside
        assert {a.dtype for a in got} == {np.dtype("float64")}
        close(got, PLAIN.maps(*(np.float64(a) for a in (x, w, ct))), 1e-12)

    def test_no_tracer_leaks(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        with jax.check_tracer_leaks():
            hessian = jax.jit(jax.jacfwd(jax.grad(loss(layer()), 1), 1))
            assert hessian(x, w).shape == w.shape * 2
            ensemble = jax.jit(jax.vmap(jax.grad(loss(layer())), (None, 0)))
            assert ensemble(x, np.stack([w, w])).shape == (2, *x.shape)

    def test_internal_checks(self, rng: np.random.Generator) -> None:
        x, w, _ = operands(PLAIN, rng)
        with jax.enable_checks(True):
            y = PLAIN.scatter(x, w)
            got = jax.jit(jax.grad(loss(layer()), (0, 1)))(x, w)
            close(got, (PLAIN.gather(np.cos(y), w), PLAIN.correlate(x, np.cos(y))))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("lowering", OURS)
    def test_strict_promotion(self, lowering: str, dtype: str, rng: np.random.Generator) -> None:
        x, w, ct = (jnp.asarray(a, dtype) for a in operands(PLAIN, rng))
        with jax.numpy_dtype_promotion("strict"):
            y, pull = jax.vjp(jax.jit(layer(PLAIN, lowering)), x, w)
            got = [y, *pull(ct)]
        assert all(a.dtype == dtype for a in got)
        x, w, ct = (np.asarray(a, np.float32) for a in (x, w, ct))
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        close(got, PLAIN.maps(x, w, ct), tolerance)

    def test_strict_ranks(self, rng: np.random.Generator) -> None:
        x, w, ct = operands(PLAIN, rng)
        with jax.numpy_rank_promotion("raise"):
            y, pull = jax.vjp(layer(), x, w)
            close([y, *pull(ct)], PLAIN.maps(x, w, ct))

    def test_no_transfers(self, rng: np.random.Generator) -> None:
        # Nothing of ours moves between host and device behind the user's back.
        for case in (PLAIN, *by_name("2d_negative_pads")):
            x, w, ct = map(jnp.asarray, operands(case, rng))
            with jax.transfer_guard("disallow"):
                y, pull = jax.vjp(layer(case), x, w)
                got = [y, *pull(ct)]
            close(got, case.maps(x, w, ct))
