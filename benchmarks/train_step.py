"""What a training step takes: each backbone at the paper's settings, plain against tuned.

    python benchmarks/train_step.py                    # a GPU, batch of 64
    python benchmarks/train_step.py --batch 2 --steps 3 --device cpu

Plain is fp32 without TF32; tuned is params.yaml's `precision: amp` and `tf32: true`; recomputed
has checkpoint_activations besides, and compiled (--compile) has torch.compile. All run one after
another in this process, each warmed up; the images are noise. Model FLOP utilisation counts three
forward passes an item, against the peak of the device (--peak, dense bf16 TFLOP/s).
"""

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch

from mmnet.config.load import load_params
from mmnet.config.schema import Config
from mmnet.data.dataset import Item
from mmnet.model.build import build_model
from mmnet.pipeline.cost import cost
from mmnet.runtime.device import prepare
from mmnet.runtime.distributed import ALONE
from mmnet.runtime.errors import TrainingError
from mmnet.runtime.signals import Stop
from mmnet.train.step import Stepper, start

BACKBONES = {"RN50": "nq_24", "ViT-B": "refcoco_plus_vit_b", "ViT-L": "refcoco_plus_vit_l"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"precision": "fp32", "tf32": False},
    "tuned": {"precision": "amp", "tf32": True},
    "recomputed": {"precision": "amp", "tf32": True, "checkpoint_activations": True},
    "compiled": {"precision": "amp", "tf32": True, "compile": True},
}
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40": 181.0, "4090": 165.0}


def batch_of(config: Config, parts: int) -> list[Item]:
    size, length = config.model.image_size, config.dataset.max_length
    tokens = torch.randint(1, 1000, (config.train.batch_size // parts, length))
    tokens[:, -1] = 49407  # [EOS]
    return [
        Item(
            torch.randint(0, 255, (len(tokens), 3, size, size), dtype=torch.uint8),
            tokens,
            torch.rand(len(tokens), size // 4, size // 4) > 0.8,
        )
        for _ in range(parts)
    ]


def measure(config: Config, device: torch.device, steps: int) -> tuple[float, float]:
    """Return seconds a step, the median, and the peak of memory in bytes (0 on the CPU)."""
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None).to(device).train()
    run = start(model, config.train, device)
    stepper = Stepper(run, config, ALONE, device, Stop())
    batch = batch_of(config, config.train.accumulate)
    times = []
    for number in range(steps + 2):
        if number == 2 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        stepper.step(batch, step=number, lr=1e-5)  # reads the loss, hence waits for the device
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return sorted(times[2:])[steps // 2], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peak", type=float, help="dense bf16 TFLOP/s of the device")
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    arguments = parser.parse_args()
    params = load_params(Path("params.yaml"), ["profile=paper"])
    print("backbone  way         step s  images/s    peak GB    MFU  against plain")
    for backbone in arguments.backbones:
        config = params.resolve(BACKBONES[backbone], params.seeds[0])
        flops = 3 * cost(config.model, config.tower, max_length=config.dataset.max_length).flops
        plain = 0.0
        for way, changes in WAYS.items():
            if way == "compiled" and not arguments.compile:
                continue
            how = {"batch_size": arguments.batch, "accumulate": arguments.accumulate, "threads": 2}
            train = config.train.model_copy(update={**changes, **how})
            device = prepare(arguments.device, threads=train.threads, tf32=train.tf32)
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
            known = next((peak for key, peak in PEAKS.items() if key in name), None)
            peak_flops = arguments.peak or known
            try:
                seconds, memory = measure(
                    config.model_copy(update={"train": train}), device, arguments.steps
                )
            except (torch.OutOfMemoryError, TrainingError):  # a step says what to do about it
                print(f"{backbone:<9} {way:<10}  out of memory", flush=True)
                continue
            finally:
                gc.collect()
                torch.cuda.empty_cache()
            plain = plain or seconds
            rate = arguments.batch / seconds
            used = f"{100 * flops * rate / peak_flops / 1e12:5.1f}%" if peak_flops else "     -"
            shown = f"{memory / 1e9:9.1f}" if memory else "        -"
            print(
                f"{backbone:<9} {way:<10} {seconds:7.3f} {rate:9.2f}  {shown} {used}"
                f"  {plain / seconds:12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
