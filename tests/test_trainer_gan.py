"""The GAN: the distance that judges it, that both sides learn, that its state survives a break."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

import config as configs
import digits
import frechet
import gan
import task
import train

pytestmark = pytest.mark.program

GAN = Path(__file__).parents[1] / "configs" / "digits_gan.toml"
SMALL = [
    *("--model.features", "8", "4", "--model.latent", "8", "--data.heldout", "500"),
    *("--train.batch-size", "16", "--train.steps", "6", "--train.log-every", "2"),
    *("--train.evaluate-every", "3", "--train.checkpoint-every", "3"),
]


def test_the_distance_is_that_of_the_matrix_root(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(40, 6)), 2 * rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 1
    first, second = frechet.fit(a), frechet.fit(b)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet.distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet.distance(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet.distance(first, first) == pytest.approx(0, abs=1e-9)


@pytest.mark.long
def test_the_critic_knows_digits_and_prefers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "STEPS", 100)
    split = digits.load(heldout=500)
    critic = frechet.Critic(split, seed=0)
    assert critic.accuracy > 0.8
    upside_down = critic.distance(split.heldout[:, ::-1, ::-1])
    noise = critic.distance(np.random.default_rng(0).uniform(size=(500, 28, 28, 1)))
    assert critic.heldout < 0.2 * upside_down
    assert upside_down < noise
    again = frechet.Critic(split, seed=0)
    assert (again.accuracy, again.heldout) == (critic.accuracy, critic.heldout)


def test_a_run_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "STEPS", 5)
    run, again = tmp_path / "run", tmp_path / "again"
    assert train.main([str(GAN), *SMALL, "--run", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ratio"] == pytest.approx(summary["frechet"] / summary["untrained_frechet"])
    assert {check["path"] for check in summary["constraints"]} == {"up1/kernel", "up2/kernel"}
    assert all(check["satisfied"] for check in summary["constraints"])
    with Image.open(run / "samples.png") as image:
        assert image.size == (2 * (2 + 16 * 30), 2 * (2 + 6 * 30))

    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "6")
    assert train.main([str(GAN), *SMALL, "--run", str(again), "--resume"]) == 0
    repeated = json.loads((again / "summary.json").read_text())
    for key in ("loss", "discriminator_loss", "frechet"):
        assert repeated[key] == summary[key]
    assert (again / "samples.png").read_bytes() == (run / "samples.png").read_bytes()


@pytest.mark.long
def test_a_step_in_bfloat16_moves_both_and_keeps_parameters_in_float32() -> None:
    config = configs.from_command_line([str(GAN), *SMALL, "--train.compute-dtype", "bfloat16"], "")
    made = task.build(config)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (task.DEVICES,))
    state = jax.jit(made.init)(jax.random.key(0))
    before = jax.tree.map(np.asarray, state)
    step = train.make_step(made, mesh)
    batch = train.draw(config, made, mesh, 1)
    convolutions = re.findall(r"stablehlo.convolution.*->.*", step.lower(state, batch).as_text())
    assert all("bf16" in line for line in convolutions)
    after, metrics = step(state, batch)
    for name in gan.State._fields:
        moved = jax.tree.map(
            lambda a, b: bool(np.any(a != b)), getattr(before, name), getattr(after, name)
        )
        assert any(jax.tree.leaves(moved)), name
    kinds = {leaf.dtype for leaf in jax.tree.leaves(after)}
    assert kinds == {np.dtype("float32"), np.dtype("int32")}
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.generator", "0"),
        ("optimizer.momentum", "1"),
        ("model.averaging", "-0.1"),
        ("model.latent", "0"),
        ("data.shift", "-1"),
    ],
)
def test_what_means_nothing_is_refused(
    key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(GAN), f"--{key}", value]) == 2
    assert capsys.readouterr().err.startswith(f"train.py: {key}: must be ")
