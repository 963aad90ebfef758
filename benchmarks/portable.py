"""Whether this CPU gives portable arithmetic's bits, and what that costs in seconds a step.

    python benchmarks/portable.py            # portable: the bits agree, or exit code 1
    python benchmarks/portable.py --native   # as this CPU likes it: for the time

Prints the losses of the first and the last of 15 training steps on noise, as hexadecimal floats.
The values of the runs and the ViT are given here, so that the bits stay comparable as params.yaml
and mini's towers change.
"""

# ruff: noqa: E402 - variables are set before torch is imported
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from mmnet.runtime import portable

NATIVE = "--native" in sys.argv
if not NATIVE:
    if not portable.is_supported():
        sys.exit("Portable arithmetic needs Linux on x86-64 with AVX2.")
    portable.use()

import open_clip
import torch
from train_step import batch_of

from mmnet.config.load import load_params
from mmnet.model.build import build_model
from mmnet.runtime.distributed import ALONE
from mmnet.runtime.signals import Stop
from mmnet.train.step import Stepper, start

# Of AMD Zen 4, Zen 5 and an emulated Intel Haswell, with torch 2.13.0.
EXPECTED = {
    "refcoco_vit_b": ("0x1.2cecb20000000p-1", "0x1.e7e1f80000000p-2"),
    "nq_24": ("0x1.7285860000000p-1", "0x1.f6f8e40000000p-2"),
}
MODEL = {
    **{"image_size": 96, "width": 64, "channels": [64, 64, 64], "num_queries": 8},
    **{"decoder_layers": 2, "heads": 4, "ffn": 128, "dropout": 0.0},
    **{"mmp": "true", "mqe": "true", "f_vg": "true", "relu_kernel": "true"},
    **{"estimator_residual": "false", "vector_norm": "none", "generator_init": "torch"},
    **{"visual_query": "false", "attention_bias": "false", "position_resize": "antialiased"},
}
TRAIN = {
    **{"batch_size": 16, "accumulate": 1, "precision": "fp32", "head_lr_multiplier": 5.0},
    "clip_batchnorm": "trained",
}
VIT = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
VALUES = [
    "profile=mini",
    *(f"profiles.mini.model.{key}={value}" for key, value in MODEL.items()),
    *(f"profiles.mini.train.{key}={value}" for key, value in TRAIN.items()),
]


def losses(name: str) -> tuple[str, str, float]:
    """Return the first and last loss, and the CPU seconds of a step."""
    config = load_params(Path("params.yaml"), VALUES).resolve(name, 0)
    tower = config.tower
    if config.tower_name == "vit_b":
        tower = tower.model_copy(update={"architecture": "probe-vit"})
    torch.manual_seed(0)
    model = build_model(config.model, tower, weights=None).train()
    run = start(model, config.train, torch.device("cpu"))
    stepper = Stepper(run, config, ALONE, torch.device("cpu"), Stop())
    torch.manual_seed(1)
    batch = batch_of(config, 1)
    found = [stepper.step(batch, step=i, lr=1e-4) for i in range(3)]
    begin = time.process_time()
    found += [stepper.step(batch, step=i, lr=1e-4) for i in range(12)]
    return found[0].hex(), found[-1].hex(), (time.process_time() - begin) / 12


def main() -> int:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "probe-vit.json").write_text(json.dumps(VIT))
        open_clip.add_model_config(folder)
    agree = True
    for name, expected in EXPECTED.items():
        first, last, seconds = losses(name)
        agree &= (first, last) == expected
        bits = "the same bits" if (first, last) == expected else "OTHER BITS"
        print(f"{name} {first} {last} {seconds:.4f} s a step: {bits}")
    return 0 if agree or NATIVE else 1


if __name__ == "__main__":
    sys.exit(main())
