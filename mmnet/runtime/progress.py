"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from mmnet.runtime.launcher import is_first

T = TypeVar("T")

LINE_EVERY = 10.0  # seconds


def say(message: str) -> None:
    """Write a line above any bar; of several processes, the first one does."""
    if is_first():
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


def readable(count: float) -> str:
    """Return a number of bytes in a suitable unit: 13.5 GB."""
    size, unit = _unit(count)
    return f"{count / size:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a time in the unit that fits it: 23.1 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


class Pace:
    """Whether bytes arrive at `slowest` a second or more, over each `window` seconds."""

    def __init__(self, slowest: float, window: float) -> None:
        self.slowest, self.window = slowest, window
        self.have, self.at = 0, time.monotonic()

    def is_too_slow(self, have: int) -> bool:
        """Note how many bytes are there; return whether they became too few more."""
        if self.have <= have < self.have + self.slowest * self.window:
            return time.monotonic() - self.at > self.window
        if have > self.have:
            self.at = time.monotonic()
        self.have = have
        return False


def track(
    items: Iterable[T],
    *,
    name: str,
    total: int | None,
    done: int = 0,
    unit: str = "it",
    size: Callable[[T], int] = lambda item: 1,
    state: Callable[[], str] = str,
) -> Iterator[T]:
    """Yield the items and show the progress, the rate and the time left.

    An item counts `size(item)` units (B means bytes), of which there are `total` if that is known;
    `done` of them were finished earlier. `state()` is shown after the rate.
    """
    if not is_first():
        yield from items
        return
    if sys.stderr.isatty():
        with tqdm(
            total=total, initial=done, desc=name, unit=unit, unit_scale=unit == "B", leave=False
        ) as bar:
            for item in items:
                yield item
                bar.set_postfix_str(state(), refresh=False)
                bar.update(size(item))
        return
    start = last = time.monotonic()
    before = done
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= LINE_EVERY or done == total:
            last = now
            rate = (done - before) / max(now - start, 1e-9)
            speed = readable(rate) if unit == "B" else f"{rate:.1f} {unit}"
            message = f"{name}: {_so_far(done, total, unit)}, {speed}/s"
            if total is not None and rate:
                message += f", {(total - done) / rate:.0f} s left"
            say(f"{message} {state()}".rstrip())


def _unit(count: float) -> tuple[float, str]:
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
    return next((unit for unit in units if count >= unit[0]), units[-1])


def _so_far(done: int, total: int | None, unit: str) -> str:
    if total is None:
        return readable(done) if unit == "B" else str(done)
    return f"{done / _unit(total)[0]:.1f}/{readable(total)}" if unit == "B" else f"{done}/{total}"
