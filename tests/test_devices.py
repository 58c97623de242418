"""Sharding: each check of `eight_devices.py` is a test here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eight_devices


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    """What every check came to: nothing, or the error."""
    script = Path(__file__).with_name("eight_devices.py")
    # Eight threads on a busy machine may wait long for each other; XLA gives up after 40 s.
    flags = [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", eight_devices.CHECKS)
def test_eight_devices(check: str, results: dict[str, str]) -> None:
    assert not results[check], results[check]
