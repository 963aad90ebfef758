"""`mmnet segment` loses nothing: of what was finished, of other pairs, of the user's own files."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmnet.cli.parser import main
from mmnet.runtime.errors import ConfigError
from mmnet.use.segment import Segmenting
from mmnet.use.tasks import plan_output
from support.segment import lines, mistake
from support.use import untrained


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "SIGUSR1", "error"])
def test_what_was_finished_is_kept_however_the_work_ends(
    ending: str,
    desk: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    work = Segmenting._line

    def ended(self: Segmenting, outcome: Any) -> dict[str, Any]:
        if self.done == 1 and ending == "error":
            raise ZeroDivisionError
        if self.done == 1:
            signal.raise_signal(signal.Signals[ending])
        return work(self, outcome)

    monkeypatch.setattr(Segmenting, "_line", ended)
    # A shell's background job is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    command = ["segment", "photos", "the circle", "-o", "out", "--format", "coco"]
    if ending == "error":
        with pytest.raises(ZeroDivisionError):
            main(command)
    else:
        assert main(command) == 128 + signal.Signals[ending]
        assert "Traceback" not in capsys.readouterr().err
    finished = len(lines())
    assert finished == (1 if ending in ("SIGINT", "error") else 2)
    assert len(COCO("out/annotations.json").anns) == finished
    assert not list(Path("out").glob(".*"))


def test_names_and_sentences_that_are_not_utf_8_cost_no_other_pair(desk: list[str]) -> None:
    try:
        shutil.copy(desk[0], "photos/caf\udce9.jpg")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    command = ["segment", "photos", "the circle", "caf\udce9", "-o", "out", "--format", "coco"]
    assert main(command) == 1
    found = lines()
    assert [line["sentence"] for line in found if "error" in line] == ["caf\udce9"] * 4
    assert "photos/caf\udce9.jpg" in {line["image"] for line in found if "error" not in line}
    assert len(COCO("out/annotations.json").imgs) == 4


def test_a_picture_is_never_overwritten_by_its_mask(
    desk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(desk[0]).save("photos/7.png")
    Path("link.png").symlink_to("photos/7.png")
    before = Path("photos/7.png").read_bytes()
    Path("pairs.csv").write_text("image,sentence,id\nlink.png,a dog,7\n")
    for arguments in (
        ["photos/7.png", "a dog", "-o", "photos/7.png"],
        ["photos/7.png", "a dog", "-o", "link.png"],
        ["--pairs", "pairs.csv", "-o", "photos"],
    ):
        assert "one of the pictures" in mistake(capsys, *arguments, "--force")
    assert Path("photos/7.png").read_bytes() == before


def test_mistakes_are_said_before_anything_is_written(
    desk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("none.csv").write_text("image,sentence\n")
    Path("other.csv").write_text("file,text\na,b\n")
    Path("bytes.csv").write_bytes(b"image,sentence\n\xff\xfe\n")
    Path("taken.png").write_text("mine")
    Path("open.csv").write_text('image,sentence\na.jpg,"a dog\nb.jpg,a cat\n')
    Path("empty").mkdir()
    Path("empty/._x.jpg").write_text("hidden")
    pair = [desk[0], "the circle"]
    for arguments in (
        ["-o", "out"],
        [desk[0], "-o", "out"],
        [*pair, "--pairs", "none.csv", "-o", "out"],
        *(
            ["--pairs", f"{name}.csv", "-o", "out"]
            for name in ("none", "other", "bytes", "gone", "open")
        ),
        ["empty", "the circle", "-o", "out"],
        ["gone.jpg", "the circle", "-o", "dog.png"],
        [desk[0], " ", "-o", "dog.png"],
        [*pair, "the star", "-o", "dog.png"],
        [*pair, "-o", "dog.jpg"],
        [*pair, "-o", "dog.png", "--format", "coco"],
        [*pair, "-o", "taken.png"],
        [*pair, "-o", "taken.png/out"],
        *([*pair, "-o", name] for name in ("x" * 300, "x" * 300 + ".png")),
        [f"the dog {'x' * 300}", desk[0], "-o", "dog.png"],
        ["https://example.org/dog.jpg", "a dog", "-o", "dog.png"],
        ["", "a dog", "-o", "dog.png"],
        [*pair, "-o", "out", "--threshold", "2"],
        [*pair, "-o", "out", "--run", "nq_24"],
        [*pair, "-o", "out", "--checkpoint", "gone.pt"],
        [*pair, "-o", "out", "--device", "gpu"],
    ):
        mistake(capsys, *arguments)
    assert Path("taken.png").read_text() == "mine"


def test_nothing_is_overwritten_without_force(
    desk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [desk[0], "the circle", "-o", "out"]
    assert main(["segment", *command]) == 0
    mistake(capsys, *command)
    Path("out/results.jsonl").unlink()
    mistake(capsys, *command)  # its mask is still there
    assert main(["segment", *command, "--force"]) == 0


def test_queries_are_refused_before_work_where_they_have_no_masks() -> None:
    output, _ = plan_output(Path("out"), [], format="png", overlay=False, queries=True, force=False)
    with pytest.raises(ConfigError):
        Segmenting(untrained(mmp=False), [], output, threshold=None)
