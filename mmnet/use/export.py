"""A run to a folder that can be shared: weights, config.json and a model card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmnet.config.code import definition_of
from mmnet.config.identity import Identity
from mmnet.config.paths import Paths, RunPaths
from mmnet.data.dataset import EvaluationItems
from mmnet.data.loader import read
from mmnet.evaluate.metrics import score
from mmnet.evaluate.predict import predict
from mmnet.model import checkpoint
from mmnet.model.mmnet import MMNet
from mmnet.runtime.device import computing_on
from mmnet.runtime.errors import CheckpointError, MMNetError
from mmnet.runtime.files import atomic_folder, atomic_path, check_room, checksum
from mmnet.runtime.progress import track
from mmnet.tracking.record import published
from mmnet.use.card import CARD, HalfCost, model_card
from mmnet.use.config import InferenceConfig
from mmnet.use.folder import CONFIG, FORMAT, VERSION, WEIGHTS, build_network
from mmnet.use.programs import HEAD, IMAGE, write_programs

FILES = {WEIGHTS, CONFIG, CARD, IMAGE, HEAD}
"""All that an exported folder may hold."""
SENTENCES = 64
"""At a time, in measuring."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    paths: RunPaths
    identity: Identity
    config: InferenceConfig
    network: MMNet


def export(
    run: RunPaths,
    output: Path,
    *,
    half: bool = False,
    programs: bool = False,
    force: bool = False,
    device: str | None = None,
) -> HalfCost | None:
    """Write a run's folder for others; return what `half` costs on val, None without it.

    The folder appears whole or not at all. `device` is that of measuring; None: the training's
    kind.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another run, or `half` cannot
            hold a weight.
        MMNetError: `output` exists, without `force` or with files that are not an export's.
    """
    check_output(output, force=force)
    exported = _read(run)
    cost = _round(exported, device) if half else None
    with atomic_folder(output) as folder:
        _write_weights(exported.network, folder / WEIGHTS, half=half, times=2 if programs else 1)
        if programs:
            config = exported.config
            size, length = config.model.image_size, config.max_length
            write_programs(exported.network, folder, image_size=size, max_length=length)
        hashes = {path.name: checksum(path) for path in sorted(folder.iterdir())}
        content = _config_json(exported.config, hashes[WEIGHTS], half=half)
        (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        card = model_card(
            run, exported.identity, is_procedural=_is_procedural(exported), files=hashes, half=cost
        )
        (folder / CARD).write_text(card, encoding="utf-8")
    return cost


def check_output(output: Path, *, force: bool) -> None:
    """Check that a folder may be written, or replaced.

    Raises:
        MMNetError: it exists, without `force` or with files that are not an export's.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise MMNetError(f"{output}: is a file. Name a folder.")
    found = {path.name for path in output.iterdir()}
    if foreign := found - FILES:
        raise MMNetError(
            f"{output}: holds {sorted(foreign)[0]}, which is not of an export. Name another folder."
        )
    if found and not force:
        raise MMNetError(f"{output}: exists. Name another folder, or replace it with --force.")


def _read(run: RunPaths) -> _Run:
    content, identity = checkpoint.load(run.checkpoint), published(run)
    if identity is None or content["identity"] != identity.as_dict():
        raise CheckpointError(
            f"{run.identity}: not of the checkpoint beside it. Pull or train the run again."
        )
    name = f"{run.experiment}/seed{run.seed}"
    config = InferenceConfig.of_training(identity.values, name=name, source=run.checkpoint)
    network = build_network(config, content["model"], run.checkpoint, "Train it again.")
    return _Run(paths=run, identity=identity, config=config, network=network)


def _is_procedural(run: _Run) -> bool:
    """Whether the run was trained on drawn scenes: its card must say so, with or without data."""
    own_tower = bool(definition_of(run.config.architecture))
    return own_tower or Paths(run.config.profile, run.paths.root).key_words.is_file()


def _round(run: _Run, device: str | None) -> HalfCost:
    """Round the network's weights to what fp16 can hold; say what that costs on val."""
    for name, tensor in run.network.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.half()).all():
            raise CheckpointError(
                f"{run.paths.checkpoint}: {name} has a value that fp16 cannot hold. Export without "
                "--half."
            )
    items = _val_items(run)
    before = _rows(run, items, "as trained", device) if items else None
    for tensor in run.network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    if items is None or before is None:
        return HalfCost()
    after = _rows(run, items, "in fp16", device)
    counts = ["intersection", "union"]
    return HalfCost(
        before=score(before)["mIoU"],
        after=score(after)["mIoU"],
        sentences=len(before),
        changed=int((before[counts] != after[counts]).any(axis=1).sum()),
    )


def _val_items(run: _Run) -> EvaluationItems | None:
    """Return the run's val split; None where the data that it was trained with are not here."""
    paths, config = Paths(run.config.profile, run.paths.root), run.config
    files = {"table": paths.table(config.dataset), "images": paths.manifest}
    for name, path in files.items():
        if not path.is_file() or checksum(path) != run.identity.data[name]:
            return None
    return EvaluationItems(
        files["table"],
        paths.images,
        splits=["val"],
        batch_size=SENTENCES,
        image_size=config.model.image_size,
        resize=config.model.resize,
        max_length=config.max_length,
    )


def _rows(run: _Run, items: EvaluationItems, name: str, device: str | None) -> pd.DataFrame:
    threads, default = run.config.threads, "cpu" if run.config.threads else "auto"
    with computing_on(
        device or default, threads=threads or torch.get_num_threads(), tf32=run.config.tf32
    ) as chosen:
        batches = read(items, batch_size=None, workers=0, pinned=False)
        shown = track(batches, name=f"val {name}", total=len(items), unit="batches")
        network = run.network.to(chosen)
        rows = predict(network, shown, threshold=run.config.threshold, device=chosen)
        run.network.cpu()
    return rows


def _write_weights(network: MMNet, path: Path, *, half: bool, times: int) -> None:
    """Write the state; `times` its size must be free."""
    state = network.state_dict()
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    check_room(path, times * sum(tensor.nbytes for tensor in state.values()))
    try:
        with atomic_path(path) as temporary:  # the library's own file would be private
            save_file(tensors, temporary, metadata={"format": "pt"})
    except SafetensorError as error:  # its writer reports a full disk so
        raise MMNetError(f"{path}: cannot be written: {error}. Free some space.") from None


def _config_json(config: InferenceConfig, sha256: str, *, half: bool) -> dict[str, Any]:
    weights = {"file": WEIGHTS, "dtype": "float16" if half else "float32", "sha256": sha256}
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "inference": config.model_dump(mode="json"),
        "weights": weights,
    }
