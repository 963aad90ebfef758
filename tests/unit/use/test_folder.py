"""Exported folders that are damaged, foreign or newer: refused in one line, no pickle opened."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import mmnet
from mmnet.runtime.errors import CheckpointError
from mmnet.use.folder import VERSION


def newer(folder: Path) -> None:
    edit(folder, format_version=VERSION + 1)


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def cut_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])


def ask(folder: Path, key: str, value: Any, *, of_model: bool = False) -> None:
    inference = json.loads((folder / "config.json").read_text())["inference"]
    (inference["model"] if of_model else inference)[key] = value
    edit(folder, inference=inference)


def lose_a_value(folder: Path) -> None:
    inference = json.loads((folder / "config.json").read_text())["inference"]
    del inference["max_length"]
    edit(folder, inference=inference)


def rename_a_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({f"x.{name}": tensor for name, tensor in state.items()}, folder / "model.safetensors")


def change_a_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    next(t for t in state.values() if t.is_floating_point()).view(-1)[0] += 1
    save_file(state, folder / "model.safetensors")


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors.bin"):
        (folder / name).write_bytes(pickle.dumps(Exploit(folder.parent / "exploited")))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (cut_config, "config.json"),
        (lambda folder: edit(folder, format=None, model_type="bert"), "not of an exported"),
        (newer, f"version {VERSION + 1}"),
        (lose_a_value, r"inference\.max_length"),
        (lambda folder: edit(folder, inference=[], weights=[]), "inference"),
        (lambda folder: edit(folder, weights=[]), "SHA-256"),
        (rename_a_weight, "Missing key"),
        (change_a_weight, "SHA-256"),
        (cut_weights, "model.safetensors"),
        (only_pickles, "pytorch_model.bin"),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "damaged"),
        *(
            (lambda folder, key=key, value=value: ask(folder, key, value), key)
            for key, value in (
                *(("dataset", "foo"), ("threads", 10**9)),
                *(("max_length", 100_000), ("max_length", 77)),  # the text tower takes 24
            )
        ),
        *(
            (lambda folder, key=key, n=n: ask(folder, key, n, of_model=True), "model")
            for key, n in (
                *(("num_queries", 10**9), ("num_queries", 10**30), ("width", 8 * 10**6)),
                *(("image_size", 32 * 10**6), ("ffn", 10**9), ("decoder_layers", 10**9)),
            )
        ),
    ],
)
def test_a_bad_folder_is_refused_in_one_line(damage: Any, named: str, folder: Path) -> None:
    mmnet.load(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=named) as caught:
        mmnet.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder.parent / "exploited").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_file_of_a_folder_stands_for_the_folder(name: str, folder: Path) -> None:
    assert mmnet.load(folder / name).config == mmnet.load(folder).config
    cut_config(folder)
    with pytest.raises(CheckpointError, match="folder/config"):
        mmnet.load(folder / name)


def test_a_folder_with_pickles_alone_runs_none(folder: Path) -> None:
    only_pickles(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        mmnet.load(folder)
    assert not (folder.parent / "exploited").exists()
