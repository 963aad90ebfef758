"""Commands that write tables, figures, claims and pages from finished files."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from mmnet.cli.common import known_name, load
from mmnet.config.paths import REFERENCE, RESULTS, Paths
from mmnet.config.schema import Params
from mmnet.config.tables import runs_of
from mmnet.runtime.progress import say


def report(arguments: argparse.Namespace) -> None:
    from mmnet.report.pages.html import write_page

    params, paths = load(arguments)
    if arguments.table == "data":
        from mmnet.report.pages.data import write_data_report

        tables = [paths.table(name) for name in params.active.datasets]
        key_words = paths.key_words if params.active.shapes else None
        write_data_report(tables, RESULTS, params=params, key_words=key_words)
    elif arguments.table == "claims":
        from mmnet.report.claims.write import write_claims

        write_claims(_rows_of(paths), RESULTS, params=params)
    elif arguments.table == "readings":
        from mmnet.report.tables.readings import write_readings

        write_readings(_rows_of(paths), _metrics_of(paths), RESULTS, params=params)
    elif arguments.table == "parameters":
        from mmnet.report.pages.parameters import write_parameters

        write_parameters(RESULTS, params=params)
    else:
        from mmnet.report.tables.write import write_table
        from mmnet.tracking.store import write_scores

        table = arguments.table
        with tempfile.TemporaryDirectory() as folder:
            if arguments.from_mlflow:
                scores = write_scores(table, Path(folder), params=params)
            else:
                scores = _existing_scores(table, params, paths)
            rows_of = None if arguments.from_mlflow else _rows_of(paths)
            write_table(table, scores, RESULTS, params=params, rows_of=rows_of)
    write_page(RESULTS / f"{arguments.table}.md")


def _rows_of(paths: Paths) -> Callable[[str, int], Path]:
    return lambda experiment, seed: paths.run(experiment, seed).rows


def _metrics_of(paths: Paths) -> Callable[[str, int], Path]:
    return lambda experiment, seed: paths.run(experiment, seed).metrics


def _existing_scores(table: str, params: Params, paths: Paths) -> list[Path]:
    """Return the score files that exist; the report names all missing runs in one message."""
    files = [paths.run(*run).scores for run in runs_of(table, params)]
    return [path for path in files if path.exists()]


def score(arguments: argparse.Namespace) -> None:
    from mmnet.data.refer import read_table
    from mmnet.evaluate.supplied import SuppliedMasks
    from mmnet.report import supplied

    params, paths = load(arguments)
    dataset, folder = arguments.dataset, arguments.output
    known_name(dataset, params.active.datasets, "dataset")
    if folder:
        supplied.check_output(folder, force=arguments.force)
    against, rival = arguments.against, None
    if against:
        rival = supplied.rival_of(against, dataset, _rows_of(paths), params)
    table = read_table(paths.table(dataset))
    for split in arguments.split:
        known_name(split, dict.fromkeys(table["split"]), "split")
    splits = list(dict.fromkeys(arguments.split)) or params.active.datasets[dataset].splits
    masks = SuppliedMasks(arguments.file, table, splits=splits)
    masks.read()
    rows = masks.result(splits if arguments.split else masks.found())
    scores = supplied.scores_of(rows, masks, params, dataset, arguments.name)
    comparison = supplied.difference_from(rival, rows, scores) if rival else None
    if folder:
        supplied.write(folder, rows, scores, comparison)
        say(f"{folder}: rows and scores of {len(rows)} sentences")
    print(supplied.shown(scores, comparison))


def compare(arguments: argparse.Namespace) -> int:
    from mmnet.report.compare import compare

    params, _ = load(arguments)
    reference = arguments.reference or REFERENCE / params.profile
    if arguments.reference is None and not reference.is_dir():
        print(f"No reference results of profile {params.profile}: nothing to compare with.")
        return 0
    comparison = compare(RESULTS, reference)
    print(*comparison.lines, sep="\n")
    return 0 if comparison.agrees else 1


def curves(arguments: argparse.Namespace) -> None:
    from mmnet.report.pages.curves import write_curves

    params, paths = load(arguments)
    write_curves(_metrics_of(paths), RESULTS, params=params)


def paper(arguments: argparse.Namespace) -> None:
    from mmnet.report.pages.paper import write_paper

    params, _ = load(arguments)
    write_paper(RESULTS, params=params)


def figure(arguments: argparse.Namespace) -> None:
    from mmnet.config.tables import shown_run
    from mmnet.report.figures.figure4 import write_figure4
    from mmnet.report.figures.mask_figures import write_figure5, write_figure6

    params, paths = load(arguments)
    if arguments.number == 4:
        scores = _existing_scores("table2", params, paths)
        write_figure4(scores, RESULTS, params=params, rows_of=_rows_of(paths))
        return
    config, label = params.resolve(shown_run(params), params.seeds[0]), params.active.label
    run = paths.run(config.experiment, config.seed)
    if arguments.number == 5:
        write_figure5(run.examples, config, RESULTS, label=label)
    else:
        write_figure6(run.queries, config, RESULTS, label=label)
