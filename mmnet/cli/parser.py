"""The command line: the arguments of each command. The files beside this one run them."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmnet.cli import data, pipeline, report, train, use
from mmnet.config.load import load_params
from mmnet.config.schema import Params
from mmnet.config.tables import TABLES
from mmnet.runtime import portable
from mmnet.runtime.errors import MMNetError, Stopped
from mmnet.runtime.launcher import end_with_launcher, is_first, is_recorded, is_said
from mmnet.runtime.progress import say
from mmnet.runtime.system import check_supported, fault_of_shell, use_own_settings
from mmnet.use.tasks import FORMATS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        check_supported()
        use_own_settings()
        end_with_launcher()
        parsed = _parser().parse_args(arguments, argparse.Namespace(command_line=arguments))
        if hasattr(parsed, "params"):
            parsed.loaded = load_params(parsed.params, parsed.set)
            _choose_arithmetic(parsed.loaded)
        command: Callable[[argparse.Namespace], int | None] = parsed.run
        return command(parsed) or 0
    except BrokenPipeError:  # as of `mmnet status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MMNetError as caught:
        error = caught
    except Exception as caught:
        if (named := fault_of_shell(caught)) is None:
            raise
        error = named
    except KeyboardInterrupt:
        line = "interrupted. Run the same command again to resume."
        error = Stopped(line, signal.SIGINT)
    # All processes of a run stop together, and the first one says so for all.
    is_heard = is_first() or not isinstance(error, Stopped)
    if not is_recorded(error) and is_heard and not is_said(str(error)):
        print(f"mmnet: {error}", file=sys.stderr)
    return error.exit_code


class _Command(argparse.ArgumentParser):
    """Takes options between a command's other arguments too."""

    _is_inner = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_inner:  # of the two calls that parse_known_intermixed_args makes
            return super().parse_known_args(args, namespace)
        self._is_inner = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inner = False


def _choose_arithmetic(params: Params) -> None:
    """Set what libraries read when they are imported: none is, until a command runs."""
    if params.portable:
        portable.use()
    elif params.active.portable:
        say("Not Linux on x86-64 with AVX2: the results are labelled as not portable.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmnet",
        description="MMNet: Multi-Mask Network for Referring Image Segmentation, from raw data to "
        "its tables. The Snakefile calls these commands in order; each can be called by hand.",
    )
    runs = vars(data) | vars(train) | vars(report) | vars(pipeline) | vars(use)
    subparsers: Any = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Command
    )
    params, *shared = _shared()

    def add(
        name: str, text: str, *others: argparse.ArgumentParser, reads_params: bool = True
    ) -> Any:
        parents = [*([params] if reads_params else []), *others]
        command = subparsers.add_parser(name, help=text, description=text, parents=parents)
        command.set_defaults(run=runs[name.replace("-", "_")])
        return command

    _add_commands(add, *shared)
    _add_use(add)
    _add_export(add)
    return parser


def _add_commands(
    add: Callable[..., Any],
    run: argparse.ArgumentParser,
    device: argparse.ArgumentParser,
    tower: argparse.ArgumentParser,
    tables: argparse.ArgumentParser,
) -> None:
    add("shapes", "Draw the procedural benchmark and write its archives.")
    command = add("download", "Fetch archives and verify their checksums.")
    names = "refcoco, refcoco+, refcocog, train2014; default: all, less your own copies"
    command.add_argument("archives", nargs="*", metavar="ARCHIVE", help=names)
    text = "fetch nothing: verify what is there, CLIP too"
    command.add_argument("--check", action="store_true", help=text)
    command = add("prepare", "Turn a dataset's archive into one table of sentences.")
    command.add_argument("dataset", metavar="DATASET", help="refcoco, refcoco+ or refcocog")
    add("unpack-images", "Unpack the images that the tables name.")
    add("download-clip", "Fetch OpenAI's weights of a CLIP tower.", tower)
    add("pretrain", "Pre-train a CLIP tower on captioned crops.", tower, device)
    add("train", "Train an experiment, or resume an interrupted training.", run, device)
    command = add("predict", "Count intersection and union for every sentence.", run, device)
    command.add_argument("--checkpoint", metavar="FILE", help="default: the run's own")
    text = "also write the masks, as `mmnet score` reads them, to a new file of JSON lines"
    command.add_argument("--save-masks", type=Path, metavar="FILE", help=text)
    add("evaluate", "Score the rows that predict wrote: mIoU, oIoU, Pr@X.", run)
    _add_results(add, run, device)
    command = add("mlflow-sync", "Send to MLflow what it lacks of the profile's runs.")
    text = "runs/PROFILE/EXPERIMENT/seedN; default: all"
    command.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help=text)
    text = "also print the address of the runs on MLflow's page at this port"
    command.add_argument("--port", type=int, help=text)
    text = "Show what every run is doing, why it is stale, and the hours left."
    command = add("status", text, tables)
    text = "EXPERIMENT or EXPERIMENT/seedN: accept a finished run in spite of what has changed"
    command.add_argument("--accept", nargs="+", metavar="RUN", help=f"{text}; this is recorded")
    add("plan", "Print the runs of tables: FLOPs, GPU hours, memory and disk.", tables)
    add("adopt", "Make Snakemake accept pulled files, if they match dvc.lock.")
    add("record", "Commit all that Snakemake has made to dvc.lock.")
    command = add("describe", "Print modules, parameters, FLOPs and output sizes.")
    command.add_argument("--experiment", required=True, help="a name of params.yaml")


def _add_results(
    add: Callable[..., Any], run: argparse.ArgumentParser, device: argparse.ArgumentParser
) -> None:
    """Add the commands that write tables, figures and pages."""
    command = add("report", "Write a table: of runs' scores, of the data, of claims, of values.")
    choices = [*TABLES, "readings", "data", "claims", "parameters"]
    command.add_argument("table", metavar="TABLE", choices=choices, help="%(choices)s")
    text = "of table1-4: read the scores there instead"
    command.add_argument("--from-mlflow", action="store_true", help=text)
    text = "Write what Figure 5 shows of a run and of its twin without MMP: masks."
    add("examples", text, run, device)
    text = "Write what Figure 6 shows of a run: each query's words, mask and score."
    add("queries", text, run, device)
    command = add("figure", "Draw a figure: 4 of scores, 5 of examples, 6 of queries.")
    numbers = {"metavar": "NUMBER", "choices": [4, 5, 6], "help": "%(choices)s"}
    command.add_argument("number", type=int, **numbers)
    command = add("compare", "Compare own tables with reference results: exit code 0 if all agree.")
    text = "a folder of other results; default: docs/results/PROFILE"
    reference = {"type": Path, "metavar": "FOLDER", "dest": "reference", "help": text}
    command.add_argument("--with", **reference)
    _add_score(add)
    add("curves", "Collect the runs' training curves in one CSV.")
    add("paper", "Typeset all tables, figures and claims in results/ as one PDF.")


def _add_score(add: Callable[..., Any]) -> None:
    command = add("score", "Score masks that any model made: mIoU, oIoU, Pr@X; compare with a run.")
    text = "JSON lines: sent_id, or ref_id and sentence; segmentation, run lengths as COCO's"
    command.add_argument("file", type=Path, metavar="FILE", help=text)
    text = "refcoco, refcoco+ or refcocog"
    command.add_argument("--dataset", required=True, metavar="NAME", help=text)
    text = "default: the evaluation splits of which the file has masks"
    splits: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "help": text}
    command.add_argument("--split", metavar="SPLIT", **splits)
    text = "EXPERIMENT or EXPERIMENT/seedN: also show the difference, with its interval"
    command.add_argument("--against", metavar="RUN", help=text)
    command.add_argument("--name", help="of the method; default: the file's")
    text = "where to write rows.parquet, scores.json and, with --against, against.json"
    command.add_argument("-o", "--output", type=Path, metavar="FOLDER", help=text)
    command.add_argument("--force", action="store_true", help="overwrite files that exist")


def _add_use(add: Callable[..., Any]) -> None:
    """Add the commands on one's own pictures; a model knows its own values."""
    model = argparse.ArgumentParser(add_help=False)
    text = "a finished run: EXPERIMENT, EXPERIMENT/seedN or PROFILE/EXPERIMENT/seedN"
    named = model.add_mutually_exclusive_group()
    named.add_argument("--run", dest="run_name", metavar="RUN", help=f"{text}; default: the only")
    text = "instead: a checkpoint, a run's folder, what export wrote, or hf:OWNER/NAME[@REVISION]"
    named.add_argument("--checkpoint", metavar="PATH", help=text)
    text = "cpu, cuda, cuda:1, ... or auto, the default"
    model.add_argument("--device", default="auto", help=text)

    text = "Find what sentences name in pictures, and write masks."
    command = add("segment", text, model, reads_params=False)
    text = "a picture, or a folder of pictures"
    command.add_argument("image", nargs="?", metavar="IMAGE", help=text)
    text = "what to find, such as 'the left dog'; each in each picture"
    command.add_argument("sentences", nargs="*", metavar="SENTENCE", help=text)
    text = "CSV with the columns image, sentence and, if there is one, id; -: standard input"
    command.add_argument("--pairs", metavar="FILE", help=text)
    text = "a folder, or a .png for one mask"
    options: dict[str, Any] = {"type": Path, "metavar": "PATH", "help": text}
    command.add_argument("-o", "--output", required=True, **options)
    text = (
        "png: a mask for each pair; jsonl: results.jsonl alone; coco: annotations.json too; "
        "polygons: in results.jsonl instead of run lengths. Default: %(default)s"
    )
    command.add_argument("--format", choices=FORMATS, default="png", help=text)
    text = "also draw each mask on its picture"
    command.add_argument("--overlay", action="store_true", help=text)
    text = "also draw and list what each query reads, its mask and its score"
    command.add_argument("--queries", action="store_true", help=text)
    text = "on the probability, 0 to 1; default: the training's on val"
    command.add_argument("--threshold", type=float, metavar="P", help=text)
    command.add_argument("--force", action="store_true", help="overwrite files that exist")

    text = "Serve a page of a trained model, for own pictures and sentences."
    command = add("serve", text, model, reads_params=False)
    text = "of this computer's own address; 0: a free one; default: %(default)s"
    command.add_argument("--port", type=int, default=8000, help=text)
    command.add_argument("--open", action="store_true", help="open the page in a browser")


def _add_export(add: Callable[..., Any]) -> None:
    text = "Write a run's model for others: weights, config.json and a model card."
    command = add("export", text, reads_params=False)
    text = "EXPERIMENT, EXPERIMENT/seedN, PROFILE/EXPERIMENT/seedN, or a run's folder"
    command.add_argument("exported", metavar="RUN", help=text)
    output = {"type": Path, "required": True, "metavar": "FOLDER", "help": "what to write"}
    command.add_argument("-o", "--output", **output)
    text = "weights in fp16, and in the card what that costs on val"
    command.add_argument("--half", action="store_true", help=text)
    text = "also torch.export programs of the image part and the head"
    command.add_argument("--programs", action="store_true", help=text)
    text = "of --half's predictions: cpu, cuda, cuda:1, ... or auto; default: as in training"
    command.add_argument("--device", help=text)
    text = "replace an earlier export in that folder"
    command.add_argument("--force", action="store_true", help=text)


def _shared() -> list[argparse.ArgumentParser]:
    """Arguments that several commands take: params.yaml, a run, a device, a tower, tables."""
    params, run, device, tower, tables = (argparse.ArgumentParser(add_help=False) for _ in range(5))
    file = Path("params.yaml")
    params.add_argument("--params", type=Path, default=file, metavar="FILE", help="%(default)s")
    text = "override a key of params.yaml, such as profile=paper; may be repeated"
    params.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    run.add_argument("--experiment", required=True, help="a name of params.yaml")
    run.add_argument("--seed", type=int, help="default: the first of params.yaml's seeds")
    text = "cpu, cuda, cuda:1, ... or auto; default: params.yaml's"
    device.add_argument("--device", help=text)
    tower.add_argument("tower", metavar="TOWER", help="a name of the profile's towers")
    text = f"{', '.join(TABLES)}; default: all"
    tables.add_argument("tables", metavar="TABLE", nargs="*", help=text)
    text = "TFLOP/s that the GPU sustains, an assumption; default: %(default)g"
    tables.add_argument("--tflops", type=float, default=40.0, metavar="RATE", help=text)
    return [params, run, device, tower, tables]
