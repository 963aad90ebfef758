"""What Figures 5 and 6 share: their files, which need no torch, and pictures in panels."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mmnet.config.schema import Config
from mmnet.report.figures.drawing import SMALL
from mmnet.report.tables.common import TITLES
from mmnet.runtime.errors import DataError


def read_shown(
    path: Path, config: Config, *, command: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `mmnet COMMAND` wrote: what is known of a figure's sentences, and its arrays.

    Raises:
        DataError: it is missing, damaged, or of another run.
    """
    fix = f"Run: mmnet {command} --experiment {config.experiment} --seed {config.seed}."
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        about: dict[str, Any] = json.loads(str(arrays.pop("about")))
    except FileNotFoundError:
        raise DataError(f"{path}: not found. {fix}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: damaged ({reason}). {fix}") from None
    for key in ("profile", "experiment", "seed"):
        if about.get(key) != getattr(config, key):
            raise DataError(
                f"{path}: has {key} {about.get(key)!r}, expected {getattr(config, key)!r}. {fix}"
            )
    return about, arrays


def describe_run(about: dict[str, Any], label: str) -> str:
    return (
        f"{TITLES[about['dataset']]} {about['split']}, {about['backbone']}, N_q = "
        f"{about['num_queries']}, profile {about['profile']} ({label}), seed {about['seed']}"
    )


def aspect(image: Any) -> float:
    """Return height over width; images that are very tall are set narrower than their place."""
    return min(1.3, float(image.shape[1] / image.shape[2]))


def put_picture(panel: Axes, picture: Any, label: str, **colours: Any) -> None:
    panel.imshow(np.asarray(picture), **colours)
    panel.set_anchor("N")
    panel.set(xticks=[], yticks=[])
    panel.set_xlabel(label, fontsize=SMALL)
