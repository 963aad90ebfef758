"""Commands around the runs: status, plan, describe, MLflow, DVC."""

import argparse
from pathlib import Path

from mmnet.cli.common import known_name, load
from mmnet.config.tables import TABLES
from mmnet.runtime.errors import ConfigError, MMNetError


def status(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.status import status

    if arguments.accept:
        _accept(arguments)
        return
    params, paths = load(arguments)
    print(status(params, paths, _tables(arguments), tflops=arguments.tflops))


def _accept(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.accept import accept, named_runs
    from mmnet.runtime.progress import say

    params, paths = load(arguments)
    if arguments.tables:
        raise ConfigError("--accept takes runs, not tables. Give one or the other.")
    refused = []
    for experiment, seed in named_runs(arguments.accept, params):
        config = params.resolve(experiment, seed)
        run = paths.run(experiment, seed)
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


def _check_ledger(arguments: argparse.Namespace) -> None:
    """The ledger is about params.yaml as it stands: DVC reads it by itself."""
    if arguments.set or arguments.params != Path("params.yaml"):
        raise ConfigError("--set, --params: dvc.lock is about params.yaml itself. Change it there.")
    load(arguments)


def adopt(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.dvc import adopt
    from mmnet.runtime.progress import say

    _check_ledger(arguments)
    stages, others = adopt()
    more = f"; {others} others have no record" if others else ""
    say(f"{stages} stages are as dvc.lock has them; snakemake has nothing to do for them{more}")


def record(arguments: argparse.Namespace) -> None:
    from mmnet.pipeline.dvc import record
    from mmnet.runtime.progress import say

    _check_ledger(arguments)
    stages, stale, absent = record()
    say(f"{stages} stages recorded; `git add dvc.lock` and `dvc push` share them")
    if stale:
        say(f"{stale} left as they were: not up to date, see `snakemake -n`")
    if absent:
        say(f"{absent} left as they were: their files are not all here")
