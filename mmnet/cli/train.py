"""Commands on runs: pretrain, train, predict, evaluate, examples, queries.

Commands import what they need when they run: `--help` is instant, and a command that needs no
torch does not wait for it.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmnet.cli.common import computing, known_tower, launched, load, load_run
from mmnet.config.identity import Identity, RunInputs, training_identity
from mmnet.config.paths import existing
from mmnet.config.schema import Config, Params
from mmnet.runtime.errors import CheckpointError, DataError
from mmnet.runtime.files import write_json
from mmnet.runtime.launcher import is_first


def pretrain(arguments: argparse.Namespace) -> None:
    from mmnet.train.pretrain import pretrain

    params, paths = load(arguments)
    tower = known_tower(arguments.tower, params, pretrained="captions")
    config = params.active.pretrain
    assert config is not None  # or no tower is pre-trained on captions
    tables, output = [paths.table(name) for name in config.captions], paths.clip(arguments.tower)
    with computing(arguments.device, config) as device:
        pretrain(tower, config, tables=tables, images=paths.images, output=output, device=device)


def train(arguments: argparse.Namespace) -> int | None:
    from mmnet.tracking.live import Recording
    from mmnet.tracking.provenance import check_clean, say_revision
    from mmnet.train.loop import fit

    params, paths, config, run = load_run(arguments)
    if params.mlflow.require_clean:
        check_clean(Path())
    if (code := launched(arguments, config)) is not None:
        return code
    inputs = paths.inputs(config)
    identity = _checked_identity(config, inputs, params) if is_first() else None
    with computing(arguments.device, config.train) as device, contextlib.ExitStack() as recording:
        if params.mlflow.enabled and identity:  # of several processes, the first records
            tables = params.experiments[config.experiment].tables
            recording.enter_context(Recording(config, run, identity, tables, device))
        say_revision(Path())
        fit(config, identity, inputs=inputs, run=run, device=device)
    return None


def _checked_identity(config: Config, inputs: RunInputs, params: Params) -> Identity:
    """Return the training's identity; OpenAI's weights must be those that params.yaml pins."""
    identity = training_identity(config, inputs)
    if config.tower.pretrained == "openai":
        expected, found = params.active.weights[config.tower_name].sha256, identity.data["weights"]
        if expected not in (None, found):
            raise DataError(
                f"{inputs.weights}: sha256 is {found}, expected {expected}. Delete it, then fetch "
                f"it again: mmnet download-clip {config.tower_name}."
            )
    return identity


def predict(arguments: argparse.Namespace) -> int | None:
    from mmnet.evaluate.predict import predict_splits
    from mmnet.evaluate.preview import write_predictions
    from mmnet.evaluate.save_masks import check_output, save_masks

    _, paths, config, run = load_run(arguments)
    if arguments.save_masks:
        check_output(arguments.save_masks)
    if (code := launched(arguments, config)) is not None:
        return code
    own, inputs = arguments.checkpoint, paths.inputs(config)
    remedy = "Give another, or leave --checkpoint out for the run's own"
    checkpoint = run.checkpoint if own is None else existing(own, "--checkpoint", remedy)
    with _with_remedy(own and remedy), computing(arguments.device, config.train) as device:
        predict_splits(config, inputs, checkpoint=checkpoint, output=run.rows, device=device)
        if is_first():
            write_predictions(config, inputs, checkpoint=checkpoint, run=run, device=device)
            if arguments.save_masks:
                output = arguments.save_masks
                save_masks(config, inputs, checkpoint=checkpoint, output=output, device=device)
    return None


@contextlib.contextmanager
def _with_remedy(remedy: str | None) -> Iterator[None]:
    """End the errors of a user's own checkpoint with `remedy`: training again changes none."""
    try:
        yield
    except CheckpointError as error:
        what, point, _ = str(error).rpartition(". ")
        raise CheckpointError(f"{what}{point}{remedy}.") if remedy else error from None


def evaluate(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.metrics import percents, score_run
    from mmnet.tracking.live import send

    params, _, config, run = load_run(arguments)
    scores = score_run(config, rows=run.rows)
    write_json(run.percents, percents(scores))
    write_json(run.scores, scores)
    if params.mlflow.enabled:
        send(run, params.experiments[config.experiment].tables)


def examples(arguments: argparse.Namespace) -> None:
    from mmnet.config.tables import without_mmp
    from mmnet.evaluate.examples import write_examples

    params, paths, config, _ = load_run(arguments)
    twin = without_mmp(params, config)
    with computing(arguments.device, config.train) as device:
        write_examples(config, twin, paths, device=device)


def queries(arguments: argparse.Namespace) -> None:
    from mmnet.evaluate.queries import write_queries

    _, paths, config, _ = load_run(arguments)
    with computing(arguments.device, config.train) as device:
        write_queries(config, paths, device=device)
