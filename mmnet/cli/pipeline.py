"""Commands around the runs: plan, describe, MLflow, DVC."""

import argparse
from pathlib import Path

from mmnet.cli.common import known_name, load
from mmnet.config.tables import TABLES, rows_of_run
from mmnet.runtime.errors import ConfigError


def plan(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.plan import plan

    params, paths = load(arguments)
    for table in arguments.tables:
        known_name(table, dict.fromkeys(TABLES), "table")
    print(plan(params, paths, arguments.tables, tflops=arguments.tflops))


def describe(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.cost import describe

    params, _ = load(arguments)
    config = params.resolve(arguments.experiment, params.seeds[0])
    print(describe(config.model, config.tower, max_length=config.dataset.max_length))


def mlflow_sync(arguments: argparse.Namespace) -> None:
    from mmnet.tracking.sync import sync_all

    params, paths = load(arguments)
    sync_all(paths, arguments.folders, params=params, rows_of_run=rows_of_run)


def adopt(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.dvc import adopt
    from mmnet.runtime.progress import say

    _check_dvc(arguments)
    recorded, others = adopt()
    say(f"Adopted {recorded} stages as dvc.lock has them; {others} have no record")


def record(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.dvc import record
    from mmnet.runtime.progress import say

    _check_dvc(arguments)
    recorded, others = record()
    say(f"Recorded {recorded} stages; {others} lack files. Share: `git add dvc.lock; dvc push`")


def _check_dvc(arguments: argparse.Namespace) -> None:
    """DVC reads params.yaml by itself, whatever this command is given."""
    if arguments.set or arguments.params != Path("params.yaml"):
        raise ConfigError("--set, --params: DVC reads params.yaml itself. Change values there.")
    load(arguments)
