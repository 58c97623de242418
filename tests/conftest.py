"""How the tests are compiled, and fixtures that those of the core share."""

from __future__ import annotations

import os
import zlib
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from share import left_out

# Compiling is what tests spend their time on: without LLVM's optimizations all of them take
# half, and in one part of each program a tenth less. What is set already stays: `XLA_FLAGS= make
# test` compiles as users do.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)


# What these run is traced no further: tracing is a third of their time, and other tests reach
# the same lines.
UNTRACED = ("parity", "program")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share",
        metavar="I/N",
        default="1/1",
        help="of the cases of a test that is marked `many`, the I-th of each N in a row",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.get_closest_marker(name) for name in UNTRACED):
            item.add_marker("no_cover")
    try:
        many = [item.nodeid for item in items if item.get_closest_marker("many")]
        leave = left_out(many, config.getoption("--share"))
    except ValueError as error:
        raise pytest.UsageError(f"--share: {error}") from error
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in leave])
    items[:] = [item for item in items if item.nodeid not in leave]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of the test's own: the same in every run, whatever runs beside it."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What `measured` recorded in tests/parity; here, since xdist's controller reads this file."""
    errors: dict[str, list[float]] = {}
    for report in (
        *terminalreporter.stats.get("passed", ()),
        *terminalreporter.stats.get("failed", ()),
    ):
        for heading, error in report.user_properties:
            if report.when == "call" and heading.startswith("parity: "):
                errors.setdefault(heading, []).append(error)
    for heading, values in sorted(errors.items()):
        terminalreporter.write_line(f"{heading}: {len(values)} cases, max error {max(values):.1e}")
