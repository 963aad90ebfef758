"""DVC's remotes: an S3-compatible server on this machine, one that breaks off, one that refuses."""

import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    create_backend_app,
)
from werkzeug.serving import WSGIRequestHandler, make_server

from support.dvc_project import clone_of, dvc, dvc_project, git
from support.project import refused, tool

pytestmark = pytest.mark.xdist_group("remotes")

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # a broken connection need not be tried for minutes
}
FILES = {
    "scores/mini/refcoco_vit_b/seed0.json": b"{}",
    "scores/mini/refcoco_vit_b/seed0.percent.json": b'{"val": {"mIoU": 50.0}}',
    "rows/mini/refcoco_vit_b/seed0.parquet": os.urandom(30_000),
    "runs/mini/refcoco_vit_b/seed0/checkpoint.pt": os.urandom(300_000),
    "runs/mini/refcoco_vit_b/seed0/metrics.jsonl": b"{}\n",
    "runs/mini/refcoco_vit_b/seed0/predictions.png": os.urandom(20_000),
    "runs/mini/refcoco_vit_b/seed0/run.json": b"{}",
    "clip/mini/vit_b.pt": os.urandom(200_000),
    "data/mini/images.tsv": b"images",
    **{f"data/mini/images/{n}.jpg": os.urandom(5_000) for n in range(8)},
    **{f"data/mini/refcoco{n}.parquet": os.urandom(9_000) for n in ("", "g")},
}
"""What would be there after a run, as far as a remote can tell."""
STAGES = ["scores@mini-refcoco_vit_b-0", "runs@mini-refcoco_vit_b-0", "data@mini"]
FEW = STAGES[:2]
"""Seven files: each that a broken remote fails to serve is tried five times."""


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class Server:
    """moto's S3, which on request breaks off in the middle of a file, or refuses."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.objects_left = 10**6
        self.refuses = False

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if self.refuses:
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        is_object = "/files/md5/" in environ["PATH_INFO"]
        if is_object and environ["REQUEST_METHOD"] in ("GET", "PUT", "POST"):
            self.objects_left -= 1
            if self.objects_left < 0:
                return self.break_off(environ, start_response)
        return self.app(environ, start_response)  # type: ignore[no-any-return]

    def break_off(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "300000")])
        if environ["REQUEST_METHOD"] == "GET":
            yield b"half of it"
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    app = Server()
    http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{http.server_port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="mmnet")
    yield app, address
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with files and their records."""
    folder = dvc_project(tmp_path_factory.mktemp("authors") / "clone")
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    dvc(folder, "commit", "--force", *STAGES)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


@pytest.fixture
def recorded(authors: Path, server: tuple[Server, str], tmp_path: Path) -> Path:
    """A copy whose remote is the server."""
    folder = tmp_path / "recorded"
    shutil.copytree(authors, folder)
    dvc(folder, "remote", "add", "--local", "--default", "store", f"s3://mmnet/{tmp_path.name}")
    dvc(folder, "remote", "modify", "--local", "store", "endpointurl", server[1])
    return folder


def assert_whole(cache: Path) -> None:
    """Nothing in the cache is half there: each file is named by its MD5."""
    for path in cache.glob("files/md5/??/*"):
        name = (path.parent.name + path.name).removesuffix(".dir")
        assert hashlib.md5(path.read_bytes()).hexdigest() == name, path


def test_what_is_pushed_to_s3_is_pulled_byte_for_byte(recorded: Path, tmp_path: Path) -> None:
    dvc(recorded, "push", *STAGES, **KEYS)
    clone = clone_of(recorded, tmp_path / "clone")
    dvc(clone, "pull", *STAGES, **KEYS)
    # clip/ is read by the run, and made by none of these stages.
    for path in [path for path in FILES if not path.startswith("clip/")]:
        assert (clone / path).read_bytes() == FILES[path], path


def test_what_breaks_off_is_an_error_and_resumes_later(
    recorded: Path, server: tuple[Server, str], tmp_path: Path
) -> None:
    app, _ = server
    clone = clone_of(recorded, tmp_path / "clone")
    for folder, command in ((recorded, "push"), (clone, "pull")):
        app.objects_left = 2
        assert "ERROR" in refused(tool(folder, "dvc", command, *FEW, **KEYS))
        assert git(folder, "status", "--porcelain") == ""
        assert_whole(folder / ".dvc" / "cache")
        for path in FILES:
            assert not (folder / path).exists() or (folder / path).read_bytes() == FILES[path]
        app.objects_left = 10**6
        dvc(folder, command, *FEW, **KEYS)
    assert (clone / "runs/mini/refcoco_vit_b/seed0/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("unauthorised", "Forbidden"),
        ("unreachable", "http://127.0.0.1:9/"),
        ("no bucket", "bucket does not exist"),
        ("no remote", "no remote specified"),
    ],
)
def test_a_remote_that_does_not_serve_says_why_and_nothing_is_lost(
    case: str, named: str, recorded: Path, server: tuple[Server, str]
) -> None:
    if case == "unauthorised":
        server[0].refuses = True
    elif case == "unreachable":
        dvc(recorded, "remote", "modify", "--local", "store", "endpointurl", "http://127.0.0.1:9")
    elif case == "no bucket":
        dvc(recorded, "remote", "modify", "--local", "store", "url", "s3://nowhere/store")
    else:
        (recorded / ".dvc" / "config.local").unlink()
    output = refused(tool(recorded, "dvc", "push", *FEW, **KEYS))
    assert named in next(line for line in output.splitlines() if line.startswith("ERROR"))
    assert git(recorded, "status", "--porcelain") == ""
    assert_whole(recorded / ".dvc" / "cache")
    assert all((recorded / path).read_bytes() == content for path, content in FILES.items())
