"""ONNX's own cases for its operator ConvTranspose, and its reference evaluator, live."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from checks import normal
from side_by_side import error
from upconv.interop import from_onnx

pytestmark = pytest.mark.parity

# What onnx had in 1.19; a case that is new there is run as well, see the last test.
CASES = (
    "test_convtranspose",
    "test_convtranspose_1d",
    "test_convtranspose_3d",
    "test_convtranspose_autopad_same",
    "test_convtranspose_dilations",
    "test_convtranspose_group_2",
    "test_convtranspose_group_2_image_3",
    "test_convtranspose_kernel_shape",
    "test_convtranspose_output_shape",
    "test_convtranspose_pad",
    "test_convtranspose_pads",
)


@pytest.fixture(scope="module")
def cases(import_peer: Callable[[str], ModuleType]) -> dict[str, Any]:
    """By name: the model, inputs and outputs."""
    module = import_peer("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in module.collect_testcases("ConvTranspose")}


def check(case: Any) -> list[float]:
    """The errors of the layer for each of the inputs that the case has."""
    (node,) = case.model.graph.node
    errors = []
    for (x, *weights), (expected,) in case.data_sets:
        module, variables = from_onnx(node, weights, x.shape)
        ours = module.apply(variables, x)
        errors.append(error(case.name, np.asarray(ours), expected))
    assert errors
    return errors


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, cases: dict[str, Any], measured: Any) -> None:
    for size in check(cases[name]):
        measured("ONNX's cases", size)


@pytest.mark.parametrize("name", CASES)
def test_case_with_random_numbers(
    name: str,
    cases: dict[str, Any],
    import_peer: Callable[[str], ModuleType],
    measured: Any,
    rng: np.random.Generator,
) -> None:
    """The kernels of the cases hold ones alone, which hide flips; the evaluator takes any."""
    model = cases[name].model
    evaluator = import_peer("onnx.reference").ReferenceEvaluator(model)
    (inputs, _), *_ = cases[name].data_sets
    x, weight = (normal(rng, *a.shape) for a in inputs)
    names = [i.name for i in model.graph.input]
    (expected,) = evaluator.run(None, dict(zip(names, (x, weight), strict=True)))
    module, variables = from_onnx(model.graph.node[0], [weight], x.shape)
    measured("ONNX's evaluator", error(name, np.asarray(module.apply(variables, x)), expected))


def test_there_are_no_other_cases(cases: dict[str, Any]) -> None:
    for name in cases.keys() - set(CASES):
        check(cases[name])


def test_attributes_that_a_node_cannot_have(import_peer: Callable[[str], ModuleType]) -> None:
    onnx, weights = import_peer("onnx"), [np.ones((6, 3, 3), np.float32)]
    node = onnx.helper.make_node("ConvTranspose", ["X", "W"], ["Y"], strides=[2.0])
    with pytest.raises(ValueError, match=r"strides must be an integer, .* got the type 6 of onnx"):
        from_onnx(node, weights)
    node = onnx.helper.make_node("ConvTranspose", ["X", "W"], ["Y"], group=1)
    node.attribute[0].ref_attr_name = "groups"
    with pytest.raises(ValueError, match=r"group must stand in the node, got a .* 'groups' of the"):
        from_onnx(node, weights)
    for domain in ("", "ai.onnx"):
        from_onnx(onnx.helper.make_node("ConvTranspose", ["X", "W"], ["Y"], domain=domain), weights)
    node = onnx.helper.make_node("ConvTranspose", ["X", "W"], ["Y"], domain="com.example")
    with pytest.raises(ValueError, match=r"got 'ConvTranspose' of the domain 'com\.example'"):
        from_onnx(node, weights)


def test_node_and_tensors(import_peer: Callable[[str], ModuleType], rng: Any) -> None:
    """Weights as a graph holds them, and as many as the node has inputs for."""
    onnx = import_peer("onnx")
    x, w, b = normal(rng, 2, 6, 5, 4), normal(rng, 6, 3, 3, 2), normal(rng, 3)
    tensors = [onnx.numpy_helper.from_array(a) for a in (w, b)]
    for inputs in (["X", "W"], ["X", "W", ""], ["X", "W", "B"]):
        node = onnx.helper.make_node("ConvTranspose", inputs, ["Y"], strides=[2, 1])
        count = 2 if inputs[-1] == "B" else 1
        feeds = dict(zip(["X", "W", "B"], [x, w, b], strict=True))
        evaluator = import_peer("onnx.reference").ReferenceEvaluator(node)
        (expected,) = evaluator.run(None, {name: feeds[name] for name in inputs if name})
        module, variables = from_onnx(node, tensors[:count])
        error("node", np.asarray(module.apply(variables, x)), expected)
        with pytest.raises(
            ValueError, match=rf"the node's inputs after X, \[.*got {3 - count} arr"
        ):
            from_onnx(node, tensors[: 3 - count])
