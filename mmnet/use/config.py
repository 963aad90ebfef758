"""What a trained model needs to be used: a small part of its training's values."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator

from mmnet.config.profile import Architecture, Fraction, Strict
from mmnet.config.run import ModelConfig
from mmnet.config.schema import TowerConfig
from mmnet.runtime.errors import CheckpointError


class InferenceConfig(Strict):
    """Enough to build the model, prepare its input and decide its masks."""

    name: str
    """Of the run, such as refcoco_vit_l/seed0, or of the file."""
    profile: str
    dataset: Literal["refcoco", "refcoco+", "refcocog"]
    """That it was trained on."""
    architecture: Architecture
    """Of CLIP's towers."""
    model: ModelConfig
    max_length: Annotated[int, Field(ge=3, le=77)]
    """L: longer sentences are cut."""
    threshold: Fraction
    """On the sigmoid of y: the one that chose the checkpoint on val."""
    portable: bool
    """Trained with portable arithmetic, on the CPU."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    """That shape the numbers of a training on the CPU; None of one on a GPU."""
    tf32: bool

    @field_validator("model")
    @classmethod
    def _takes_finite_time(cls, model: ModelConfig) -> ModelConfig:
        """Refuse what would take hours to build before its weights could be compared."""
        if model.decoder_layers > 100:
            raise ValueError(f"decoder_layers {model.decoder_layers}: at most 100 are supported")
        return model

    @classmethod
    def of_training(cls, values: dict[str, Any], *, name: str, source: object) -> Self:
        """Return the part of `Config.training_values` that counts; `source` is named in errors.

        Raises:
            CheckpointError: they are of another version of mmnet.
        """
        try:
            return cls(
                name=name,
                profile=values["profile"],
                dataset=values["dataset_name"],
                architecture=values["tower"]["architecture"],
                model=ModelConfig(**values["model"]),
                max_length=values["dataset"]["max_length"],
                threshold=values["train"]["val_threshold"],
                portable=values.get("portable", False),
                threads=values["train"].get("threads"),
                tf32=values["train"]["tf32"],
            )
        except (KeyError, TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())[:120]
            raise CheckpointError(
                f"{source}: of another version of mmnet ({reason}). Train the experiment again."
            ) from None

    @property
    def tower(self) -> TowerConfig:
        """What `build_model` reads of the towers; their weights are in the checkpoint."""
        return TowerConfig(
            architecture=self.architecture, pretrained="none", label=self.architecture, train={}
        )
