"""Checkpoints of a run: orbax keeps the arrays, and a table beside them says what made them."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# Orbax warns about what read_only is meant to do.
logging.getLogger("absl").setLevel(logging.ERROR)

FORMAT = 2
"""The version of what is saved. A checkpoint of another one is refused."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or cannot be used; the message names its folder."""


class Checkpoints:
    """The checkpoints in the folder of a run, by step; the newest two are kept.

    One that is incomplete, because the process was killed while it was written, does not count.
    Where a run has several processes, all of them must make the same calls.

    Args:
      run: the folder of the run; the checkpoints are in `checkpoints` within it.
      read_only: whether nothing is to be saved.

    Raises:
      CheckpointError: if `read_only` and there is none.
    """

    def __init__(self, run: Path, *, read_only: bool = False) -> None:
        self.folder = (run / "checkpoints").absolute()
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{run}: no checkpoint there")
        options = ocp.CheckpointManagerOptions(max_to_keep=2, read_only=read_only)
        handlers = {"about": ocp.JsonCheckpointHandler(), "state": ocp.StandardCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        if read_only and self.step is None:
            raise CheckpointError(f"{run}: no checkpoint there")

    @property
    def step(self) -> int | None:
        """The step of the newest, or None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, about: dict[str, Any]) -> None:
        """Saves a pytree of arrays, and a table that JSON can hold.

        Returns once the arrays are copied; they are written in the background.
        """
        arguments = ocp.args.Composite(
            about=ocp.args.JsonSave({"format": FORMAT, **about}),
            state=ocp.args.StandardSave(state),
        )
        self._manager.save(step, args=arguments, force=True)

    def about(self) -> dict[str, Any]:
        """The table beside the newest state.

        Raises:
          CheckpointError: if it cannot be read, or has another format.
        """
        about = self._restore(about=ocp.args.JsonRestore())["about"]
        if not isinstance(about, dict) or type(about.get("format")) is not int:
            raise CheckpointError(f"{self._newest}: not a checkpoint of this trainer")
        if about["format"] != FORMAT:
            raise CheckpointError(
                f"{self._newest}: its format is {about['format']}, this trainer's is {FORMAT}"
            )
        return about

    def restore(self, like: Any) -> Any:
        """The newest state.

        Args:
          like: the pytree of arrays, or of `jax.ShapeDtypeStruct`, that the state must match. The
            arrays come with its shardings.

        Raises:
          CheckpointError: if it cannot be read, or does not match.
        """
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        # Compared beforehand: if orbax found out while reading, it would leave other reads behind.
        theirs, ours = self._arrays(), arrays(like)
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise CheckpointError(
                    f"{self._newest}: of another model: {name} is {theirs.get(name, 'not')} there "
                    f"and {ours.get(name, 'not')} here"
                )
        return self._restore(state=ocp.args.StandardRestore(like))["state"]

    def close(self) -> None:
        """Waits until all is written."""
        self._manager.close()

    @property
    def _newest(self) -> Path:
        return self.folder / str(self.step)

    def _arrays(self) -> dict[str, str]:
        """As `arrays`, of the newest state."""
        self._manager.wait_until_finished()
        with self._explained():
            return arrays(self._manager.item_metadata(self.step)["state"].tree)

    def _restore(self, **items: Any) -> Any:
        with self._explained():
            return self._manager.restore(self.step, args=ocp.args.Composite(**items))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns the many errors of orbax, tensorstore and json into CheckpointErrors."""
        try:
            yield
        except Exception as error:
            why = textwrap.shorten(str(error), 200) or type(error).__name__
            raise CheckpointError(f"{self._newest}: cannot be restored: {why}") from error


def exists(run: Path) -> bool:
    """Whether there is a checkpoint to go on from; one that is incomplete does not count."""
    try:
        Checkpoints(run, read_only=True).close()
    except CheckpointError:
        return False
    return True


def arrays(tree: Any) -> dict[str, str]:
    """Dtype and shape of every array by its path.

    >>> arrays({"dense": {"bias": jax.ShapeDtypeStruct((3,), "float32")}})
    {'dense/bias': 'float32[3]'}
    """
    return {
        name: f"{np.dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in ocp.tree.to_flat_dict(tree, sep="/").items()
    }
