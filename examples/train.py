"""Train what a config describes.

    python examples/train.py configs/digits_autoencoder.toml [--SECTION.KEY VALUE ...]

It writes metrics.jsonl (a line per `train.log_every` steps), summary.json and reconstructions.png
(held-out images, below them what the model and what PCA make of them) into the folder `run`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import data
import models
import pictures
from config import Config, ConfigError, Model, Train, declared, from_command_line
from upconv import constraints, linen, regularizers, transforms
from upconv.rules import Rule

Params = Any
COLUMNS = 16  # images in the picture
EVALUATED_AT_ONCE = 500


class State(NamedTuple):
    """What a step changes."""

    params: Params
    opt_state: optax.OptState


class DivergedError(RuntimeError):
    """The loss is no number any more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit status: 2 for a config that means nothing, 1 for divergence."""
    argv = sys.argv[1:] if argv is None else argv
    console = Console(highlight=False, soft_wrap=True)
    try:
        config = from_command_line(argv, description=__doc__ or "")
    except ConfigError as error:
        return fail(2, error)
    try:
        split = load_digits(config)
        model = build_model(config.model, split.train.shape[1:])
    except ConfigError as error:
        return fail(2, f"{argv[0]}: {error}")
    try:
        train(config, model, split, console)
    except DivergedError as error:
        return fail(1, error)
    return 0


def fail(status: int, message: object) -> int:
    """Say why, and return the exit status."""
    print(f"train.py: {message}", file=sys.stderr)
    return status


def train(
    config: Config, model: models.Autoencoder, split: data.Split, console: Console
) -> dict[str, Any]:
    """Train `model` on `split.train`, write the run's files, and return its summary."""
    run = Path(config.run or "runs")
    run.mkdir(parents=True, exist_ok=True)
    init_key, batch_key = jax.random.split(jax.random.key(config.train.seed))
    images, heldout = jnp.asarray(split.train), jnp.asarray(split.heldout)
    params = model.init(init_key, images[:1])["params"]
    rules = linen.rules(model, images[:1])
    optimizer = build_optimizer(config, rules)
    state = State(params, optimizer.init(params))
    step = make_step(model, optimizer, config)
    decode = make_decode(model)
    console.print(describe(config, params, rules, split))

    metrics: dict[str, float] = {}
    start = time.perf_counter()
    with (run / "metrics.jsonl").open("w") as log, progress_bar(console) as bar:
        task = bar.add_task("training", total=config.train.steps, rate="compiling", note="")
        for done, new_state, loss in spans(step, state, images, batch_key, config.train):
            state = new_state
            metrics = {
                "step": done,
                "loss": loss,
                "penalty": float(transforms.penalty(state.params, rules)),
                "heldout_error": squared_error(decode(state.params, heldout), split.heldout),
                "seconds": round(time.perf_counter() - start, 3),
            }
            print(json.dumps(metrics), file=log, flush=True)
            bar.update(
                task,
                completed=done,
                rate=f"{done / metrics['seconds']:.1f} steps/s",
                note=f"error {metrics['heldout_error']:.5f}",
            )

    pca = data.fit_pca(split.train, config.model.latent)
    linear = data.reconstruct(pca, split.heldout)
    picture = run / "reconstructions.png"
    rebuilt = decode(state.params, heldout[:COLUMNS])
    pictures.save(picture, pictures.grid([split.heldout[:COLUMNS], rebuilt, linear[:COLUMNS]]))

    pca_error = squared_error(linear, split.heldout)
    summary = {
        **metrics,
        "pca_error": pca_error,
        "ratio": metrics["heldout_error"] / pca_error,
        "constraints": [c._asdict() for c in check_constraints(state.params, rules)],
        "config": dataclasses.asdict(config),
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(report(summary, config, picture))
    return summary


def spans(
    step: Callable[..., tuple[State, jax.Array]],
    state: State,
    images: jax.Array,
    key: jax.Array,
    config: Train,
) -> Iterator[tuple[int, State, float]]:
    """Take all steps; after every `log_every` of them yield their count, state and mean loss.

    Within a span nothing waits for the device. One call per step, and no `lax.scan` over several:
    on CPU, XLA compiles the convolutions in a loop's body to something many times slower.
    """
    done = 0
    while done < config.steps:
        losses = []
        for i in range(done, min(done + config.log_every, config.steps)):
            state, loss = step(state, images, jax.random.fold_in(key, i))
            losses.append(loss)
        done += len(losses)
        mean = float(np.mean(jax.device_get(losses)))
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss became {mean} between steps {done - len(losses)} and {done}; "
                "lower optimizer.learning_rate"
            )
        yield done, state, mean


def make_step(
    model: models.Autoencoder,
    optimizer: optax.GradientTransformation,
    config: Config,
) -> Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """One update of the state on a random batch, compiled as a whole; the old state is given up."""

    def loss_fn(params: Params, batch: jax.Array) -> jax.Array:
        # The squared error of a sigmoid has a plateau where everything is black; this has none.
        logits: Any = model.apply({"params": params}, batch)
        return optax.sigmoid_binary_cross_entropy(logits, batch).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, images: jax.Array, key: jax.Array) -> tuple[State, jax.Array]:
        batch = sample(key, images, config.train.batch_size, config.data.shift)
        loss, gradients = jax.value_and_grad(loss_fn)(state.params, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), loss

    return step


def make_decode(model: models.Autoencoder) -> Callable[[Params, jax.Array], np.ndarray]:
    """What a model makes of images, in pieces that fit into memory."""

    @jax.jit
    def apply(params: Params, x: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, x)
        return jax.nn.sigmoid(logits)

    def decode(params: Params, images: jax.Array) -> np.ndarray:
        starts = range(0, len(images), EVALUATED_AT_ONCE)
        pieces = [apply(params, images[i : i + EVALUATED_AT_ONCE]) for i in starts]
        return np.concatenate(jax.device_get(pieces))

    return decode


def sample(key: jax.Array, images: jax.Array, count: int, shift: int) -> jax.Array:
    """Draw `count` images, each moved by up to `shift` pixels; what moves in is black."""
    which, where = jax.random.split(key)
    batch = images[jax.random.randint(which, (count,), 0, len(images))]
    padded = jnp.pad(batch, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    starts = jax.random.randint(where, (count, 2), 0, 2 * shift + 1)

    def crop(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:])

    return jax.vmap(crop)(padded, starts)


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over all pixels."""
    return float(np.mean(np.square(a - b)))


def load_digits(config: Config) -> data.Split:
    """The digits, split as the config says."""
    try:
        return data.digits(config.data.heldout, config.train.seed)
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error


def build_model(config: Model, shape: tuple[int, ...]) -> models.Autoencoder:
    """The model for images of a shape `(height, width, channels)`."""
    height, width, channels = shape
    scale = 2 ** len(config.features)
    if height % scale or width % scale:
        raise ConfigError(
            f"model.features: {len(config.features)} halvings need images whose sides are "
            f"divisible by {scale}, these are {height} x {width}"
        )
    return models.Autoencoder(
        image_shape=(height, width, channels),
        latent=config.latent,
        features=config.features,
        kernel_size=config.kernel_size,
        kernel_regularizer=declared(config.kernel_regularizer, regularizers),
        kernel_constraint=declared(config.kernel_constraint, constraints),
    )


def build_optimizer(config: Config, rules: dict[str, Rule]) -> optax.GradientTransformation:
    """Adam with a cosine, which also carries out what the layers declare."""
    rate = optax.cosine_decay_schedule(config.optimizer.learning_rate, config.train.steps)
    return transforms.with_rules(optax.adam(rate), rules)


class Check(NamedTuple):
    """Whether a parameter is one that its constraint allows."""

    path: str
    constraint: str
    satisfied: bool
    detail: str


def check_constraints(params: Params, rules: dict[str, Rule]) -> list[Check]:
    """Apply every constraint once more: what is allowed does not move, but for rounding."""
    leaves = flatten_dict(params, sep="/")
    checks = []
    for path, rule in rules.items():
        if rule.constraint is None:
            continue
        value = leaves[path]
        moved = float(jnp.max(jnp.abs(rule.constraint(value) - value)))
        satisfied = moved <= 1e-5 * float(jnp.max(jnp.abs(value)))
        detail = f"applying it again moves no weight by more than {moved:.1e}"
        if isinstance(rule.constraint, constraints.MaxNorm):
            norms = jnp.sqrt(jnp.sum(jnp.square(value), axis=rule.constraint.axis)).ravel()
            at_bound = int(jnp.sum(norms > 0.999 * rule.constraint.max_value))
            detail = (
                f"largest norm {float(norms.max()):.6f}, {at_bound} of {norms.size} at the bound"
            )
        checks.append(Check(path, repr(rule.constraint), satisfied, detail))
    return checks


def describe(config: Config, params: Params, rules: dict[str, Rule], split: data.Split) -> str:
    """What is about to happen."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    lines = [
        f"{len(split.train)} images to train on, {len(split.heldout)} held out",
        f"{count:,} parameters, {config.train.steps} steps on {jax.devices()[0].device_kind}",
    ]
    for path, rule in rules.items():
        lines.append(f"  {path}: {rule.regularizer}, {rule.constraint}")
    return "\n".join(lines)


def report(summary: dict[str, Any], config: Config, picture: Path) -> str:
    """What came out of it."""
    lines = []
    for check in summary["constraints"]:
        verdict = "satisfied" if check["satisfied"] else "VIOLATED"
        lines.append(f"  {check['path']}: {check['constraint']} {verdict}: {check['detail']}")
    lines += [
        f"{summary['step']} steps in {summary['seconds']:.0f} s",
        f"held-out squared error: {summary['heldout_error']:.5f}",
        f"PCA's with the same latent size, {config.model.latent}: {summary['pca_error']:.5f}",
        f"ratio: {summary['ratio']:.3f}",
        f"picture: {picture} (held-out digits; below them the model's, then PCA's)",
    ]
    return "\n".join(lines)


def progress_bar(console: Console) -> Progress:
    """Steps done, the rate, the time left, and a note."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())
