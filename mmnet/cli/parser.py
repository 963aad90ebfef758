"""The command line: the arguments of each command. The files beside this one run them."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmnet.cli import data, pipeline, report, train
from mmnet.config.tables import TABLES
from mmnet.runtime.errors import MMNetError, Stopped
from mmnet.runtime.launcher import end_with_launcher, is_first, is_recorded
from mmnet.runtime.system import check_supported


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        check_supported()
        end_with_launcher()
        parsed = _parser().parse_args(arguments, argparse.Namespace(command_line=arguments))
        command: Callable[[argparse.Namespace], int | None] = parsed.run
        return command(parsed) or 0
    except MMNetError as caught:
        error = caught
    except KeyboardInterrupt:
        line = "interrupted. Run the same command again to resume."
        error = Stopped(line, signal.SIGINT)
    # All processes of a run stop together, and the first one says so for all.
    if not is_recorded(error) and (is_first() or not isinstance(error, Stopped)):
        print(f"mmnet: {error}", file=sys.stderr)
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmnet",
        description="MMNet: Multi-Mask Network for Referring Image Segmentation, from raw data to "
        "its tables. The Snakefile calls these commands in order; each can be called by hand.",
    )
    runs = vars(data) | vars(train) | vars(report) | vars(pipeline)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> Any:
        command = subparsers.add_parser(name, help=text, description=text)
        command.set_defaults(run=runs[name.replace("-", "_")])
        command.add_argument(
            "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="%(default)s"
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a key of params.yaml, such as profile=paper; may be repeated",
        )
        return command

    def add_run(name: str, text: str) -> Any:
        command = add(name, text)
        command.add_argument("--experiment", required=True, help="a name of params.yaml")
        command.add_argument("--seed", type=int, help="default: the first of params.yaml's seeds")
        return command

    def add_device(command: Any) -> None:
        command.add_argument(
            "--device", help="cpu, cuda, cuda:1, ... or auto; default: params.yaml's"
        )

    add("shapes", "Draw the procedural benchmark and write its archives.")
    command = add("download", "Fetch archives and verify their checksums.")
    command.add_argument(
        "archives",
        nargs="*",
        metavar="ARCHIVE",
        help="refcoco, refcoco+, refcocog, train2014; default: all, less your own copies",
    )
    command.add_argument(
        "--check", action="store_true", help="fetch nothing: verify what is there, CLIP too"
    )
    command = add("prepare", "Turn a dataset's archive into one table of sentences.")
    command.add_argument("dataset", metavar="DATASET", help="refcoco, refcoco+ or refcocog")
    add("unpack-images", "Unpack the images that the tables name.")
    command = add("download-clip", "Fetch OpenAI's weights of a CLIP tower.")
    command.add_argument("tower", metavar="TOWER", help="a name of the profile's towers")
    command = add("pretrain", "Pre-train a CLIP tower on captioned crops.")
    command.add_argument("tower", metavar="TOWER", help="a name of the profile's towers")
    add_device(command)
    command = add_run("train", "Train an experiment, or go on with an interrupted one.")
    add_device(command)
    command = add_run("predict", "Count intersection and union for every sentence.")
    command.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="default: the experiment's own"
    )
    add_device(command)
    add_run("evaluate", "Score the rows that predict wrote: mIoU, oIoU, Pr@X.")
    command = add("report", "Write a table: of runs' scores, of what the data hold, of claims.")
    command.add_argument(
        "table",
        metavar="TABLE",
        choices=[*TABLES, "data", "claims", "parameters"],
        help="%(choices)s",
    )
    command.add_argument(
        "--from-mlflow", action="store_true", help="of table1-4: read the scores there instead"
    )
    command = add("mlflow-sync", "Send to MLflow what it lacks of the profile's runs.")
    command.add_argument(
        "folders",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="runs/PROFILE/EXPERIMENT/seedN; default: all",
    )
    command.add_argument(
        "--port", type=int, help="also print the address of the runs on MLflow's page at this port"
    )
    status = add("status", "Show what every run is doing, why it is stale, and the hours left.")
    status.add_argument(
        "--accept",
        nargs="+",
        metavar="RUN",
        help="EXPERIMENT or EXPERIMENT/seedN: take a finished run as it is, on record, in spite of "
        "what has changed since",
    )
    plan = add("plan", "Print the runs of tables: FLOPs, GPU hours, memory and disk.")
    for command in (status, plan):
        command.add_argument(
            "tables", metavar="TABLE", nargs="*", help=f"{', '.join(TABLES)}; default: all"
        )
        command.add_argument(
            "--tflops",
            type=float,
            default=40.0,
            metavar="RATE",
            help="TFLOP/s that the GPU sustains, an assumption; default: %(default)g",
        )
    command = add_run(
        "examples", "Write what Figure 5 shows of a run and of its twin without MMP: masks."
    )
    add_device(command)
    command = add_run(
        "queries", "Write what Figure 6 shows of a run: each query's words, mask and score."
    )
    add_device(command)
    command = add("figure", "Draw a figure: 4 of scores, 5 of examples, 6 of queries.")
    command.add_argument(
        "number", metavar="NUMBER", type=int, choices=[4, 5, 6], help="%(choices)s"
    )
    add("curves", "Collect the runs' training curves in one CSV.")
    add("paper", "Typeset all tables, figures and claims in results/ as one PDF.")
    add("adopt", "Make Snakemake take pulled files for its own, if they are those of dvc.lock.")
    add("record", "Put all that Snakemake has made into dvc.lock, as `dvc repro` would.")
    command = add("describe", "Print modules, parameters, FLOPs and output sizes.")
    command.add_argument("--experiment", required=True, help="a name of params.yaml")
    return parser
