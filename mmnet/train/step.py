"""One step of the optimiser: a global batch, on any number of processes, in any number of parts."""

import contextlib
import math
import time
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmnet.config.run import TrainConfig, part_size
from mmnet.config.schema import Config
from mmnet.data.dataset import Item
from mmnet.data.transforms import normalise
from mmnet.model.clip import recompute
from mmnet.model.mmnet import MMNet
from mmnet.runtime.distributed import World
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.progress import say
from mmnet.runtime.signals import Stop
from mmnet.train.advice import out_of_memory
from mmnet.train.recipe import mask_loss, parameter_groups, training_mode
from mmnet.train.run_state import RunState


def autocast_type(train: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return what `precision` means on a device; None is fp32."""
    if train.precision == "fp32":
        return None
    lacks_bf16 = device.type == "cuda" and not torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    return torch.float16 if lacks_bf16 else torch.bfloat16


def start(model: MMNet, config: TrainConfig, device: torch.device) -> RunState:
    training_mode(model, config)  # before DDP asks which parameters learn
    optimizer = torch.optim.Adam(
        parameter_groups(model, config.head_lr_multiplier), lr=config.lr, fused=True
    )
    # For fp16 alone: bf16's exponent is fp32's.
    scaled = autocast_type(config, device) is torch.float16
    return RunState(model, optimizer, torch.amp.GradScaler(device.type, enabled=scaled))


class Stepper:
    """Takes steps with a run's model, as params.yaml's `train` and the processes say."""

    def __init__(
        self, state: RunState, config: Config, world: World, device: torch.device, stop: Stop
    ) -> None:
        self.state, self.config, self.world = state, config, world
        self.device, self.stop = device, stop
        try:
            self.part_size = part_size(config.train, world.size)
        except ValueError as error:
            raise ConfigError(f"params.yaml: train: {error}.") from None
        self.dtype = autocast_type(config.train, device)
        self.last_save = time.monotonic()
        self.is_asked_to_stop = False
        """Whether any process was: all stop after the same step."""
        say(
            f"a batch of {config.train.batch_size} = {world.size} process(es) x "
            f"{config.train.accumulate} part(s) x {self.part_size} items, on {device}, in "
            f"{str(self.dtype or torch.float32).removeprefix('torch.')}"
        )
        recompute(state.model, config.train.checkpoint_activations)
        forward: nn.Module = state.model
        if world.size > 1 and device.type == "cuda":
            forward = nn.SyncBatchNorm.convert_sync_batchnorm(forward)
        elif world.size > 1:
            say("On the CPU, BatchNorm's statistics are those of each process's own items.")
        if config.train.compile:
            forward = torch.compile(forward)  # type: ignore[assignment]
        if world.size > 1:
            # DDP warns of the strides of 1x1 kernels, which cost nothing.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            # No parameter is unused. But otherwise DDP would rebuild its buckets after its first
            # step, and three processes or more would then sum in another order: a resumed run
            # would not be the same run.
            forward = DistributedDataParallel(forward, find_unused_parameters=True)
        self.forward = forward

    def __enter__(self) -> "Stepper":
        return self

    def __exit__(self, *error: object) -> None:
        # DDP's C++ must not outlive the process group: freed last, while it holds the GIL,
        # it can deadlock with a thread of gloo that waits for this lock.
        self.forward = self.state.model

    def items(self, number: int) -> range:
        """Return the numbers of the items that this process takes of a batch, in their order."""
        size = self.config.train.batch_size // self.world.size
        first = number * self.config.train.batch_size + self.world.rank * size
        return range(first, first + size)

    def step(self, parts: Sequence[Item], *, step: int, lr: float) -> float:
        """Take one step and return the loss: the mean over the batch's items, all processes'.

        Raises:
            TrainingError: the device's memory does not suffice.
        """
        state = self.state
        # Dropout's numbers: of seed, step and process alone, so that none need be kept.
        sequence = np.random.SeedSequence([self.config.seed, step, self.world.rank])
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["multiplier"]
        state.optimizer.zero_grad()
        try:
            with self.world.communicating():
                losses = [
                    self._part(part, of=len(parts), is_last=number == len(parts) - 1)
                    for number, part in enumerate(parts)
                ]
            ours = [torch.stack(losses).mean().item(), float(self.stop.signal > 0)]
            loss, asked = self.world.mean(ours, self.device)
            self.is_asked_to_stop = asked > 0
            if math.isfinite(loss):
                state.scaler.step(state.optimizer)
                state.scaler.update()
                state.losses.append(loss)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(
                self.config,
                self.device,
                part_size=self.part_size,
                processes=self.world.size,
                reason=str(error),
            ) from None
        return loss

    def is_anyone_asked(self) -> bool:
        """Whether any process is asked to stop, between steps."""
        (asked,) = self.world.mean([float(self.stop.signal > 0)], self.device)
        return asked > 0

    def _part(self, part: Item, *, of: int, is_last: bool) -> Tensor:
        image, tokens, mask = (tensor.to(self.device, non_blocking=True) for tensor in part)
        alone_until_last = (
            self.forward.no_sync()
            if isinstance(self.forward, DistributedDataParallel) and not is_last
            else contextlib.nullcontext()
        )
        with alone_until_last:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                loss = mask_loss(self.forward(normalise(image), tokens), mask)
            self.state.scaler.scale(loss / of).backward()
        return loss.detach()

    def must_save(self) -> bool:
        """Whether `save_minutes` are over; by the first process's clock, which saves."""
        if time.monotonic() - self.last_save < 60 * self.config.train.save_minutes:
            return False
        self.last_save = time.monotonic()
        return True
