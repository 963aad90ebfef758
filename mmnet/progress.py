"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY = 10.0  # seconds


def say(message: str) -> None:
    """Write a line without breaking a bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def track(
    items: Iterable[T],
    *,
    name: str,
    total: int,
    done: int = 0,
    unit: str = "it",
    scale: int = 1,
    state: Callable[[], str] = str,
) -> Iterator[T]:
    """Yield the items, showing how far they are, their rate and the time left.

    `done` of the `total` were finished before; each counts as `scale` units; `state()` is shown
    behind the rate.
    """
    if sys.stderr.isatty():
        with tqdm(
            total=total * scale, initial=done * scale, desc=name, unit=unit, leave=False
        ) as bar:
            for item in items:
                yield item
                bar.set_postfix_str(state(), refresh=False)
                bar.update(scale)
        return
    start = last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY or done + number == total:
            last = now
            rate = number / max(now - start, 1e-9)
            left = (total - done - number) / rate
            message = f"{name}: {done + number}/{total}, {rate * scale:.1f} {unit}/s"
            say(f"{message}, {left:.0f} s left {state()}".rstrip())
