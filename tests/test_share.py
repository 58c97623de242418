"""Shorter runs: what they leave out, and that together they leave out nothing."""

from __future__ import annotations

import pytest

from share import left_out

MANY = [f"b.py::{name}[{i}]" for i in range(10) for name in ("h", "k")]


def test_the_shares_are_everything_once() -> None:
    kept = [set(MANY) - left_out(MANY, f"{i}/3") for i in (1, 2, 3)]
    assert set.union(*kept) == set(MANY)
    assert sum(map(len, kept)) == len(MANY)
    assert [len(names) for names in kept] == [8, 6, 6]  # of two tests with ten cases each


def test_a_whole_share_leaves_nothing_out() -> None:
    assert not left_out(MANY, "1/1")


@pytest.mark.parametrize("share", ["0/3", "4/3", "1/0", "3", "a/b"])
def test_what_is_no_share_is_refused(share: str) -> None:
    with pytest.raises(ValueError):
        left_out(MANY, share)
