"""The paper's claims that rows can test: what each says, where, and which runs it compares.

Nothing but names: the Snakefile reads it too, where there may be no NumPy.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmnet.config.schema import DatasetName, Params


@dataclass(frozen=True, kw_only=True)
class Part:
    """One difference said to be above zero: mIoU of one run less another's, on one split."""

    better: tuple[str, ...]
    """Experiments; of several, the mean of the differences."""
    worse: tuple[str, ...]
    """One for each of `better`. None: the best published number of another method."""
    dataset: DatasetName = "refcoco+"
    split: str = "testA"


@dataclass(frozen=True, kw_only=True)
class Claim:
    name: str
    text: str
    where: str
    quote: str
    """The paper's words, where it has any."""
    varies: tuple[str, ...]
    """What the compared runs may differ in: beginnings of their configs' keys."""
    parts: tuple[Part, ...]
    """The claim is that all of them hold."""


PLACES: dict[DatasetName, tuple[str, ...]] = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}
"""Table 1's columns."""
RUN_NAMES: dict[DatasetName, str] = {
    "refcoco": "refcoco",
    "refcoco+": "refcoco_plus",
    "refcocog": "refcocog",
}
STEPS = (1, 2, 4, 8, 16, 24)
WITH_MMP = (24, 16, 8)

PUBLISHED = {
    **{f"nq_{n}": ("table2", f"MMNet N_q={n}", "ResNet-50") for n in (*STEPS, 32)},
    **{f"nq_{n}_no_mmp": ("table3", f"MMNet w/o MMP N_q={n}", "ResNet-50") for n in WITH_MMP},
    "no_mqe": ("table4", "MMNet w/o MQE", "ResNet-50"),
    "no_f_vg": ("table4", "MMNet w/o f_vg", "ResNet-50"),
    "no_mqe_no_f_vg": ("table4", "MMNet w/o f_vg and MQE", "ResNet-50"),
    **{f"{run}_vit_b": ("table1", "MMNet", "ViT-B") for run in RUN_NAMES.values()},
    **{f"{run}_vit_l": ("table1", "MMNet", "ViT-L") for run in RUN_NAMES.values()},
}
"""Experiment → its table, method and backbone in paper.csv."""


def _meant(n: int = 24, mmp: bool = True, mqe: bool = True, f_vg: bool = True) -> dict[str, Any]:
    model = {"num_queries": n, "mmp": mmp, "mqe": mqe, "f_vg": f_vg}
    return {f"model.{key}": value for key, value in model.items()}


MEANT: dict[str, dict[str, Any]] = {
    **{f"nq_{n}": _meant(n) for n in (*STEPS, 32)},
    **{f"nq_{n}_no_mmp": _meant(n, mmp=False) for n in WITH_MMP},
    "no_mqe": _meant(mqe=False),
    "no_f_vg": _meant(f_vg=False),
    "no_mqe_no_f_vg": _meant(mqe=False, f_vg=False),
    **{f"{run}_{t}": {"tower_name": t} for run in RUN_NAMES.values() for t in ("vit_b", "vit_l")},
}
"""Experiment → what its name says of its config."""


def _one(better: str, worse: str) -> Part:
    return Part(better=(better,), worse=(worse,))


def _against_others(tower: str) -> tuple[Part, ...]:
    return tuple(
        Part(better=(f"{RUN_NAMES[dataset]}_{tower}",), worse=(), dataset=dataset, split=split)
        for dataset, splits in PLACES.items()
        if dataset != "refcoco"
        for split in splits
    )


CLAIMS = (
    Claim(
        name="queries_help",
        text="24 queries are better than 1",
        where="§4.4 Query Number, Table 2",
        quote="“multiple queries can improve the performance of our model which is about 4% from "
        "1 query to 24 queries”",
        varies=("model.num_queries",),
        parts=(_one("nq_24", "nq_1"),),
    ),
    Claim(
        name="every_step_helps",
        text="every step from 1 query to 24 helps",
        where="Table 2, Figure 4",
        quote="in numbers alone: 65.42, 65.80, 66.13, 66.85, 67.59, 68.14",
        varies=("model.num_queries",),
        parts=tuple(_one(f"nq_{more}", f"nq_{fewer}") for fewer, more in pairwise(STEPS)),
    ),
    Claim(
        name="more_queries_hurt",
        text="32 queries are worse than 24",
        where="§4.4 Query Number, Table 2",
        quote="“With the increase of N_q, the performance will gradually level off or "
        "even decline”",
        varies=("model.num_queries",),
        parts=(_one("nq_24", "nq_32"),),
    ),
    Claim(
        name="mmp_helps_at_every_number",
        text="the Multi-Mask Projector helps at every N_q",
        where="§4.4 Multi-Mask Projector, Table 3",
        quote="“the resulting performance was still insufficient because we did not generate "
        "multiple corresponding masks”",
        varies=("model.mmp",),
        parts=tuple(_one(f"nq_{n}", f"nq_{n}_no_mmp") for n in WITH_MMP),
    ),
    Claim(
        name="mmp_helps",
        text="the Multi-Mask Projector helps, the three N_q together",
        where="§4.4 Multi-Mask Projector, Table 3",
        quote="“This experiment also demonstrated the effectiveness of our Multi-Mask Projector”",
        varies=("model.mmp",),
        parts=(
            Part(
                better=tuple(f"nq_{n}" for n in WITH_MMP),
                worse=tuple(f"nq_{n}_no_mmp" for n in WITH_MMP),
            ),
        ),
    ),
    Claim(
        name="mqe_helps",
        text="removing the Multi-Query Estimator hurts",
        where="§4.4 Multi-Query Estimator, Table 4",
        quote="“removing the Multi-Query Estimator leads to a drop of 1.23 absolute points”",
        varies=("model.mqe",),
        parts=(_one("nq_24", "no_mqe"),),
    ),
    Claim(
        name="f_vg_helps",
        text="removing the global visual feature hurts",
        where="§4.4 Global visual feature, Table 4",
        quote="“removing the global visual feature f_vg leads to a drop of 1.23 absolute points”",
        varies=("model.f_vg",),
        parts=(_one("nq_24", "no_f_vg"),),
    ),
    Claim(
        name="both_help",
        text="removing both hurts",
        where="Table 4",
        quote="in numbers alone: 68.14, 66.17",
        varies=("model.mqe", "model.f_vg"),
        parts=(_one("nq_24", "no_mqe_no_f_vg"),),
    ),
    Claim(
        name="vit_l_beats_vit_b",
        text="ViT-L is better than ViT-B, on every split of every data set",
        where="§4.3, Table 1",
        quote="“we also conduct additional experiments using a more robust visual backbone "
        "ViT-Large”",
        varies=("tower",),
        parts=tuple(
            Part(
                better=(f"{RUN_NAMES[dataset]}_vit_l",),
                worse=(f"{RUN_NAMES[dataset]}_vit_b",),
                dataset=dataset,
                split=split,
            )
            for dataset, splits in PLACES.items()
            for split in splits
        ),
    ),
    Claim(
        name="vit_b_beats_others",
        text="with ViT-B, better than all other methods on RefCOCO+ and G-Ref",
        where="§4.3, Table 1",
        quote="“our proposed method outperforms other methods on RefCOCO+ and G-Ref datasets”",
        varies=(),
        parts=_against_others("vit_b"),
    ),
    Claim(
        name="vit_l_beats_others",
        text="with ViT-L, better than all other methods on RefCOCO+ and G-Ref",
        where="§4.3, Table 1",
        quote="“noticeable improvements over the previous state of the art on RefCOCO+ with wide "
        "margins [...] On the G-Ref dataset, our method surpasses the second-best methods”",
        varies=(),
        parts=_against_others("vit_l"),
    ),
)


def wanted_runs(params: Params) -> list[tuple[str, int]]:
    """Return the (experiment, seed) that the claims compare, each once."""
    parts = [part for claim in CLAIMS for part in claim.parts]
    names = dict.fromkeys(name for part in parts for name in (*part.better, *part.worse))
    return [(name, seed) for name in names for seed in params.seeds]
