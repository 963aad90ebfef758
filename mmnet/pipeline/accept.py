"""Taking a finished run as it is, on record, where its user knows that a change does not matter."""

from collections.abc import Iterable

from torch import Tensor

from mmnet.config.identity import Identity, RunInputs, differences, flat, training_identity
from mmnet.config.messages import did_you_mean
from mmnet.config.paths import RunPaths, WorkPaths
from mmnet.config.schema import Config, Params
from mmnet.config.tables import Run
from mmnet.model import checkpoint
from mmnet.pipeline.cost import on_meta
from mmnet.pipeline.status import shown
from mmnet.runtime.errors import CheckpointError, ConfigError, DataError, MMNetError
from mmnet.runtime.files import atomic_write, locked, read_json, write_json

ANOTHER_RUN = {"profile", "seed", "dataset_name", "tower.architecture"}
"""Values that make it another run. So do those of `model`, except for MATTERS_IN_TRAINING."""
MATTERS_IN_TRAINING = {"model.dropout"}


def named_runs(names: Iterable[str], params: Params) -> list[Run]:
    """Return the runs that EXPERIMENT or EXPERIMENT/seedN name.

    Raises:
        ConfigError: there is no such run.
    """
    known = {name: [(name, seed) for seed in params.seeds] for name in params.experiments}
    known |= {f"{name}/seed{seed}": [(name, seed)] for name in known for seed in params.seeds}
    for name in names:
        if name not in known:
            raise ConfigError(f"--accept: no run {name!r}." + did_you_mean(name, known))
    return list(dict.fromkeys(run for name in names for run in known[name]))


def accept(config: Config, inputs: RunInputs, run: RunPaths) -> str:
    """Make a published run the finished training of its current identity; return what differs.

    It gets a work folder as if it had been trained so, which `fit` finds finished and publishes.

    Raises:
        DataError: nothing is published, or an input does not exist.
        CheckpointError: the published model is not one of `config`'s.
        MMNetError: nothing differs, or the work folder holds a training.
    """
    about = read_json(run.identity)
    old = Identity.from_dict(about.get("identity"))
    if old is None or not run.checkpoint.is_file() or not run.metrics.is_file():
        raise DataError(
            f"{run.folder}: no published run to accept. Train it: mmnet train "
            f"--experiment {run.experiment} --seed {run.seed}."
        )
    new = training_identity(config, inputs)
    found = differences(old, new)
    if not found:
        raise MMNetError(f"{run.folder}: nothing has changed since its training.")
    content = checkpoint.load(run.checkpoint)
    if content["identity"] != old.as_dict():
        raise CheckpointError(f"{run.folder}: run.json is not of this checkpoint. Train it again.")
    _check_values(old, new, run)
    _check_sizes(config, content["model"], run)
    work = run.work(new)
    with locked(work.folder):
        _check_unused(work, run)
        checkpoint.save(work.best, {**content, "identity": new.as_dict()})
        lines = run.metrics.read_text(encoding="utf-8")
        with atomic_write(work.metrics) as file:
            file.write(lines)
        accepted = [*about.get("accepted", []), {"from": old.digest, "differences": found}]
        write_json(work.about, {**about, "identity": new.as_dict(), "accepted": accepted})
        ended = {"epochs": len(lines.splitlines()), "best_epoch": content["epoch"]}
        write_json(work.finished, ended)
    return shown(found)


def _check_values(old: Identity, new: Identity, run: RunPaths) -> None:
    before, after = flat(old.values), flat(new.values)
    model = {key for key in {*before, *after} if key.startswith("model.")} - MATTERS_IN_TRAINING
    for key in sorted(ANOTHER_RUN | model):
        if before.get(key) != after.get(key):
            raise CheckpointError(
                f"{run.folder}: {key} {before.get(key)} -> {after.get(key)} makes it another model "
                "or another data set's. Train it again."
            )


def _check_sizes(config: Config, weights: dict[str, Tensor], run: RunPaths) -> None:
    """The code may have changed the model's sizes, whatever its values."""
    try:
        on_meta(config.model, config.tower).load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{run.folder}: {reason}. Train it again.") from None


def _check_unused(work: WorkPaths, run: RunPaths) -> None:
    if work.finished.is_file() and work.best.is_file():
        raise MMNetError(
            f"{work.folder}: is finished with the current values, data and code. `mmnet train "
            f"--experiment {run.experiment} --seed {run.seed}` or snakemake publishes it."
        )
    if work.last.is_file() or work.previous.is_file():
        raise MMNetError(
            f"{work.folder}: has an unfinished training with the current values, data and code. "
            "Let it finish, or delete the folder, then accept again."
        )
