"""Where everything lies: one place for the command line and the rules.

Costly files lie under a folder of their profile, so that switching profiles redoes nothing;
`results/` shows the active profile. A name may be a Snakemake wildcard such as "{dataset}".
"""

from dataclasses import dataclass
from pathlib import Path

from mmnet.config.schema import TowerConfig
from mmnet.runtime.errors import ConfigError

RESULTS = Path("results")


@dataclass(frozen=True)
class Layout:
    profile: str

    @property
    def data(self) -> Path:
        return Path("data") / self.profile

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
        """Where a fetched archive lies."""
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

    def _existing(self, local: str, key: str, name: str) -> Path:
        where = f"params.yaml: profiles.{self.profile}.{key}"
        try:
            path = Path(local).expanduser()
            path.stat()
            if path.is_dir():
                list(path.iterdir())
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{where}: {local}: {reason}. Name {name}.") from None
        return path

    def table(self, dataset: str) -> Path:
        return self.data / f"{dataset}.parquet"

    def clip(self, tower: str) -> Path:
        return Path("clip") / self.profile / f"{tower}.pt"

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

    def run(self, experiment: str, seed: int | str) -> Path:
        return Path("runs") / self.profile / experiment / f"seed{seed}"

    def tracking(self, experiment: str, seed: int | str) -> Path:
        """What MLflow gets beside the results. It holds times: never an output of a rule."""
        return self.run(experiment, seed) / "tracking"

    def checkpoint(self, experiment: str, seed: int | str) -> Path:
        return self.run(experiment, seed) / "checkpoint.pt"

    def metrics(self, experiment: str, seed: int | str) -> Path:
        return self.run(experiment, seed) / "metrics.jsonl"

    # Apart from the runs' folders: dvc.yaml can name folders, but no list of a table's files.
    def rows(self, experiment: str, seed: int | str) -> Path:
        return Path("rows") / self.profile / experiment / f"seed{seed}.parquet"

    def predictions(self, experiment: str, seed: int | str) -> Path:
        """Some sentences of `val`, the same for all runs on a data set, with predicted masks."""
        return self.run(experiment, seed) / "predictions.png"

    def scores(self, experiment: str, seed: int | str) -> Path:
        return Path("scores") / self.profile / experiment / f"seed{seed}.json"

    def percents(self, experiment: str, seed: int | str) -> Path:
        """The scores' headline numbers alone, as `dvc metrics` shows them."""
        return self.scores(experiment, seed).with_suffix(".percent.json")

    def examples(self, experiment: str, seed: int | str) -> Path:
        """What Figure 5 shows of the run and of its twin without MMP."""
        return self.run(experiment, seed) / "examples.npz"

    def queries(self, experiment: str, seed: int | str) -> Path:
        """What Figure 6 shows of the run."""
        return self.run(experiment, seed) / "queries.npz"
