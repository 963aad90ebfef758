"""Stopping between two steps when a queue signals that it will take the machine away."""

import contextlib
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from mmnet.runtime.system import stop_signals

T = TypeVar("T")


class Interruption(Exception):
    """Raised between two steps, where the state can be saved, after a signal arrived."""


class Stop:
    """The number of the signal that arrived; 0 before that."""

    signal = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items until a signal arrives.

        Raises:
            Interruption: a signal arrived.
        """
        for item in items:
            if self.signal:
                raise Interruption
            yield item


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Note the signals of `stop_signals` instead of ending at once."""
    stop = Stop()
    before = {number: signal.signal(number, stop.receive) for number in stop_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
