"""Where every file is, for commands and rules alike.

Costly files are in a folder of their profile, so that switching profiles redoes nothing;
`results/` shows the active profile. A name may be a Snakemake wildcard such as "{dataset}".
"""

from dataclasses import dataclass
from pathlib import Path

from mmnet.config.identity import Identity, RunInputs
from mmnet.config.schema import Config, TowerConfig
from mmnet.runtime.errors import ConfigError

RESULTS = Path("results")
WORK = "work"
"""Of a profile's folder in runs/; no experiment may have this name."""


@dataclass(frozen=True)
class RunPaths:
    """The files of one run: an experiment with one seed."""

    profile: str
    experiment: str
    seed: int | str
    root: Path = Path()
    """The repository."""

    @property
    def name(self) -> str:
        return f"{self.experiment} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """What training and prediction publish, apart from rows."""
        return self.root / "runs" / self.profile / self.experiment / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """A line per epoch."""
        return self.folder / "metrics.jsonl"

    @property
    def identity(self) -> Path:
        """Which training the checkpoint is of."""
        return self.folder / "run.json"

    @property
    def predictions(self) -> Path:
        """A picture: sentences of `val`, the same for all runs on a data set, with masks."""
        return self.folder / "predictions.png"

    # Not in the run's folder: what another of DVC's stages records needs a place of its own.
    @property
    def examples(self) -> Path:
        """What Figure 5 shows of the run and of its twin without MMP."""
        return self._figures / "examples.npz"

    @property
    def queries(self) -> Path:
        """What Figure 6 shows of the run."""
        return self._figures / "queries.npz"

    @property
    def _figures(self) -> Path:
        return self.root / "figures" / self.profile / self.experiment / f"seed{self.seed}"

    @property
    def rows(self) -> Path:
        """A row per sentence: intersection and union."""
        return self.root / "rows" / self.profile / self.experiment / f"seed{self.seed}.parquet"

    @property
    def scores(self) -> Path:
        return self.root / "scores" / self.profile / self.experiment / f"seed{self.seed}.json"

    @property
    def percents(self) -> Path:
        """The scores' headline numbers, for `dvc metrics`."""
        return self.scores.with_suffix(".percent.json")

    def work(self, identity: Identity) -> "WorkPaths":
        """Where its training works: other values, data or code get another folder."""
        return WorkPaths(self.root / "runs" / self.profile / WORK / identity.id)


@dataclass(frozen=True)
class WorkPaths:
    """The files that a training works on, in a folder named after its identity."""

    folder: Path

    @property
    def about(self) -> Path:
        """Experiment, seed and identity."""
        return self.folder / "run.json"

    @property
    def last(self) -> Path:
        """All that an interrupted training resumes from."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The state before the last one."""
        return self.folder / "previous.pt"

    @property
    def best(self) -> Path:
        """The model of the epoch with the best mIoU on val."""
        return self.folder / "best.pt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """How far it is and how long that took: times, so no result."""
        return self.folder / "progress.json"

    @property
    def finished(self) -> Path:
        """Written when the training ends."""
        return self.folder / "finished.json"

    @property
    def record(self) -> Path:
        """Where and when it was trained, for MLflow: no result."""
        return self.folder / "record.json"


@dataclass(frozen=True)
class Paths:
    """The files of a profile."""

    profile: str
    root: Path = Path()
    """The repository."""

    @property
    def data(self) -> Path:
        return self.root / "data" / self.profile

    @property
    def mirror(self) -> Path:
        """The procedural archives, where the profile has them."""
        return self.data / "mirror"

    @property
    def images(self) -> Path:
        """Folder of the images that the refs name."""
        return self.data / "images"

    @property
    def manifest(self) -> Path:
        """Their names and sizes in bytes, standing for the folder in the rules."""
        return self.data / "images.tsv"

    def archive(self, name: str) -> Path:
        """Where a fetched archive is."""
        return self.data / "archives" / f"{name}.zip"

    @staticmethod
    def fetched(path: Path) -> Path:
        """A fetched file's SHA-256, standing for it in the rules: they must not delete the file."""
        return path.with_name(f"{path.name}.sha256")

    def source(self, name: str, local: str | None) -> Path:
        """What to read: the fetched archive, or a user's own copy, a zip or a folder.

        Raises:
            ConfigError: the user's copy does not exist, or may not be read.
        """
        if local is None:
            return self.archive(name)
        path = self._existing(local, f"data.{name}", "the zip or the folder it unpacks to, or null")
        return path / name if (path / name).is_dir() else path

    def _existing(self, local: str, key: str, expected: str) -> Path:
        where = f"params.yaml: profiles.{self.profile}.{key}"
        try:
            path = Path(local).expanduser()
            path.stat()
            if path.is_dir():
                list(path.iterdir())
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{where}: {local}: {reason}. Give {expected}.") from None
        return path

    def table(self, dataset: str) -> Path:
        return self.data / f"{dataset}.parquet"

    def clip(self, tower: str) -> Path:
        return self.root / "clip" / self.profile / f"{tower}.pt"

    def weights(self, tower: str, config: TowerConfig) -> Path | None:
        """The file a tower starts from.

        Raises:
            ConfigError: it is the user's, and does not exist.
        """
        if config.pretrained == "none":
            return None
        if config.pretrained in ("openai", "captions"):
            return self.clip(tower)
        choices = "openai, captions, none, or the path of a weights file"
        return self._existing(config.pretrained, f"towers.{tower}.pretrained", choices)

    def inputs(self, config: Config) -> RunInputs:
        """What a run of `config` reads."""
        return RunInputs(
            table=self.table(config.dataset_name),
            images=self.images,
            manifest=self.manifest,
            weights=self.weights(config.tower_name, config.tower),
        )

    @property
    def works(self) -> list[WorkPaths]:
        """Of every training that has worked here, finished or not."""
        return [WorkPaths(path.parent) for path in sorted(self._runs.glob(f"{WORK}/*/run.json"))]

    @property
    def _runs(self) -> Path:
        return self.root / "runs" / self.profile

    def run(self, experiment: str, seed: int | str) -> RunPaths:
        return RunPaths(self.profile, experiment, seed, self.root)
