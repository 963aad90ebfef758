"""What params.yaml may say, and what it means.

Values live in params.yaml alone; the classes hold types, ranges and meaning. Every key must be
there and none may be unknown: a mistake is reported in one line, before any work starts.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mmnet.config.messages import did_you_mean, validate
from mmnet.runtime.errors import ConfigError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=32)]
"""Of a procedural scene, in pixels: smaller ones have no room for shapes one could tell apart."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
DatasetName = Literal["refcoco", "refcoco+", "refcocog"]
ArchiveName = Literal["refcoco", "refcoco+", "refcocog", "train2014"]
TableName = Literal["table1", "table2", "table3", "table4"]
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


def known_architecture(name: str) -> str:
    """Refuse what open_clip and this package have no definition of, without importing either."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        return name  # an environment with Snakemake alone, under conda: the job will tell
    folders = (
        Path(package.origin).parent / "model_configs",
        Path(__file__).parents[1] / "model/towers",
    )
    known = [path.stem for folder in folders for path in folder.glob("*.json")]
    if name not in known:
        close = did_you_mean(name, known).partition("Known:")[0].strip()
        raise ValueError(f"is {name!r}: neither open_clip's nor one of ours. {close}".strip(". "))
    return name


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SourceConfig(Strict):
    """Where one file lies, and how to know that it is the right one."""

    urls: Annotated[list[Url], Field(min_length=1)]
    """Mirrors, tried in order: http(s): or file:PATH, a path relative to the repository root."""
    bytes: PositiveInt | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    """Only where no SHA-256 is published."""
    checksums: str | None = None
    """A SHA256SUMS file that lies beside a local mirror's archives."""

    @model_validator(mode="after")
    def _one_checksum(self) -> Self:
        if sum(value is not None for value in (self.sha256, self.md5, self.checksums)) != 1:
            raise ValueError("needs exactly one of sha256, md5, checksums")
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
    image_sizes: Annotated[list[tuple[Side, Side]], Field(min_length=1)]
    """(width, height) of the scenes, in pixels."""
    images: ShapesImages

    @model_validator(mode="before")
    @classmethod
    def _sizes_are_pairs(cls, values: Any) -> Any:
        # YAML has lists only; strict validation wants the tuples.
        if isinstance(values, dict) and isinstance(values.get("image_sizes"), list):
            sizes = [tuple(s) if isinstance(s, list) else s for s in values["image_sizes"]]
            values = {**values, "image_sizes": sizes}
        return values


class SplitCounts(Strict):
    refs: PositiveInt
    sentences: PositiveInt
    images: PositiveInt


class DatasetConfig(Strict):
    refs: Literal["unc", "umd", "google"]
    """Which partition: the file refs(unc).p, refs(umd).p or refs(google).p."""
    splits: Annotated[list[Literal["val", "test", "testA", "testB"]], Field(min_length=1)]
    """Evaluation splits in the order of Table 1's columns; `val` chooses the checkpoint."""
    max_length: Annotated[int, Field(ge=3, le=77)]
    """L: tokens of a sentence, with [SOS] and [EOS]."""
    counts: dict[SplitName, SplitCounts] | None
    """What each split must hold, as published; null where nobody has, as of refs(google)."""

    @model_validator(mode="after")
    def _has_val(self) -> Self:
        if "val" not in self.splits:
            raise ValueError("splits must contain val, which chooses the checkpoint")
        if len(set(self.splits)) != len(self.splits):
            raise ValueError(f"splits names a split twice: {', '.join(self.splits)}")
        return self


class TowerConfig(Strict):
    """One pair of CLIP towers."""

    architecture: Annotated[str, AfterValidator(known_architecture)]
    """Name of an open_clip model. OpenAI's weights need the -quickgelu ones."""
    pretrained: Annotated[str, Field(min_length=1)]
    """openai: OpenAI's weights. captions: trained here, by the rule pretrain_clip.
    none: random. Anything else: path of a weights file."""
    label: str
    """Name in the tables."""
    train: dict[str, Any] = {}
    """What its runs train differently: keys of TrainConfig, over the profile's."""


class ModelConfig(Strict):
    """Sizes of MMNet in the paper's symbols, and its ablation switches."""

    image_size: Annotated[int, Field(gt=0, multiple_of=32)]
    """H = W, in pixels."""
    resize: Literal["letterbox", "squash"]
    """letterbox keeps the aspect, as CRIS; squash does not, as LAVT."""
    width: Annotated[int, Field(gt=0, multiple_of=8)]
    """C."""
    channels: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    """C2, C3, C4."""
    num_queries: PositiveInt
    """N_q; Table 2 peaks at 24."""
    decoder_layers: PositiveInt
    heads: PositiveInt
    ffn: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    mmp: bool
    """Multi-Mask Projector: one mask per query (Table 3)."""
    mqe: bool
    """Multi-Query Estimator: masks weighed by scores (Table 4)."""
    f_vg: bool
    """The global visual feature joins the words, Eq. 8 (Table 4)."""
    relu_kernel: bool
    """ReLU on the dynamic kernels of Eq. 14, as printed; CRIS has none."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class TrainConfig(Strict):
    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    """Of Adam, at the first step."""
    head_lr_multiplier: PositiveFloat
    """What is not CLIP learns this many times faster: 1 in the paper, 10 in CRIS."""
    lr_power: PositiveFloat
    """Of the polynomial decay, per step."""
    device: Device
    threads: PositiveInt
    """Cores of one job: fixed, never scaled down, since results depend on it."""
    workers: Annotated[int, Field(ge=0)]
    """Loader processes beside each training process."""
    precision: Literal["fp32", "amp"]
    """amp: autocast to bf16, or, on a GPU without it, to fp16 with a scaled loss."""
    tf32: bool
    """On a GPU, fp32 products and convolutions may round their factors to 10 bits."""
    processes: PositiveInt
    """Under torchrun, each on a GPU of its own. `batch_size` is that of all together."""
    accumulate: PositiveInt
    """Parts in which a process takes its share of a batch, one after another."""
    checkpoint_activations: bool
    """The towers' blocks are computed again backwards instead of remembered."""
    compile: bool
    """torch.compile: slower to start, faster steps."""
    save_minutes: PositiveFloat
    """Between checkpoints within an epoch; each epoch ends with one too."""
    val_threshold: Annotated[float, Field(gt=0, lt=1)]
    """On the sigmoid of y, where `val` chooses the checkpoint after each epoch. Apart from
    `evaluate`, whose values retrain nothing."""
    val_batch_size: PositiveInt
    """Sentences at a time there."""

    @model_validator(mode="after")
    def _parts_are_equal(self) -> Self:
        part_size(self, self.processes)
        return self


def part_size(train: TrainConfig, processes: int) -> int:
    """Return the items that a process takes at a time: a batch's equal parts.

    Raises:
        ValueError: they are not equal.
    """
    size, rest = divmod(train.batch_size, processes * train.accumulate)
    if rest:
        raise ValueError(
            f"batch_size {train.batch_size} is not divisible by {processes} processes x "
            f"{train.accumulate} parts (accumulate): change one of them"
        )
    return size


RUNTIME_ONLY = {
    *("device", "workers", "processes", "accumulate", "checkpoint_activations", "compile"),
    "save_minutes",
}
"""Of TrainConfig: these settings do not change results; a run may resume with others. `threads` is
one of them, except on the CPU, where rounding depends on it. Tables and claims use this list too,
through `Config.training_values`."""


class EvaluateConfig(Strict):
    threshold: Annotated[float, Field(gt=0, lt=1)]
    """On the sigmoid of y, at the image's original size."""
    batch_size: PositiveInt
    """Sentences at a time."""


class PretrainConfig(Strict):
    """Contrastive pre-training of a tower with `pretrained: captions`."""

    captions: Annotated[list[DatasetName], Field(min_length=1)]
    """Datasets whose training sentences are the captions. A crop shows what a thing looks like,
    not where it lies: RefCOCO+."""
    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    device: Device
    threads: PositiveInt


class JobConfig(Strict):
    """What one job asks of a cluster's queue."""

    partition: Annotated[str, Field(min_length=1)] | None
    """null: the cluster's default."""
    memory_mb: PositiveInt
    """Of main memory, all processes of the job together."""
    minutes: PositiveInt
    """Until the queue ends the job; a training then goes on in another."""


class ClusterConfig(Strict):
    """By kind of job. Where results are computed is no part of them: a change reruns nothing."""

    prepare: JobConfig
    """Data and claims: no GPU."""
    train: JobConfig
    """Trainings, those of CLIP towers too."""
    predict: JobConfig
    """Predictions, and what Figures 5 and 6 show."""


class ProfileConfig(Strict):
    label: str
    """How captions name this profile's data."""
    shapes: ShapesConfig | None
    archives: dict[ArchiveName, SourceConfig]
    data: dict[ArchiveName, Annotated[str, Field(min_length=1)] | None]
    """Local copies, read where they lie: a zip, or the folder that it unpacks to. null: fetched."""
    weights: dict[Name, SourceConfig]
    """OpenAI's files of the towers that start from them."""
    datasets: dict[DatasetName, DatasetConfig]
    towers: dict[Name, TowerConfig]
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    pretrain: PretrainConfig | None
    cluster: ClusterConfig


class Config(Strict):
    """One run, all values resolved: what is stored beside the results."""

    profile: str
    experiment: str
    seed: Seed
    dataset_name: DatasetName
    dataset: DatasetConfig
    tower_name: str
    tower: TowerConfig
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    def training_values(self) -> dict[str, Any]:
        """Return the values that shape a training, nested as in params.yaml.

        Names, labels, published counts, evaluation and RUNTIME_ONLY settings are not among them.
        """
        without = RUNTIME_ONLY if self.train.device == "cpu" else RUNTIME_ONLY | {"threads"}
        source = self.tower.pretrained
        return {
            "profile": self.profile,
            "seed": self.seed,
            "dataset_name": self.dataset_name,
            "dataset": {"refs": self.dataset.refs, "max_length": self.dataset.max_length},
            "tower": {
                "architecture": self.tower.architecture,
                # Of a user's own file the checksum counts, not the path.
                "pretrained": source if source in ("openai", "captions", "none") else "file",
            },
            "model": self.model.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=without),
        }

    def prediction_values(self) -> dict[str, Any]:
        """Return the values that shape a run's predictions and scores: its training's and more."""
        values = self.training_values()
        values["dataset"]["splits"] = list(self.dataset.splits)
        return values | {"evaluate": self.evaluate.model_dump(mode="json")}


class ExperimentConfig(Strict):
    """A named override: its rows' data and tower, and what differs from the profile."""

    tables: list[TableName]
    dataset: DatasetName
    tower: Name
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}


class MLflowConfig(Strict):
    """How runs are recorded: these settings retrain nothing."""

    enabled: bool
    """Each run is sent to MLflow as it goes: to MLFLOW_TRACKING_URI, or mlflow.db in the root."""
    require_clean: bool
    """Refuse to train from a tree with changes that git does not have: no revision names it."""


class Params(Strict):
    """params.yaml, whole."""

    profile: str
    seeds: Annotated[list[Seed], Field(min_length=1)]
    allow_missing: bool
    """Tables are written without the runs that have no scores yet, and name them."""
    mlflow: MLflowConfig
    experiments: dict[Name, ExperimentConfig]
    profiles: dict[Name, ProfileConfig]

    @property
    def active(self) -> ProfileConfig:
        return self.profiles[self.profile]

    def resolve(self, experiment: str, seed: int) -> Config:
        """Return the run's full config: the profile's values under the experiment's own."""
        if experiment not in self.experiments:
            raise ConfigError(
                f"params.yaml: experiments has no {experiment!r}."
                + did_you_mean(experiment, self.experiments)
            )
        chosen, profile = self.experiments[experiment], self.active
        where = f"experiments.{experiment}"
        for key, known in (("dataset", profile.datasets), ("tower", profile.towers)):
            value = getattr(chosen, key)
            if value not in known:
                raise ConfigError(
                    f"params.yaml: {where}.{key}: profiles.{self.profile}.{key}s has no {value!r}."
                    + did_you_mean(value, known)
                )

        tower = profile.towers[chosen.tower]

        def merged(section: str) -> Any:
            values = getattr(profile, section).model_dump()
            if section == "train":
                values |= tower.train
            values |= getattr(chosen, section)
            return validate(type(getattr(profile, section)), values, f"{where}.{section}")

        values = {
            "profile": self.profile,
            "experiment": experiment,
            "seed": seed,
            "dataset_name": chosen.dataset,
            "dataset": profile.datasets[chosen.dataset],
            "tower_name": chosen.tower,
            "tower": tower,
            "model": merged("model"),
            "train": merged("train"),
            "evaluate": merged("evaluate"),
        }
        config: Config = validate(Config, values, "")
        return config
