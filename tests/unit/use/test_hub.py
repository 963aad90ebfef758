"""hf:OWNER/NAME from a real server on localhost: two files, one commit, then from the cache."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmnet.config.paths import RunPaths
from mmnet.use.export import export
from support.hub import COMMIT, Hub
from support.tiny import Tiny

SCRIPT = """
import hashlib, json, sys, time
import mmnet
from mmnet.runtime.errors import MMNetError

time.sleep = lambda seconds: None  # between huggingface_hub's attempts

image, *addresses = sys.argv[1:]
for address in addresses:
    try:
        found = mmnet.load(address, exact=True).look(image).find("left circle")
        print(json.dumps(hashlib.sha256(found.probability.tobytes()).hexdigest()))
    except MMNetError as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def hub(scored: RunPaths, tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    export(scored, folder / "owner" / "model")
    pickled = folder / "owner" / "pickled"
    pickled.mkdir()
    for owner in ("model", "pickled"):
        (folder / "owner" / owner / "pytorch_model.bin").write_bytes(pickle.dumps([]))
    shutil.copytree(folder / "owner" / "model", folder / "owner" / "newer")
    config = folder / "owner" / "newer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format_version": 99}))
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def load(image: Path, cache: Path, hub: Hub, *addresses: str, offline: bool = False) -> list[str]:
    """Load each address in another process; return hashes of its mask, or errors."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache)}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": str(int(offline))}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(image), *addresses],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line["error"] if isinstance(line, dict) else line for line in lines]


def test_a_model_is_loaded_from_a_hub_and_then_from_the_cache(
    hub: Hub, scored: RunPaths, tiny: Tiny, tmp_path: Path
) -> None:
    image, cache = next(tiny.images.iterdir()), tmp_path / "cache"
    bad = {
        "hf:owner/model@v9": "v9",
        "hf:owner/nothing": "no such model",
        "hf:owner/pickled": "config.json",
        "hf:owner/newer": "version 99",
        "hf:a/b/c": "OWNER/NAME",
    }
    own, found, *errors = load(image, cache, hub, str(scored.folder), "hf:owner/model", *bad)
    assert found == own
    for address, error, named in zip(bad, errors, bad.values(), strict=True):
        assert error.startswith(f"{address}")
        assert named in error
        assert "\n" not in error
    files = {path.rpartition("/")[2] for path in hub.requests}
    assert files == {"config.json", "model.safetensors"}
    # The weights are of the commit that config.json is of; those of a bad config are not asked for.
    weights = {path for path in hub.requests if path.endswith(".safetensors")}
    assert weights == {f"/owner/model/resolve/{COMMIT}/model.safetensors"}

    hub.requests.clear()
    found, pinned, missing = load(
        image,
        cache,
        hub,
        *("hf:owner/model", f"hf:owner/model@{COMMIT}", "hf:owner/other"),
        offline=True,
    )
    assert found == pinned == own
    assert "HF_HUB_OFFLINE" in missing
    assert hub.requests == []
    assert len(own) == len(hashlib.sha256().hexdigest())


def test_a_hub_that_is_away_is_an_error_or_the_cache(hub: Hub, tiny: Tiny, tmp_path: Path) -> None:
    image, cache = next(tiny.images.iterdir()), tmp_path / "cache"
    (before,) = load(image, cache, hub, "hf:owner/model")
    hub.shutdown()
    hub.server_close()
    cached, missing = load(image, cache, hub, "hf:owner/model", "hf:owner/other")
    assert cached == before
    assert "cannot be reached" in missing
