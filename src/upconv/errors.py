"""What errors say of where they arose and of what was received."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

# A longer value is shown by its type: models and arrays would fill pages.
LONGEST = 80


@contextlib.contextmanager
def noted(where: str) -> Iterator[None]:
    """Adds to an error from within where it came from."""
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise


def shown(value: Any) -> str:
    """A value as a message has it.

    >>> shown([1, 2]), shown(list(range(100)))
    ('[1, 2]', 'an instance of builtins.list')
    """
    text = repr(value)
    if len(text) <= LONGEST and "\n" not in text:
        return text
    shape = getattr(value, "shape", None)
    return f"an array of shape {shape}" if shape else f"an instance of {type_name(value)}"


def type_name(value: Any) -> str:
    """The name of a value's type, with that of its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
