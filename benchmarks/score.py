"""Time `mmnet score` on masks of RefCOCO val's true size, drawn at random.

10,834 sentences of images of 480 x 640 pixels, in a table of 142,210 sentences. The true masks are
smooth, the others ragged; compressed run lengths and plain counts in turn. Limits: 60 s and 2 GB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmnet.data.rle import write_rle

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH = 480, 640
SENTENCES, OF_VAL, PER_IMAGE = 142_210, 10_834, 7
SHAPES = 300
"""Pairs of a true mask and a ragged one: each sentence has one pair."""
MAX_SECONDS, MAX_GB = 60, 2
Mask = NDArray[np.bool_]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder)
        return measure(folder, arguments.runs)


def measure(folder: Path, runs: int) -> int:
    """Score the masks in a new process per run; return 1 if a limit is exceeded."""
    best = float("inf")
    for number in range(runs):
        name, quiet = ("compressed", "plain")[number % 2], subprocess.DEVNULL
        start, computed = time.monotonic(), cpu_seconds()
        subprocess.run(
            [
                *(sys.executable, "-m", "mmnet", "score", f"{name}.jsonl", "--dataset", "refcoco"),
                *("--params", ROOT / "params.yaml", "--set", "profile=paper"),
                *("-o", "scored", "--force"),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=None if number == 0 else quiet,
            stderr=None if number == 0 else quiet,
            check=True,
        )
        seconds, computed = time.monotonic() - start, cpu_seconds() - computed
        best = min(best, seconds)
        size = (folder / f"{name}.jsonl").stat().st_size / 1e6
        times = f"{seconds:.1f} s, {computed:.1f} s of a core, load {os.getloadavg()[0]:.1f}"
        print(f"{name}: {size:.0f} MB, {times}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # of kB
    print(f"best {best:.1f} s of {MAX_SECONDS}, peak memory {peak:.2f} GB of {MAX_GB}")
    return int(best > MAX_SECONDS or peak > MAX_GB)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(folder: Path) -> None:
    """Write the prepared table and two files of the same masks."""
    rng = np.random.default_rng(0)
    truths, masks = zip(*(pair(rng) for _ in range(SHAPES)), strict=True)
    of_sentence, numbers = rng.integers(SHAPES, size=SENTENCES), np.arange(SENTENCES)
    true_counts = [compressed(truth)["counts"].encode() for truth in truths]
    table = pd.DataFrame(
        {
            "split": np.where(numbers < OF_VAL, "val", "train"),
            "ref_id": numbers // 3,
            "ann_id": numbers // 3,
            "image_id": numbers // PER_IMAGE,
            "sent_id": numbers,
            "sentence": [f"the thing of number {number}" for number in numbers],
            "height": HEIGHT,
            "width": WIDTH,
            "counts": [true_counts[number] for number in of_sentence],
        }
    )
    path = folder / "data" / "paper" / "refcoco.parquet"
    path.parent.mkdir(parents=True)
    table.to_parquet(path, index=False)
    for form in (compressed, plain):
        segmentations = [form(mask) for mask in masks]
        with (folder / f"{form.__name__}.jsonl").open("w") as file:
            for sent_id, number in enumerate(of_sentence[:OF_VAL]):
                line = {"sent_id": sent_id, "segmentation": segmentations[number]}
                file.write(json.dumps(line) + "\n")


def pair(rng: np.random.Generator) -> tuple[Mask, Mask]:
    """Return an ellipse and the same with a rough edge: more runs than a network's mask has."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radii = rng.uniform(20, 200, 2)
    distance = ((y - rng.uniform(0, HEIGHT)) / radii[0]) ** 2
    distance += ((x - rng.uniform(0, WIDTH)) / radii[1]) ** 2
    noise = rng.normal(scale=0.3, size=(HEIGHT // 4, WIDTH // 4)).repeat(4, 0).repeat(4, 1)
    return distance < 1, distance + noise < 1


def compressed(mask: Mask) -> dict[str, Any]:
    return write_rle(mask)


def plain(mask: Mask) -> dict[str, Any]:
    """Return COCO's plain counts: column by column, zeros first."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    counts: list[int] = np.diff([*changes, mask.size], prepend=0).tolist()
    return {"size": list(mask.shape), "counts": counts}


if __name__ == "__main__":
    sys.exit(main())
