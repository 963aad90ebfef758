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
from mmnet.config.run import RUNTIME_ONLY, EvaluateConfig, ModelConfig, TrainConfig, part_size
from mmnet.runtime import portable
from mmnet.runtime.errors import ConfigError

TableName = Literal["table1", "table2", "table3", "table4", "readings"]
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
                f"experiments.{self.experiment}: model.vector_norm {self.model.vector_norm} needs "
                "parts of 2 items or more: train.batch_size / (processes x accumulate) is 1. "
                "Change one of these, or set vector_norm: none"
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
