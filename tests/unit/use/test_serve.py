"""`mmnet serve`: many requests at once, and how it ends."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import psutil
import pytest

from support.page import made_run, picture, png
from support.tiny import Tiny

MB = 1_000_000


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("run"), tiny)


@contextlib.contextmanager
def started(checkpoint: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start `mmnet serve` in a folder; yield it and its port."""
    command = [sys.executable, "-m", "mmnet", "serve", "--port", "0", "--checkpoint", checkpoint]
    hub = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"} | hub,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    try:
        assert found, line + process.communicate()[1]
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def end(process: subprocess.Popen[str], port: int, number: signal.Signals) -> None:
    """Send a signal while requests wait: it ends them and the server, without a word."""
    body = png(picture(1, (800, 800)))
    idle = http.client.HTTPConnection("127.0.0.1", port)
    with ThreadPoolExecutor(20) as pool, contextlib.closing(idle):
        idle.connect()
        waiting = [pool.submit(post, port, "/pictures", body + bytes([n])) for n in range(20)]
        wait(waiting, return_when=FIRST_COMPLETED)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (out, err) == ("", "")
    assert [one for one in waiting if one.exception() or one.result()[0] != 200]


def test_fifty_requests_at_once_wait_in_line_and_memory_stays_bounded(
    run: Path, tmp_path: Path
) -> None:
    with started(str(run), tmp_path) as (process, port):
        load(process, port)
        end(process, port, signal.SIGTERM)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "written to disk"


def load(process: subprocess.Popen[str], port: int) -> None:
    body = png(picture()) + bytes(10 * MB)  # what follows the picture is not read
    assert post(port, "/pictures", body)[0] == 200
    memory = psutil.Process(process.pid).memory_info
    before, most, done = memory().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], memory().rss)

    def ask(number: int) -> tuple[int, int]:
        status, seen = post(port, "/pictures", body + bytes([number]))
        question = {"picture": json.loads(seen)["id"], "sentence": "the star"}
        return status, post(port, "/find", json.dumps(question).encode())[0]

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(50) as pool:
        states = list(pool.map(ask, range(50)))
    done.set()
    watcher.join()
    assert {first for first, _ in states} == {200}
    # Of the last pictures alone; the page sends others again.
    assert {second for _, second in states} <= {200, 410}
    assert most[0] - before < 200 * MB  # all files have 500


def test_a_model_of_a_hub_has_its_score_and_ctrl_c_ends_it(shared: Path, tmp_path: Path) -> None:
    cached, commit = tmp_path / "hub" / "models--owner--model", "0" * 40
    shutil.copytree(shared, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    with started("hf:owner/model", tmp_path) as (process, port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/model") as answer:
            facts = dict(json.load(answer)["facts"])
        miou = json.loads((shared / "config.json").read_text())["scores"]["val"]["mIoU"]
        assert facts["val mIoU"] == f"{100 * miou:.1f} %"
        end(process, port, signal.SIGINT)
