"""TensorFlow's `tf.nn.conv_transpose`, as a `tf.function`."""

from __future__ import annotations

import functools
from typing import Any

from upconv.bench import machine
from upconv.bench.layers import Data, LayerSpec
from upconv.bench.task import Task


@functools.cache
def _import_tensorflow() -> Any:
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it warns about functions made in a loop
    if machine.on_gpu():
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    else:
        tf.config.set_visible_devices([], "GPU")
    return tf


def obstacle() -> str | None:
    """Why TensorFlow cannot take part although it is installed, or None."""
    on_gpu = machine.on_gpu()
    without = on_gpu and not _import_tensorflow().config.list_physical_devices("GPU")
    return "it has no GPU" if without else None


def task(layer: LayerSpec, data: Data, dtype: str) -> Task:
    """TensorFlow's task, without second derivatives."""
    tf = _import_tensorflow()
    x, kernel = (tf.constant(a, tf.as_dtype(dtype)) for a in (data.x, data.kernel))

    def forward(x: Any, kernel: Any) -> Any:
        return tf.nn.conv_transpose(
            x, kernel, layer.output_shape, layer.stride, layer.padding.upper()
        )

    def step(x: Any, kernel: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            loss = tf.reduce_sum(tf.square(forward(x, kernel)))
        return loss, tape.gradient(loss, (x, kernel))

    calls = {"forward": tf.function(forward), "step": tf.function(step)}
    return Task({kind: functools.partial(f, x, kernel) for kind, f in calls.items()}, _wait)


def _wait(result: Any) -> None:
    if machine.on_gpu():
        _import_tensorflow().test.experimental.sync_devices()
