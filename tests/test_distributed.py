"""The trainer on many devices and in many processes: the same numbers as on one, to rounding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

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

# What process 0 says where another program has its port.
TAKEN = "Failed to start RPC server"


@pytest.mark.long
def test_eight_devices_learn_as_one_and_gather_nothing() -> None:
    """One test, for every process of xdist would run the program anew for its share of several."""
    done = subprocess.run(
        [sys.executable, devices_trainer.__file__],
        env={**os.environ, **eight_devices.ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results.keys() == devices_trainer.SMALL.keys()
    for name, found in results.items():
        np.testing.assert_allclose(found["eight"], found["one"], rtol=1e-4, err_msg=name)
        assert len(set(found["one"])) == len(found["one"]), name
        assert found["collectives"] == ["all-reduce"], name


def test_every_config_is_tried_on_eight_devices() -> None:
    configs = (Path(__file__).parents[1] / "configs").glob("*.toml")
    assert {path.stem for path in configs} == set(devices_trainer.SMALL)


def in_processes(
    count: int, path: Path, run: Path, *options: str, **environment: str
) -> list[tuple[int, str, str]]:
    """Run the toy in so many processes at a time; their exit statuses, outputs and errors.

    `NAME_1="x"` sets the variable NAME in process 1 alone. Another program may take the port
    between its choice and its use: then they start again with another.
    """
    for _ in range(3):
        outcomes = at_port(free_port(), count, path, run, *options, **environment)
        if not any(TAKEN in error for _, _, error in outcomes):
            break
    return outcomes


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def at_port(
    port: int, count: int, path: Path, run: Path, *options: str, **environment: str
) -> list[tuple[int, str, str]]:
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
        outputs = []
        for process in processes:
            outputs.append(process.communicate(timeout=600))
            if TAKEN in outputs[-1][1]:  # the others would wait for it in vain
                kill(processes)
    finally:
        kill(processes)
    return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]


def kill(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()


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
