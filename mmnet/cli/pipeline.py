"""Commands around the runs: status, plan, describe, MLflow, DVC."""

import argparse
from pathlib import Path

from mmnet.cli.common import known_name, load
from mmnet.config.tables import TABLES
from mmnet.runtime.errors import ConfigError, MMNetError
from mmnet.runtime.progress import say


def status(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.status import status

    if arguments.accept:
        _accept(arguments)
        return
    params, paths = load(arguments)
    print(status(params, paths, _tables(arguments), tflops=arguments.tflops))


def _accept(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.accept import accept, named_runs

    params, paths = load(arguments)
    if arguments.tables:
        raise ConfigError("--accept takes runs, not tables. Give one or the other.")
    refused = []
    for name, seed in named_runs(arguments.accept, params):
        config, run = params.resolve(name, seed), paths.run(name, seed)
        try:
            found = accept(config, paths.inputs(config), run)
            say(f"{run.name}: accepted ({found}); snakemake or `mmnet train` publishes it")
        except MMNetError as error:  # the others may be acceptable
            refused.append(str(error))
    if refused:
        raise MMNetError("\n".join(refused))


def plan(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.plan import plan

    params, paths = load(arguments)
    print(plan(params, paths, _tables(arguments), tflops=arguments.tflops))


def _tables(arguments: argparse.Namespace) -> list[str]:
    for table in arguments.tables:
        known_name(table, dict.fromkeys(TABLES), "table")
    return list(arguments.tables)


def describe(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.cost import describe

    params, _ = load(arguments)
    config = params.resolve(arguments.experiment, params.seeds[0])
    print(describe(config.model, config.tower, max_length=config.dataset.max_length))


def mlflow_sync(arguments: argparse.Namespace) -> None:
    from mmnet.tracking.live import sync_all

    params, paths = load(arguments)
    store = sync_all(paths, arguments.folders, params)
    if arguments.port:
        print(store.page(paths.profile, f"http://127.0.0.1:{arguments.port}"))


def adopt(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.dvc import adopt

    _check_dvc(arguments)
    recorded, others = adopt()
    say(f"Adopted {recorded} stages as dvc.lock has them; {others} have no record")


def record(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.dvc import record

    _check_dvc(arguments)
    recorded, others = record()
    say(f"Recorded {recorded} stages; {others} lack files. Share: `git add dvc.lock; dvc push`")


def _check_dvc(arguments: argparse.Namespace) -> None:
    """DVC reads params.yaml by itself, whatever this command is given."""
    if arguments.set or arguments.params != Path("params.yaml"):
        raise ConfigError("--set, --params: DVC reads params.yaml itself. Change values there.")
    load(arguments)
