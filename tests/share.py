"""Which of many cases a shorter run leaves out; runs of unlike shares leave out others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def left_out(ids: Iterable[str], share: str) -> set[str]:
    """Of each test, all cases but the I-th of each N in a row.

    Args:
      ids: pytest's names of all tests, in order.
      share: "I/N".

    >>> sorted(left_out(["a[0]", "a[1]", "a[2]", "b[0]", "b[1]"], "2/2"))
    ['a[0]', 'a[2]', 'b[0]']

    Raises:
      ValueError: if the share is not one of N.
    """
    kept, of = map(int, share.split("/"))
    if not 1 <= kept <= of:
        raise ValueError(f"a share must be I/N with I from 1 to N, got {share}")
    cases = defaultdict(list)
    for name in ids:
        cases[name.partition("[")[0]].append(name)
    return {name for names in cases.values() for i, name in enumerate(names) if i % of != kept - 1}
