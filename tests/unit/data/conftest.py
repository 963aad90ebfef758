"""A mirror on localhost, and downloads that do not pause."""

import threading
from collections.abc import Iterator

import pytest

from mmnet.data import download
from support.mirror import Mirror


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the pauses before new attempts, none of which is made."""
    pauses: list[float] = []
    monkeypatch.setattr(download, "sleep", pauses.append)
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.2))
    return pauses
