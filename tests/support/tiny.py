"""The tiny benchmark that conftest.py draws once: its files and values."""

from dataclasses import dataclass
from pathlib import Path

from mmnet.config.schema import Config, Params, PretrainConfig

ROOT = Path(__file__).parents[2]


SLICE = ROOT.parent / "shared" / "data" / "refcoco-slice"
"""A small true piece of the data, where the machine has one; see REFER's layout in FIELD.md."""


TINY = [
    "profile=mini",
    "mlflow.enabled=false",
    "profiles.mini.shapes.image_sizes=[[64, 48], [48, 64]]",
    "profiles.mini.shapes.images.refcoco={train: 8, val: 3, testA: 2, testB: 2}",
    "profiles.mini.shapes.images.refcocog={train: 6, val: 2, test: 2}",
    "profiles.mini.towers.vit_b.pretrained=none",
    "profiles.mini.model.image_size=64",
    "profiles.mini.model.width=16",
    "profiles.mini.model.channels=[8, 8, 8]",
    "profiles.mini.model.num_queries=3",
    "profiles.mini.model.heads=2",
    "profiles.mini.model.ffn=16",
    "profiles.mini.train.epochs=2",
    "profiles.mini.train.batch_size=4",
    "profiles.mini.train.val_batch_size=8",
    "profiles.mini.evaluate.batch_size=8",
    "profiles.mini.pretrain.steps=2",
    "profiles.mini.pretrain.batch_size=8",
]


@dataclass(frozen=True)
class Tiny:
    params: Params
    config: Config
    """Of an experiment on RefCOCO, with random weights."""
    pretrain: PretrainConfig
    archives: dict[str, Path]
    tables: dict[str, Path]
    images: Path

    @property
    def table(self) -> Path:
        return self.tables["refcoco"]

    @property
    def manifest(self) -> Path:
        return self.images.with_suffix(".tsv")
