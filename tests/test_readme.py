"""What the README shows is run, and what it points to exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import figures
import oracle
import upconv
from upconv.bench import results
from upconv.bench.peers import ON_JAX
from upconv.transforms import penalty

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def block(word: str) -> str:
    """The only block of the README's Python that holds a word."""
    (found,) = (text for text in BLOCKS if word in text)
    return found


def run(block: str) -> dict[str, Any]:
    """The names that a block of the README's Python leaves behind."""
    namespace: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return run(block("import flax.linen as nn, jax, optax"))


def norms(kernel: jax.Array) -> np.ndarray:
    """Of each filter."""
    return np.sqrt(np.sum(np.square(np.asarray(kernel, np.float64)), axis=(0, 1, 3)))


def test_the_example_keeps_its_constraint(example: dict[str, Any]) -> None:
    before = example["model"].init(jax.random.key(1), example["x"])["params"]
    assert (norms(before["layers_1"]["kernel"]) > 1.0).all()
    np.testing.assert_allclose(norms(example["params"]["layers_1"]["kernel"]), 1.0, rtol=1e-5)


def test_the_example_regularizes(example: dict[str, Any]) -> None:
    """The first step of its optimizer is that of the penalized loss, where nothing constrains."""
    model, x, y = example["model"], example["x"], example["y"]
    before = model.init(jax.random.key(1), x)["params"]

    def loss(params: Any) -> jax.Array:
        fit = optax.l2_loss(model.apply({"params": params}, x), y).mean()
        return fit + penalty(params, example["rules"](model, x))

    plain = optax.adam(1e-3)
    gradient = jax.grad(loss)(before)
    updates, _ = plain.update(gradient, plain.init(before), before)
    expected = optax.apply_updates(before, updates)["layers_0"]["kernel"]
    got = example["params"]["layers_0"]["kernel"]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert float(penalty(before, example["rules"](model, x))) > 0


def test_the_example_goes_on_to_learn(example: dict[str, Any]) -> None:
    model, optimizer = example["model"], example["optimizer"]
    x, y = example["x"], example["y"]

    def loss(params: Any) -> jax.Array:
        return optax.l2_loss(model.apply({"params": params}, x), y).mean()

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = example["params"], example["state"]
    for _ in range(20):
        params, state = step(params, state)
    assert float(loss(params)) < 0.9 * float(example["loss"])
    assert jnp.shape(model.apply({"params": params}, x)) == y.shape


def test_the_example_of_other_libraries_converts() -> None:
    names = run(block("interop"))
    x = jax.random.normal(jax.random.key(2), (2, 7, 5, 32))
    _, variables = names["interop"].to_flax(names["module"], names["variables"])
    theirs = names["theirs"].apply(variables, x)
    ours = upconv.conv_transpose(x, names["weights"][0], strides=2, padding="same")
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert names["config"]["padding"] == "same"


def test_the_example_of_a_function() -> None:
    names = run(block("upconv.conv_transpose"))
    x, kernel = (np.asarray(names[name], np.float64) for name in ("x", "kernel"))
    expected = oracle.conv_transpose(x, kernel, strides=2, padding="same")
    np.testing.assert_allclose(names["y"], expected, rtol=1e-4, atol=1e-4)


def test_the_example_of_layers() -> None:
    names = run(block("upconv_nnx"))
    layer, x = names["layer"], np.asarray(names["x"], np.float64)
    expected = oracle.conv_transpose(x, layer.kernel[...], strides=2, padding="same")
    np.testing.assert_allclose(layer(names["x"]), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(names["y"]).max() > 0.1


def test_the_example_in_nnx() -> None:
    names = run(block("nnx.Optimizer"))
    step, arguments = names["step"], [names[name] for name in ("model", "optimizer", "x", "y")]
    for _ in range(20):
        loss = step(*arguments)
    assert float(loss) < 0.9 * float(names["loss"])
    assert (norms(names["model"].layers[1].kernel[...]) < 1.0 + 1e-5).all()


def test_every_example_is_run() -> None:
    assert len(BLOCKS) == 5


def test_the_first_figures_are_those_of_the_records() -> None:
    records = (
        figures.record(name) for name, _ in (*figures.CPUS.values(), *figures.NEWER.values())
    )
    found = [results.ratios(record["results"], "step_ms", ON_JAX).values() for record in records]
    means = [results.mean(values) for values in found]
    steps = [value for values in found for value in values]
    assert f"[{min(means):.0f} to {max(means):.0f} times as fast]" in README
    assert f"{min(steps):.2f} to {max(steps):.0f} times." in README


LINKS = re.findall(r"\]\(([^)#:]+)\)", README)


@pytest.mark.parametrize("target", LINKS)
def test_what_the_readme_links_to_exists(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_source_distribution_has_what_the_readme_links_to() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    always = project["project"]["license-files"]
    needed = {f"/{target.split('/')[0]}" for target in LINKS if target not in always}
    assert needed <= set(included)


def test_the_commands_of_the_readme_are_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z]+)\b(?=`|  )", README))
    assert {"demo", "test", "parity", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
