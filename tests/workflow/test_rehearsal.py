"""The paper profile's own rules, from download to Table 1, against a mirror on this machine.

Changed are the sources' addresses, sizes and checksums, the published counts, the epochs, and what
makes a training too long for a test: batch and model. `pytest -m paper_size` leaves the model as
it is, 480 pixels and true towers; it takes many minutes, 16 GB of disk and 12 of memory.
"""

import hashlib
import json
import pickle
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import pytest

from mmnet.benchmark.scenes import write_mirror
from support.openai_files import write_openai_file
from support.project import copy_project, edited_params, planned, snakemake

pytestmark = pytest.mark.xdist_group("rehearsal")

SMALL_TOWERS = {
    # In OpenAI's format and by its definitions, but for the sizes.
    "vit_b": {"layers": 1, "width": 64, "patch_size": 16},
    "vit_l": {"layers": 2, "width": 64, "patch_size": 14},
}
SMALL_MODEL = {"image_size": 64, "width": 16, "channels": [8, 16, 16], "num_queries": 3, "ffn": 16}
SMALL_IMAGES = {
    "refcoco": {"train": 3, "val": 2, "testA": 2, "testB": 2},
    "refcocog": {"train": 3, "val": 2, "test": 2},
}
ONE_IMAGE = {source: dict.fromkeys(splits, 1) for source, splits in SMALL_IMAGES.items()}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and its address."""
    folder = tmp_path_factory.mktemp("mirror")
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def pack_like_the_originals(drawn: Path, folder: Path) -> dict[str, Any]:
    """Write the archives as their authors did: deflated, with more inside than is asked for.

    Returns the counts of each data set's splits.
    """
    counts: dict[str, Any] = {}
    for source in sorted(drawn.glob("*.zip")):
        with (
            zipfile.ZipFile(source) as old,
            zipfile.ZipFile(folder / source.name, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            new.mkdir(source.stem)
            for info in old.infolist():
                new.writestr(info.filename, old.read(info))
            if source.stem == "train2014":
                new.writestr("train2014/COCO_train2014_000000999999.jpg", b"named by no ref")
                continue
            new.writestr(f"{source.stem}/refs(google).p", b"another partition")
            partition = next(n for n in old.namelist() if n.endswith(".p"))
            refs = pickle.loads(old.read(partition))  # our own
        counts[source.stem] = {
            split: {
                "refs": len(of_split),
                "sentences": sum(len(ref["sentences"]) for ref in of_split),
                "images": len({ref["image_id"] for ref in of_split}),
            }
            for split in {ref["split"] for ref in refs}
            for of_split in [[ref for ref in refs if ref["split"] == split]]
        }
    return counts


def source(path: Path, address: str, algorithm: str) -> dict[str, Any]:
    """Return what params.yaml says of a file that is served; its first address is dead."""
    return {
        "urls": [f"{address}/dead/{path.name}", f"{address}/{path.name}"],
        "bytes": path.stat().st_size,
        algorithm: hashlib.new(algorithm, path.read_bytes()).hexdigest(),
    }


def point_at_mirror(
    folder: Path, mirror: tuple[Path, str], *, images: Any, image_sizes: Any
) -> None:
    """Serve archives and weights, and write their addresses and checksums into params.yaml."""
    root, address = mirror
    drawn = folder / "drawn"
    write_mirror(drawn, seed=0, image_sizes=image_sizes, images=images)
    counts = pack_like_the_originals(drawn, root)
    with edited_params(folder) as params:
        params["profile"] = "paper"
        paper = params["profiles"]["paper"]
        for name, archive in paper["archives"].items():
            algorithm = "md5" if "md5" in archive else "sha256"
            paper["archives"][name] = source(root / f"{name}.zip", address, algorithm)
        for name, dataset in paper["datasets"].items():
            assert dataset["counts"].keys() == counts[name].keys()
            dataset["counts"] = counts[name]
        for number, tower in enumerate(("vit_b", "vit_l")):
            path = root / f"{tower}.pt"
            write_openai_file(paper["towers"][tower]["architecture"], path, seed=number)
            paper["weights"][tower] = source(path, address, "sha256")
        paper["train"]["epochs"] = 1


def make_small(folder: Path) -> None:
    """Give the copied project towers, a model and runs that a test has the time for."""
    towers = folder / "mmnet" / "model" / "towers"
    with edited_params(folder) as params:
        paper = params["profiles"]["paper"]
        for tower, sizes in SMALL_TOWERS.items():
            name = paper["towers"][tower]["architecture"]
            definition = open_clip.get_model_config(name)
            definition["vision_cfg"].update(sizes, image_size=56, head_width=32)
            definition["text_cfg"].update(layers=1, width=32, heads=2)
            definition["embed_dim"] = 32
            small = f"small-{name}"
            (towers / f"{small}.json").write_text(json.dumps(definition))
            open_clip.add_model_config(towers / f"{small}.json")
            paper["towers"][tower]["architecture"] = small
        kept = ("refcoco_plus_vit_l", "refcocog_vit_b")
        params["experiments"] = {name: params["experiments"][name] for name in kept}
        paper["model"].update(SMALL_MODEL)
        paper["train"]["batch_size"] = 4


def assert_rehearsed(folder: Path, result: Any, *, splits: int) -> None:
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-5000:]
    assert "Traceback" not in output
    table = pd.read_csv(folder / "results" / "table1.csv")
    ours = table[table["profile"] == "paper"]
    assert set(ours["backbone"]) == {"ViT-B", "ViT-L"}
    assert len(ours) == splits * 7
    assert (folder / "data" / "paper" / "archives" / "train2014.zip.sha256").exists()
    assert "999999" not in (folder / "data" / "paper" / "images.tsv").read_text()
    assert "dead/refcoco.zip: 404" in output  # and the next mirror was taken
    # The largest file may go, once its images are out.
    (folder / "data" / "paper" / "archives" / "train2014.zip").unlink()
    assert planned(snakemake(folder, "-n", "results/table1.tex")) == {}


def test_the_papers_rules_run_from_download_to_table(
    mirror: tuple[Path, str], tmp_path: Path
) -> None:
    folder = copy_project(tmp_path, tiny=False)
    make_small(folder)
    point_at_mirror(folder, mirror, images=SMALL_IMAGES, image_sizes=[[96, 72], [72, 96]])
    result = snakemake(folder, "--cores", "2", "results/table1.tex")
    assert_rehearsed(folder, result, splits=3 + 2)


@pytest.mark.paper_size
def test_the_papers_rules_run_at_true_size(mirror: tuple[Path, str], tmp_path: Path) -> None:
    folder = copy_project(tmp_path, tiny=False)
    with edited_params(folder) as params:
        params["profiles"]["paper"]["train"]["batch_size"] = 2
    point_at_mirror(folder, mirror, images=ONE_IMAGE, image_sizes=[[640, 480], [480, 640]])
    result = snakemake(folder, "--cores", "2", "results/table1.tex")
    assert_rehearsed(folder, result, splits=2 * (3 + 3 + 2))
