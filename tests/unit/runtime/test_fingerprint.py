"""The hash of what code computes: what counts, what does not, and the same under every Python."""

import hashlib

import pytest

from mmnet.runtime.fingerprint import meaning

BEFORE = '''
"""A module."""
from typing import TYPE_CHECKING

from mmnet.runtime.progress import say, track

if TYPE_CHECKING:
    from pathlib import Path

RATE: float = 0.5
"""Per step."""


class Part:
    """A part."""

    width: int

    def forward(self, x: int, *, scale: float = 2.0) -> float:
        """Return it."""
        if x < 0:
            raise ValueError(f"{x} is negative")
        say(f"at {x}")
        total = [y for y in track(range(x), name="adding", total=x)]
        return sum(total) * scale * RATE
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another text."""'),
        ('"""Per step."""', '"""Per epoch."""'),
        ("    width: int\n", "    width: int  # C\n"),
        ("RATE: float = 0.5", "RATE = 0.5"),
        ("x: int, *, scale: float = 2.0) -> float", "x, *, scale: int = 2.0)"),
        ('ValueError(f"{x} is negative")', 'ValueError("x must not be negative", x)'),
        ('say(f"at {x}")', 'say("working")'),
        ('name="adding", total=x', 'name="sums", total=x, unit="items"'),
        ("    from pathlib import Path", "    from pathlib import PurePath"),
        ("from mmnet.runtime.progress import say, track", "from mmnet.runtime.progress import *"),
        ("sum(total) * scale * RATE", "(\n            sum(total) * scale * RATE\n        )"),
    ],
)
def test_documentation_annotations_layout_and_messages_do_not_count(old: str, new: str) -> None:
    assert old in BEFORE
    assert meaning(BEFORE.replace(old, new).encode()) == meaning(BEFORE.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5", "0.25"),
        ("scale: float = 2.0", "scale: float = 3.0"),
        ("x < 0", "x <= 0"),
        ("ValueError(", "TypeError("),
        ("range(x)", "range(x + 1)"),
        ("    width: int\n", "    height: int\n"),
        ("sum(total)", "max(total)"),
        ("from typing import TYPE_CHECKING", "from math import tau as TYPE_CHECKING"),
    ],
)
def test_what_is_computed_counts(old: str, new: str) -> None:
    assert old in BEFORE
    assert meaning(BEFORE.replace(old, new).encode()) != meaning(BEFORE.encode())


def test_the_hash_is_the_same_under_every_supported_python() -> None:
    # Of code whose syntax tree has changed, or is printed otherwise, between 3.11 and 3.14.
    source = """
async def f(a, /, b=1, *args: int, c: str = "x", **kwargs) -> None:
    match a:
        case {"k": [1, *rest], **more} if rest:
            return f"{a!r:>{b}} {c:.2f}" "and" f"{b}"
        case _:
            pass
    async with a as x, b as y:
        z: int = (w := x[1:2, ...])
    try:
        del z
    except* OSError:
        lambda: (yield)
    return -1.5e-05, 1_000, 0x1F, True, None, ..., 3j, {**kwargs}, [*args]
"""
    digest = hashlib.sha256(meaning(source.encode()).encode()).hexdigest()
    assert digest[:16] == "135320176aad15ba"
