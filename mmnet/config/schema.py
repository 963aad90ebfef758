"""What params.yaml may say, and what it means.

Values live in params.yaml alone; the classes hold types, ranges and meaning. Every key must be
there and none may be unknown: a mistake is reported in one line, before any work starts.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmnet.config.messages import did_you_mean, validate
from mmnet.config.profile import (
    Architecture,
    ArchiveName,
    ClusterConfig,
    DatasetConfig,
    DatasetName,
    Device,
    Fraction,
    MLflowConfig,
    Name,
    PositiveFloat,
    PositiveInt,
    Seed,
    ShapesConfig,
    SourceConfig,
    Strict,
    Text,
)
from mmnet.runtime import portable
from mmnet.runtime.errors import ConfigError

TableName = Literal["table1", "table2", "table3", "table4"]
Overrides = Annotated[dict[str, Any], Field(default_factory=dict)]


class TowerConfig(Strict):
    """One pair of CLIP towers."""

    architecture: Architecture
    """Name of an open_clip model. OpenAI's weights need the -quickgelu ones."""
    pretrained: Text
    """openai: OpenAI's weights. captions: trained here, by the rule pretrain_clip.
    none: random. Anything else: the path of a weights file."""
    label: str
    """Name in the tables."""
    train: Overrides
    """Keys of TrainConfig that override the profile's."""


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
    """Multi-Query Estimator: masks weighted by scores (Table 4)."""
    f_vg: bool
    """The global visual feature joins the words, Eq. 8 (Table 4)."""
    relu_kernel: bool
    """ReLU on the dynamic kernels of Eq. 14, as printed; CRIS has none."""
    unscored_masks: Literal["sum", "mean"]
    """Without MQE: the plain sum of the masks (Table 4), or their mean, as large as with scores."""
    estimator_residual: bool
    """Eq. 15 scores F_q + MHSA(F_q), as Eq. 11 has it; as printed, MHSA(F_q)."""
    vector_norm: Literal["none", "global", "all"]
    """BatchNorm between W and ReLU: in W_tg and W_vg, or in every W on vectors, as CRIS."""
    generator_init: Literal["torch", "glorot"]
    """Of the query generator's W on vectors: PyTorch's, or VLT's with biases of zero."""
    visual_query: bool
    """Eq. 10 adds what asked, ReLU(f_vd W_vd), to the words that were read, as VLT."""
    attention_bias: bool
    """Biases in Eq. 12's projections, as CRIS and VLT."""
    position_resize: Literal["antialiased", "plain"]
    """Bicubic, of CLIP's position embeddings: with a = -0.5, as open_clip, or -0.75, as CRIS."""

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
    """Cores of one process: fixed, since results depend on it."""
    workers: Annotated[int, Field(ge=0)]
    """Loader processes beside each training process."""
    precision: Literal["fp32", "amp"]
    """amp: autocast to bf16, or, on a GPU without it, to fp16 with a scaled loss."""
    tf32: bool
    """On a GPU, fp32 products and convolutions may round their factors to 10 bits."""
    processes: PositiveInt
    """Under torchrun, each on its own GPU. `batch_size` is that of all together."""
    accumulate: PositiveInt
    """Parts in which a process takes its share of a batch, one after another."""
    checkpoint_activations: bool
    """The towers' blocks are recomputed in the backward pass instead of stored."""
    compile: bool
    """torch.compile: slower to start, faster steps."""
    save_minutes: PositiveFloat
    """Between checkpoints within an epoch; each epoch ends with one too."""
    clip_batchnorm: Literal["trained", "frozen"]
    """frozen: CLIP's BatchNorms keep their statistics, weights and biases."""
    val_threshold: Fraction
    """As in `evaluate`, where `val` chooses the checkpoint after each epoch."""
    val_batch_size: PositiveInt

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
"""Of TrainConfig: these settings do not change results; a run may resume with others. On a GPU
`threads` is one of them; on the CPU rounding depends on it. Tables and claims use this list too,
through `Config.training_values`."""


class EvaluateConfig(Strict):
    threshold: Fraction
    """On the sigmoid of y, at the image's original size."""
    batch_size: PositiveInt
    """Sentences at a time."""


class PretrainConfig(Strict):
    """Contrastive pre-training of a tower with `pretrained: captions`."""

    captions: Annotated[list[DatasetName], Field(min_length=1)]
    """Datasets whose training sentences are the captions. A crop shows what a thing looks like,
    not where it is: RefCOCO+."""
    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    device: Device
    threads: PositiveInt


class ProfileConfig(Strict):
    label: str
    """How captions name this profile's data."""
    portable: bool
    """On the CPU, the same bits on every x86-64 machine with AVX2, at the cost of some speed."""
    shapes: ShapesConfig | None
    archives: dict[ArchiveName, SourceConfig]
    data: dict[ArchiveName, Text | None]
    """Local copies, read in place: a zip, or the folder that it unpacks to. null: fetched."""
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
    portable: bool
    """The profile's, and this CPU can."""
    experiment: str
    seed: Seed
    dataset_name: DatasetName
    dataset: DatasetConfig
    tower_name: str
    tower: TowerConfig
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    @model_validator(mode="after")
    def _statistics_are_of_several(self) -> Self:
        if self.model.vector_norm != "none" and part_size(self.train, self.train.processes) == 1:
            raise ValueError(
                "model.vector_norm needs parts of 2 items or more: batch_size / (processes x "
                "accumulate) is 1. Change train.accumulate, or set vector_norm: none"
            )
        return self

    def training_values(self) -> dict[str, Any]:
        """Return the values that shape a training, nested as in params.yaml.

        Names, labels, published counts, evaluation and RUNTIME_ONLY settings are not among them.
        """
        on_cpu = self.train.device == "cpu"
        without = RUNTIME_ONLY if on_cpu else RUNTIME_ONLY | {"threads"}
        source = self.tower.pretrained
        return {
            "profile": self.profile,
            **({"portable": self.portable} if on_cpu else {}),
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
    model: Overrides
    train: Overrides
    evaluate: Overrides


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

    @property
    def portable(self) -> bool:
        """Whether the active profile is to be portable, and this CPU can."""
        return self.active.portable and portable.is_supported()

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
            if (value := getattr(chosen, key)) not in known:
                raise ConfigError(
                    f"params.yaml: {where}.{key}: profiles.{self.profile}.{key}s has no {value!r}."
                    + did_you_mean(value, known)
                )
        tower = profile.towers[chosen.tower]
        model = {**profile.model.model_dump(), **chosen.model}
        train = {**profile.train.model_dump(), **tower.train, **chosen.train}
        evaluate = {**profile.evaluate.model_dump(), **chosen.evaluate}
        values = {
            "profile": self.profile,
            "portable": self.portable,
            "experiment": experiment,
            "seed": seed,
            "dataset_name": chosen.dataset,
            "dataset": profile.datasets[chosen.dataset],
            "tower_name": chosen.tower,
            "tower": tower,
            "model": validate(ModelConfig, model, f"{where}.model"),
            "train": validate(TrainConfig, train, f"{where}.train"),
            "evaluate": validate(EvaluateConfig, evaluate, f"{where}.evaluate"),
        }
        config: Config = validate(Config, values, "")
        return config
