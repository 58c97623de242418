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
