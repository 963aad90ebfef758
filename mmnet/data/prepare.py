"""Archives to what training reads: a table per dataset, and the images that the tables name."""

import tempfile
from pathlib import Path, PurePosixPath

import pandas as pd

from mmnet.config import DatasetConfig
from mmnet.data.refer import Notes, build_table, read_instances, read_refs, read_table
from mmnet.data.unpack import unpack
from mmnet.errors import DataError
from mmnet.files import atomic_path, atomic_write, writing

MAX_ANNOTATIONS = 2 << 30  # bytes; RefCOCO's are about 0.3 GB
MAX_IMAGES = 32 << 30  # bytes; train2014 is about 13 GB


def prepare_table(
    name: str, dataset: DatasetConfig, *, archive: Path, output: Path
) -> tuple[pd.DataFrame, Notes]:
    """Read a dataset's archive and write its table; return it, with what was skipped.

    Raises:
        DataError: the archive or what it holds is not what it should be.
    """
    refs = f"refs({dataset.refs}).p"
    wanted = {f"{name}/instances.json", f"{name}/{refs}"}
    notes = Notes()
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{name}.", dir=output.parent)
    with scratch as temporary:
        folder = Path(temporary) / "annotations"
        unpack(archive, folder, members=wanted.__contains__, max_bytes=MAX_ANNOTATIONS)
        missing = sorted(m for m in wanted if not (folder / PurePosixPath(m).name).exists())
        if missing:
            raise DataError(
                f"{archive}: lacks {', '.join(missing)}. Fetch it again, or change "
                f"profiles.*.datasets.{name}.refs in params.yaml."
            )
        try:
            table = build_table(
                read_instances(folder / "instances.json", where=f"{archive}: instances.json"),
                read_refs(folder / refs, where=f"{archive}: {refs}"),
                where=str(archive),
                notes=notes,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{archive}: a ref or annotation lacks or garbles {error}. Fetch it again."
            ) from None
    for split in ("train", *dataset.splits):
        if not (table["split"] == split).any():
            known = ", ".join(sorted(table["split"].unique()))
            raise DataError(
                f"{archive}: {refs} has no split {split!r}; it has {known}. "
                f"Mend profiles.*.datasets.{name}.splits in params.yaml."
            )
    try:
        with atomic_path(output) as path:
            table.to_parquet(path, index=False)
    except (TypeError, ValueError) as error:  # pyarrow's, of columns of mixed types
        raise DataError(
            f"{archive}: its values are of mixed types ({' '.join(str(error).split())}). "
            "Fetch it again."
        ) from None
    return table, notes


def unpack_images(archive: Path, *, tables: list[Path], folder: Path, manifest: Path) -> int:
    """Unpack the images that the tables name, and only those; list them in the manifest.

    Raises:
        DataError: the archive lacks some, or is not what it should be.
    """
    wanted = {file for table in tables for file in read_table(table)["file"]}
    unpack(
        archive,
        folder,
        members=lambda member: PurePosixPath(member).name in wanted,
        max_bytes=MAX_IMAGES,
    )
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    missing = sorted(wanted - sizes.keys())
    if missing:
        raise DataError(
            f"{archive}: lacks {len(missing)} images that the refs name, the first {missing[0]}. "
            "Fetch the archive again."
        )
    with atomic_write(manifest) as file:
        file.writelines(f"{name}\t{sizes[name]}\n" for name in sorted(sizes))
    return len(sizes)
