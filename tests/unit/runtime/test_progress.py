"""What long work shows in a log."""

from types import SimpleNamespace
from typing import Any

import pytest

from mmnet.runtime import progress


@pytest.mark.parametrize(
    ("clock", "settings", "size", "lines"),
    [
        (
            [0, 5, 11, 19, 22],
            {"total": 13_510_573_713, "done": 10**9, "unit": "B"},
            50 * 10**6,
            [
                "x: 1.1/13.5 GB, 9.1 MB/s, 1365 s left",
                "x: 1.2/13.5 GB, 9.1 MB/s, 1354 s left",
            ],
        ),
        ([0, 10], {"total": None, "unit": "B"}, 4000, ["x: 4.0 kB, 400.0 B/s"]),
        (
            [0, 10],
            {"total": 8, "unit": "images", "state": lambda: "loss 2"},
            4,
            ["x: 4/8, 0.4 images/s, 10 s left loss 2"],
        ),
    ],
)
def test_a_log_says_amount_speed_and_time_left_now_and_then(
    clock: list[float],
    settings: dict[str, Any],
    size: int,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter(clock)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    items = [None] * (len(clock) - 1)
    seen = progress.track(items, name="x", size=lambda item: size, **settings)
    assert list(seen) == items
    assert capsys.readouterr().err.splitlines() == lines
