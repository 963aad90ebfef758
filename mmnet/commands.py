"""What each command does: load the config, call, write.

Commands import what they need when they run: `--help` is instant, and a command that needs no
torch does not wait for it.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmnet.config import (
    ArchiveName,
    Config,
    Params,
    PretrainConfig,
    SourceConfig,
    TowerConfig,
    TrainConfig,
    load_params,
)
from mmnet.errors import ConfigError, DataError, MMNetError
from mmnet.layout import RESULTS, Layout


def _load(arguments: argparse.Namespace) -> tuple[Params, Layout]:
    params = load_params(arguments.params, arguments.set)
    return params, Layout(params.profile)


def _load_run(arguments: argparse.Namespace) -> tuple[Config, Layout]:
    params, layout = _load(arguments)
    seed = params.seeds[0] if arguments.seed is None else arguments.seed
    return params.resolve(arguments.experiment, seed), layout


def _known(name: str, known: dict[Any, Any], what: str) -> Any:
    if name not in known:
        raise ConfigError(f"no {what} {name!r}. Known: {', '.join(known)}.")
    return known[name]


def _known_tower(name: str, params: Params, *, pretrained: str) -> TowerConfig:
    tower: TowerConfig = _known(name, params.active.towers, "tower")
    if tower.pretrained != pretrained:
        raise ConfigError(
            f"profiles.{params.profile}.towers.{name}.pretrained is {tower.pretrained!r}, not "
            f"{pretrained!r}: this command has nothing to do for it."
        )
    return tower


def _device(name: str | None, config: TrainConfig | PretrainConfig) -> Any:
    import torch

    name = name or config.device
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it writes it; filling it first costs a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason}. Name another, or none.") from None
    return device


def shapes(arguments: argparse.Namespace) -> None:
    from mmnet.data.shapes import write_mirror
    from mmnet.progress import track

    params, layout = _load(arguments)
    shapes = params.active.shapes
    if shapes is None:
        raise ConfigError(
            f"profile {params.profile} has no procedural benchmark (shapes: null). "
            "Use --set profile=mini."
        )
    images = shapes.images.model_dump()
    total = sum(count for splits in images.values() for count in splits.values())
    write_mirror(
        layout.mirror,
        seed=shapes.seed,
        image_sizes=shapes.image_sizes,
        images=images,
        progress=lambda plan: track(plan, name="drawing", total=total, unit="images"),
    )


def download(arguments: argparse.Namespace) -> None:
    from mmnet.data.download import provide
    from mmnet.progress import say

    params, layout = _load(arguments)
    profile = params.active
    for name in arguments.archives:
        _known(name, profile.archives, "archive")
    if arguments.check:
        _check(params, layout, arguments.archives)
        return
    faults = []
    for name in arguments.archives or profile.archives:
        key = f"profiles.{params.profile}.data.{name}"
        local = profile.data.get(name)
        if local is not None:
            say(f"{name}: not fetched, since {key} names your copy, {layout.source(name, local)}")
            continue
        try:
            cure = f"name your copy in {key} in params.yaml"
            provide(profile.archives[name], layout.archive(name), cure=cure)
        except DataError as error:  # the others may be to be had
            faults.append(str(error))
    if faults:
        raise DataError(" ".join(faults))


def _check(params: Params, layout: Layout, archives: list[ArchiveName]) -> None:
    from mmnet.data.download import check

    profile = params.active
    files: list[tuple[SourceConfig, Callable[[], Path], str]] = []
    for name in archives or [*profile.archives]:
        local = profile.data.get(name)
        cure = f"Fetch it again: mmnet download {name}."
        if local is not None:
            cure = f"Mend it, or profiles.{params.profile}.data.{name} in params.yaml."
        files.append((profile.archives[name], partial(layout.source, name, local), cure))
    for tower, config in profile.towers.items():
        if config.pretrained == "openai" and not archives:
            cure = f"Fetch it again: mmnet download-clip {tower}."
            files.append((profile.weights[tower], partial(layout.clip, tower), cure))
    wrong = 0
    for source, path, cure in files:
        try:
            print(check(source, path(), cure=cure), flush=True)
        except MMNetError as error:
            print(error, flush=True)
            wrong += 1
    if wrong:
        raise DataError(f"{wrong} of {len(files)} wrong; their lines say how to mend them.")


def _verified(name: ArchiveName, params: Params, layout: Layout) -> Path:
    """What an archive is read from; a folder of the user's is taken as it is."""
    from mmnet.data.download import verify_placed

    local = params.active.data.get(name)
    source = layout.source(name, local)
    if not source.is_dir():
        mend = f"Mend it, or profiles.{params.profile}.data.{name} in params.yaml."
        verify_placed(params.active.archives[name], source, cure=mend if local else None)
    return source


def prepare(arguments: argparse.Namespace) -> None:
    from mmnet.data.prepare import prepare_table
    from mmnet.progress import say

    params, layout = _load(arguments)
    name = arguments.dataset
    dataset = _known(name, params.active.datasets, "dataset")
    archive = _verified(name, params, layout)
    table, notes = prepare_table(name, dataset, archive=archive, output=layout.table(name))
    for split, rows in table.groupby("split", sort=False):
        refs, images = rows["ref_id"].nunique(), rows["image_id"].nunique()
        say(f"{name} {split}: {refs} refs, {len(rows)} sentences, {images} images")
    for line in notes.lines():
        say(f"{name}: {line}")


def unpack_images(arguments: argparse.Namespace) -> None:
    from mmnet.data.prepare import unpack_images
    from mmnet.progress import say

    params, layout = _load(arguments)
    count = unpack_images(
        _verified("train2014", params, layout),
        tables=[layout.table(name) for name in params.active.datasets],
        folder=layout.images,
        manifest=layout.manifest,
    )
    say(f"{count} images in {layout.images}")


def download_clip(arguments: argparse.Namespace) -> None:
    from mmnet.data.download import provide

    params, layout = _load(arguments)
    name = arguments.tower
    _known_tower(name, params, pretrained="openai")
    key = f"profiles.{params.profile}.towers.{name}.pretrained"
    cure = f"set {key} in params.yaml to the path of your file"
    provide(params.active.weights[name], layout.clip(name), cure=cure)


def pretrain(arguments: argparse.Namespace) -> None:
    from mmnet.train.pretrain import pretrain

    params, layout = _load(arguments)
    tower = _known_tower(arguments.tower, params, pretrained="captions")
    if params.active.pretrain is None:
        raise ConfigError(f"profiles.{params.profile}.pretrain is null: nothing to train with.")
    pretrain(
        tower,
        params.active.pretrain,
        tables=[layout.table(name) for name in params.active.pretrain.captions],
        images=layout.images,
        output=layout.clip(arguments.tower),
        device=_device(arguments.device, params.active.pretrain),
    )


def train(arguments: argparse.Namespace) -> None:
    from mmnet.data.download import verify_placed
    from mmnet.train.loop import fit

    config, layout = _load_run(arguments)
    if config.tower.pretrained == "openai":
        params, _ = _load(arguments)
        tower = config.tower_name
        cure = f"Fetch it: mmnet download-clip {tower}."
        verify_placed(params.active.weights[tower], layout.clip(tower), cure=cure)
    fit(
        config,
        table=layout.table(config.dataset_name),
        images=layout.images,
        manifest=layout.manifest,
        weights=layout.weights(config.tower_name, config.tower),
        folder=layout.run(config.experiment, config.seed),
        device=_device(arguments.device, config.train),
    )


def predict(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.predict import predict_splits

    config, layout = _load_run(arguments)
    predict_splits(
        config,
        checkpoint=arguments.checkpoint or layout.checkpoint(config.experiment, config.seed),
        table=layout.table(config.dataset_name),
        images=layout.images,
        output=layout.rows(config.experiment, config.seed),
        device=_device(arguments.device, config.train),
    )


def evaluate(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.metrics import score_run
    from mmnet.files import atomic_write

    config, layout = _load_run(arguments)
    scores = score_run(config, rows=layout.rows(config.experiment, config.seed))
    with atomic_write(layout.scores(config.experiment, config.seed)) as file:
        json.dump(scores, file, indent=1)
        file.write("\n")


def report(arguments: argparse.Namespace) -> None:
    from mmnet.report.data import write_data_report
    from mmnet.report.tables import write_table1

    params, layout = _load(arguments)
    if arguments.table == "data":
        tables = [layout.table(name) for name in params.active.datasets]
        write_data_report(tables, RESULTS, params=params)
        return
    names = [name for name, e in params.experiments.items() if arguments.table in e.tables]
    scores = [layout.scores(name, seed) for name in names for seed in params.seeds]
    write_table1(scores, RESULTS, params=params)


def describe(arguments: argparse.Namespace) -> None:
    from mmnet.model.describe import describe

    params, _ = _load(arguments)
    config = params.resolve(arguments.experiment, params.seeds[0])
    print(describe(config.model, config.tower, max_length=config.dataset.max_length))
