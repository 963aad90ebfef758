"""What the page says of a model, and example pictures of its own val split."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from mmnet.config.paths import Paths
from mmnet.data.refer import read_table
from mmnet.report.tables.common import TITLES
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import read_json
from mmnet.use.config import InferenceConfig
from mmnet.use.folder import CONFIG
from mmnet.use.load import ABOUT

EXAMPLES = 6


class Example(NamedTuple):
    file: Path
    sentence: str


class About(NamedTuple):
    name: str
    facts: list[tuple[str, str]]
    """In order: what it is, and its value."""
    words: int
    """L, the tokens of a sentence that the model reads."""
    examples: list[Example]

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "examples": [example.sentence for example in self.examples]}


def about(config: InferenceConfig, folder: Path) -> About:
    """Return what is known of a model: from its config, and the files of its folder."""
    folder = folder.resolve()
    data = TITLES[config.dataset] + (", procedural benchmark" if config.profile == "mini" else "")
    facts = [
        *(("Model", config.name), ("Backbone", config.architecture), ("Trained on", data)),
        ("Queries", str(config.model.num_queries)),
    ]
    if (best := val_miou(folder)) is not None:
        facts.append(("val mIoU", f"{100 * best:.1f} %"))
    examples = examples_of(folder, config.profile, config.dataset)
    return About(config.name, facts, config.max_length, examples)


def val_miou(folder: Path) -> float | None:
    """Return the mIoU on val of a run's best epoch, or of an export; None where no file has it."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return max(float(json.loads(line)["val"]["mIoU"]) for line in lines)
    except (OSError, ValueError, KeyError, TypeError):
        scores = read_json(folder / CONFIG).get("scores") or {}
        miou: float | None = scores.get("val", {}).get("mIoU")
        return miou


def examples_of(folder: Path, profile: str, dataset: str) -> list[Example]:
    """Return pictures of a run's val split, evenly apart, each with a sentence.

    None of a folder that is not a run's, or whose repository has no data.
    """
    if not (folder / ABOUT).is_file() or len(folder.parents) < 4:
        return []
    paths = Paths(profile, folder.parents[3])
    try:
        rows = read_table(paths.table(dataset), ["val"])
    except DataError:
        return []
    # Of each picture its first sentence, of three words or more where it has one.
    short = rows["sentence"].str.count(r"\S+") < 3
    firsts = rows.assign(short=short).sort_values(["image_id", "short", "sent_id"])
    firsts = firsts.drop_duplicates("image_id")
    count = min(EXAMPLES, len(firsts))
    chosen = firsts.iloc[[number * len(firsts) // count for number in range(count)]]
    pairs = zip(chosen["file"], chosen["sentence"], strict=True)
    found = [Example(paths.images / file, sentence) for file, sentence in pairs]
    return [example for example in found if example.file.is_file()]
