"""The Fréchet distance between two sets of digits, in the features of a small classifier."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import digits
from task import in_pieces

FEATURES = 64
STEPS = 600
BATCH_SIZE = 100


class Gaussian(NamedTuple):
    """The mean and the covariance of some features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def fit(features: np.ndarray) -> Gaussian:
    """The Gaussian of features `(n, FEATURES)`."""
    features = features.astype(np.float64)
    return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False))


def distance(a: Gaussian, b: Gaussian) -> float:
    r"""As usual, squared: :math:`|\mu_a-\mu_b|^2 + \mathrm{tr}(C_a + C_b - 2 (C_a C_b)^{1/2})`.

    The formula is Dowson and Landau's (1982); Heusel et al., arXiv:1706.08500, apply it to images.
    The trace of the root is that of the symmetric matrix :math:`(R C_b R)^{1/2}` with `R` the root
    of :math:`C_a`, whose eigenvalues are those of the product.

    >>> a = Gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    >>> b = Gaussian(np.array([3.0, 0.0]), np.diag([1.0, 9.0]))
    >>> distance(a, b)
    10.0
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sum(np.sqrt(np.maximum(product, 0.0)))
    shift = np.sum(np.square(a.mean - b.mean))
    return float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


class Classifier(nnx.Module):
    """Maps digits `(n, 28, 28, 1)` to `FEATURES` numbers and to the logits of ten classes."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 16, (4, 4), strides=2, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (4, 4), strides=2, rngs=rngs)
        self.dense = nnx.Linear(7 * 7 * 32, FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, 10, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """The outputs of the last layer but one."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        return nnx.relu(self.dense(x.reshape(len(x), -1)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits of the classes."""
        return self.head(self.features(images))


def train_classifier(images: np.ndarray, labels: np.ndarray, seed: int) -> Classifier:
    """A trained classifier of digits; the arguments alone decide what it is."""
    graph, params = nnx.split(Classifier(nnx.Rngs(seed)))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: jax.Array, labels: jax.Array) -> Any:
        def loss_fn(params: Any) -> jax.Array:
            logits = nnx.merge(graph, params)(batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        chosen = rng.integers(len(images), size=BATCH_SIZE)
        params, opt_state = step(params, opt_state, images[chosen], labels[chosen])
    return nnx.merge(graph, params)


class Critic:
    """Judges images by their distance to real ones, in the features of a classifier.

    Attributes:
      accuracy: the classifier's, on the held-out digits.
      heldout: the distance of the held-out digits.
    """

    def __init__(self, split: digits.Split, seed: int) -> None:
        classifier = train_classifier(split.train, split.train_labels, seed)
        graph, params = nnx.split(classifier)
        self._features = jax.jit(lambda x: nnx.merge(graph, params).features(x))
        self._real = fit(self.features(split.train))
        classes = classifier(jnp.asarray(split.heldout)).argmax(axis=-1)
        self.accuracy = float(np.mean(np.asarray(classes) == split.heldout_labels))
        self.heldout = self.distance(split.heldout)

    def features(self, images: np.ndarray) -> np.ndarray:
        """The classifier's features of images `(n, 28, 28, 1)`: `(n, FEATURES)`."""
        return in_pieces(self._features, images)

    def distance(self, images: np.ndarray) -> float:
        """The distance of images to the training digits."""
        return distance(self._real, fit(self.features(images)))
