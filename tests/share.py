"""Which of many cases a shorter run leaves out; runs of unlike shares leave out others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

# A test of fewer cases than this many for each that stays is run whole.
AT_LEAST = 3


def left_out(ids: Iterable[str], share: str) -> set[str]:
    """Of a test with many parameters, all cases but the I-th of each N in a row.

    Args:
      ids: pytest's names of all tests, in order.
      share: "I/N".

    >>> sorted(left_out(["a[0]", "b", *(f"c[{i}]" for i in range(6))], "2/2"))
    ['c[0]', 'c[2]', 'c[4]']

    Raises:
      ValueError: if the share is not one of N.
    """
    kept, of = map(int, share.split("/"))
    if not 1 <= kept <= of:
        raise ValueError(f"a share must be I/N with I from 1 to N, got {share}")
    cases = defaultdict(list)
    for name in ids:
        cases[name.partition("[")[0]].append(name)
    return {
        name
        for names in cases.values()
        if len(names) >= AT_LEAST * of
        for i, name in enumerate(names)
        if i % of != kept - 1
    }
