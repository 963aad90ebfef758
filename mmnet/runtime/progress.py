"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY = 10.0  # seconds

FIRST = os.environ.get("RANK", "0") == "0"
"""Of several processes, one speaks for all."""
LAUNCHER = "MMNET_LAUNCHER"
"""The id of the process that called torchrun for them."""
TOLD = "MMNET_TOLD"
"""A folder with an empty file for each mistake that one of them has told."""
UNHEARD = "unheard"
"""The file in it of a mistake that others' most likely caused: told if nothing else is."""


def say(message: str) -> None:
    """Write a line without breaking a bar."""
    if not FIRST:
        return
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def tell(mistake: str, *, is_unheard: bool = False) -> None:
    """Write why a command ends; of a run's processes, the first to come upon it does."""
    if folder := os.environ.get(TOLD):
        try:
            if is_unheard:
                (Path(folder) / UNHEARD).write_text(mistake)
                return
            (Path(folder) / hashlib.sha256(mistake.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # a folder of days ago that was cleared away: rather twice than not at all
    print(f"mmnet: {mistake}", file=sys.stderr)


def readable(count: float) -> str:
    """Return a number of bytes as one reads it: 13.5 GB."""
    divisor, unit = _byte_unit(count)
    return f"{count / divisor:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a time in the unit that fits it: 23.1 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


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
    """Yield the items, showing how far they are, their rate and the time left.

    `done` of the `total` units, where that is known, were finished before; an item is `size(item)`
    units, B being bytes; `state()` is shown behind the rate.
    """
    if not FIRST:
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
            message = f"{name}: {_so_far(done, total, unit)}, {_rate(rate, unit)}"
            if total is not None and rate:
                message += f", {(total - done) / rate:.0f} s left"
            say(f"{message} {state()}".rstrip())


def _byte_unit(count: float) -> tuple[float, str]:
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
    return next((unit for unit in units if count >= unit[0]), units[-1])


def _so_far(done: int, total: int | None, unit: str) -> str:
    if unit != "B":
        return str(done) if total is None else f"{done}/{total}"
    if total is None:
        return readable(done)
    divisor, unit = _byte_unit(total)
    return f"{done / divisor:.1f}/{total / divisor:.1f} {unit}"


def _rate(rate: float, unit: str) -> str:
    return f"{readable(rate)}/s" if unit == "B" else f"{rate:.1f} {unit}/s"
