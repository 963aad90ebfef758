import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake_interface_executor_plugins.settings import DeploymentMethod

sys.path.insert(0, workflow.basedir)

from mmnet.runtime.fingerprint import code_version
from mmnet.config.load import load_params
from mmnet.runtime.errors import ConfigError, MMNetError
from mmnet.config.tables import shown_run, without_mmp
from mmnet.runtime.files import checksum
from mmnet.config.paths import RESULTS, Layout
from mmnet.config.overrides import overrides_between
from mmnet.config.tables import TABLES, TITLES, check_rows, runs_of


envvars:
    "PATH",


ENVIRONMENT = "../../environment.yml"


# --use-conda must work where there is no conda too: this Python then runs the jobs. Snakemake has
# no public switch for it (tests/test_workflow.py notices should the internal one change).
deployment = workflow.deployment_settings
if (
    deployment
    and DeploymentMethod.CONDA in deployment.deployment_method
    and not shutil.which("conda")
):
    deployment.deployment_method = set(deployment.deployment_method) - {
        DeploymentMethod.CONDA
    }
    logger.warning("No conda on the PATH: the jobs run in this Python's environment.")
os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ["PATH"]]
)

PARAMS_FILE = Path("params.yaml")
OVERRIDES = overrides_between(
    yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8")), config
)

# The whole of params.yaml is checked here, before any job: a mistake in one experiment must not
# show after hours of another.
try:
    PARAMS = load_params(PARAMS_FILE, OVERRIDES)
    PROFILE = PARAMS.active
    LAYOUT = Layout(PARAMS.profile)
    # What each archive is read from: fetched, or a user's own copy.
    SOURCES = {
        name: LAYOUT.source(name, PROFILE.data.get(name)) for name in PROFILE.archives
    }
    for tower, values in PROFILE.towers.items():
        LAYOUT.weights(tower, values)
    for table in TABLES:
        check_rows(table, PARAMS)
    given = workflow.global_resources.get("gpu")
    limit = given.value if given else None  # none of a queue's
    for name in PARAMS.experiments:
        train = PARAMS.resolve(name, PARAMS.seeds[0]).train
        is_on_gpus = train.device != "cpu" and train.processes > 1
        if limit is not None and is_on_gpus and train.processes > limit:
            # Snakemake would ask for fewer without a word, and the job take them all the same.
            raise ConfigError(
                f"params.yaml: {name}: train.processes is {train.processes}, more GPUs than there "
                f"are for all jobs. Add --resources gpu={train.processes} or more, or lower it."
            )
    for name, dataset in PROFILE.datasets.items():
        for file in ("instances.json", f"refs({dataset.refs}).p"):
            if SOURCES[name].is_dir() and not (SOURCES[name] / file).is_file():
                raise ConfigError(
                    f"params.yaml: profiles.{PARAMS.profile}.data.{name}: {SOURCES[name]} lacks "
                    f"{file}. Add it, or name another copy, or null to have it fetched."
                )
except MMNetError as error:
    raise WorkflowError(str(error)) from None

LOGS = Path("logs") / PARAMS.profile
DATASETS = list(PROFILE.datasets)
CAPTIONS = PROFILE.pretrain.captions if PROFILE.pretrain else []

# In the rules' shell, `mmnet` is this package, told what `--config` changed. (Not through `params`:
# a value reruns the same jobs whether it was changed there or in params.yaml.)
SET = " ".join(f"--set {shlex.quote(override)}" for override in OVERRIDES)
SET = SET.replace("{", "{{").replace("}", "}}")  # Snakemake formats the prefix
shell.prefix(f'set -euo pipefail; mmnet() {{{{ python -m mmnet "$@" {SET}; }}}}; ')


def as_json(section, less=None):
    """A slice of the parameters, for a rule's `params`: it reruns when, and only when, they change."""
    return json.dumps(
        section.model_dump(mode="json", exclude=less) if section else None
    )


def run_config(wildcards):
    return PARAMS.resolve(wildcards.experiment, int(wildcards.seed))


def drawn_archives(wildcards):
    """Where the archives are procedural, what is drawn before it can be fetched."""
    if not PROFILE.shapes:
        return []
    archive = PROFILE.archives[wildcards.archive]
    files = [
        url.removeprefix("file:") for url in archive.urls if url.startswith("file:")
    ]
    return files + ([archive.checksums] if archive.checksums else [])


def archive_input(name):
    """What stands for an archive in the rules: a fetched one's checksum, or the user's own copy.

    Snakemake deletes a rule's outputs before it runs: no archive is one.
    """
    if PROFILE.data.get(name) is None:
        return LAYOUT.fetched(LAYOUT.archive(name))
    source = SOURCES[name]
    if source.is_dir() and name in DATASETS:
        return [
            source / "instances.json",
            source / f"refs({PROFILE.datasets[name].refs}).p",
        ]
    return source


def towers_from(source):
    """Wildcard constraint: the towers whose weights come from a source; or none."""
    names = [
        name for name, tower in PROFILE.towers.items() if tower.pretrained == source
    ]
    return "|".join(names) or "none of them"


def needed(paths):
    """Files of runs; with allow_missing none: as inputs, Snakemake would train what is missing."""
    return [] if PARAMS.allow_missing else paths


def found(paths):
    """With allow_missing, which of them there are, and that they are the same."""
    return {
        str(path): checksum(path)
        for path in paths
        if PARAMS.allow_missing and path.exists()
    }


def drawn_from(path):
    """What Figures 5 and 6 are drawn from: of the first seed."""
    try:
        return path(shown_run(PARAMS), PARAMS.seeds[0])
    except MMNetError as error:
        raise WorkflowError(str(error)) from None


def pair_of(wildcards):
    """A run and its twin without MMP."""
    config = run_config(wildcards)
    try:
        return [config, without_mmp(PARAMS, config)]
    except MMNetError as error:
        raise WorkflowError(str(error)) from None


def files_of(configs):
    return [
        path(config.experiment, config.seed)
        for config in configs
        for path in (LAYOUT.checkpoint, LAYOUT.rows)
    ]


def identities(configs):
    return [json.dumps(config.identity()) for config in configs]


def weights_of(name):
    """What stands for a tower's weights in the rules; None of one that starts from nothing."""
    tower = PROFILE.towers[name]
    weights = LAYOUT.weights(name, tower)
    return LAYOUT.fetched(weights) if tower.pretrained == "openai" else weights


def towers_in_use():
    names = {experiment.tower for experiment in PARAMS.experiments.values()}
    made = {"openai", "captions"}
    return [
        weights_of(name)
        for name in sorted(names)
        if PROFILE.towers[name].pretrained in made
    ]


def run_inputs(wildcards):
    config = run_config(wildcards)
    weights = weights_of(config.tower_name)
    return {
        "table": LAYOUT.table(config.dataset_name),
        "images": LAYOUT.manifest,
        **({"weights": weights} if weights else {}),
    }


def gpus(config, processes=1):
    """Cards that a job asks for: of `--resources gpu=1` here, or of the queue."""
    return 0 if config is None or config.device == "cpu" else processes


def shared_gpus(wildcards):
    """Those of a job whose processes torchrun starts."""
    train = run_config(wildcards).train
    return gpus(train, train.processes)


def cores(wildcards):
    """What all processes of a job compute on and read with."""
    train = run_config(wildcards).train
    return train.processes * (train.threads + train.workers)


def asks(kind):
    """What else it asks of the queue, as a rule's `resources`."""
    job = getattr(PROFILE.cluster, kind)
    partition = {"slurm_partition": job.partition} if job.partition else {}
    return {"mem_mb": job.memory_mb, "runtime": job.minutes, **partition}


wildcard_constraints:
    experiment="|".join(PARAMS.experiments),
    seed=r"\d+",
    dataset="|".join(map(re.escape, DATASETS)),
    archive="|".join(map(re.escape, PROFILE.archives)),
    tower="|".join(PROFILE.towers),
