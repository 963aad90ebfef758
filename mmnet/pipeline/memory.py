"""What a training step keeps for the backward pass: the memory that grows with the items."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmnet.config.schema import Config
from mmnet.model.build import build_model
from mmnet.model.clip import recompute


class Activations(NamedTuple):
    """Bytes that autograd keeps between the forward and the backward pass."""

    fixed: int
    """Independent of the number of items: the weights as autocast rounds them."""
    per_item: int


def activations(config: Config) -> Activations:
    """Count what autograd would keep of two items and of three, without computing anything.

    BatchNorm on vectors refuses one.
    """
    two, three = (_kept(config, items) for items in (2, 3))
    return Activations(max(0, 3 * two - 2 * three), three - two)


def _kept(config: Config, items: int) -> int:
    model = config.model
    with torch.device("meta"):
        mmnet = build_model(model, config.tower, weights=None).train()
    recompute(mmnet, config.train.checkpoint_activations)
    kept: dict[int, tuple[int, object]] = {}
    # On the CPU, not on meta: attention then takes a GPU's path, without the N x N matrix.
    with FakeTensorMode():
        state = {
            name: _like(tensor)
            for name, tensor in [*mmnet.named_parameters(), *mmnet.named_buffers()]
        }
        weights = {tensor.untyped_storage()._cdata for tensor in state.values()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                # Keep the storage too: another could take its address.
                kept[storage._cdata] = (storage.nbytes(), storage)
            return tensor

        image = torch.zeros(items, 3, model.image_size, model.image_size)
        tokens = torch.zeros(items, config.dataset.max_length, dtype=torch.long)
        is_amp = config.train.precision == "amp"
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_amp),
        ):
            torch.func.functional_call(mmnet, state, (image, tokens))
    return sum(size for size, _ in kept.values())


def _like(tensor: Tensor) -> Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return copy.requires_grad_(isinstance(tensor, nn.Parameter))
