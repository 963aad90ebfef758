"""`mmnet segment`: pairs to files, a line each; a failure is a line, a mistake ends at once."""

import io
import json
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import mmnet
from mmnet.cli.parser import main
from mmnet.data.rle import read_rle
from mmnet.use.segment import Segmenting
from support.tiny import ROOT, Tiny

KEYS = {
    *("image", "sentence", "id", "size", "segmentation", "box", "area", "confidence"),
    *("threshold", "cut", "file", "model", "seconds"),
}


@pytest.fixture(autouse=True)
def desk(
    undisturbed: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """A folder with one finished run and `photos/`; return the pictures' names."""
    (tmp_path / "runs").symlink_to(undisturbed / "runs")
    (tmp_path / "photos").mkdir()
    for path in sorted(tiny.images.iterdir())[:3]:
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    # A command sets these for its own process, which here is the tests'.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    return [str(path) for path in sorted(Path("photos").glob("*.jpg"))]


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


def test_one_pair_becomes_the_file_named(
    desk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", desk[0], "the circle", "-o", "new/dog.png"]) == 0
    assert "new/dog.png" in capsys.readouterr().out
    assert [path.name for path in Path("new").iterdir()] == ["dog.png"]
    found = mmnet.load("runs/mini/refcoco_vit_b/seed0").look(desk[0]).find("the circle")
    with Image.open("new/dog.png") as mask:
        assert np.array_equal(np.asarray(mask.convert("L")) > 0, found.mask)
    more = ["--overlay", "--queries", "--threshold", "0.9", "--force"]
    assert main(["segment", desk[0], "the circle", "-o", "new/dog.png", *more]) == 0
    names = ["dog.overlay.png", "dog.png", "dog.queries.png"]
    assert sorted(path.name for path in Path("new").iterdir()) == names


def test_a_folder_and_several_sentences_become_a_line_and_a_mask_each(desk: list[str]) -> None:
    sentences = ["the circle", "the circle!", "der Kreis links, größer"]
    assert main(["segment", "photos", *sentences, "-o", "out"]) == 0
    found = lines()
    assert [(line["image"], line["sentence"]) for line in found] == [
        (image, sentence) for image in desk for sentence in sentences
    ]
    assert {*found[0]} == KEYS
    assert len({line["file"].casefold() for line in found}) == 9
    written = {path.name for path in Path("out").iterdir()}
    assert written == {"results.jsonl", *(line["file"] for line in found)}
    for line in found:
        mask = read_rle(line["segmentation"])
        with Image.open(Path("out") / line["file"]) as saved:
            assert np.array_equal(np.asarray(saved.convert("L")) > 0, mask)
        assert line["size"] == [*mask.shape]
        assert line["area"] == mask.sum()
        assert line["model"] == "refcoco_vit_b/seed0"


def test_pairs_come_from_csv_and_a_failure_is_a_line(
    desk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a " * 30
    Path("damaged.jpg").write_bytes(Path(desk[1]).read_bytes()[:200])
    moving = [Image.new("RGB", (9, 9), (n, 0, 0)) for n in (0, 99)]
    moving[0].save("moving.gif", save_all=True, append_images=moving[1:])
    rows = [
        (desk[0], "the circle, left", "7"),
        ("none.jpg", "the circle", "8"),
        (desk[0], "", "9"),
        ("damaged.jpg", "the circle", "../10"),
        (desk[1], long, ""),
        ("moving.gif", "the ünïcode 絵", "7"),
    ]
    text = "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)
    Path("pairs.csv").write_text(f"\N{ZERO WIDTH NO-BREAK SPACE}image,sentence,id\n{text}\n")
    assert main(["segment", "--pairs", "pairs.csv", "-o", "out"]) == 1
    by_pair = {(line["image"], line["sentence"]): line for line in lines()}
    found = [by_pair[image, sentence] for image, sentence, _ in rows]
    assert ["error" in line for line in found] == [False, True, True, True, False, False]
    assert [line["id"] for line in found] == ["7", "8", "9", "../10", None, "7"]
    assert [found[place]["cut"] for place in (0, 4, 5)] == [False, True, False]
    assert (found[0]["file"], found[5]["file"]) == ("7.png", "7-2.png")
    assert "2 frames" in found[5]["notes"][0]
    assert "3 of them" in capsys.readouterr().err


def test_pairs_come_from_standard_input(desk: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"\N{ZERO WIDTH NO-BREAK SPACE}sentence,image\nthe circle,{desk[0]}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["segment", "--pairs", "-", "-o", "out", "--format", "jsonl"]) == 0
    (line,) = lines()
    assert (line["image"], line["file"]) == (desk[0], None)
    assert [path.name for path in Path("out").iterdir()] == ["results.jsonl"]


def test_coco_reads_what_is_written_for_it(desk: list[str]) -> None:
    command = ["segment", "photos", "the circle", "the left star", "-o", "out"]
    assert main([*command, "--format", "coco"]) == 0
    coco = COCO("out/annotations.json")
    assert len(coco.imgs) == 3
    for line, annotation in zip(lines(), coco.dataset["annotations"], strict=True):
        assert np.array_equal(coco.annToMask(annotation), read_rle(line["segmentation"]))
        assert coco.imgs[annotation["image_id"]]["file_name"] == line["image"]
        assert annotation["sentence"] == line["sentence"]


def test_polygons_and_queries_stand_in_the_lines(desk: list[str]) -> None:
    command = ["segment", desk[0], "the circle", "a star", "-o", "out", "--queries"]
    assert main([*command, "--format", "polygons", "--threshold", "0.01"]) == 0
    for line in lines():
        assert all(len(polygon) >= 6 for polygon in line["segmentation"])
        assert bool(line["segmentation"]) == (line["area"] > 0)
        queries = line["queries"]
        assert len(queries["attention"]) == len(queries["scores"]) == 3
        assert len(queries["attention"][0]) == len(queries["words"])
    assert len(list(Path("out").glob("*.queries.png"))) == 2


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "SIGUSR1", "error"])
def test_what_was_finished_is_kept_however_the_work_ends(
    ending: str,
    desk: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = Segmenting._line

    def ended(self: Segmenting, outcome: Any) -> dict[str, Any]:
        if self.done == 1 and ending == "error":
            raise ZeroDivisionError
        if self.done == 1:
            signal.raise_signal(signal.Signals[ending])
        return work(self, outcome)

    monkeypatch.setattr(Segmenting, "_line", ended)
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


def test_options_may_stand_anywhere(desk: list[str]) -> None:
    assert main(["segment", "-o", "out", desk[0], "--overlay", "a dog", "--force", "a cat"]) == 0
    assert [line["sentence"] for line in lines()] == ["a dog", "a cat"]


def test_a_folder_may_be_an_address_and_a_mask_end_in_capitals(desk: list[str]) -> None:
    Path("photos/._x.jpg").write_text("hidden")
    photos = Path("photos").resolve().as_uri()
    assert main(["segment", photos, "a dog", "-o", "out", "--format", "jsonl"]) == 0
    assert len(lines()) == 3
    assert main(["segment", desk[0], "a dog", "-o", "DOG.PNG"]) == 0
    with Image.open("DOG.PNG") as mask:
        assert {*np.unique(np.asarray(mask))} <= {0, 255}
        assert mask.mode == "L"
    assert "DOG.PNG" in {path.name for path in Path().iterdir()}


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
        *([*pair, "-o", name] for name in ("x" * 300, "x" * 300 + ".png", "x" * 250 + "/" * 9999)),
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


def test_the_model_is_the_only_finished_run_or_the_one_named(
    desk: list[str], undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = undisturbed / "runs" / "mini" / "refcoco_vit_b" / "seed0"
    Path("runs").unlink()
    command = [desk[0], "the circle", "-o", "out", "--force"]
    assert "--checkpoint" in mistake(capsys, *command)
    for name in ("mini/one/seed0", "mini/two/seed0", "mini/two/seed1", "paper/one/seed0"):
        shutil.copytree(run, Path("runs") / name)
    (Path("runs") / "mini" / "unfinished" / "seed0").mkdir(parents=True)
    line = mistake(capsys, *command)
    assert all(name in line for name in ("mini/one/seed0", "mini/two/seed1", "paper/one/seed0"))
    line = mistake(capsys, *command, "--run", "two")
    assert "mini/two/seed1" in line
    assert "one" not in line.partition("one of")[2]
    assert "several finished runs" in mistake(capsys, *command, "--run", "one")
    with pytest.raises(SystemExit):
        main(["segment", *command, "--run", "two/seed1", "--checkpoint", str(run)])
    for chosen in (
        *(["--run", name] for name in ("two/seed1", "mini/one", "paper/one/seed0")),
        ["--checkpoint", str(run)],
        ["--checkpoint", str(run / "checkpoint.pt")],
    ):
        assert main(["segment", *command, *chosen]) == 0


def examples(section: str) -> list[str]:
    """The Python blocks of a section of docs/use.md."""
    text = (ROOT / "docs" / "use.md").read_text().partition(f"\n## {section}\n")[2]
    return re.findall(r"```python\n(.*?)```", text.partition("\n## ")[0], flags=re.DOTALL)


def test_the_examples_of_the_page_run(desk: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path("runs/mini/refcoco_vit_b/seed0").resolve()
    Path("runs").unlink()
    Path("runs/mini/refcoco_vit_l").mkdir(parents=True)
    Path("runs/mini/refcoco_vit_l/seed0").symlink_to(model)
    for name, source in zip(("street.jpg", "park.jpg"), desk, strict=False):
        shutil.copy(source, name)
    values: dict[str, Any] = {}
    for block in examples("Python"):
        exec(block, values)
    assert Path("dog.png").is_file()
    fiftyone = MagicMock()
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    coco, of_fiftyone, label_studio = examples("Recipes")
    command = ["segment", "photos", "the circle", "-o", "out", "--threshold", "0.01", "--force"]
    assert main([*command, "--format", "coco"]) == 0
    exec(coco, values)
    exec(of_fiftyone, values)
    found = [line for line in lines() if line["area"]]
    for line, call in zip(found, fiftyone.Detection.from_mask.call_args_list, strict=True):
        assert call.args[0].sum() == line["area"]
    assert main([*command, "--format", "polygons"]) == 0
    exec(label_studio, values)
    tasks = json.loads(Path("tasks.json").read_text())
    for line, task in zip(lines(), tasks, strict=True):
        assert len(task["predictions"][0]["result"]) == len(line["segmentation"])
