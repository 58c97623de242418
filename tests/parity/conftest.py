"""The peers: the genuine layers of TensorFlow, Keras, PyTorch and others, in one process.

Keras 3 and the legacy Keras that TensorFlow's layers are made of do not get in each other's way as
long as these variables are set before either is imported. A missing peer skips its tests, and with
`UPCONV_REQUIRE_PARITY=1` a skipped test is a failure.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any

import pytest

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["KERAS_BACKEND"] = "tensorflow"
# By default only with AVX-512; without it TensorFlow has neither channels first nor dilation.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def peer(name: str) -> ModuleType:
    """Imports a peer, whose own deprecations are none of our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{name} is not installed: {error}")


@pytest.fixture(scope="session")
def import_peer() -> Callable[[str], ModuleType]:
    return peer


@pytest.fixture(scope="session")
def tf() -> ModuleType:
    return peer("tensorflow")


@pytest.fixture(scope="session")
def tf_keras(tf: ModuleType) -> ModuleType:
    return peer("tf_keras")


@pytest.fixture(scope="session")
def keras(tf: ModuleType) -> ModuleType:
    return peer("keras")


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    torch = peer("torch")
    torch.set_num_threads(1)  # tests run beside each other
    return torch


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, Any], float]:
    """Records an error under a heading, for the summary of the session."""

    def record(heading: str, error: Any) -> float:
        request.node.user_properties.append((f"parity: {heading}", float(error)))
        return float(error)

    return record


def required() -> bool:
    return os.environ.get("UPCONV_REQUIRE_PARITY") == "1"


def insist(report: Any) -> Any:
    """Turns a skip into a failure where parity is required."""
    if required() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"UPCONV_REQUIRE_PARITY=1, but: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return insist((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return insist((yield))
