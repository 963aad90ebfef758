"""Stopping between two steps: a queue will take the machine away, or no more data arrive."""

import contextlib
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from mmnet.runtime.errors import MMNetError, Stopped
from mmnet.runtime.system import stop_signals

T = TypeVar("T")


class Interruption(Exception):
    """Raised between two steps, where the state can be saved before the process ends."""


class Stop:
    """What asks a run to stop."""

    signal = 0
    """The number of the signal that arrived; 0 before that."""
    cause: MMNetError | None = None
    """The error that ends the run once its state is saved, where that is not a signal."""

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


_listeners: list[Stop] = []
"""Those of the `listening` blocks that this process is in."""


def heard() -> int:
    """Return the number of the signal that a `listening` block has noted; 0 for none."""
    return next((stop.signal for stop in _listeners), 0)


def saved_first(error: MMNetError) -> Exception:
    """Return what to raise for an error between two steps.

    Where a run is `listening`, it saves its state on an Interruption, then ends with `error`.
    """
    for stop in _listeners:
        stop.cause = error
    return Interruption() if _listeners else error


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """Note the signals of `stop_signals` instead of ending at once.

    Raises:
        MMNetError: the stop's cause, in place of Stopped.
    """
    stop = Stop()
    before = {number: signal.signal(number, stop.receive) for number in stop_signals()}
    _listeners.append(stop)
    try:
        yield stop
    except Stopped:
        if stop.cause is not None:
            raise stop.cause from None
        raise
    finally:
        _listeners.remove(stop)
        for number, handler in before.items():
            signal.signal(number, handler)
