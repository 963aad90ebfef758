"""The command that serves the page of a trained model."""

import argparse
from pathlib import Path

from mmnet.cli.common import load
from mmnet.runtime.errors import ConfigError


def serve(arguments: argparse.Namespace) -> None:
    from mmnet.use.page.about import about
    from mmnet.use.page.serve import bound, serve
    from mmnet.use.page.worker import Worker

    listening = bound(arguments.port)  # before the model, which takes longer
    with listening:
        from mmnet import load

        folder = arguments.checkpoint or _folder(arguments)
        model = load(folder, device=arguments.device or "auto")
        known = about(model.config, folder if folder.is_dir() else folder.parent)
        serve(Worker(model), known, listening, opens=arguments.open)


def _folder(arguments: argparse.Namespace) -> Path:
    params, paths = load(arguments)
    finished = sorted(paths.root.glob(f"runs/{params.profile}/*/seed*/checkpoint.pt"))
    if arguments.run_name is not None:
        finished = [f for f in finished if f.parent.parent.name == arguments.run_name]
    if len(finished) == 1:
        return finished[0].parent
    names = ", ".join(f.parent.parent.name for f in finished) or "none: make table1"
    raise ConfigError(f"--run: choose one of the finished runs: {names}.")
