"""What to set when a training step needs more memory than the device has."""

import torch

from mmnet.config.schema import Config
from mmnet.runtime.errors import TrainingError
from mmnet.runtime.progress import readable


def out_of_memory(
    config: Config, device: torch.device, *, part_size: int, processes: int, reason: str
) -> TrainingError:
    """Return the error of a step whose `part_size` items at a time are too many."""
    train = config.train
    least = 1 if config.model.vector_norm == "none" else 2  # BatchNorm on vectors refuses one
    parts = range(train.accumulate + 1, train.batch_size // (least * processes) + 1)
    more = next((n for n in parts if train.batch_size % (n * processes) == 0), None)
    used = ""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        used = f" ({readable(torch.cuda.max_memory_allocated(device))} of {readable(total)} used)"
    remedies = []
    if more:
        each = train.batch_size // (more * processes)
        remedies.append(f"train.accumulate: {more} ({each} at a time)")
    if not train.checkpoint_activations:
        remedies.append("train.checkpoint_activations: true")
    if part_size > least:
        remedies.append("more train.processes")
    remedy = (
        f"Set {', or '.join(remedies)}; the same command resumes."
        if remedies
        else "Use a GPU with more memory."
    )
    if train.precision == "fp32":
        remedy += " (train.precision: amp needs less too, but is another training.)"
    return TrainingError(
        f"{config.experiment}: {part_size} items at a time need more memory than {device} "
        f"has{used}. {remedy} ({reason.splitlines()[0][:120]})"
    )
