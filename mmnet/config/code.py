"""Which files of the package shape which results: the one place that says so.

A result depends on the files listed for its rule, by their meaning (runtime/fingerprint.py). A
file that shapes no number is in SHAPES_NO_NUMBER, so that none is forgotten.
"""

import hashlib
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from mmnet.config.schema import Config
from mmnet.runtime.fingerprint import PACKAGE, fingerprints

_ITEMS = ("data/dataset.py", "data/refer.py", "data/tokenizer.py", "data/transforms.py")
_MODEL = (
    *("model/build.py", "model/clip.py", "model/decoder.py", "model/layers.py"),
    *("model/mask_projector.py", "model/mmnet.py", "model/neck.py", "model/pyramid.py"),
    *("model/query_generator.py", "model/text_encoder.py"),
)
_PREDICTION = (*_ITEMS, "evaluate/predict.py", "runtime/device.py")
_TRAINING = (
    *(*_PREDICTION, "evaluate/metrics.py", "runtime/distributed.py"),
    *("train/loop.py", "train/recipe.py", "train/run_state.py", "train/step.py"),
)

_REPORT = ("config/tables.py", "report/published.csv", "report/render.py", "report/templates/*")

RULES: dict[str, tuple[str, ...]] = {
    "draw_scenes": ("benchmark/language.py", "benchmark/scenes.py"),
    "prepare": ("data/prepare.py", "data/refer.py", "data/tokenizer.py", "data/unpack.py"),
    "pretrain": (*_ITEMS, "model/clip.py", "train/pretrain.py", "train/recipe.py"),
    "train": _TRAINING,
    "predict": _PREDICTION,
    "preview": ("evaluate/pictures.py", "evaluate/preview.py", "evaluate/metrics.py"),
    "score": ("evaluate/metrics.py",),
    "examples": (*_PREDICTION, "evaluate/examples.py", "evaluate/selection.py"),
    "queries": (*_PREDICTION, "evaluate/queries.py", "evaluate/selection.py"),
    "tables": (*_REPORT, "report/tables/*"),
    "claims": (*_REPORT, "report/claims/*", "evaluate/metrics.py"),
    "figures": ("report/figures/*", "report/tables/*", "evaluate/pictures.py"),
    "pages": (*_REPORT, "report/pages/*", "report/claims/write.py"),
}
"""Rule -> files below `mmnet/`; `*` is all of a folder."""

SHAPES_NO_NUMBER = (
    "config/*",  # values count themselves, in `Config.training_values`
    *("runtime/errors.py", "runtime/files.py", "runtime/fingerprint.py", "runtime/gpus.py"),
    *("runtime/launcher.py", "runtime/progress.py", "runtime/signals.py", "runtime/system.py"),
    *("data/download.py", "data/loader.py"),
    "model/checkpoint.py",
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
    used += ["model/estimator.py"] if model.mqe else []
    used += [] if model.mmp and model.mqe and model.f_vg else ["model/ablations.py"]
    return used


def definition_of(architecture: str) -> list[str]:
    """Return the file that defines a tower, where it is ours and not open_clip's."""
    path = f"model/towers/{architecture}.json"
    return [path] if (PACKAGE / path).is_file() else []


def tower_files(architecture: str) -> list[str]:
    """Return a tower's definition, where it is ours, and the backbone that is made of it."""
    own = definition_of(architecture)
    kind = _kind_of_tower(PACKAGE / own[0] if own else _open_clips(architecture))
    backbones = {"resnet": "model/backbone_resnet.py", "vit": "model/backbone_vit.py"}
    return [*own, *([backbones[kind]] if kind else backbones.values())]


def _open_clips(architecture: str) -> Path | None:
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        return None  # an environment with Snakemake alone
    return Path(package.origin).parent / "model_configs" / f"{architecture}.json"


def _kind_of_tower(definition: Path | None) -> str | None:
    if definition is None or not definition.is_file():
        return None
    layers = json.loads(definition.read_text(encoding="utf-8"))["vision_cfg"]["layers"]
    return "resnet" if isinstance(layers, list) else "vit"


def _expanded(paths: Iterable[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        if path.endswith("/*"):
            files = sorted((PACKAGE / path[:-2]).rglob("*"))
            found += [
                str(file.relative_to(PACKAGE))
                for file in files
                if file.is_file() and "__pycache__" not in file.parts
            ]
        else:
            found.append(path)
    return found
