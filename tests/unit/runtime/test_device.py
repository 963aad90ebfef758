"""The device: set up as params.yaml says, errors in one line."""

import os
from collections.abc import Iterator

import pytest
import torch

from mmnet.cli.common import computing
from mmnet.config.load import load_params
from mmnet.runtime import device, gpus
from mmnet.runtime.errors import ConfigError, TrainingError
from support.tiny import ROOT

MATMUL, CONV = torch.backends.cuda.matmul, torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch's settings and the environment, as they were after each test."""
    before = MATMUL.fp32_precision, CONV.fp32_precision, torch.get_num_threads()
    for variable in ("CUBLAS_WORKSPACE_CONFIG", gpus.ORDER, gpus.VISIBLE):
        monkeypatch.setenv(variable, "before")
        monkeypatch.delenv(variable)
    yield
    MATMUL.fp32_precision, CONV.fp32_precision = before[:2]
    torch.set_num_threads(before[2])


@pytest.mark.parametrize(("tf32", "precision"), [(True, "tf32"), (False, "ieee")])
def test_a_command_computes_with_the_settings_of_params_yaml(tf32: bool, precision: str) -> None:
    train = load_params(ROOT / "params.yaml").active.train
    config = train.model_copy(update={"tf32": tf32, "threads": 1})
    with computing("cpu", config) as found:
        assert found == torch.device("cpu")
        assert (MATMUL.fp32_precision, CONV.fp32_precision) == (precision, precision)
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()


def test_pre_training_leaves_tf32_as_torch_has_it() -> None:
    pretrain = load_params(ROOT / "params.yaml").active.pretrain
    assert pretrain is not None
    MATMUL.fp32_precision, CONV.fp32_precision = "ieee", "tf32"
    with computing("cpu", pretrain):
        assert (MATMUL.fp32_precision, CONV.fp32_precision) == ("ieee", "tf32")


def test_cuda_counts_as_nvidia_smi_does_unless_numbers_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "1")
    device.prepare("cpu", threads=1)
    assert gpus.ORDER not in os.environ
    monkeypatch.delenv(gpus.VISIBLE)
    device.prepare("cpu", threads=1)
    assert os.environ[gpus.ORDER] == "PCI_BUS_ID"


def test_gpus_that_torch_cannot_use_are_an_error_and_not_days_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.prepare("auto", threads=1) == torch.device("cpu")
    monkeypatch.setenv(gpus.HELD, "GPU-1")
    with pytest.raises(ConfigError, match=r"nvidia-smi lists GPUs that torch .* cannot use"):
        device.prepare("auto", threads=1)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_a_device_that_does_not_exist_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {name}: ") as caught:
        device.prepare(name, threads=1)
    assert "\n" not in str(caught.value)


def test_too_little_memory_is_one_line() -> None:
    with (
        pytest.raises(TrainingError, match=r"cpu .*Tried to allocate 2.00 GiB") as caught,
        device.computing_on("cpu", threads=1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
    assert "\n" not in str(caught.value)
