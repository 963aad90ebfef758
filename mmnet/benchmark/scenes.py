"""The mini profile's procedural benchmark, in the exact layout of the original data sets (REFER).

Scenes of shapes on textured backgrounds, with masks of the visible parts and the sentences of
`language`. As in the originals, RefCOCO and RefCOCO+ share images, objects and splits, testA refers
to one group of categories, testB to the other, and G-Ref has its own images. Each image has a seed.
"""

import io
import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from mmnet.benchmark.language import KEY_WORDS, Record, Speaker, Thing
from mmnet.benchmark.words import COLOURS, GROUPS, SHAPES
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write, checksum

Images = dict[str, dict[str, int]]
PATTERNS, PATTERN_WEIGHTS = ("plain", "striped"), (0.6, 0.4)
RADII = {"small": (0.2, 0.22), "large": (0.32, 0.35)}  # of the image's shorter side

SPLITS = {"refcoco": ("train", "val", "testA", "testB"), "refcocog": ("train", "val", "test")}
# The source of each data set's images, and whose partition into splits it has.
DATASETS = {
    "refcoco": ("refcoco", "unc"),
    "refcoco+": ("refcoco", "unc"),
    "refcocog": ("refcocog", "umd"),
}

SUPERSAMPLING = 8  # Pillow fills border pixels too: masks are exact only at a finer scale
VISIBLE = 0.6  # the smallest share of a thing that must be visible
HEADER = {
    "info": {"description": "Procedural referring segmentation"},
    "licenses": [{"id": 1, "name": "Apache-2.0"}],
    "categories": [{"id": i, "name": s, "supercategory": "shape"} for i, s in enumerate(SHAPES, 1)],
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in painting order, each with its coverage of every pixel, 0 to 255."""

    width: int
    height: int
    things: tuple[Thing, ...]
    layers: tuple[np.ndarray, ...]  # each (height, width), uint8

    def visible(self, index: int) -> np.ndarray:
        """Return the mask of a thing: its pixels that no later thing hides."""
        hidden = [layer >= 128 for layer in self.layers[index + 1 :]]
        shown = self.layers[index] >= 128
        return shown & ~np.any(hidden, axis=0) if hidden else shown


def _regular(corners: int, *radii: float) -> np.ndarray:
    turns = 2 * np.pi * (np.arange(corners) / corners - 0.25)
    reach = np.resize(radii, corners)
    return np.column_stack([reach * np.cos(turns), reach * np.sin(turns)])


ARMS = np.array([(-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34)])
# The polygons of an upright shape of radius 1; a second one is a hole.
OUTLINES = {
    "circle": (_regular(40, 1),),
    "square": (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.85,),
    "triangle": (_regular(3, 1.15),),
    "star": (_regular(10, 1.15, 0.52),),
    "cross": (np.concatenate([ARMS, -ARMS]),),
    "ring": (_regular(40, 1.05), _regular(40, 0.5)),
}


def outlines(thing: Thing) -> list[np.ndarray]:
    """Return the polygons of a thing in the image, (corners, 2) each."""
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    turn = np.array([(cos, sin), (-sin, cos)])
    return [p @ turn * thing.radius + (thing.x, thing.y) for p in OUTLINES[thing.shape]]


def draw_scene(rng: np.random.Generator, width: int, height: int, split: str = "train") -> Scene:
    """Draw a scene of 3 or 4 things, all visible enough; a test split shows mainly its group."""
    while True:
        things: list[Thing] = []
        for _ in range(int(rng.choice((3, 4), p=(0.55, 0.45)))):
            thing = _draw_thing(rng, width, height, things, split)
            if thing is None:
                break
            things.append(thing)
        else:
            layers = tuple(_coverage(thing, width, height) for thing in things)
            scene = Scene(width, height, tuple(things), layers)
            areas = [(layer >= 128).sum() for layer in layers]
            if all(scene.visible(i).sum() >= VISIBLE * area for i, area in enumerate(areas)):
                return scene


def _draw_thing(
    rng: np.random.Generator, width: int, height: int, before: list[Thing], split: str
) -> Thing | None:
    """Draw a thing that resembles earlier ones, so that words matter; None if there is no room."""
    group = GROUPS.get(split, SHAPES)
    # At least every other thing is of the split's own group.
    own = len(before) % 2 == 0 or rng.random() < 0.5
    choices = [s for s in SHAPES if (s in group) == own or group == SHAPES]
    seen = [thing.shape for thing in before if thing.shape in choices]
    shape = str(rng.choice(seen if seen and rng.random() < 0.5 else choices))
    colours = [thing.colour for thing in before]
    colour = str(rng.choice(colours if colours and rng.random() < 0.35 else list(COLOURS)))
    pattern = str(rng.choice(PATTERNS, p=PATTERN_WEIGHTS))
    size = str(rng.choice(list(RADII)))
    radius = rng.uniform(*RADII[size]) * min(width, height)
    angle = rng.uniform(-0.25, 0.25)  # radians
    reach = 1.15 * radius + 1
    # Things of one colour do not touch: their border would be invisible.
    gaps = [(radius + t.radius) * (1.1 if t.colour == colour else 0.75) for t in before]
    for _ in range(40):
        x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        if all(math.hypot(x - t.x, y - t.y) > gap for t, gap in zip(before, gaps, strict=True)):
            x, y, radius, angle = (round(v, 3) for v in (x, y, radius, angle))
            return Thing(shape, colour, pattern, size, x, y, radius, angle)
    return None


def _coverage(thing: Thing, width: int, height: int) -> np.ndarray:
    """Return how much of each pixel the thing covers, 0 to 255."""
    fine = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    for outline, inside in zip(outlines(thing), (255, 0), strict=False):
        # Pillow's coordinates are those of pixel centres, ours of their upper left corners.
        ImageDraw.Draw(fine).polygon((outline * SUPERSAMPLING - 0.5).ravel().tolist(), inside)
    return np.asarray(fine.reduce(SUPERSAMPLING))


def paint(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Paint the image: background, things in order, slight noise."""
    picture = _background(rng, scene.width, scene.height)
    for thing, layer in zip(scene.things, scene.layers, strict=True):
        rows, columns = np.flatnonzero(layer.any(1)), np.flatnonzero(layer.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        y, x = np.mgrid[box].astype(np.float32)
        light = _surface(thing, rng, x - thing.x, y - thing.y)
        colour = light[..., None] * (COLOURS[thing.colour] + rng.uniform(-12, 12, 3))
        picture[box] += layer[box][..., None] / 255 * (colour - picture[box])
    picture += 5 * rng.standard_normal(picture.shape, np.float32)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _surface(thing: Thing, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the brightness of the thing: dark stripes, visible at 64 pixels."""
    direction = rng.uniform(0, math.pi)
    cos, sin = math.cos(direction), math.sin(direction)
    u = x * cos + y * sin
    light = 1 + 0.1 * rng.uniform(-1, 1) * u / thing.radius
    if thing.pattern == "striped":
        pitch = 9 + 0.2 * thing.radius
        light[u % pitch < 0.45 * pitch] *= 0.2
    return light


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a grey texture, (height, width, 3): clouds, waves, tiles, grain or a gradient."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    kind = rng.integers(5)
    if kind == 0:
        coarse = Image.fromarray(rng.uniform(-1, 1, (5, 6)).astype(np.float32))
        texture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    elif kind == 1:
        slant = rng.uniform(-1, 1)
        texture = np.sin((y + slant * x) / rng.uniform(2, 5) + 2 * np.sin(x / 17))
    elif kind == 2:
        side = int(rng.integers(8, 20))
        texture = (x // side + y // side) % 2 * 2 - 1
    elif kind == 3:
        texture = rng.standard_normal((height, width), np.float32)
    else:
        texture = 2 * (rng.uniform(-1, 1) * (x / width - 0.5) + rng.uniform(-1, 1) * y / height)
    base = rng.uniform(90, 165) + rng.uniform(-14, 14, 3)
    return np.asarray(base + 14 * texture[..., None], dtype=np.float32)


def scenes(
    *, seed: int, image_sizes: list[tuple[int, int]], images: Images
) -> Iterator[tuple[str, str, int, Scene]]:
    """Yield source, split, image id and scene of every image of the mirror."""
    for image_id, (source, split, key) in enumerate(_plan(seed, images), start=1):
        rng = np.random.default_rng([*key, 0])
        width, height = image_sizes[rng.integers(len(image_sizes))]
        yield source, split, image_id, draw_scene(rng, width, height, split)


def _plan(seed: int, images: Images) -> list[tuple[str, str, list[int]]]:
    """Return source, split and seed of every image; no seed depends on another image."""
    return [
        (source, split, [seed, s, t, number])
        for s, (source, splits) in enumerate(SPLITS.items())
        for t, split in enumerate(splits)
        for number in range(images[source][split])
    ]


def write_mirror(
    folder: Path,
    *,
    seed: int,
    image_sizes: list[tuple[int, int]],
    images: Images,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> None:
    """Write the archives, key_words.csv of RefCOCO+'s sentences and, last, the SHA256SUMS.

    `images` are the numbers of images of each split of 'refcoco' (and RefCOCO+) and of 'refcocog';
    `image_sizes` are (width, height); `progress` wraps the list of images, as tqdm does.

    Raises:
        DataError: `images` does not have the splits of the benchmark.
    """
    if {k: set(v) for k, v in images.items()} != {k: set(v) for k, v in SPLITS.items()}:
        raise DataError(f"The benchmark has the splits {SPLITS}; give a number of each: {images}.")
    plan = _plan(seed, images)
    photos: dict[str, list[Record]] = {source: [] for source in SPLITS}
    annotations: dict[str, list[Record]] = {source: [] for source in SPLITS}
    refs: dict[str, list[Record]] = {dataset: [] for dataset in DATASETS}
    key_words = [KEY_WORDS]
    # Stored uncompressed with a date of 1980: the bytes depend on the content alone.
    with atomic_write(folder / "train2014.zip", "wb") as file, ZipFile(file, "w") as archive:
        drawn = scenes(seed=seed, image_sizes=image_sizes, images=images)
        for (_, _, key), (source, split, image_id, scene) in zip(
            progress(plan), drawn, strict=True
        ):
            jpeg = io.BytesIO()
            paint(scene, np.random.default_rng([*key, 1])).save(jpeg, "JPEG", quality=90)
            name = f"COCO_train2014_{image_id:012d}.jpg"
            archive.writestr(ZipInfo(f"train2014/{name}"), jpeg.getvalue())
            size = {"width": scene.width, "height": scene.height}
            photos[source].append({"id": image_id, "file_name": name, "license": 1, **size})
            new = annotate(scene, image_id, first_id=len(annotations[source]) + 1)
            annotations[source] += new
            for number, dataset in enumerate(d for d in DATASETS if DATASETS[d][0] == source):
                rng = np.random.default_rng([*key, 2 + number])
                speaker = Speaker(scene.things, scene.width, scene.height, rng)
                said = speaker.refs(dataset, split, new, refs[dataset][-1:])
                refs[dataset] += said
                if dataset == "refcoco+":
                    key_words += speaker.key_words(said, first_id=new[0]["id"])
    for dataset, (source, partition) in DATASETS.items():
        instances = {**HEADER, "images": photos[source], "annotations": annotations[source]}
        pickled = pickle.dumps(refs[dataset], protocol=2)
        with atomic_write(folder / f"{dataset}.zip", "wb") as file, ZipFile(file, "w") as archive:
            archive.writestr(ZipInfo(f"{dataset}/instances.json"), json.dumps(instances).encode())
            archive.writestr(ZipInfo(f"{dataset}/refs({partition}).p"), pickled)
    with atomic_write(folder / "key_words.csv") as file:
        file.write("\n".join(key_words) + "\n")
    with atomic_write(folder / "SHA256SUMS") as sums:
        for name in sorted(f"{name}.zip" for name in ("train2014", *DATASETS)):
            sums.write(f"{checksum(folder / name)}  {name}\n")


def annotate(scene: Scene, image_id: int, first_id: int) -> list[Record]:
    """Return COCO's annotations of a scene, in the things' order."""
    annotations = []
    for index, thing in enumerate(scene.things):
        segmentation = segment(scene, index)
        parts = coco_mask.frPyObjects(segmentation, scene.height, scene.width)
        mask = coco_mask.merge(parts) if isinstance(parts, list) else parts
        annotations.append(
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": SHAPES.index(thing.shape) + 1,
                "bbox": coco_mask.toBbox(mask).tolist(),
                "area": float(coco_mask.area(mask)),
                "iscrowd": 0,
                "segmentation": segmentation,
            }
        )
    return annotations


def segment(scene: Scene, index: int) -> list[list[float]] | dict[str, list[int]]:
    """Return a thing's polygon, or COCO's run lengths if it is partly hidden or has a hole."""
    polygons = outlines(scene.things[index])
    mask = scene.visible(index)
    if len(polygons) == 1 and mask.sum() == (scene.layers[index] >= 128).sum():
        return [polygons[0].ravel().round(2).tolist()]
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(edges, prepend=0, append=flat.size)  # runs of 0 and 1 in turn, 0 first
    return {"counts": counts.tolist(), "size": [scene.height, scene.width]}
