import re

from snakemake.logging import logger

from mmnet.config.code import code_hash
from mmnet.config.load import load_params, write_resolved
from mmnet.config.overrides import overrides_between
from mmnet.config.paths import RESULTS
from mmnet.config.tables import TABLES, TITLES, runs_of, without_mmp
from mmnet.pipeline.snakemake import (
    name_nearest_target,
    remove_dead_locks,
    run_in_conda_or_here,
)
from mmnet.pipeline.workflow import Workflow, as_json, cores, gpus

# Snakemake formats the path: braces of the folder's name are doubled.
ENVIRONMENT = re.sub("[{}]", r"\g<0>\g<0>", f"{workflow.basedir}/environment.yml")
OVERRIDES = overrides_between(VALUES, config)

# The whole of params.yaml is checked here, before any job: a mistake in one experiment must not
# show after hours of another.
GPU_LIMIT = workflow.global_resources.get("gpu")  # none of a queue's
PARAMS = checked(load_params, PARAMS_FILE, OVERRIDES)
WORKFLOW = checked(Workflow, PARAMS, GPU_LIMIT.value if GPU_LIMIT else None)
checked(run_in_conda_or_here, workflow, logger.warning)
if workflow.is_main_process and remove_dead_locks():
    logger.warning("Removed the locks of a killed Snakemake.")
PROFILE, PATHS, SHOWN = PARAMS.active, WORKFLOW.paths, WORKFLOW.shown
LOGS = Path("logs") / PARAMS.profile
DATASETS = list(PROFILE.datasets)

# In the rules' shell, `mmnet` is this package, and its parameters are those checked here. (Not
# through `params`: a value reruns the same jobs whether it was changed there or in params.yaml.)
RESOLVED = write_resolved(PARAMS, Path(".snakemake") / "mmnet")
shell.prefix(
    f'set -euo pipefail; mmnet() {{{{ python -m mmnet "$@" --params {RESOLVED}; }}}}; '
)


def run_config(wildcards):
    return PARAMS.resolve(wildcards.experiment, int(wildcards.seed))


def run_inputs(wildcards):
    return WORKFLOW.run_inputs(run_config(wildcards))


def run_cores(wildcards):
    return cores(run_config(wildcards))


def run_gpus(wildcards):
    """Of a job whose processes torchrun starts."""
    train = run_config(wildcards).train
    return gpus(train.device, train.processes)


def one_gpu(wildcards):
    return gpus(run_config(wildcards).train.device)


def pair_of(wildcards):
    """A run and its twin without MMP."""
    config = run_config(wildcards)
    return [config, checked(without_mmp, PARAMS, config)]


def files_of(configs):
    """What Figures 5 and 6 read of runs."""
    runs = [PATHS.run(config.experiment, config.seed) for config in configs]
    return [path for run in runs for path in (run.checkpoint, run.rows)]


wildcard_constraints:
    experiment="|".join(PARAMS.experiments),
    seed=r"\d+",
    dataset="|".join(map(re.escape, DATASETS)),
    archive="|".join(map(re.escape, PROFILE.archives)),
    tower="|".join(PROFILE.towers),
