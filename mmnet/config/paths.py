"""Where every file is, for commands and rules alike.

Costly files are in a folder of their profile, so that switching profiles redoes nothing;
`results/` shows the active profile. A name may be a Snakemake wildcard such as "{dataset}". Once
made, these objects are not changed: their fields alone are compared and hashed.
"""

import errno
import stat
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mmnet.config.identity import Identity, RunInputs
from mmnet.config.profile import SourceConfig
from mmnet.config.schema import Config, TowerConfig
from mmnet.runtime.errors import ConfigError

RESULTS = Path("results")
REFERENCE = Path("docs/results")
"""Results that come with the code, in a folder of their profile."""
WORK = "work"
"""Of a profile's folder in runs/; no experiment may have this name."""


def existing(
    named: str,
    where: str,
    remedy: str,
    *,
    may_be_folder: bool = False,
) -> Path:
    """Return the path of a user's own file, which can be read; `where` it is named.

    Raises:
        ConfigError: it is missing, of another sort, or may not be read.
    """
    try:
        path = Path(named).expanduser()
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) and may_be_folder:
            list(path.iterdir())
        elif stat.S_ISREG(mode):
            path.open("rb").close()
        else:
            raise OSError(errno.EINVAL, _wrong_sort(mode))
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}: {quote(named)}: {reason}. {remedy}.") from None
    return path


def check_sort(path: Path, where: str) -> None:
    """Check that what is at a path, if anything is, is a file.

    Raises:
        ConfigError: it is a folder or a device.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{where}: {quote(str(path))}: {_wrong_sort(mode)}. Give a file.")


def _wrong_sort(mode: int) -> str:
    """Say what is no file: a folder, or a device or pipe, whose reading would never end."""
    return "Is a directory" if stat.S_ISDIR(mode) else "Not a regular file"


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
            ConfigError: the user's copy is neither a file nor a folder, or may not be read.
        """
        if local is None:
            return self.archive(name)
        where = f"params.yaml: profiles.{self.profile}.data.{name}"
        expected = "Give the zip or the folder it unpacks to, or null"
        path = existing(local, where, expected, may_be_folder=True)
        return path / name if (path / name).is_dir() else path

    def check_mirrors(self, key: str, source: SourceConfig) -> None:
        """Check what a source names on this machine; a mirror that is not there may come later.

        Raises:
            ConfigError: it is no file.
        """
        where = f"params.yaml: profiles.{self.profile}.{key}"
        for path in source.local_files:
            check_sort(path, f"{where}.urls")
        if source.checksums is not None:
            check_sort(Path(source.checksums), f"{where}.checksums")

    def table(self, dataset: str) -> Path:
        return self.data / f"{dataset}.parquet"

    def clip(self, tower: str) -> Path:
        return self.root / "clip" / self.profile / f"{tower}.pt"

    def weights(self, tower: str, config: TowerConfig) -> Path | None:
        """The file a tower starts from.

        Raises:
            ConfigError: it is the user's, and is no file that can be read.
        """
        if config.pretrained == "none":
            return None
        if config.pretrained in ("openai", "captions"):
            return self.clip(tower)
        where = f"params.yaml: profiles.{self.profile}.towers.{tower}.pretrained"
        choices = "Give openai, captions, none, or the path of a weights file"
        return existing(config.pretrained, where, choices)

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
