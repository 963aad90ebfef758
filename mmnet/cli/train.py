"""Commands on runs: pretrain, train, predict, evaluate, examples, queries.

Commands import what they need when they run: `--help` is instant, and a command that needs no
torch does not wait for it.
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from mmnet.cli.common import computing, known_tower, launched, load, load_run
from mmnet.config.tables import rows_of_run
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.launcher import is_first


def pretrain(arguments: argparse.Namespace) -> None:
    from mmnet.train.pretrain import pretrain

    params, layout = load(arguments)
    tower = known_tower(arguments.tower, params, pretrained="captions")
    if params.active.pretrain is None:
        raise ConfigError(f"profiles.{params.profile}.pretrain is null: nothing to train with.")
    with computing(arguments.device, params.active.pretrain) as device:
        pretrain(
            tower,
            params.active.pretrain,
            tables=[layout.table(name) for name in params.active.pretrain.captions],
            images=layout.images,
            output=layout.clip(arguments.tower),
            device=device,
        )


def train(arguments: argparse.Namespace) -> int | None:
    from mmnet.data.download import verify_placed
    from mmnet.tracking.live import recorded
    from mmnet.tracking.provenance import check_clean
    from mmnet.train.loop import fit

    params, _ = load(arguments)
    config, layout = load_run(arguments)
    if params.mlflow.require_clean:
        check_clean(Path())
    if (code := launched(arguments, config)) is not None:
        return code
    if config.tower.pretrained == "openai":
        tower = config.tower_name
        cure = f"Fetch it: mmnet download-clip {tower}."
        verify_placed(params.active.weights[tower], layout.clip(tower), cure=cure)
    with computing(arguments.device, config.train) as device:
        inputs: dict[str, Any] = {
            "table": layout.table(config.dataset_name),
            "manifest": layout.manifest,
            "weights": layout.weights(config.tower_name, config.tower),
            "device": device,
        }
        # Of several processes, the first records.
        is_recorded = params.mlflow.enabled and is_first()
        tables = rows_of_run(config, params)
        with (
            recorded(config, layout, tables=tables, **inputs)
            if is_recorded
            else contextlib.nullcontext()
        ):
            folder = layout.run(config.experiment, config.seed)
            fit(config, images=layout.images, folder=folder, **inputs)
    return None


def predict(arguments: argparse.Namespace) -> int | None:
    from mmnet.evaluate.predict import predict_splits
    from mmnet.evaluate.preview import write_predictions

    config, layout = load_run(arguments)
    if (code := launched(arguments, config)) is not None:
        return code
    rows = layout.rows(config.experiment, config.seed)
    with computing(arguments.device, config.train) as device:
        inputs: dict[str, Any] = {
            "checkpoint": arguments.checkpoint or layout.checkpoint(config.experiment, config.seed),
            "table": layout.table(config.dataset_name),
            "images": layout.images,
            "device": device,
        }
        predict_splits(config, output=rows, **inputs)
        if is_first():
            picture = layout.predictions(config.experiment, config.seed)
            write_predictions(config, rows=rows, output=picture, **inputs)
    return None


def evaluate(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.metrics import percents, score_run
    from mmnet.runtime.files import atomic_write
    from mmnet.tracking.run_files import RunFiles
    from mmnet.tracking.sync import send

    config, layout = load_run(arguments)
    name, seed = config.experiment, config.seed
    scores = score_run(config, rows=layout.rows(name, seed))
    for path, values in (
        (layout.percents(name, seed), percents(scores)),
        (layout.scores(name, seed), scores),
    ):
        with atomic_write(path) as file:
            json.dump(values, file, indent=1)
            file.write("\n")
    params, _ = load(arguments)
    if params.mlflow.enabled:
        send(RunFiles(layout, name, seed), rows_of_run(config, params))


def examples(arguments: argparse.Namespace) -> None:
    from mmnet.config.tables import without_mmp
    from mmnet.evaluate.examples import write_examples
    from mmnet.evaluate.selection import Run

    params, layout = load(arguments)
    config, _ = load_run(arguments)
    runs = [
        Run(c, layout.rows(c.experiment, c.seed), layout.checkpoint(c.experiment, c.seed))
        for c in (config, without_mmp(params, config))
    ]
    with computing(arguments.device, config.train) as device:
        write_examples(
            *runs,
            table=layout.table(config.dataset_name),
            images=layout.images,
            output=layout.examples(config.experiment, config.seed),
            device=device,
        )


def queries(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.queries import write_queries
    from mmnet.evaluate.selection import Run

    config, layout = load_run(arguments)
    name, seed = config.experiment, config.seed
    with computing(arguments.device, config.train) as device:
        write_queries(
            Run(config, layout.rows(name, seed), layout.checkpoint(name, seed)),
            table=layout.table(config.dataset_name),
            images=layout.images,
            output=layout.queries(name, seed),
            device=device,
        )
