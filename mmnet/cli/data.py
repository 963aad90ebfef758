"""Commands on data: archives, tables, images and OpenAI's weights."""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mmnet.cli.common import known_name, known_tower, load
from mmnet.config.paths import Paths
from mmnet.config.profile import ArchiveName, SourceConfig
from mmnet.config.schema import Params
from mmnet.runtime.errors import ConfigError, DataError, MMNetError
from mmnet.runtime.progress import say, track


def shapes(arguments: argparse.Namespace) -> None:
    from mmnet.benchmark.scenes import write_mirror

    params, paths = load(arguments)
    shapes = params.active.shapes
    if shapes is None:
        raise ConfigError(
            f"profile {params.profile} has no procedural benchmark (shapes: null). "
            "Use --set profile=mini."
        )
    images = shapes.images.model_dump()
    total = sum(count for splits in images.values() for count in splits.values())
    drawing = partial(track, name="drawing", total=total, unit="images")
    sizes = shapes.image_sizes
    write_mirror(paths.mirror, seed=shapes.seed, image_sizes=sizes, images=images, progress=drawing)


def download(arguments: argparse.Namespace) -> None:
    from mmnet.data.download import provide

    params, paths = load(arguments)
    profile = params.active
    for name in arguments.archives:
        known_name(name, profile.archives, "archive")
    if arguments.check:
        _check(params, paths, arguments.archives)
        return
    faults = []
    for name in arguments.archives or profile.archives:
        paths.check_mirrors(f"archives.{name}", profile.archives[name])
        key, local = f"profiles.{params.profile}.data.{name}", profile.data.get(name)
        if local is not None:
            say(f"{name}: not downloaded: {key} names your copy, {paths.source(name, local)}")
            continue
        remedy = f"name your copy in {key} in params.yaml"
        try:
            provide(profile.archives[name], paths.archive(name), remedy=remedy)
        except DataError as error:  # the others may be available
            faults.append(str(error))
    if faults:
        raise DataError(" ".join(faults))


def _check(params: Params, paths: Paths, archives: list[ArchiveName]) -> None:
    from mmnet.data.download import check

    profile = params.active
    files: list[tuple[SourceConfig, Callable[[], Path], str]] = []
    for name in archives or [*profile.archives]:
        local = profile.data.get(name)
        remedy = _own_copy(name, params) or f"Fetch it again: mmnet download {name}."
        files.append((profile.archives[name], partial(paths.source, name, local), remedy))
    for tower, config in profile.towers.items():
        if config.pretrained == "openai" and not archives:
            remedy = f"Fetch it again: mmnet download-clip {tower}."
            files.append((profile.weights[tower], partial(paths.clip, tower), remedy))
    wrong = 0
    for source, path, remedy in files:
        try:
            print(check(source, path(), remedy=remedy), flush=True)
        except MMNetError as error:
            print(error, flush=True)
            wrong += 1
    if wrong:
        raise DataError(f"{wrong} of {len(files)} files are wrong; see above how to fix them.")


def _own_copy(name: ArchiveName, params: Params) -> str | None:
    """How to fix a wrong archive that is the user's own copy; None of one that is not."""
    key = f"profiles.{params.profile}.data.{name}"
    return (
        f"Fix it, or {key} in params.yaml (null: download it)."
        if params.active.data.get(name)
        else None
    )


def _verified(name: ArchiveName, params: Params, paths: Paths) -> Path:
    """Return the path that an archive is read from; a user's folder is not verified."""
    from mmnet.data.download import verify_placed

    source = paths.source(name, params.active.data.get(name))
    if not source.is_dir():
        verify_placed(params.active.archives[name], source, remedy=_own_copy(name, params))
    return source


@contextlib.contextmanager
def _naming_own_copy(name: ArchiveName, params: Params) -> Iterator[None]:
    """Errors of a user's own copy say so: fetching it again would not change it."""
    try:
        yield
    except DataError as error:
        if (remedy := _own_copy(name, params)) is None:
            raise
        text = re.sub(r"\bFetch (it|the archive) again\b", "Use a whole copy", str(error))
        text = text.replace("fetch again", "use one release")
        raise DataError(f"{text} It is your own copy. {remedy}") from None


def prepare(arguments: argparse.Namespace) -> None:
    from mmnet.data.prepare import prepare_table

    params, paths = load(arguments)
    name = arguments.dataset
    dataset = known_name(name, params.active.datasets, "dataset")
    archive = _verified(name, params, paths)
    with _naming_own_copy(name, params):
        table, notes = prepare_table(name, dataset, archive=archive, output=paths.table(name))
    for split, rows in table.groupby("split", sort=False):
        refs, images = rows["ref_id"].nunique(), rows["image_id"].nunique()
        say(f"{name} {split}: {refs} refs, {len(rows)} sentences, {images} images")
    for line in notes.lines():
        say(f"{name}: {line}")


def unpack_images(arguments: argparse.Namespace) -> None:
    from mmnet.data.prepare import unpack_images

    params, paths = load(arguments)
    zip_or_folder = _verified("train2014", params, paths)
    tables = [paths.table(name) for name in params.active.datasets]
    with _naming_own_copy("train2014", params):
        count = unpack_images(
            zip_or_folder, tables=tables, folder=paths.images, manifest=paths.manifest
        )
    say(f"{count} images in {paths.images}")


def download_clip(arguments: argparse.Namespace) -> None:
    from mmnet.data.download import provide

    params, paths = load(arguments)
    name = arguments.tower
    known_tower(name, params, pretrained="openai")
    key = f"profiles.{params.profile}.towers.{name}.pretrained"
    remedy = f"set {key} in params.yaml to the path of your file"
    paths.check_mirrors(f"weights.{name}", params.active.weights[name])
    provide(params.active.weights[name], paths.clip(name), remedy=remedy)
