"""`mmnet segment` in the working folder: what it wrote, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmnet.cli.parser import main


def lines(folder: str = "out") -> list[dict[str, Any]]:
    text = (Path(folder) / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail before it writes anything; return its one line."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["segment", *arguments]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("mmnet: ")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return error
