"""Which files of the package shape which results: the one place that says so.

A result depends on the files listed for its rule, by their meaning (runtime/fingerprint.py). A
file that shapes no number is in SHAPES_NO_NUMBER, so that none is forgotten.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from mmnet.config.profile import open_clip_models
from mmnet.config.schema import Config
from mmnet.runtime.fingerprint import PACKAGE, fingerprints

_ITEMS = ("data/dataset.py", "data/refer.py", "data/tokenizer.py", "data/transforms.py")
_MODEL = (
    *("model/build.py", "model/clip.py", "model/decoder.py", "model/layers.py"),
    *("model/mask_projector.py", "model/mmnet.py", "model/neck.py", "model/pyramid.py"),
    *("model/query_generator.py", "model/text_encoder.py"),
)
_ARITHMETIC = ("runtime/device.py", "runtime/portable.py")
_PREDICTION = (
    *(*_ITEMS, *_ARITHMETIC, "runtime/distributed.py"),
    *("evaluate/predict.py", "evaluate/query_measures.py"),
)
_TRAINING = (
    *(*_PREDICTION, "evaluate/metrics.py"),
    *("train/loop.py", "train/recipe.py", "train/run_state.py", "train/step.py"),
)

_SHOWN = (*_PREDICTION, "evaluate/metrics.py", "evaluate/selection.py", "evaluate/examples.py")
_REPORT = (
    *("config/tables.py", "data/refer.py", "evaluate/metrics.py", "report/published.csv"),
    *("report/interval.py", "report/render.py", "report/rows.py"),
    *("report/tables/*", "report/templates/*"),
)

RULES: dict[str, tuple[str, ...]] = {
    "draw_scenes": ("benchmark/*", "runtime/portable.py"),
    "prepare": ("data/prepare.py", "data/refer.py", "data/tokenizer.py", "data/unpack.py"),
    "pretrain": (
        *(*_ITEMS, "model/clip.py", *_ARITHMETIC),
        *("train/pretrain.py", "train/recipe.py"),
    ),
    "train": _TRAINING,
    "predict": _PREDICTION,
    "preview": (
        *(*_PREDICTION, "evaluate/metrics.py"),
        *("evaluate/pictures.py", "evaluate/preview.py"),
    ),
    "score": ("data/refer.py", "evaluate/metrics.py"),
    "examples": _SHOWN,
    "queries": (*_SHOWN, "evaluate/queries.py"),
    "tables": _REPORT,
    "claims": (*_REPORT, "report/claims/*"),
    "figures": (*_REPORT, "report/figures/*", "evaluate/pictures.py"),
    "pages": (*_REPORT, "benchmark/words.py", "report/claims/*", "report/pages/*"),
}
"""Rule -> files below `mmnet/`; `*` is all of a folder."""

_TOWERS = (
    *("model/clip.py", "model/heads/backbone.py"),
    *("model/layers.py", "model/text_encoder.py"),
)
HEADS: dict[str, tuple[str, ...]] = {
    "cris": (*_TOWERS, "model/heads/cris.py", "model/pyramid.py"),
    "vlt": (*_TOWERS, "model/heads/vlt.py", "model/neck.py", "model/pyramid.py"),
    "cosine": (*_TOWERS, "model/heads/cosine.py"),
}
"""Head other than MMNet's -> its files; the backbone is the tower's, as in `model_files`."""

SHAPES_NO_NUMBER = (
    "config/*",  # values count themselves, in `Config.training_values`
    *("runtime/errors.py", "runtime/files.py", "runtime/fingerprint.py", "runtime/gpus.py"),
    *("runtime/launcher.py", "runtime/progress.py", "runtime/signals.py", "runtime/system.py"),
    *("data/download.py", "data/loader.py", "data/rle.py"),
    *("evaluate/save_masks.py", "evaluate/supplied.py"),
    *("model/checkpoint.py", "train/advice.py"),
)
"""Of the packages below `report`: files that no rule's results depend on."""


def code(rule: str, config: Config | None = None, *, tower: str | None = None) -> dict[str, str]:
    """Return the hash of each file that a rule's results depend on, by its path.

    With a run's `config`, also those of the parts of the model that it uses; with a `tower`'s
    architecture, also its definition.
    """
    more = [*(model_files(config) if config else ()), *(definition_of(tower) if tower else ())]
    return fingerprints(_expanded([*RULES[rule], *more]))


def code_hash(rule: str, config: Config | None = None, *, tower: str | None = None) -> str:
    """Return one hash of what `code` returns, for a rule's `params`."""
    text = json.dumps(code(rule, config, tower=tower), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_files(config: Config) -> list[str]:
    """Return the files of the model that a run uses: a change of another part leaves it alone."""
    model = config.model
    used = [*_MODEL, *tower_files(config.tower.architecture)]
    used += ["model/mask_decoder.py"] if model.mmp else []
    # Without MQE it is only drawn, before the part that stands in for f_vg.
    used += ["model/estimator.py"] if model.mqe or not model.f_vg else []
    used += [] if model.mmp and model.mqe and model.f_vg else ["model/ablations.py"]
    return used


def definition_of(architecture: str) -> list[str]:
    """Return the file that defines a tower, where it is ours and not open_clip's."""
    path = f"model/towers/{architecture}.json"
    return [path] if (PACKAGE / path).is_file() else []


def tower_files(architecture: str) -> list[str]:
    """Return a tower's definition, where it is ours, and its backbone: both if it is not known."""
    own, theirs = definition_of(architecture), open_clip_models()
    backbones = {"resnet": "model/backbone_resnet.py", "vit": "model/backbone_vit.py"}
    if not own and theirs is None:
        return [*backbones.values()]
    definition = PACKAGE / own[0] if own else (theirs or Path()) / f"{architecture}.json"
    layers = json.loads(definition.read_text(encoding="utf-8"))["vision_cfg"]["layers"]
    return [*own, backbones["resnet" if isinstance(layers, list) else "vit"]]


def _expanded(paths: Iterable[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        whole = sorted((PACKAGE / path[:-2]).rglob("*")) if path.endswith("/*") else []
        files = [f for f in whole if f.is_file() and "__pycache__" not in f.parts]
        found += [str(file.relative_to(PACKAGE)) for file in files] or [path]
    return found
