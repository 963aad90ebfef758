"""What the commands on runs do: load the config, call, write. On data: data_commands.py.

Commands import what they need when they run: `--help` is instant, and a command that needs no
torch does not wait for it.
"""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmnet.cards import HELD, take
from mmnet.config import (
    Config,
    Params,
    PretrainConfig,
    TowerConfig,
    TrainConfig,
    load_params,
)
from mmnet.errors import ConfigError, TrainingError
from mmnet.layout import RESULTS, Layout
from mmnet.progress import FIRST
from mmnet.report.runs import TABLES, rows_of_run, runs_of


def load(arguments: argparse.Namespace) -> tuple[Params, Layout]:
    params = load_params(arguments.params, arguments.set)
    return params, Layout(params.profile)


def load_run(arguments: argparse.Namespace) -> tuple[Config, Layout]:
    params, layout = load(arguments)
    seed = params.seeds[0] if arguments.seed is None else arguments.seed
    return params.resolve(arguments.experiment, seed), layout


def known_name(name: str, known: dict[Any, Any], what: str) -> Any:
    if name not in known:
        raise ConfigError(f"no {what} {name!r}. Known: {', '.join(known)}.")
    return known[name]


def known_tower(name: str, params: Params, *, pretrained: str) -> TowerConfig:
    tower: TowerConfig = known_name(name, params.active.towers, "tower")
    if tower.pretrained != pretrained:
        raise ConfigError(
            f"profiles.{params.profile}.towers.{name}.pretrained is {tower.pretrained!r}, not "
            f"{pretrained!r}: this command has nothing to do for it."
        )
    return tower


def _cards(name: str, count: int) -> contextlib.AbstractContextManager[Any]:
    """Cards that no other job holds, unless one is named, or torchrun has shared them out."""
    is_free = name in ("auto", "cuda") and "LOCAL_RANK" not in os.environ
    return take(count) if is_free else contextlib.nullcontext()


@contextlib.contextmanager
def _device(name: str | None, config: TrainConfig | PretrainConfig) -> Iterator[Any]:
    """Where to compute.

    Raises:
        ConfigError: there is no such device.
        TrainingError: its memory does not suffice.
    """
    import torch

    name = name or config.device
    with _cards(name, 1):
        device = _prepared(name, config)
        try:
            yield device
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0][:120]
            raise TrainingError(
                f"{device} has too little memory free ({reason}). Name another --device, or wait "
                "until its other users are done."
            ) from None


def _prepared(name: str, config: TrainConfig | PretrainConfig) -> Any:
    import torch

    from mmnet.processes import is_launched

    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it writes it; filling it first costs a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and HELD in os.environ:
            raise ConfigError(
                f"--device auto: nvidia-smi lists GPUs, and torch {torch.__version__} cannot use "
                "them. Is the driver too old for it? Update it, or say --device cpu."
            )
    if name == "cuda" and is_launched():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason}. Name another, or none.") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if isinstance(config, TrainConfig):
        precision = "tf32" if config.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    return device


def _shared_out(config: Config, device: str | None) -> int | None:
    """Run this command under torchrun where it asks for it; return the exit code, None if not."""
    from mmnet.processes import is_launched, launch

    processes = config.train.processes
    if processes == 1 or is_launched():
        return None
    device = device or config.train.device
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device {device}: is one GPU, and train.processes is {processes}. Name cuda."
        )
    with _cards(device, processes):
        return launch(processes, threads=config.train.threads)


def pretrain(arguments: argparse.Namespace) -> None:
    from mmnet.train.pretrain import pretrain

    params, layout = load(arguments)
    tower = known_tower(arguments.tower, params, pretrained="captions")
    if params.active.pretrain is None:
        raise ConfigError(f"profiles.{params.profile}.pretrain is null: nothing to train with.")
    with _device(arguments.device, params.active.pretrain) as device:
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
    from mmnet.train.loop import fit
    from mmnet.train.provenance import check_clean
    from mmnet.train.tracking import recorded

    params, _ = load(arguments)
    config, layout = load_run(arguments)
    if params.mlflow.require_clean:
        check_clean(Path())
    if (code := _shared_out(config, arguments.device)) is not None:
        return code
    if config.tower.pretrained == "openai":
        tower = config.tower_name
        cure = f"Fetch it: mmnet download-clip {tower}."
        verify_placed(params.active.weights[tower], layout.clip(tower), cure=cure)
    with _device(arguments.device, config.train) as device:
        inputs: dict[str, Any] = {
            "table": layout.table(config.dataset_name),
            "manifest": layout.manifest,
            "weights": layout.weights(config.tower_name, config.tower),
            "device": device,
        }
        # Of several processes, the first records.
        is_recorded = params.mlflow.enabled and FIRST
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
    from mmnet.evaluate.grid import write_predictions
    from mmnet.evaluate.predict import predict_splits

    config, layout = load_run(arguments)
    if (code := _shared_out(config, arguments.device)) is not None:
        return code
    rows = layout.rows(config.experiment, config.seed)
    with _device(arguments.device, config.train) as device:
        inputs: dict[str, Any] = {
            "checkpoint": arguments.checkpoint or layout.checkpoint(config.experiment, config.seed),
            "table": layout.table(config.dataset_name),
            "images": layout.images,
            "device": device,
        }
        predict_splits(config, output=rows, **inputs)
        if FIRST:
            picture = layout.predictions(config.experiment, config.seed)
            write_predictions(config, rows=rows, output=picture, **inputs)
    return None


def evaluate(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.metrics import percents, score_run
    from mmnet.files import atomic_write
    from mmnet.train.run_files import RunFiles
    from mmnet.train.sync import send

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


def mlflow_sync(arguments: argparse.Namespace) -> None:
    from mmnet.train.sync import sync_all

    params, layout = load(arguments)
    sync_all(layout, arguments.folders, params=params, rows_of_run=rows_of_run)


def report(arguments: argparse.Namespace) -> None:
    from mmnet.report.page import write_page

    params, layout = load(arguments)
    if arguments.table == "data":
        from mmnet.report.data import write_data_report

        tables = [layout.table(name) for name in params.active.datasets]
        write_data_report(tables, RESULTS, params=params)
    elif arguments.table == "claims":
        from mmnet.report.claims import write_claims

        write_claims(layout.rows, RESULTS, params=params)
    elif arguments.table == "parameters":
        from mmnet.report.parameters import write_parameters

        write_parameters(RESULTS, params=params)
    else:
        _report_table(arguments.table, params, layout, from_mlflow=arguments.from_mlflow)
    write_page(RESULTS / f"{arguments.table}.md")


def _report_table(table: str, params: Params, layout: Layout, *, from_mlflow: bool) -> None:
    from mmnet.report.ablations import write_ablation
    from mmnet.report.from_mlflow import write_scores
    from mmnet.report.table1 import write_table1

    with tempfile.TemporaryDirectory() as folder:
        scores = [layout.scores(*run) for run in runs_of(table, params)]
        # Those that are not there are named together.
        scores = [path for path in scores if path.exists()]
        if from_mlflow:
            scores = write_scores(table, Path(folder), params=params)
        if table == "table1":
            write_table1(scores, RESULTS, params=params)
        else:
            write_ablation(table, scores, RESULTS, params=params)


def curves(arguments: argparse.Namespace) -> None:
    from mmnet.report.curves import write_curves

    params, layout = load(arguments)
    write_curves(layout.metrics, RESULTS, params=params)


def paper(arguments: argparse.Namespace) -> None:
    from mmnet.report.paper import write_paper

    params, _ = load(arguments)
    write_paper(RESULTS, params=params)


def plan(arguments: argparse.Namespace) -> None:
    from mmnet.plan import plan

    params, layout = load(arguments)
    for table in arguments.tables:
        known_name(table, dict.fromkeys(TABLES), "table")
    print(plan(params, layout, arguments.tables, tflops=arguments.tflops))


def examples(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.choice import Run
    from mmnet.evaluate.examples import write_examples
    from mmnet.evaluate.pair import without_mmp

    params, layout = load(arguments)
    config, _ = load_run(arguments)
    runs = [
        Run(c, layout.rows(c.experiment, c.seed), layout.checkpoint(c.experiment, c.seed))
        for c in (config, without_mmp(params, config))
    ]
    with _device(arguments.device, config.train) as device:
        write_examples(
            *runs,
            table=layout.table(config.dataset_name),
            images=layout.images,
            output=layout.examples(config.experiment, config.seed),
            device=device,
        )


def queries(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.choice import Run
    from mmnet.evaluate.examples import write_queries

    config, layout = load_run(arguments)
    name, seed = config.experiment, config.seed
    with _device(arguments.device, config.train) as device:
        write_queries(
            Run(config, layout.rows(name, seed), layout.checkpoint(name, seed)),
            table=layout.table(config.dataset_name),
            images=layout.images,
            output=layout.queries(name, seed),
            device=device,
        )


def figure(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.pair import shown_run
    from mmnet.report.figures import write_figure4
    from mmnet.report.mask_figures import write_figure5, write_figure6
    from mmnet.report.runs import runs_of

    params, layout = load(arguments)
    if arguments.number == 4:
        scores = [layout.scores(*run) for run in runs_of("table2", params)]
        # Those that are not there are named together.
        write_figure4([path for path in scores if path.exists()], RESULTS, params=params)
        return
    config = params.resolve(shown_run(params), params.seeds[0])
    name, seed, label = config.experiment, config.seed, params.active.label
    if arguments.number == 5:
        write_figure5(layout.examples(name, seed), config, RESULTS, label=label)
    else:
        write_figure6(layout.queries(name, seed), config, RESULTS, label=label)


def _check_ledger(arguments: argparse.Namespace) -> None:
    """The ledger is about params.yaml as it stands: DVC reads it by itself."""
    if arguments.set or arguments.params != Path("params.yaml"):
        raise ConfigError("--set, --params: dvc.lock is about params.yaml itself. Change it there.")
    load(arguments)


def adopt(arguments: argparse.Namespace) -> None:
    from mmnet.ledger import adopt
    from mmnet.progress import say

    _check_ledger(arguments)
    stages, others = adopt()
    more = f"; {others} others have no record" if others else ""
    say(f"{stages} stages are as dvc.lock has them; snakemake has nothing to do for them{more}")


def record(arguments: argparse.Namespace) -> None:
    from mmnet.ledger import record
    from mmnet.progress import say

    _check_ledger(arguments)
    stages, stale, absent = record()
    say(f"{stages} stages recorded; `git add dvc.lock` and `dvc push` share them")
    if stale:
        say(f"{stale} left as they were: not up to date, see `snakemake -n`")
    if absent:
        say(f"{absent} left as they were: their files are not all here")


def describe(arguments: argparse.Namespace) -> None:
    from mmnet.model.describe import describe

    params, _ = load(arguments)
    config = params.resolve(arguments.experiment, params.seeds[0])
    print(describe(config.model, config.tower, max_length=config.dataset.max_length))
