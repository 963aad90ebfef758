"""What params.yaml says of names, archives, data sets, the cluster and MLflow."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mmnet.config.messages import did_you_mean

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=32)]
"""Of a procedural scene, in pixels: in smaller ones shapes cannot be told apart."""
Size = Annotated[tuple[Side, Side], Field(strict=False)]
"""(width, height) in pixels. Not strict: YAML has lists only."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
DatasetName = Literal["refcoco", "refcoco+", "refcocog"]
ArchiveName = Literal["refcoco", "refcoco+", "refcocog", "train2014"]
SplitName = Literal["train", "val", "test", "testA", "testB"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
"""auto: a GPU if there is one. Results are the same bytes on one kind of device only."""
Url = Annotated[str, Field(pattern=r"^(https?://[^/]+/|file:).+$")]


def not_reserved(name: str) -> str:
    if name == "work":
        raise ValueError("is reserved for the folder in which trainings work. Use another name")
    return name


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$"), AfterValidator(not_reserved)]
"""Names become folders and wildcards, so they are kept plain."""


def open_clip_models() -> Path | None:
    """Return the folder of open_clip's definitions; None where Snakemake is installed alone."""
    package = find_spec("open_clip")
    return Path(package.origin).parent / "model_configs" if package and package.origin else None


def known_architecture(name: str) -> str:
    """Refuse what neither open_clip nor this package defines, without importing either."""
    theirs, ours = open_clip_models(), Path(__file__).parents[1] / "model/towers"
    if theirs is None:
        return name  # checked in the job
    known = [path.stem for folder in (theirs, ours) for path in folder.glob("*.json")]
    if name not in known:
        close = did_you_mean(name, known).partition("Known:")[0].strip()
        raise ValueError(f"is {name!r}: neither open_clip's nor one of ours. {close}".strip(". "))
    return name


Architecture = Annotated[str, AfterValidator(known_architecture)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SourceConfig(Strict):
    """Where a file can be fetched, and its size and checksum."""

    urls: Annotated[list[Url], Field(min_length=1)]
    """Mirrors, tried in order: http(s): or file:PATH, a path relative to the repository root."""
    bytes: PositiveInt | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    """Only where no SHA-256 is published."""
    checksums: str | None = None
    """A SHA256SUMS file beside a local mirror's archives."""

    @property
    def local_files(self) -> list[Path]:
        """Return the paths of the file: addresses."""
        local = [url for url in self.urls if url.startswith("file:")]
        return [Path(unquote(url.removeprefix("file:"))) for url in local]

    @model_validator(mode="after")
    def _one_checksum(self) -> Self:
        if sum(value is not None for value in (self.sha256, self.md5, self.checksums)) != 1:
            raise ValueError("needs exactly one of sha256, md5, checksums")
        if self.bytes is None and any(url.startswith("http") for url in self.urls):
            raise ValueError("needs bytes, the size of the file that http(s) addresses have")
        return self


class RefCOCOImages(Strict):
    train: PositiveInt
    val: PositiveInt
    testA: PositiveInt
    testB: PositiveInt


class GRefImages(Strict):
    train: PositiveInt
    val: PositiveInt
    test: PositiveInt


class ShapesImages(Strict):
    """Images of each split. RefCOCO+ shares RefCOCO's."""

    refcoco: RefCOCOImages
    refcocog: GRefImages


class ShapesConfig(Strict):
    """The procedural benchmark; `shapes: null` where the archives are real."""

    seed: Seed
    image_sizes: Annotated[list[Size], Field(min_length=1)]
    images: ShapesImages


class SplitCounts(Strict):
    refs: PositiveInt
    sentences: PositiveInt
    images: PositiveInt


class DatasetConfig(Strict):
    refs: Literal["unc", "umd", "google"]
    """The partition: the file refs(unc).p, refs(umd).p or refs(google).p."""
    splits: Annotated[list[Literal["val", "test", "testA", "testB"]], Field(min_length=1)]
    """Evaluation splits in the order of Table 1's columns; `val` chooses the checkpoint."""
    max_length: Annotated[int, Field(ge=3, le=77)]
    """L: tokens of a sentence, with [SOS] and [EOS]."""
    counts: dict[SplitName, SplitCounts] | None
    """What each split must hold, as published; null where no counts are published: refs(google)."""

    @model_validator(mode="after")
    def _has_val(self) -> Self:
        if "val" not in self.splits:
            raise ValueError("splits must contain val, which chooses the checkpoint")
        if len(set(self.splits)) != len(self.splits):
            raise ValueError(f"splits {self.splits} has duplicate splits; remove one")
        return self


class JobConfig(Strict):
    """What one job requests from a cluster's queue."""

    partition: Text | None
    """null: the cluster's default."""
    memory_mb: PositiveInt
    """Of main memory, all processes of the job together."""
    minutes: PositiveInt
    """Until the queue ends the job; a training then resumes in another."""


class ClusterConfig(Strict):
    """By kind of job. A change reruns nothing."""

    prepare: JobConfig
    """Data and claims: no GPU."""
    train: JobConfig
    """Trainings, those of CLIP towers too."""
    predict: JobConfig
    """Predictions, and what Figures 5 and 6 show."""


class MLflowConfig(Strict):
    """How runs are recorded: these settings retrain nothing."""

    enabled: bool
    """Each run is sent to MLflow as it goes: to MLFLOW_TRACKING_URI, or mlflow.db in the root."""
    require_clean: bool
    """Refuse to train from a tree with changes that git does not have: no revision names it."""
