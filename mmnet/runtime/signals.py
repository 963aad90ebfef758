"""What queues send before they take a machine away: SIGTERM, SIGUSR1."""

import contextlib
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

ASKED_TO_STOP = (signal.SIGTERM, signal.SIGUSR1)


class Interruption(Exception):
    """Raised where the state is whole, some time after the signal came."""


class Stop:
    """Whether a signal has come, and which."""

    signal = 0

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items until a signal comes.

        Raises:
            Interruption: it came.
        """
        for item in items:
            if self.signal:
                raise Interruption
            yield item


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop.hear) for number in ASKED_TO_STOP}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
