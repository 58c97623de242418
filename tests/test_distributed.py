"""The trainer on many devices and in many processes: the same numbers as on one, to rounding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import devices_trainer
import eight_devices
import toy

pytestmark = pytest.mark.program

CONFIG = """\
task = "toy"
[train]
steps = 12
batch_size = 8
log_every = 3
evaluate_every = 6
checkpoint_every = 6
"""


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, devices_trainer.__file__],
        env={**os.environ, **eight_devices.ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", devices_trainer.SMALL)
def test_eight_devices_learn_as_one(name: str, results: dict[str, Any]) -> None:
    eight, one = results[name]["eight"], results[name]["one"]
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    assert len(set(one)) == len(one)


@pytest.mark.parametrize("name", devices_trainer.SMALL)
def test_a_step_sums_over_devices_and_gathers_nothing(name: str, results: dict[str, Any]) -> None:
    assert results[name]["collectives"] == ["all-reduce"]


def test_every_config_is_tried_on_eight_devices() -> None:
    configs = (Path(__file__).parents[1] / "configs").glob("*.toml")
    assert {path.stem for path in configs} == set(devices_trainer.SMALL)


def in_processes(
    count: int, path: Path, run: Path, *options: str, **environment: str
) -> list[tuple[int, str, str]]:
    """Run the toy in so many processes at a time; their exit statuses, outputs and errors.

    `NAME_1="x"` sets the variable NAME in process 1 alone.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(count):
        own = {
            k.removesuffix(f"_{index}"): v
            for k, v in environment.items()
            if k.endswith(f"_{index}")
        }
        hosts = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, toy.__file__, str(path), "--run", str(run), *options],
                env={**os.environ, "JAX_PLATFORMS": "cpu", **hosts, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_two_processes_learn_as_one_and_stop_and_resume_together(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(CONFIG)
    ((status, _, error),) = in_processes(1, path, tmp_path / "one")
    assert status == 0, error

    # One of them is told to stop: both do, after the same step.
    both = tmp_path / "two"
    for status, _, error in in_processes(2, path, both, STOP_1="5"):
        assert status == 128 + 15, error
    (leader, follower) = in_processes(2, path, both, "--resume")
    assert (leader[0], follower[0]) == (0, 0), leader[2] + follower[2]
    assert "going on after step 6" in leader[1]
    assert "a toy" in leader[1]
    assert "a toy" not in follower[1]
    one, two = metrics(tmp_path / "one"), metrics(both)
    assert [line["step"] for line in two] == [3, 6, 9, 12]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert json.loads((both / "summary.json").read_text())["constraints"][0]["satisfied"]
