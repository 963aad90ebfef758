"""`mmnet segment`: pairs to files, a line each; a failure is a line, a mistake ends at once."""

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import mmnet
from mmnet.cli.parser import main
from mmnet.data.rle import read_rle
from support.segment import lines, mistake
from support.tiny import ROOT

KEYS = {
    *("image", "sentence", "id", "size", "segmentation", "box", "area", "confidence"),
    *("threshold", "cut", "file", "model", "seconds"),
}


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
