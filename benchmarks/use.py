"""What using a model takes: sentences read together, and a folder decoded beside the model.

    python benchmarks/use.py                          # RN50 at 480, as in the paper
    python benchmarks/use.py --sentences 7 --pictures 12 --rounds 3 --device cpu

Both ways of each comparison run in turn in this process, and are warmed up; the ratio is of their
median times. Weights are random and pictures are noise: neither changes the time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmnet.config.load import load_params
from mmnet.model.build import build_model
from mmnet.use.config import InferenceConfig
from mmnet.use.model import Model


def model_of(experiment: str, device: str) -> Model:
    """Return an experiment's model at the paper's size, with random weights."""
    params = load_params(Path("params.yaml"), ["profile=paper"])
    run = params.resolve(experiment, 0)
    config = InferenceConfig.of_training(run.training_values(), name=experiment, source=experiment)
    network = build_model(config.model, config.tower, weights=None)
    return Model(config, network.to(device).eval(), torch.device(device))


def compare(name: str, ways: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time ways in turn; print each one's median, and the first's over the last's."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(of_way) for way, of_way in times.items()}
    shown = ", ".join(f"{way} {seconds:.2f} s" for way, seconds in medians.items())
    first, *_, last = medians.values()
    print(f"{name}: {shown}; ratio {first / last:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="nq_24", help="of profile paper; default: RN50's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sentences", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 3000), help="of the folder's")
    arguments = parser.parse_args()
    model = model_of(arguments.experiment, arguments.device)
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(arguments.pictures)]
        for path in paths:
            Image.fromarray(coarse).resize(arguments.size).save(path, quality=90)
        small = Path(folder) / "small.jpg"
        Image.fromarray(coarse).resize((640, 480)).save(small)
        sentences = [f"the dog number {number}" for number in range(arguments.sentences)]
        together: dict[str, Callable[[], object]] = {
            "separate calls": lambda: [model.look(small).find(s).mask for s in sentences],
            "one call": lambda: [found.mask for found in model.look(small).find(sentences)],
        }
        compare(f"{len(sentences)} sentences on one picture", together, arguments.rounds)
        pairs = [(path, "the left dog") for path in paths]
        folders: dict[str, Callable[[], object]] = {
            "loop": lambda: [model.look(path).find(s).mask for path, s in pairs],
            "find_many": lambda: [found.mask for found in model.find_many(pairs)],
        }
        name = "{} pictures of {} x {}".format(len(paths), *arguments.size)
        compare(name, folders, arguments.rounds)


if __name__ == "__main__":
    main()
