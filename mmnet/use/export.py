"""A run to a folder that can be shared: weights, config.json and a model card."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from mmnet.config.code import definition_of
from mmnet.config.identity import Identity
from mmnet.config.paths import Paths, RunPaths
from mmnet.model import checkpoint
from mmnet.model.mmnet import MMNet
from mmnet.runtime.errors import CheckpointError, MMNetError
from mmnet.runtime.files import (
    atomic_folder,
    atomic_path,
    check_room,
    checksum,
    read_json,
    writing,
)
from mmnet.tracking.record import published, read
from mmnet.use.card import model_card, scores_of
from mmnet.use.config import InferenceConfig
from mmnet.use.folder import CARD, CONFIG, FILES, FORMAT, VERSION, WEIGHTS, build_network
from mmnet.use.half import HalfCost, round_weights, val_items
from mmnet.use.programs import write_programs


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
    output = output.resolve()  # of a link, the folder is replaced
    identity, config, network = _read(run)
    record = read(run, identity, None)
    items = val_items(config, identity, run.root) if half else None
    cost = round_weights(network, config, items, device) if half else None
    is_procedural = _is_procedural(run, config)
    with atomic_folder(output) as folder:
        _write_weights(network, folder / WEIGHTS, half=half, times=2 if programs else 1)
        if programs:
            size, length = config.model.image_size, config.max_length
            write_programs(network, folder, image_size=size, max_length=length)
        hashes = {path.name: checksum(path) for path in sorted(folder.iterdir())}
        content = {
            "format": FORMAT,
            "format_version": VERSION,
            "inference": config.model_dump(mode="json"),
            "weights": {"dtype": "float16" if half else "float32", "sha256": hashes[WEIGHTS]},
            "scores": scores_of(record).get("splits", {}),
        }
        (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        card = model_card(
            run, identity, record, is_procedural=is_procedural, files=hashes, half=cost
        )
        (folder / CARD).write_text(card, encoding="utf-8")
    return cost


def check_output(output: Path, *, force: bool) -> None:
    """Check that a folder may be written, or replaced.

    Raises:
        MMNetError: it exists, without `force` or with files that are not an export's, or cannot be
            replaced.
    """
    with writing(output):
        if not output.exists():
            return
    if not output.is_dir():
        raise MMNetError(f"{output}: is a file. Name a folder.")
    if (real := output.resolve()) == Path.cwd() or real.is_mount():
        reason = "is the working folder" if real == Path.cwd() else "is a mount point"
        raise MMNetError(f"{output}: {reason}, which cannot be replaced. Name a folder in it.")
    found = {path.name for path in output.iterdir()}
    foreign = {path.name for path in output.iterdir() if path.name not in FILES or path.is_dir()}
    if found and not foreign and read_json(output / CONFIG).get("format") != FORMAT:
        foreign = found
    if foreign:
        raise MMNetError(
            f"{output}: holds {sorted(foreign)[0]}, which is not of an export. Name another folder."
        )
    if found and not force:
        raise MMNetError(f"{output}: exists. Name another folder, or replace it with --force.")


def _read(run: RunPaths) -> tuple[Identity, InferenceConfig, MMNet]:
    content, identity = checkpoint.load(run.checkpoint), published(run)
    if identity is None or content["identity"] != identity.as_dict():
        raise CheckpointError(
            f"{run.identity}: not of the checkpoint beside it. Pull or train the run again."
        )
    name = f"{run.experiment}/seed{run.seed}"
    config = InferenceConfig.of_training(identity.values, name=name, source=run.checkpoint)
    network = build_network(config, content["model"], run.checkpoint, "Train it again.")
    return identity, config, network


def _is_procedural(run: RunPaths, config: InferenceConfig) -> bool:
    """Whether the run was trained on drawn scenes: its card must say so, with or without data."""
    own_tower = bool(definition_of(config.architecture))
    return own_tower or Paths(config.profile, run.root).key_words.is_file()


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
