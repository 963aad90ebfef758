"""A tiny archive in REFER's layout, and ways to spoil it."""

import json
import pickle
from pathlib import Path
from typing import Any
from zipfile import ZipFile


def archive_values() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Instances and refs of one image with two objects, three sentences in all."""
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 10, "width": 12}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
            for n in (5, 6)
        ],
    }
    refs = [
        {
            "ref_id": 10 + n,
            "ann_id": n,
            "image_id": 1,
            "file_name": f"a_{n}.jpg",
            "split": split,
            "sentences": [{"sent_id": 100 * n + i, "sent": f" The  {w} "} for i, w in enumerate(s)],
        }
        for n, split, s in ((5, "train", ("Cat", "Dog")), (6, "val", ("Hen",)))
    ]
    return instances, refs


def write_archive(folder: Path, instances: Any = None, refs: Any = None) -> Path:
    """Write refcoco.zip from values, or from the bytes of its members."""
    contents = [
        given if isinstance(given, bytes) else given or value
        for given, value in zip((instances, refs), archive_values(), strict=True)
    ]
    with ZipFile(folder / "refcoco.zip", "w") as file:
        for name, content, dump in zip(
            ("instances.json", "refs(unc).p"), contents, (json.dumps, pickle.dumps), strict=True
        ):
            member = content if isinstance(content, bytes) else dump(content)
            file.writestr(f"refcoco/{name}", member)
    return folder / "refcoco.zip"


def as_folder(archive: Path) -> Path:
    """Put what the archive unpacks to in its place."""
    folder = archive.with_suffix("")
    folder.mkdir()
    with ZipFile(archive) as file:
        for name in file.namelist():
            (folder / Path(name).name).write_bytes(file.read(name))
    archive.unlink()
    return folder
