"""What `mmnet segment` is to do: pairs of pictures and sentences, the model, the files to write.

Imports neither torch nor NumPy: mistakes are found before the model is loaded.
"""

import csv
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmnet.config.paths import RunPaths
from mmnet.runtime.errors import ConfigError, DataError
from mmnet.runtime.files import writing
from mmnet.use.sources import is_folder, path_of, real_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of the files in a folder that are taken for pictures."""
FORMATS = ("png", "jsonl", "coco", "polygons")
RESULTS, ANNOTATIONS = "results.jsonl", "annotations.json"


@dataclass(frozen=True)
class Task:
    """A picture and a sentence, and the name of what is written of them."""

    image: str
    sentence: str
    id: str | None
    stem: str


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where `mmnet segment` writes, and what."""

    folder: Path
    is_single: bool
    """One mask in a file that the user named: no results.jsonl."""
    format: str
    overlay: bool
    queries: bool
    suffix: str = ".png"
    """Of masks; of one, as the user writes it."""

    def files(self, task: Task) -> dict[str, Path]:
        """Return the pictures of a pair: mask, overlay, queries."""
        wanted = {
            "mask": self.is_single or self.format == "png",
            "overlay": self.overlay,
            "queries": self.queries,
        }
        return {
            name: self.folder / (task.stem + (self.suffix if name == "mask" else f".{name}.png"))
            for name, is_wanted in wanted.items()
            if is_wanted
        }

    @property
    def lists(self) -> list[Path]:
        """The files on all pairs together."""
        names = [] if self.is_single else [RESULTS]
        names += [ANNOTATIONS] if self.format == "coco" else []
        return [self.folder / name for name in names]


def read_tasks(image: str | None, sentences: Sequence[str], pairs: str | None) -> list[Task]:
    """Return the pairs of a picture or folder with each sentence, or those of a CSV file.

    Raises:
        ConfigError: neither or both are given.
        DataError: the file or folder is missing, or has none.
    """
    if (image is None) == (pairs is None):
        raise ConfigError("give a picture (or folder) and sentences, or --pairs FILE.")
    if pairs is not None:
        listed = _of_csv(pairs)
    elif not sentences:
        raise ConfigError(f"{image}: give one sentence or more, such as 'the left dog'.")
    else:
        assert image is not None
        listed = [(i, s, None) for i in _pictures(image) for s in sentences]
    taken: set[str] = set()
    return [Task(*pair, _stem(*pair, taken)) for pair in listed]


def plan_output(
    output: Path, tasks: Sequence[Task], *, format: str, overlay: bool, queries: bool, force: bool
) -> tuple[Output, list[Task]]:
    """Return what to write, and the pairs with the names of their files.

    Raises:
        ConfigError: one file is named for several pairs, a file is one of the pictures, or it
            exists and `force` is not given.
        MMNetError: a name is too long.
    """
    is_single = output.suffix.lower() in SUFFIXES and not is_folder(output)
    tasks = list(tasks)
    if is_single:
        if output.suffix.lower() != ".png":
            raise ConfigError(f"{output}: masks are written as PNG; end the name in .png.")
        if len(tasks) > 1:
            raise ConfigError(f"{output}: one file for {len(tasks)} masks. Give a folder.")
        if format != "png":
            raise ConfigError(f"{output}: --format {format} needs a folder.")
        tasks = [Task(task.image, task.sentence, task.id, output.stem) for task in tasks]
    folder = output.parent if is_single else output
    plan = Output(
        folder=folder,
        is_single=is_single,
        format=format,
        overlay=overlay,
        queries=queries,
        suffix=output.suffix if is_single else ".png",
    )
    pictures = {real_path(image) for image in {task.image for task in tasks}}
    for path in itertools.chain(plan.lists, *(plan.files(task).values() for task in tasks)):
        if real_path(path) in pictures:
            raise ConfigError(f"{path}: is one of the pictures. Give another -o.")
        with writing(path):
            exists = path.exists()
        if exists and not force:
            raise ConfigError(f"{path}: exists. Give another -o, or --force to overwrite.")
    return plan, tasks


def find_run(name: str) -> RunPaths:
    """Return the run of a folder, or of a name as `find_model` takes it.

    Raises:
        ConfigError: it is neither.
    """
    folder = Path(name)
    if not is_folder(folder):
        folder = find_model(name, None, option="")
    *_, runs, profile, experiment, seed = (*[""] * 4, *folder.absolute().parts)
    if runs != "runs" or not re.fullmatch(r"seed\d+", seed):
        raise ConfigError(f"{name}: is not a run folder (expected runs/PROFILE/EXPERIMENT/seedN).")
    return RunPaths(profile, experiment, int(seed[4:]), folder.absolute().parents[3])


def find_model(run: str | None, checkpoint: str | None, *, option: str = "--run ") -> Path:
    """Return the checkpoint or folder to load: the given one, or that of a finished run.

    Raises:
        ConfigError: no finished run has the name, or several have.
    """
    if checkpoint is not None:
        return Path(checkpoint)
    found = sorted(Path("runs").glob("*/*/seed*/checkpoint.pt"))
    names = ["/".join(path.parts[1:-1]) for path in found]  # PROFILE/EXPERIMENT/seedN
    chosen = [name for name in names if run is None or _is_called(name, run)]
    if len(chosen) == 1:
        return Path("runs") / chosen[0]
    if not names:
        raise ConfigError("runs/: no finished run. Train one, or give --checkpoint PATH.")
    listed = ", ".join(chosen or names)
    problem = "several finished runs" if chosen else f"{option}{run}: no such finished run"
    raise ConfigError(f"{problem}. Give {option}one of: {listed}.")


def _is_called(name: str, run: str) -> bool:
    """Whether PROFILE/EXPERIMENT/seedN is meant by a part of it that has the experiment."""
    profile, experiment, seed = name.split("/")
    return run.strip("/").removeprefix("runs/") in (
        *(name, experiment),
        *(f"{profile}/{experiment}", f"{experiment}/{seed}"),
    )


def _pictures(image: str) -> list[str]:
    folder = path_of(image)
    if not is_folder(folder):
        return [image]
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not (found := [str(path) for path in files if path.suffix.lower() in SUFFIXES]):
        raise DataError(f"{image}: no pictures there ({', '.join(SUFFIXES)}).")
    return found


def _of_csv(name: str) -> list[tuple[str, str, str | None]]:
    """Read the columns image, sentence and, where it has one, id; `-` is standard input."""
    where = "standard input" if name == "-" else name
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"{where}: cannot be read: {reason}.") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns, rows = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        raise DataError(f"{where}: not CSV, line {reader.line_num}: {error}.") from None
    if not {"image", "sentence"} <= {*columns}:
        raise DataError(
            f"{where}: has the columns {', '.join(columns) or '(none)'}; expected image,sentence "
            "and, if you like, id."
        )
    pairs = [(row["image"] or "", row["sentence"] or "", row.get("id") or None) for row in rows]
    if not pairs:
        raise DataError(f"{where}: has no pairs below its first line.")
    return pairs


def _stem(image: str, sentence: str, id: str | None, taken: set[str]) -> str:
    """Return a name for a pair's files that no other pair has, whatever the letters' case."""
    parts = [id] if id else [Path(image).stem, sentence]
    words = [re.sub(r"\W+", "-", part).strip("-").encode()[:90] for part in parts]  # of 255 bytes
    stem = "-".join(word.decode(errors="ignore") for word in words if word) or "mask"
    names: Iterator[str] = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    chosen = next(name for name in names if name.casefold() not in taken)
    taken.add(chosen.casefold())
    return chosen
