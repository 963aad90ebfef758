"""What params.yaml may say of one run: its model, its training, its evaluation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmnet.config.profile import Device, Fraction, PositiveFloat, PositiveInt, Strict


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
