"""What needs several devices, checked on eight that XLA makes of one processor.

A program of its own, run by `test_devices.py`: how many devices there are is settled when JAX
starts, and eight of them slow everything else down. It prints what each check came to, as JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import upconv
from cases import Case, draw
from checks import PLAIN, Adjoint, close, convolution, layer, loss, with_gradients
from upconv.regularizers import Orthogonal

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Eight threads on a busy machine may wait long for each other; XLA gives up after 40 s.
    "XLA_FLAGS": " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_force_host_platform_device_count=8",
            "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
            "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        ]
    ),
}

CHECKS: dict[str, Callable[[], None]] = {}
LOWERINGS = ("auto", "input_dilation", "subpixel", "matmul")


def check(f: Callable[[], None]) -> Callable[[], None]:
    """Puts a check into the table."""
    CHECKS[f.__name__] = f
    return f


def mesh(kind: AxisType) -> jax.sharding.Mesh:
    """Four devices for images, two for channels."""
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def operands(case: Case = PLAIN, *, batch: int = 8) -> tuple[Any, ...]:
    """x, kernel and cotangent, with a batch that the devices can share and channels too."""
    rng = np.random.default_rng(0)
    shapes = (batch, *case.spatial, 4), (*case.kernel_size, 6, 4), (batch, *case.output, 6)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def gradients(x: Any, w: Any) -> list[np.ndarray]:
    """Of `loss(layer())`, by the oracle."""
    ct = np.cos(PLAIN.scatter(x, w))
    return PLAIN.maps(x, w, ct)[1:]


def hessian_product(f: Callable[..., jax.Array], x: Any, w: Any) -> Any:
    """The Hessian of `loss(f)` times some direction."""
    gradient = jax.grad(loss(f), (0, 1))
    return jax.jit(lambda x, w: jax.jvp(gradient, (x, w), (2 * x, w + 1))[1])(x, w)


@check
def gradient_outside_shard_map() -> None:
    x, w, _ = operands()
    for lowering in LOWERINGS:
        f = jax.shard_map(
            layer(PLAIN, lowering),
            mesh=mesh(AxisType.Auto),
            in_specs=(P("data"), P()),
            out_specs=P("data"),
        )
        close(jax.jit(f)(x, w), PLAIN.scatter(x, w))
        close(jax.jit(jax.grad(loss(f), (0, 1)))(x, w), gradients(x, w))


@check
def gradient_inside_shard_map() -> None:
    x, w, _ = operands()
    for lowering in LOWERINGS:

        @partial(
            jax.shard_map,
            mesh=mesh(AxisType.Auto),
            in_specs=(P("data"), P()),
            out_specs=(P("data"), P()),
        )
        def inside(x: Any, w: Any, lowering: str = lowering) -> Any:
            # The kernel is the same everywhere: its gradient comes summed over the devices.
            return jax.grad(loss(layer(PLAIN, lowering)), (0, 1))(x, w)

        close(jax.jit(inside)(x, w), gradients(x, w))


@check
def gradient_inside_shard_map_summed_by_hand() -> None:
    x, w, _ = operands()

    @partial(
        jax.shard_map, mesh=mesh(AxisType.Auto), in_specs=(P("data"), P()), out_specs=P("data")
    )
    def inside(x: Any, w: Any) -> Any:
        w = jax.lax.pcast(w, "data", to="varying")
        return jax.grad(loss(layer()), 1)(x, w)[None]

    close(jax.jit(inside)(x, w).sum(0), gradients(x, w)[1])


@check
def shard_map_without_checks() -> None:
    x, w, _ = operands()

    @partial(
        jax.shard_map,
        mesh=mesh(AxisType.Auto),
        in_specs=(P("data"), P()),
        out_specs=(P("data"), P()),
        check_vma=False,
    )
    def inside(x: Any, w: Any) -> Any:
        gx, gw = jax.grad(loss(layer()), (0, 1))(x, w)
        return gx, jax.lax.psum(gw, "data")

    close(jax.jit(inside)(x, w), gradients(x, w))


@check
def shard_map_over_channels() -> None:
    x, w, ct = operands()

    @partial(
        jax.shard_map,
        mesh=mesh(AxisType.Auto),
        in_specs=(P("data", None, None, "model"), P(None, None, None, "model")),
        out_specs=P("data"),
    )
    def inputs(x: Any, w: Any) -> Any:
        return jax.lax.psum(layer()(x, w), "model")

    close(jax.jit(with_gradients(inputs))(x, w, ct), PLAIN.maps(x, w, ct))

    @partial(
        jax.shard_map,
        mesh=mesh(AxisType.Auto),
        in_specs=(P("data"), P(None, None, "model")),
        out_specs=P("data", None, None, "model"),
    )
    def filters(x: Any, w: Any) -> Any:
        return layer()(x, w)

    close(jax.jit(with_gradients(filters))(x, w, ct), PLAIN.maps(x, w, ct))


@check
def second_order_in_shard_map() -> None:
    x, w, _ = operands()
    f = jax.shard_map(
        layer(), mesh=mesh(AxisType.Auto), in_specs=(P("data"), P()), out_specs=P("data")
    )
    close(hessian_product(f, x, w), hessian_product(layer(PLAIN, "lax"), x, w))


@check
def vmap_in_and_around_shard_map() -> None:
    x, w, ct = operands()
    ws = np.stack([w, 2 * w, -w])
    f = partial(jax.shard_map, mesh=mesh(AxisType.Auto))
    inside = f(jax.vmap(layer(), (None, 0)), in_specs=(P("data"), P()), out_specs=P(None, "data"))
    around = jax.vmap(f(layer(), in_specs=(P("data"), P()), out_specs=P("data")), (None, 0))
    want = np.stack([PLAIN.scatter(x, w) for w in ws])
    cts = np.stack([ct] * 3)
    gx = sum(PLAIN.gather(ct, w) for w in ws)
    gw = np.stack([PLAIN.correlate(x, ct)] * 3)
    for g in (inside, around):
        close(jax.jit(with_gradients(g))(x, ws, cts), [want, gx, gw])


@check
def scan_and_remat_in_shard_map() -> None:
    x, _, _ = operands()
    ws = np.random.default_rng(1).normal(size=(3, 3, 2, 4, 4)).astype(np.float32) / 3

    def net(lowering: str, x: Any, ws: Any) -> Any:
        @jax.checkpoint
        def body(h: Any, w: Any) -> Any:
            h = upconv.conv_transpose(h, w, padding="same", lowering=lowering)
            return jnp.tanh(h), None

        return jax.lax.scan(body, x, ws)[0]

    f = jax.shard_map(
        partial(net, "auto"),
        mesh=mesh(AxisType.Auto),
        in_specs=(P("data"), P()),
        out_specs=P("data"),
    )
    got = jax.jit(jax.grad(loss(f), (0, 1)))(x, ws)
    want = jax.jit(jax.grad(loss(partial(net, "lax")), (0, 1)))(x, ws)
    close(got, want)


@check
def automatic_sharding() -> None:
    x, w, ct = operands()
    m = mesh(AxisType.Auto)
    whole, images, both = P(), P("data"), P(("data", "model"))
    channels = P("data", None, None, "model")
    layouts = [
        (images, whole, images),
        (both, whole, both),
        (channels, P(None, None, None, "model"), images),
        (images, P(None, None, "model"), channels),
        (P(None, "data"), whole, whole),
    ]
    placements = [
        [jax.device_put(a, NamedSharding(m, s)) for a, s in zip((x, w, ct), layout, strict=True)]
        for layout in layouts
    ]
    for lowering in LOWERINGS:
        run = jax.jit(with_gradients(layer(PLAIN, lowering)))
        for placed in placements:
            close(run(*placed), PLAIN.maps(x, w, ct))
    # One image after another is computed where it lies: nothing is gathered for it.
    text = jax.jit(layer()).lower(*placements[0][:2]).compile().as_text()
    assert "all-gather" not in text
    y = jax.jit(layer())(*placements[0][:2])
    assert y.sharding.is_equivalent_to(NamedSharding(m, P("data")), y.ndim)


@check
def what_is_split_automatically_is_a_plain_convolution() -> None:
    """Those alone can XLA's partitioner split by images, channels and space."""
    placed = [jax.device_put(a, NamedSharding(mesh(AxisType.Auto), P())) for a in operands()]
    run = jax.jit(with_gradients(layer()))
    for platform in ("cpu", "cuda"):
        split, alone = (
            run.trace(*args).lower(lowering_platforms=(platform,)).as_text()
            for args in (placed, operands())
        )
        assert split.count("stablehlo.convolution") == 3, platform
        assert "stablehlo.dot_general" not in split, platform
        assert "stablehlo.dot_general" in alone, platform


@check
def groups_where_no_convolution_gives_the_kernels_gradient() -> None:
    """The partitioner would multiply it by the size of an axis without images, or abort."""
    case = Case("groups", (6, 5), (3, 4), 16, 8, (8,), strides=2, padding="same", groups=2)
    args = draw(np.random.default_rng(0), case.x_shape, case.kernel_shape, case.y_shape)
    run = jax.jit(with_gradients(layer(case)))
    images, channels = P("data"), P(None, None, None, ("data", "model"))
    for layout in ((images, P(), images), (channels, P(), P()), (channels, channels, P())):
        for kind in (AxisType.Auto, AxisType.Explicit):
            with jax.set_mesh(mesh(kind)):
                placed = [jax.device_put(a, s) for a, s in zip(args, layout, strict=True)]
                close(run(*placed), case.maps(*args))


@check
def axes_of_one_device_split_nothing() -> None:
    """A device of `shard_map` over all the others computes as if it were alone."""
    x, w, ct = operands()
    run = with_gradients(layer())
    f = jax.shard_map(
        run,
        mesh=jax.make_mesh((8, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2),
        axis_names={"data"},
        in_specs=(P("data"), P(), P("data")),
        out_specs=[P("data"), P("data"), P()],
    )
    split, alone = (
        jax.jit(g).lower(*args).as_text().count("stablehlo.convolution")
        for g, args in ((f, (x, w, ct)), (run, (x[:1], w, ct[:1])))
    )
    assert split == alone < 3
    close(jax.jit(f)(x, w, ct), PLAIN.maps(x, w, ct))


@check
def explicit_sharding() -> None:
    x, w, ct = operands()
    with jax.set_mesh(mesh(AxisType.Explicit)):
        xs = jax.device_put(x, P("data"))
        ws = jax.device_put(w, P())
        cts = jax.device_put(ct, P("data"))
        for lowering in LOWERINGS:
            seen: list[Any] = []

            @jax.jit
            def run(x: Any, w: Any, ct: Any, lowering: str = lowering, seen: Any = seen) -> Any:
                y, pull = jax.vjp(layer(PLAIN, lowering), x, w)
                seen.append(jax.typeof(y).sharding.spec)
                gx, gw = pull(ct)
                seen.extend(jax.typeof(a).sharding.spec for a in (gx, gw))
                return [y, gx, gw]

            close(run(xs, ws, cts), PLAIN.maps(x, w, ct))
            # Images stay where they are; the kernel's gradient is whole everywhere.
            assert [spec[0] for spec in seen] == ["data", "data", None], seen
            y = layer(PLAIN, lowering)(xs, ws)
            assert jax.typeof(y).sharding.spec[0] == "data"
            close(y, PLAIN.scatter(x, w))


@check
def explicit_sharding_of_filters() -> None:
    x, w, ct = operands()
    with jax.set_mesh(mesh(AxisType.Explicit)):
        xs = jax.device_put(x, P("data"))
        ws = jax.device_put(w, P(None, None, "model", None))
        cts = jax.device_put(ct, P("data", None, None, "model"))
        got = jax.jit(with_gradients(layer()))(xs, ws, cts)
        close(got, PLAIN.maps(x, w, ct))
        y, gx, gw = got
        assert jax.typeof(y).sharding.spec == P("data", None, None, "model")
        assert jax.typeof(gx).sharding.spec[0] == "data"
        assert jax.typeof(gw).sharding.spec == P(None, None, "model", None)


@check
def explicit_sharding_of_groups() -> None:
    """The channels of `y` may be split further than a group has filters."""
    case = Case("groups", (6, 5), (3, 4), 16, 8, (8,), strides=2, padding="same", groups=8)
    x, w, ct = draw(np.random.default_rng(0), case.x_shape, case.kernel_shape, case.y_shape)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        cts = jax.device_put(ct, P("data", None, None, "model"))
        run = jax.jit(with_gradients(convolution(case)))
        got = run(cts, jax.device_put(w, P()), jax.device_put(x, P("data")))
        close(got, Adjoint(case).maps(ct, w, x))


@check
def explicit_sharding_of_what_the_sum_is_over() -> None:
    """A gradient comes back placed as the operand is, whatever the map can tell of it."""
    x, w, ct = operands()
    placements = [
        (P("data"), P(None, None, None, "model")),
        (P("data"), P(None, None, None, "data")),
        (P(None, None, None, "model"), P()),
        (P(None, "model"), P()),
    ]

    @jax.jit
    def run(x: Any, w: Any, ct: Any) -> Any:
        y, pull = jax.vjp(layer(), x, w)
        return [y, *pull(jax.sharding.reshard(ct, jax.typeof(y).sharding))]

    with jax.set_mesh(mesh(AxisType.Explicit)):
        for x_spec, w_spec in placements:
            xs, ws = jax.device_put(x, x_spec), jax.device_put(w, w_spec)
            got = run(xs, ws, jax.device_put(ct, P()))
            close(got, PLAIN.maps(x, w, ct))
            for array, gradient in zip((xs, ws), got[1:], strict=True):
                assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)
    placed = NamedSharding(mesh(AxisType.Explicit), P(None, None, "model"))
    close(layer()(x, jax.device_put(w, placed)), PLAIN.scatter(x, w))


@check
def explicit_sharding_of_orthogonal_filters() -> None:
    """A regularizer of pairs of filters, which are on different devices."""
    _, w, _ = operands()
    for mode in ("rows", "columns"):
        penalty = Orthogonal(0.5, mode)
        with jax.set_mesh(mesh(AxisType.Explicit)):
            for spec in (P(None, None, "model", None), P(None, None, None, "model")):
                sharded = jax.device_put(w, spec)
                value, gradient = jax.jit(jax.value_and_grad(penalty))(sharded)
                assert gradient.sharding.spec == spec
                close([value, gradient], jax.value_and_grad(penalty)(jnp.asarray(w)))
        close([penalty(sharded)], [penalty(jnp.asarray(w))])  # its mesh is not that of the context


@check
def explicit_sharding_of_second_order_and_of_vmap() -> None:
    x, w, _ = operands()

    want = hessian_product(layer(PLAIN, "lax"), x, w)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        xs, ws = jax.device_put(x, P("data")), jax.device_put(w, P())
        close(hessian_product(layer(), xs, ws), want)
        ensemble = jax.device_put(np.stack([w, 2 * w]), P())
        got = jax.jit(jax.vmap(layer(), (None, 0)))(xs, ensemble)
        close(got, np.stack([PLAIN.scatter(x, w), PLAIN.scatter(x, 2 * w)]))


@check
def explicit_and_manual_axes_together() -> None:
    x, w, ct = operands()
    with jax.set_mesh(mesh(AxisType.Explicit)):
        specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
        f = jax.shard_map(layer(), axis_names={"data"}, **specs)
        xs, ws = jax.device_put(x, P("data")), jax.device_put(w, P())
        cts = jax.device_put(ct, P("data"))
        close(jax.jit(with_gradients(f))(xs, ws, cts), PLAIN.maps(x, w, ct))


@check
def a_network_trains_in_parallel_as_alone() -> None:
    x, w, _ = operands()
    m = mesh(AxisType.Auto)

    @jax.jit
    def descend(x: Any, w: Any) -> Any:
        for _ in range(3):
            w = w - 0.01 * jax.grad(loss(layer()), 1)(x, w)
        return w

    alone = np.asarray(descend(x, w))
    images, whole = NamedSharding(m, P("data")), NamedSharding(m, P())
    spread = descend(jax.device_put(x, images), jax.device_put(w, whole))
    close(spread, alone)
    assert len(spread.sharding.device_set) == 8


@check
def export_of_a_sharded_step() -> None:
    x, w, ct = operands()
    m = mesh(AxisType.Auto)
    images, whole = NamedSharding(m, P("data")), NamedSharding(m, P())
    where = (images, whole, images)
    placed = [jax.device_put(a, s) for a, s in zip((x, w, ct), where, strict=True)]
    run = jax.jit(with_gradients(layer()), in_shardings=where)
    exported = export.export(run)(*placed)
    assert exported.nr_devices == 8
    close(jax.jit(exported.call)(*placed), PLAIN.maps(x, w, ct))


# One image whose height is split over all devices, and a layer of K > s whose windows cross them.
TALL, KERNEL, STRIDE = (1, 256, 6, 3), (5, 4, 4, 3), 2


def tall() -> tuple[Any, ...]:
    """x, kernel and cotangent."""
    rng = np.random.default_rng(0)
    shapes = TALL, KERNEL, (1, STRIDE * TALL[1], STRIDE * TALL[2], KERNEL[2])
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def plain(x: Any, w: Any) -> Any:
    return upconv.conv_transpose(x, w, strides=STRIDE, padding="same")


def with_halo(x: Any, w: Any) -> Any:
    """`plain` for one device's rows of the image, with the rows it needs of its neighbours'.

    Output row j sums input rows a with 0 <= j + lo - a s < K (lo: cropped at the start). So n rows
    of input need (K - 1 - lo) // s rows before them and (lo + s - 1) // s after them.
    """
    n, K, s = x.shape[1], KERNEL[0], STRIDE
    lo = (K - s) // 2
    before, after = (K - 1 - lo) // s, (lo + s - 1) // s
    devices = jax.lax.axis_size("rows")
    # Who has no neighbour receives zeros, as there is nothing beyond the edge.
    down = [(i, i + 1) for i in range(devices - 1)]
    up = [(i + 1, i) for i in range(devices - 1)]
    above = jax.lax.ppermute(x[:, n - before :], "rows", down)
    below = jax.lax.ppermute(x[:, :after], "rows", up)
    x = jnp.concatenate([above, x, below], axis=1)
    crop = (lo + before * s, (after - 1) * s + K - lo)
    columns = ((KERNEL[1] - s) // 2, (KERNEL[1] - s) - (KERNEL[1] - s) // 2)
    return upconv.conv_transpose(x, w, strides=s, padding=(crop, columns))


def sizes(text: str) -> list[int]:
    """How many elements the arrays of a compiled program have."""
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    return [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]


def check_tall(run: Any, placed: Any) -> None:
    """As alone, with rows passed between neighbours, and nothing near as large as alone."""
    alone = jax.jit(with_gradients(plain)).lower(*tall()).compile()
    compiled = run.lower(*placed).compile()
    close(compiled(*placed), alone(*tall()))
    text = compiled.as_text()
    assert "collective-permute" in text
    assert not re.search(r"all-gather|all-to-all", text)
    largest, largest_alone = max(sizes(text)), max(sizes(alone.as_text()))
    assert largest < min(0.2 * largest_alone, tall()[2].size), (largest, largest_alone)


@check
def halo_exchange_in_shard_map() -> None:
    rows = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(None, "rows"), P()), "out_specs": P(None, "rows")}
    f = jax.shard_map(with_halo, mesh=rows, **specs)
    where = [NamedSharding(rows, s) for s in (P(None, "rows"), P(), P(None, "rows"))]
    placed = [jax.device_put(a, s) for a, s in zip(tall(), where, strict=True)]
    check_tall(jax.jit(with_gradients(f)), placed)


@check
def halo_exchange_by_the_partitioner() -> None:
    rows = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    where = [NamedSharding(rows, s) for s in (P(None, "rows"), P(), P(None, "rows"))]
    placed = [jax.device_put(a, s) for a, s in zip(tall(), where, strict=True)]
    out = [where[2], where[0], where[1]]
    check_tall(jax.jit(with_gradients(plain), out_shardings=out), placed)


def main() -> None:
    warnings.simplefilter("error")
    assert jax.device_count() == 8
    results = {}
    for name in sys.argv[1:] or CHECKS:
        try:
            CHECKS[name]()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
