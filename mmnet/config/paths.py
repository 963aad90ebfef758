"""Where every file is, for commands and rules alike.

Costly files are in a folder of their profile, so that switching profiles redoes nothing;
`results/` shows the active profile. A name may be a Snakemake wildcard such as "{dataset}". Once
made, these objects are not changed: their fields alone are compared and hashed.
"""

from dataclasses import dataclass
from pathlib import Path

from mmnet.config.identity import Identity, RunInputs
from mmnet.config.schema import Config, TowerConfig
from mmnet.runtime.errors import ConfigError

RESULTS = Path("results")
REFERENCE = Path("docs/results")
"""Results that come with the code, in a folder of their profile."""
WORK = "work"
"""Of a profile's folder in runs/; no experiment may have this name."""


@dataclass(unsafe_hash=True)
class RunPaths:
    """The files of one run: an experiment with one seed."""

    profile: str
    experiment: str
    seed: int | str
    root: Path = Path()
    """The repository."""

    def __post_init__(self) -> None:
        def below(folder: str) -> Path:
            return self.root / folder / self.profile / self.experiment / f"seed{self.seed}"

        self.name = f"{self.experiment} seed {self.seed}"
        self.folder = below("runs")
        """What training and prediction publish, apart from rows."""
        self.checkpoint = self.folder / "checkpoint.pt"
        self.metrics = self.folder / "metrics.jsonl"
        """A line per epoch."""
        self.identity = self.folder / "run.json"
        """Which training the checkpoint is of."""
        self.predictions = self.folder / "predictions.png"
        """A picture: sentences of `val`, the same for all runs on a data set, with masks."""
        # Not in the run's folder: another of DVC's stages records them.
        self.examples = below("figures") / "examples.npz"
        """What Figure 5 shows of the run and of its twin without MMP."""
        self.queries = below("figures") / "queries.npz"
        """What Figure 6 shows of the run."""
        self.rows = below("rows").with_suffix(".parquet")
        """A row per sentence: intersection and union."""
        self.scores = below("scores").with_suffix(".json")
        self.percents = below("scores").with_suffix(".percent.json")
        """The scores' headline numbers, for `dvc metrics`."""

    def work(self, identity: Identity) -> "WorkPaths":
        """Where its training works: other values, data or code get another folder."""
        return WorkPaths(self.root / "runs" / self.profile / WORK / identity.id)


@dataclass(unsafe_hash=True)
class WorkPaths:
    """The files that a training works on, in a folder named after its identity."""

    folder: Path

    def __post_init__(self) -> None:
        self.about = self.folder / "run.json"
        """Experiment, seed and identity."""
        self.last = self.folder / "last.pt"
        """All that an interrupted training resumes from."""
        self.previous = self.folder / "previous.pt"
        """The state before the last one."""
        self.best = self.folder / "best.pt"
        """The model of the epoch with the best mIoU on val."""
        self.metrics = self.folder / "metrics.jsonl"
        self.progress = self.folder / "progress.json"
        """How far it is and how long that took: times, so no result."""
        self.finished = self.folder / "finished.json"
        """Written when the training ends."""
        self.record = self.folder / "record.json"
        """Where and when it was trained, for MLflow: no result."""


@dataclass(unsafe_hash=True)
class Paths:
    """The files of a profile."""

    profile: str
    root: Path = Path()
    """The repository."""

    def __post_init__(self) -> None:
        self.data = self.root / "data" / self.profile
        self.mirror = self.data / "mirror"
        """The procedural archives, where the profile has them."""
        self.key_words = self.mirror / "key_words.csv"
        """Of the procedural benchmark: which word of a sentence alone names its object."""
        self.images = self.data / "images"
        """Folder of the images that the refs name."""
        self.manifest = self.data / "images.tsv"
        """Their names and sizes in bytes, standing for the folder in the rules."""

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
        abouts = self.root.glob(f"runs/{self.profile}/{WORK}/*/run.json")
        return [WorkPaths(about.parent) for about in sorted(abouts)]

    def run(self, experiment: str, seed: int | str) -> RunPaths:
        return RunPaths(self.profile, experiment, seed, self.root)
