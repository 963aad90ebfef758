"""Time the reading of one training item: ours at 480 and at 416, and CRIS's recipe at 416.

    python benchmarks/data_item.py [--images FOLDER] [--rounds 40]

All are timed in one process and one thread, alternating from image to image. CRIS's item is what
its `utils/dataset.py` does once the record is read, without its tokens, LMDB and pickled records;
ours includes its tokens. Both read the same masks, drawn here: ours as COCO's RLE, CRIS's from a
PNG of the image's size.

Our normalisation is done on the device, per batch; the last rows show its cost on this CPU.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask

from mmnet.data.dataset import MASK_STRIDE, TrainItems, read_image, read_mask
from mmnet.data.transforms import CLIP_MEAN, CLIP_STD, letterbox, mask_to_grid, normalise, place

SLICE = Path(__file__).parents[2] / "shared/data/refcoco-slice/images/mscoco/train2014"
TARGET = 0.5
"""Upper limit of our time at 480 relative to CRIS's at 416."""


class Cris:
    """CRIS's item at 416, as its `utils/dataset.py` makes it."""

    size = 416
    border = tuple(255 * value for value in CLIP_MEAN)
    mean = torch.tensor(CLIP_MEAN)[:, None, None]
    std = torch.tensor(CLIP_STD)[:, None, None]

    def matrix(self, height: int, width: int) -> np.ndarray:
        scale = min(self.size / height, self.size / width)
        new_height, new_width = height * scale, width * scale
        x, y = (self.size - new_width) / 2, (self.size - new_height) / 2
        corners = np.array([[0, 0], [width, 0], [0, height]], np.float32)
        moved = np.array([[x, y], [new_width + x, y], [x, new_height + y]], np.float32)
        return cv2.getAffineTransform(corners, moved)

    def warp(self, image: np.ndarray, flags: int, border: Any) -> np.ndarray:
        matrix, square = self.matrix(*image.shape[:2]), (self.size, self.size)
        return cv2.warpAffine(image, matrix, square, flags=flags, borderValue=border)

    def decode(self, path: Path) -> np.ndarray:
        return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def letterbox(self, image: np.ndarray) -> np.ndarray:
        return self.warp(image, cv2.INTER_CUBIC, self.border)

    def mask(self, path: Path) -> torch.Tensor:
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        return torch.from_numpy(self.warp(mask, cv2.INTER_LINEAR, 0) / 255.0).float()

    def normalise(self, square: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(square.transpose(2, 0, 1)).float()
        return image.div_(255.0).sub_(self.mean).div_(self.std)

    def item(self, image: Path, mask: Path) -> tuple[torch.Tensor, torch.Tensor]:
        return self.normalise(self.letterbox(self.decode(image))), self.mask(mask)


def draw_photographs(folder: Path, count: int = 12) -> None:
    """Noise of every scale, nearly as heavy as COCO's JPEGs."""
    draw = np.random.default_rng(0)
    for number in range(count):
        height, width = (480, 640) if number % 4 else (640, 480)
        photo = np.zeros((height, width, 3))
        for octave in range(1, 10):
            coarse = draw.normal(0, 80 / 1.3**octave, (2**octave, 2**octave, 3))
            photo += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
        pixels = (photo + 128).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), pixels, quality)


def write_masks(photographs: list[Path], folder: Path) -> pd.DataFrame:
    """Give every photograph an object: a row of a prepared table, and a PNG."""
    rows = []
    for number, path in enumerate(photographs):
        height, width = cv2.imread(str(path)).shape[:2]
        mask = np.zeros((height, width), np.uint8)
        centre, axes = (width // 2, height // 3), (width // 5, height // 4)
        cv2.ellipse(mask, centre, axes, 10 * number, 0, 360, 1, -1)
        cv2.imwrite(str(folder / f"{path.stem}.png"), 255 * mask)
        row = {"split": "train", "sentence": "the tall man in a red shirt on the left"}
        for name in ("ref_id", "ann_id", "image_id", "sent_id", "category_id"):
            row[name] = number
        counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
        rows.append({**row, "file": path.name, "height": height, "width": width, "counts": counts})
    return pd.DataFrame(rows)


def our_stages(items: TrainItems, index: int) -> dict[str, Callable[[], Any]]:
    """Return our functions to time for one image."""
    row, size = items.records[items.order[index]], items.image_size
    placement = place(row.height, row.width, size, items.resize)
    image, name = read_image(items.images / row.file), f"ours {size}"

    def mask() -> torch.Tensor:
        return mask_to_grid(read_mask(row.counts, row.height, row.width), placement, MASK_STRIDE)

    return {
        f"{name}: decode": lambda: read_image(items.images / row.file),
        f"{name}: letterbox": lambda: letterbox(image, placement),
        f"{name}: mask": mask,
        f"{name}: item": lambda: items[index],
        f"{name}: item, normalised here": lambda: normalise(items[index].image[None]),
    }


def cris_stages(image: Path, png: Path) -> dict[str, Callable[[], Any]]:
    cris = Cris()
    pixels = cris.decode(image)
    square = cris.letterbox(pixels)
    return {
        "CRIS 416: decode": lambda: cris.decode(image),
        "CRIS 416: letterbox": lambda: cris.letterbox(pixels),
        "CRIS 416: mask": lambda: cris.mask(png),
        "CRIS 416: normalise": lambda: cris.normalise(square),
        "CRIS 416: item": lambda: cris.item(image, png),
    }


def measure(stages: list[dict[str, Callable[[], Any]]], rounds: int) -> dict[str, list[float]]:
    """Return each stage's milliseconds per image, one value per round."""
    times: dict[str, list[float]] = {name: [] for name in stages[0]}
    for _ in range(rounds):
        spent = dict.fromkeys(times, 0.0)
        for of_photograph in stages:
            for name, function in of_photograph.items():
                start = time.perf_counter()
                function()
                spent[name] += time.perf_counter() - start
        for name, seconds in spent.items():
            times[name].append(1000 * seconds / len(stages))
    return times


def report(times: dict[str, list[float]]) -> None:
    print(f"{'milliseconds per item':38}{'median':>8}{'best':>8}")
    for name, of_rounds in times.items():
        print(f"{name:38}{statistics.median(of_rounds):8.2f}{min(of_rounds):8.2f}")
    print(f"\n{'of the time of CRIS 416: item':38}{'median':>8}{'best':>8}")
    whole = times["CRIS 416: item"]
    for name, of_rounds in times.items():
        if name.startswith("ours") and "item" in name:
            ratios = [ours / cris for ours, cris in zip(of_rounds, whole, strict=True)]
            best = min(of_rounds) / min(whole)
            target = f"   (target: {TARGET})" if name == "ours 480: item" else ""
            print(f"{name:38}{statistics.median(ratios):8.3f}{best:8.3f}{target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=SLICE, help="folder of JPEGs")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = images = Path(name)
        if arguments.images.is_dir():
            images = arguments.images
        else:
            draw_photographs(folder)
        photographs = sorted(images.glob("*.jpg"))
        if not photographs:
            parser.error(f"{images} has no *.jpg. Choose another folder with --images.")
        kilobytes = sum(path.stat().st_size for path in photographs) / len(photographs) / 1000
        source = images if images != folder else "drawn here, since there is no --images folder"
        print(f"{len(photographs)} images, {kilobytes:.0f} kB on average: {source}\n")
        write_masks(photographs, folder).to_parquet(folder / "table.parquet")
        ours = [
            TrainItems(
                folder / "table.parquet",
                images,
                seed=0,
                image_size=size,
                resize="letterbox",
                max_length=17,
            )
            for size in (480, 416)
        ]
        stages = []
        for index in range(len(photographs)):
            path = images / ours[0].records[ours[0].order[index]].file
            png = folder / f"{path.stem}.png"
            stages.append(cris_stages(path, png))
            for items in ours:
                stages[-1].update(our_stages(items, index))
        report(measure(stages, arguments.rounds))


if __name__ == "__main__":
    main()
