"""A small model behind the page, as a finished run beside its data."""

import contextlib
import io
import json
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mmnet
from mmnet.config.paths import Paths
from mmnet.config.schema import Config
from mmnet.model.build import build_model
from mmnet.model.checkpoint import save
from mmnet.use.model import Model
from mmnet.use.page.about import About, about
from mmnet.use.page.app import application
from mmnet.use.page.serve import bound, server_of
from mmnet.use.page.worker import Worker
from support.tiny import Tiny
from support.training import identity_like


def made_run(root: Path, tiny: Tiny, **changes: Any) -> Path:
    """Write a run with random weights and its data below `root`; return the run's folder."""
    model = tiny.config.model.model_copy(update=changes)
    train = tiny.config.train.model_copy(update={"val_threshold": 0.55})
    config: Config = tiny.config.model_copy(update={"model": model, "train": train})
    paths = Paths(config.profile, root)
    run = paths.run(config.experiment, config.seed)
    paths.data.mkdir(parents=True)
    shutil.copy(tiny.table, paths.table(config.dataset_name))
    paths.images.symlink_to(tiny.images)
    torch.manual_seed(0)
    network = build_model(config.model, config.tower, weights=None)
    for parameter in network.query_generator.parameters():
        parameter.data *= 1.85  # so that the queries differ, and no mask covers all
    save(run.checkpoint, {"model": network.state_dict(), "identity": identity_like(config)})
    run.identity.write_text(json.dumps({"experiment": config.experiment, "seed": config.seed}))
    lines = [{"epoch": n, "val": {"mIoU": miou}} for n, miou in ((1, 0.25), (2, 0.375), (3, 0.3))]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run.folder


def loaded(folder: Path) -> tuple[Model, About]:
    model = mmnet.load(folder, device="cpu")
    return model, about(model.config, folder)


@contextlib.contextmanager
def served(model: Model, known: About) -> Iterator[str]:
    """Serve a model's page from a thread; yield its address."""
    worker = Worker(model)
    with bound(0) as listening:
        server = server_of(application(worker, known))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            worker.close()


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Return a picture of noise; `size` is width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def claiming(side: int) -> bytes:
    """Return a PNG that is said to have so many pixels each way, and has none."""
    data = png(Image.new("1", (1, 1)))
    head = data[12:16] + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
