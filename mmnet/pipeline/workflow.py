"""What the Snakefile needs of params.yaml, in plain Python: checks, inputs and values of rules."""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config, Params
from mmnet.config.tables import MIN_SEEDS, SHOWN, TABLES, check_rows, runs_of, shown_run
from mmnet.report.claims.statements import wanted_runs
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.files import checksum


class Workflow:
    """The rules' view of one profile. Everything that can be checked before any job is.

    Raises:
        ConfigError: an experiment requests more GPUs than all jobs may use, or a table, a user's
            own copy of the data, a local mirror or a weights file is not usable.
    """

    def __init__(self, params: Params, gpu_limit: int | None = None) -> None:
        self.params, self.profile = params, params.active
        self.paths = Paths(params.profile)
        self.sources: dict[str, Path] = {
            str(name): self.paths.source(name, self.profile.data.get(name))
            for name in self.profile.archives
        }
        for tower, values in self.profile.towers.items():
            self.paths.weights(tower, values)
        for key in ("archives", "weights"):
            for name, archive in getattr(self.profile, key).items():
                self.paths.check_mirrors(f"{key}.{name}", archive)
        for table in TABLES:
            check_rows(table, params)
        for name in params.experiments:
            train = params.resolve(name, params.seeds[0]).train
            if gpu_limit is not None and 1 < gpus(train.device, train.processes) > gpu_limit:
                # Snakemake would request fewer, and the job would use them all the same.
                raise ConfigError(
                    f"params.yaml: {name}: train.processes is {train.processes}, but all jobs "
                    f"together may use {gpu_limit} GPUs. Add --resources gpu={train.processes} or "
                    "more, or lower it."
                )
        for name in self.profile.datasets:
            source = self.sources[name]
            for file in self._annotation_files(name):
                if source.is_dir() and not (source / file).is_file():
                    raise ConfigError(
                        f"params.yaml: profiles.{params.profile}.data.{name}: {source} lacks "
                        f"{file}. Add it, or give another copy, or null to download it."
                    )

    def _annotation_files(self, dataset: str) -> tuple[str, str]:
        return "instances.json", f"refs({self.profile.datasets[dataset].refs}).p"  # type: ignore[index]

    # Inputs of rules.

    def drawn_archives(self, archive: str) -> list[str]:
        """Return what must be drawn before a procedural archive can be fetched."""
        if self.profile.shapes is None:
            return []
        source = self.profile.archives[archive]  # type: ignore[index]
        files = [*map(str, source.local_files)]
        return files + ([source.checksums] if source.checksums else [])

    def archive_input(self, name: str) -> Path | list[Path]:
        """Return what stands for an archive: a fetched one's checksum, or the user's own copy.

        Snakemake deletes a rule's outputs before it runs: no archive is one.
        """
        if self.profile.data.get(name) is None:  # type: ignore[call-overload]
            return self.paths.fetched(self.paths.archive(name))
        source = self.sources[name]
        if source.is_dir() and name in self.profile.datasets:
            return [source / file for file in self._annotation_files(name)]
        return source

    def weights_input(self, tower: str) -> Path | None:
        """Return what stands for a tower's weights; None of one that starts from nothing."""
        config = self.profile.towers[tower]
        weights = self.paths.weights(tower, config)
        if config.pretrained == "openai" and weights is not None:
            return self.paths.fetched(weights)
        return weights

    @property
    def towers_in_use(self) -> list[Path]:
        """Return the weights that are made or fetched here, of the experiments' towers."""
        names = sorted({experiment.tower for experiment in self.params.experiments.values()})
        made = [n for n in names if self.profile.towers[n].pretrained in ("openai", "captions")]
        return [path for name in made if (path := self.weights_input(name))]

    def towers_from(self, source: str) -> str:
        """Return a wildcard constraint: the towers whose weights come from a source."""
        towers = self.profile.towers.items()
        names = [name for name, tower in towers if tower.pretrained == source]
        return "|".join(names) or "none of them"

    def run_inputs(self, config: Config) -> dict[str, Path]:
        weights = self.weights_input(config.tower_name)
        inputs = {"table": self.paths.table(config.dataset_name), "images": self.paths.manifest}
        return inputs | ({"weights": weights} if weights else {})

    @property
    def shown(self) -> RunPaths | None:
        """The run that Figures 5 and 6 show; None where params.yaml has no pair of Table 3."""
        try:
            return self.paths.run(shown_run(self.params), self.params.seeds[0])
        except ConfigError:
            return None

    @property
    def targets(self) -> tuple[list[str], list[str]]:
        """Results that params.yaml has all experiments of, and those that it has not."""
        tables = {table: bool(runs_of(table, self.params)) for table in TABLES}
        has_claims = all(name in self.params.experiments for name, _ in wanted_runs(self.params))
        possible = {
            **{f"{table}.tex": is_there for table, is_there in tables.items()},
            "figure4.pdf": tables["table2"],
            "figure5.pdf": self.shown is not None,
            "figure6.pdf": self.shown is not None,
            "claims.md": has_claims,
        }
        found = [name for name, is_there in possible.items() if is_there]
        return found, [name for name, is_there in possible.items() if not is_there]

    def scores_of(self, table: str) -> list[Path]:
        return [self.paths.run(*run).scores for run in runs_of(table, self.params)]

    def marking_rows(self, table: str) -> list[Path]:
        """Return the rows per sentence that a table's marks come from, where it has any."""
        if table not in SHOWN or len(self.params.seeds) < MIN_SEEDS:
            return []
        return [self.paths.run(*run).rows for run in runs_of(table, self.params)]

    @property
    def curves(self) -> list[Path]:
        """Return the epochs of every run."""
        params = self.params
        return [self.paths.run(*run).metrics for run in product(params.experiments, params.seeds)]

    def needed(self, paths: list[Path]) -> list[Path]:
        """Return files of runs as inputs; none with allow_missing: Snakemake would train them."""
        return [] if self.params.allow_missing else paths

    # `params` of rules: a rule runs again when they change.

    def found(self, paths: Iterable[Path]) -> dict[str, str]:
        """Return, with allow_missing, which files of runs exist, with their checksums."""
        existing = [path for path in paths if self.params.allow_missing and path.exists()]
        return {str(path): checksum(path) for path in existing}

    def predictions_of(self, configs: Iterable[Config]) -> list[str]:
        """Return what shapes the predictions of runs."""
        return [json.dumps(config.prediction_values()) for config in configs]

    def table_params(self, table: str) -> dict[str, Any]:
        """Return what a table of runs depends on, besides their scores."""
        configs = [self.params.resolve(*run) for run in runs_of(table, self.params)]
        return {
            "profile": self.params.profile,
            "label": self.profile.label,
            "seeds": self.params.seeds,
            "runs": self.predictions_of(configs),
            "labels": [config.tower.label for config in configs],
            "scores": self.found([*self.scores_of(table), *self.marking_rows(table)]),
        }

    # What jobs request.

    def resources(self, kind: str) -> dict[str, Any]:
        """Return what a kind of job requests of a cluster's queue."""
        job = getattr(self.profile.cluster, kind)
        partition = {"slurm_partition": job.partition} if job.partition else {}
        return {"mem_mb": job.memory_mb, "runtime": job.minutes, **partition}


def as_json(section: BaseModel | dict[str, Any] | None, *, less: set[str] | None = None) -> str:
    """Return a slice of the parameters for a rule's `params`."""
    if isinstance(section, BaseModel):
        section = section.model_dump(mode="json", exclude=less)
    return json.dumps(section)


def gpus(device: str, processes: int = 1) -> int:
    """Return the number of GPUs that a job requests."""
    return 0 if device == "cpu" else processes


def cores(config: Config) -> int:
    """Return the cores that all processes of a job compute on and read with."""
    return config.train.processes * (config.train.threads + config.train.workers)
