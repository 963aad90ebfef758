"""The command that makes a run's model ready to be shared."""

import argparse
import re
from pathlib import Path

from mmnet.cli.common import load
from mmnet.config.messages import did_you_mean
from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Params
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.progress import readable, say


def export(arguments: argparse.Namespace) -> None:
    params, paths = load(arguments)
    run = named_run(arguments.exported, params, paths)
    profile = params.profiles.get(run.profile)

    from mmnet.use.export import check_output, export

    output: Path = arguments.output
    check_output(output, force=arguments.force)  # before the weights are read
    cost = export(
        run,
        output,
        half=arguments.half,
        programs=arguments.programs,
        force=arguments.force,
        is_procedural=profile is not None and profile.shapes is not None,
        device=arguments.device,
    )
    if cost is not None:
        say(f"fp16, mIoU on val in percent: {cost}")
    for path in sorted(output.iterdir()):
        say(f"{path}: {readable(path.stat().st_size)}")


def named_run(name: str, params: Params, paths: Paths) -> RunPaths:
    """Return the run of EXPERIMENT, EXPERIMENT/seedN or a run's folder.

    Raises:
        ConfigError: it is none of these.
    """
    experiment, _, seed = name.partition("/seed")
    if experiment in params.experiments and (seed.isdecimal() or name == experiment):
        return paths.run(experiment, int(seed) if seed else params.seeds[0])
    folder = Path(name)
    *_, profile, of, last = ("", "", *folder.absolute().parts)
    if folder.is_dir() and (number := re.fullmatch(r"seed(\d+)", last)):
        return RunPaths(profile, of, int(number[1]), folder.parent.parent.parent.parent)
    raise ConfigError(
        f"{name}: no experiment of params.yaml, nor a run's folder (expected EXPERIMENT, "
        f"EXPERIMENT/seedN or runs/PROFILE/EXPERIMENT/seedN)."
        + did_you_mean(name, params.experiments)
    )
