"""Time `mmnet prepare` on an archive of RefCOCO's true size, drawn at random.

50,000 refs with 142,000 sentences, 20,000 images, 197,000 annotations: polygons of 20 to 100
corners, some in several parts, and a few run lengths of crowds. Runs read the zip and the folder
that it unpacks to in turn. Limits: 60 s and 2 GB.
"""

import argparse
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np

from mmnet.runtime.files import atomic_path, checksum

ROOT = Path(__file__).parents[1]
IMAGES, ANNOTATIONS, REFS, SENTENCES = 20_000, 197_000, 50_000, 142_000
MAX_SECONDS, MAX_GB = 60, 2
SPLITS = ["train"] * 17 + ["val", "testA", "testB"]
WIDTH, HEIGHT = 640, 480
WORDS = """
the a on in of with at by to left right middle top bottom front back far near closest
second third upper lower corner side man woman guy lady girl boy kid child person people player
catcher umpire hand head arm face shirt jacket pants hat glasses red blue green white black brown
yellow gray orange pink striped plaid dark light big small tall little young old holding wearing
standing sitting looking facing car truck bus train bike motorcycle boat plane horse cow sheep
elephant zebra giraffe bear dog cat bird pizza sandwich cake donut banana apple carrot broccoli
bowl plate cup glass bottle chair couch bed table laptop umbrella suitcase kite surfboard
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="where to write and keep the archive; default: a temporary one"
    )
    parser.add_argument("--runs", type=int, default=4, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        draw(folder)
        return measure(folder, arguments.runs)


def measure(folder: Path, runs: int) -> int:
    """Prepare the table in a new process per run; return 1 if a limit is exceeded."""
    archive = folder / "refcoco.zip"
    source = f"{{urls: ['file:{archive}'], sha256: {checksum(archive)}}}"
    best = float("inf")
    for number in range(runs):
        copy = archive if number % 2 == 0 else folder / "refcoco"
        start = time.monotonic()
        subprocess.run(
            [
                *(sys.executable, "-m", "mmnet", "prepare", "refcoco"),
                *("--params", ROOT / "params.yaml", "--set", "profile=mini"),
                *("--set", f"profiles.mini.archives.refcoco={source}"),
                *("--set", f"profiles.mini.data.refcoco={copy}"),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=None if number == 0 else subprocess.DEVNULL,
            check=True,
        )
        seconds = time.monotonic() - start
        best = min(best, seconds)
        print(f"{copy.name}: {seconds:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # of kB
    for name in ("refcoco.zip", "refcoco/instances.json", "data/mini/refcoco.parquet"):
        print(f"{name}: {(folder / name).stat().st_size / 1e6:.0f} MB")
    print(f"best {best:.1f} s of {MAX_SECONDS}, peak memory {peak:.2f} GB of {MAX_GB}")
    return int(best > MAX_SECONDS or peak > MAX_GB)


def draw(folder: Path) -> None:
    """Write refcoco/ and refcoco.zip unless the zip exists."""
    archive, inside = folder / "refcoco.zip", folder / "refcoco"
    if archive.exists():
        return
    print("drawing the archive, about a minute", flush=True)
    inside.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    with (inside / "instances.json").open("w") as file:
        images = [
            {"id": i, "file_name": photo(i), "height": HEIGHT, "width": WIDTH, "license": 1}
            for i in range(IMAGES)
        ]
        file.write(f'{{"info": {{}}, "licenses": [], "images": {json.dumps(images)}')
        file.write(', "categories": [], "annotations": [')
        for number, annotation in enumerate(annotations()):
            file.write(", " * bool(number) + json.dumps(annotation))
        file.write("]}")
    with (inside / "refs(unc).p").open("wb") as file:
        pickle.dump(list(refs(rng)), file, protocol=0)
    with atomic_path(archive) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as file:
        for path in sorted(inside.iterdir()):
            file.write(path, f"refcoco/{path.name}")


def photo(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def annotations() -> Iterator[dict[str, Any]]:
    """Yield blobs like COCO's; every tenth in several parts, every 200th a crowd."""
    rng = np.random.default_rng(0)
    for number in range(ANNOTATIONS):
        parts = [blob(rng) for _ in range(int(rng.integers(2, 5)) if number % 10 == 0 else 1)]
        segmentation: Any = parts
        if crowd := number % 200 == 0:
            runs = rng.multinomial(WIDTH * HEIGHT, np.full(401, 1 / 401))
            segmentation = {"counts": runs.tolist(), "size": [HEIGHT, WIDTH]}
        yield {
            "segmentation": segmentation,
            "area": round(float(rng.uniform(100, 90_000)), 4),
            "iscrowd": int(crowd),
            "image_id": number % IMAGES,
            "bbox": rng.uniform(0, HEIGHT, 4).round(2).tolist(),
            "category_id": int(rng.integers(1, 91)),
            "id": number,
        }


def blob(rng: np.random.Generator) -> list[float]:
    corners = int(rng.integers(20, 101))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = rng.uniform(15, 150) * rng.uniform(0.8, 1.2, corners)
    x = (rng.uniform(0, WIDTH) + radii * np.cos(angles)).clip(0, WIDTH)
    y = (rng.uniform(0, HEIGHT) + radii * np.sin(angles)).clip(0, HEIGHT)
    return np.stack([x, y], 1).ravel().round(2).tolist()


def refs(rng: random.Random) -> Iterator[dict[str, Any]]:
    words, threes, sent_id = WORDS.split(), SENTENCES - 2 * REFS, 0
    for number, ann_id in enumerate(rng.sample(range(ANNOTATIONS), REFS)):
        sentences = []
        for _ in range(3 if number < threes else 2):
            tokens = rng.choices(words, k=rng.randint(1, 8))
            text = " ".join(tokens)
            sentences.append({"tokens": tokens, "raw": text, "sent": text, "sent_id": sent_id})
            sent_id += 1
        image_id = ann_id % IMAGES
        yield {
            "ref_id": number,
            "ann_id": ann_id,
            "image_id": image_id,
            "category_id": 1,
            "split": SPLITS[image_id % len(SPLITS)],
            "file_name": photo(image_id).replace(".jpg", f"_{number % 30}.jpg"),
            "sent_ids": [sentence["sent_id"] for sentence in sentences],
            "sentences": sentences,
        }


if __name__ == "__main__":
    sys.exit(main())
