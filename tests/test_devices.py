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
def results(request: pytest.FixtureRequest) -> dict[str, str]:
    """What every check that was asked for came to: nothing, or the error."""
    checks = [
        item.callspec.params["check"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_eight_devices"
    ]
    script = Path(__file__).with_name("eight_devices.py")
    run = subprocess.run(
        [sys.executable, str(script), *checks],
        env={**os.environ, **eight_devices.ENVIRONMENT},
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
