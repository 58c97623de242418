"""Layers exchanged with the genuine `torch.nn.ConvTranspose1d`, `2d` and `3d`."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checks import normal
from exchange import assert_close, assert_same_bits, draw_layer, integers, run
from upconv import interop, linen

pytestmark = pytest.mark.parity

RANKS = (1, 2, 1, 2, 3)


def draw_torch(torch: ModuleType, rng: np.random.Generator, rank: int) -> tuple[Any, np.ndarray]:
    """A layer with any arguments, and an input for it."""
    groups = int(rng.choice([1, 2, 3]))
    strides, dilation = integers(rng, 1, 4, rank), integers(rng, 1, 3, rank)
    limits = map(max, strides, dilation)
    layer = getattr(torch.nn, f"ConvTranspose{rank}d")(
        6,
        2 * groups,
        integers(rng, 2, 5, rank),
        strides,
        integers(rng, 0, 3, rank),
        tuple(int(rng.integers(limit)) for limit in limits),
        groups,
        bool(rng.random() < 0.7),
        dilation,
    )
    return layer, normal(rng, 2, 6, *integers(rng, 4, 7, rank))


def run_torch(torch: ModuleType, layer: Any, x: np.ndarray, ct: Any) -> tuple[Any, Any, Any]:
    """Outputs, and gradients in parameters and input."""
    inputs = torch.tensor(x, requires_grad=True)
    y = layer(inputs)
    if callable(ct):
        ct = ct(y.shape)
    y.backward(torch.tensor(ct))
    slopes = {name: p.grad for name, p in layer.named_parameters()}
    return y.detach().numpy(), slopes, inputs.grad.numpy()


@pytest.mark.parametrize("case", range(15))
def test_both_ways(case: int, torch: ModuleType, rng: np.random.Generator, measured: Any) -> None:
    """Values and gradients; the weights that go back are those that came, bit by bit."""
    theirs, x = draw_torch(torch, rng, RANKS[case % 5])
    module, variables = interop.from_torch(theirs)
    ct = normal(rng, *module.compute_output_shape(x.shape))
    y, slopes, dx = run_torch(torch, theirs, x, ct)
    got, got_slopes, got_dx = run(module, variables, x, ct)
    _, back = interop.to_torch(module, {"params": got_slopes})
    assert back.keys() == slopes.keys()
    for a, b in [(got, y), (got_dx, dx), *((back[n], slopes[n]) for n in slopes)]:
        measured("interop, PyTorch", assert_close(a, b))

    config, weights = interop.to_torch(module, variables)
    state = theirs.state_dict()
    assert weights.keys() == state.keys()
    for name, value in state.items():
        assert_same_bits(weights[name], value)
    rebuilt = type(theirs)(**config)
    rebuilt.load_state_dict(weights)
    assert repr(rebuilt) == repr(theirs)
    again = interop.from_torch(config, weights)
    assert again[0] == module
    jax.tree.map(assert_same_bits, again[1], variables)


def test_our_layers(torch: ModuleType, rng: np.random.Generator, measured: Any) -> None:
    """What crops as PyTorch can is the same there; the rest is refused."""
    converted = 0
    for case in range(20):
        rank = case % 2 + 1
        groups = 1 + case % 4 // 2
        fixed = {"data_format": "channels_first", "groups": groups}
        module, variables, x = draw_layer(rng, rank, **fixed)
        try:
            config, weights = interop.to_torch(module, variables)
        except ValueError as refusal:
            if "padding=" not in str(refusal):
                raise
            continue
        theirs = getattr(torch.nn, f"ConvTranspose{rank}d")(**config)
        theirs.load_state_dict(weights)
        y = theirs(torch.tensor(x)).detach()
        measured("interop, to PyTorch", assert_close(y, module.apply(variables, x)))
        converted += 1
    assert 6 <= converted < 20


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_keep_their_bits(dtype: str, torch: ModuleType) -> None:
    theirs = torch.nn.ConvTranspose1d(3, 4, 5, dtype=getattr(torch, dtype))
    module, variables = interop.from_torch(theirs)
    assert module.param_dtype == jnp.dtype(dtype)
    config, weights = interop.to_torch(module, variables)
    assert config["dtype"] == getattr(torch, dtype)
    for name, value in theirs.state_dict().items():
        assert weights[name].dtype == value.dtype
        assert torch.equal(weights[name].view(torch.int16), value.view(torch.int16))


def test_frozen_layers(torch: ModuleType) -> None:
    theirs = torch.nn.ConvTranspose1d(3, 4, 5).requires_grad_(False)
    module, variables = interop.from_torch(theirs)
    assert list(variables) == ["non_trainable"]
    with pytest.raises(
        ValueError, match=r"trainable must be True .*got False; drop=\('trainable',\)"
    ):
        interop.to_torch(module, variables)
    _, weights = interop.to_torch(module, variables, drop=("trainable",))
    assert torch.equal(weights["weight"], theirs.weight)
    theirs.bias.requires_grad_(True)
    with pytest.raises(ValueError, match="trainable holds for weight and bias alike"):
        interop.from_torch(theirs)


def test_weights_are_copies(torch: ModuleType) -> None:
    """Training one layer leaves the other alone."""
    theirs = torch.nn.ConvTranspose1d(3, 4, 5)
    module, variables = interop.from_torch(theirs)
    before = np.array(variables["params"]["kernel"])
    _, weights = interop.to_torch(module, variables)
    with torch.no_grad():
        theirs.weight.zero_()
        weights["weight"].zero_()
    np.testing.assert_array_equal(variables["params"]["kernel"], before)


def test_what_is_not_a_plain_layer(torch: ModuleType) -> None:
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(3, 4, 5))
    pruned = torch.nn.ConvTranspose1d(3, 4, 5)
    pruned.register_parameter("weight_orig", torch.nn.Parameter(pruned.weight.detach()))

    class Doubled(torch.nn.ConvTranspose1d):
        def forward(self, inputs: Any) -> Any:
            return 2 * super().forward(inputs)

    for layer in (torch.nn.Conv1d(3, 4, 5), Doubled(3, 4, 5), "ConvTranspose1d"):
        with pytest.raises(TypeError, match="layer must be one of"):
            interop.from_torch(layer)
    plain = torch.nn.ConvTranspose1d(3, 4, 5)
    with pytest.raises(ValueError, match="weights must not be given with a layer, which has its"):
        interop.from_torch(plain, plain.state_dict())
    plain.forward = lambda inputs: 2 * inputs
    with pytest.raises(ValueError, match="layer must compute with the forward of its class, got"):
        interop.from_torch(plain)
    del plain.forward
    interop.from_torch(plain)
    with pytest.raises(ValueError, match="layer must hold its weight itself, got a Parametrized"):
        interop.from_torch(normed)
    with pytest.raises(ValueError, match=r"weights has unknown keys \['weight_orig'\]"):
        interop.from_torch(pruned)


def test_layers_with_hooks(torch: ModuleType, import_peer: Any, rng: np.random.Generator) -> None:
    """What runs beside a layer or makes its weight is not lost; the remedy that is named helps."""
    utils, prune = torch.nn.utils, import_peer("torch.nn.utils.prune")
    x = normal(rng, 2, 3, 6)
    for wrap, remedy, name in [
        (lambda a: utils.weight_norm(a), utils.remove_weight_norm, "remove_weight_norm"),
        (lambda a: utils.spectral_norm(a), utils.remove_spectral_norm, "remove_spectral_norm"),
        (
            lambda a: prune.l1_unstructured(a, "weight", 0.5),
            lambda a: prune.remove(a, "weight"),
            r"prune\.remove",
        ),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = wrap(torch.nn.ConvTranspose1d(3, 4, 5))
        with pytest.raises(ValueError, match=rf"layer must have no hooks.*by .*utils\.{name}$"):
            interop.from_torch(theirs)
        remedy(theirs)
        module, variables = interop.from_torch(theirs)
        assert_close(module.apply(variables, x), theirs(torch.tensor(x)).detach())

    def double(*arguments: Any) -> Any:
        return None

    for register in (
        lambda a: a.register_forward_hook(double),
        lambda a: a.register_forward_pre_hook(double),
        lambda a: a.register_full_backward_hook(double),
        lambda a: a.register_full_backward_pre_hook(double),
        lambda a: a.bias.register_hook(double),
        lambda a: a.weight.register_post_accumulate_grad_hook(double),
    ):
        theirs = torch.nn.ConvTranspose1d(3, 4, 5)
        handle = register(theirs)
        with pytest.raises(
            ValueError, match=r"got a ConvTranspose1d with \[<func.*double.*handles"
        ):
            interop.from_torch(theirs)
        handle.remove()
        interop.from_torch(theirs)


def test_layers_without_numbers_of_ours(torch: ModuleType, import_peer: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are said to be new
        lazy = torch.nn.LazyConvTranspose1d(4, 5)
    with pytest.raises(ValueError, match="got a LazyConvTranspose1d: run it once first"):
        interop.from_torch(lazy)
    lazy(torch.ones(1, 3, 6))
    assert interop.from_torch(lazy)[0].filters == 4
    for changes, message in [
        ({"device": "meta"}, "weight must hold numbers, got a tensor on torch's device 'meta'"),
        ({"dtype": torch.complex64}, "weight must have a floating-point dtype, got complex64"),
    ]:
        with pytest.raises(ValueError, match=message):
            interop.from_torch(torch.nn.ConvTranspose1d(3, 4, 5, **changes))
    config = {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "bias": False}
    ones = torch.ones(3, 4, 5)
    for weight, got in [
        (ones.to(torch.float8_e4m3fn), r"of torch\.float8_e4m3"),
        (ones.to_sparse(), r"of torch\.float32: .*Sparse"),
        (ones.bfloat16().to_sparse(), r"of torch\.bfloat16: .*"),
        (import_peer("torch._subclasses").FakeTensorMode().from_tensor(ones), "FakeTensor of"),
        (torch.nn.UninitializedParameter(), "UninitializedParameter of"),
    ]:
        with pytest.raises(ValueError, match=rf"^weight must be a dense tensor .*, got a .*{got}"):
            interop.from_torch(config, {"weight": weight})

    def within(weight: Any) -> Any:
        with pytest.raises(ValueError, match=r"^weight must be a dense tensor .*, got a Tensor of"):
            interop.from_torch(config, {"weight": weight})
        return weight

    torch.vmap(within)(ones[None])


def test_tensors_that_numpy_does_not_take(torch: ModuleType) -> None:
    """Those that are trained, of a class of one's own, and views that change the sign."""

    class Own(torch.Tensor):
        pass

    config = {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "bias": False}
    weight = torch.randn(3, 4, 5)
    negated = torch.complex(weight, -weight).conj().imag
    assert negated.is_neg()
    for given in (weight.as_subclass(Own).requires_grad_(), negated):
        _, variables = interop.from_torch(config, {"weight": given})
        kernel = weight.numpy().transpose(2, 1, 0)
        np.testing.assert_array_equal(variables["params"]["kernel"], kernel)


def test_dtypes_by_any_name(torch: ModuleType) -> None:
    config = {"in_channels": 3, "out_channels": 4, "kernel_size": 5}
    weights = torch.nn.ConvTranspose1d(3, 4, 5).state_dict()
    for dtype in (
        torch.float32,
        "torch.float32",
        "float32",
        np.float32,
        jnp.float32,
        jnp.dtype("f4"),
    ):
        assert interop.from_torch(config | {"dtype": dtype}, weights)[0].filters == 4
    for dtype in (torch.float16, np.float16, jnp.bfloat16):
        with pytest.raises(
            ValueError, match=r"weight must be b?float16 as dtype says, got float32"
        ):
            interop.from_torch(config | {"dtype": dtype}, weights)


def test_the_way_through_two_libraries(torch: ModuleType, rng: np.random.Generator) -> None:
    """PyTorch to Flax's nnx by way of ours, with the channels moved by hand."""
    theirs = torch.nn.ConvTranspose2d(6, 4, (4, 3), (2, 1), (1, 1))
    module, variables = interop.from_torch(theirs)
    config, weights = interop.to_flax(module, variables, drop=("data_format",))
    x = normal(rng, 2, 6, 5, 3)
    y = linen.nn.ConvTranspose(**config).apply(weights, np.moveaxis(x, 1, -1))
    assert_close(np.moveaxis(y, -1, 1), theirs(torch.tensor(x)).detach())
