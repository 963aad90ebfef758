"""Does the evidence support what the paper says? Each of its claims, with a verdict.

A claim's parts are differences of mIoU that it puts above zero: claims.yaml has them, evidence.py
tests them on our rows per sentence.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmnet.config.schema import Params
from mmnet.report.claims.bootstrap import RESAMPLES
from mmnet.report.claims.evidence import (
    CONTRADICTED,
    LEVEL,
    MIN_IMAGES,
    SUPPORTED,
    Difference,
    Outcome,
    combined,
    corrected_level,
    differences,
    judge,
)
from mmnet.report.claims.rows import RowsOf, read_runs
from mmnet.report.claims.statements import CLAIMS, Claim, Part
from mmnet.report.render import render
from mmnet.report.tables.common import TITLES
from mmnet.report.tables.typeset import pipe_table
from mmnet.runtime.files import atomic_write

Tested = list[tuple[Claim, list[Outcome]]]


def write_claims(rows_of: RowsOf, folder: Path, *, params: Params) -> None:
    """Write `claims.json` and `claims.md` into `folder`.

    Raises:
        DataError: rows are missing, damaged, of other parameters, or of different sentences.
        ConfigError: experiments are not of their claim's data set, or not measured alike.
    """
    runs = read_runs(rows_of, params)
    tested = [(c, [judge(part, c, runs, params) for part in c.parts]) for c in CLAIMS]
    texts = {"claims.json": to_json(tested, params), "claims.md": to_markdown(tested, params)}
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)


def to_json(tested: Tested, params: Params) -> str:
    """Return all that was found, in points of mIoU."""
    content = {
        "profile": params.profile,
        "about": _about(params),
        "seeds": params.seeds,
        "metric": "mIoU",
        "resamples": RESAMPLES,
        "level": LEVEL,
        "claims": [
            {
                "name": claim.name,
                "claim": claim.text,
                "where": claim.where,
                "quote": claim.quote,
                "verdict": combined([outcome.verdict for outcome in outcomes]),
                "corrected_level": round(corrected_level(claim), 6),
                "differ_besides": _other_differences(claim, params),
                "parts": [_entry(outcome) for outcome in outcomes],
            }
            for claim, outcomes in tested
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _entry(outcome: Outcome) -> dict[str, Any]:
    part = outcome.part
    return {
        "better": part.better,
        "worse": part.worse or outcome.rival,
        "dataset": part.dataset,
        "split": part.split,
        "sentences": outcome.sentences,
        "images": outcome.images,
        "published": _rounded(asdict(outcome.published)),
        "estimate": outcome.estimate and _rounded(asdict(outcome.estimate)),
        "interval": _rounded(outcome.interval),
        "corrected_interval": _rounded(outcome.corrected),
        "verdict": outcome.verdict,
        "reason": outcome.reason,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(number) for key, number in value.items()}
    if isinstance(value, tuple):
        return [round(end, 4) for end in value]
    return value if value is None else round(value, 4)


def to_markdown(tested: Tested, params: Params) -> str:
    """Return the report: verdicts, how they were reached, and the paper's own words."""
    level = f"{LEVEL:.0%}"
    heads = ["Claim", "Where", "Tested", "In the paper", "Here", f"{level} interval", "Verdict"]
    rows = [row for claim, outcomes in tested for row in _rows(claim, outcomes)]
    notes = dict.fromkeys(n for claim, _ in tested for n in _other_differences(claim, params))
    return render(
        "claims.md",
        about=_about(params),
        table=pipe_table(heads, rows, "lllrrrl"),
        resamples=RESAMPLES,
        seeds=params.seeds,
        level=level,
        alpha=f"{1 - LEVEL:.2f}",
        min_images=MIN_IMAGES,
        claims=CLAIMS,
        notes=list(notes),
    )


def _rows(claim: Claim, outcomes: list[Outcome]) -> list[list[str]]:
    """Return a row for the claim and, where it has several parts, one for each."""
    labels = [claim.text[0].upper() + claim.text[1:], claim.where]
    parts = [_cells(outcome, claim) for outcome in outcomes]
    verdicts = [outcome.verdict for outcome in outcomes]
    verdict = f"**{combined(verdicts)}**"
    if len(parts) == 1:
        *cells, reason = parts[0]
        return [[*labels, *cells, reason.replace(verdicts[0], verdict, 1)]]
    if any(outcome.estimate for outcome in outcomes):
        verdict += f" ({verdicts.count(SUPPORTED)} of {len(parts)} parts supported)"
    return [[*labels, "all of:", "", "", "", verdict], *(["", "", *cells] for cells in parts)]


def _cells(outcome: Outcome, claim: Claim) -> list[str]:
    """Return what was tested, the paper's difference, ours, its interval, the verdict."""
    ends = outcome.interval
    verdict, reason = outcome.verdict, outcome.reason
    if not reason and ends and ends[1] < 0 and verdict != CONTRADICTED:
        reason = f"below zero at {LEVEL:.0%}, but not at {corrected_level(claim):.1%}"
    return [
        _tested(outcome.part, outcome.rival),
        _shown(outcome.published),
        _shown(outcome.estimate),
        f"{ends[0]:+.2f} to {ends[1]:+.2f}" if ends else "--",
        f"{verdict}: {reason}" if reason else verdict,
    ]


def _tested(part: Part, rival: str) -> str:
    pairs = [f"`{one}` - `{other}`" for one, other in part.pairs] or [
        f"`{part.better[0]}` - {rival}"
    ]
    mean = "mean of " if len(pairs) > 1 else ""
    return f"{mean}{', '.join(pairs)}; {TITLES[part.dataset]} {part.split}"


def _shown(difference: Difference | None) -> str:
    if difference is None:
        return "--"
    percent = "" if difference.percent is None else f" ({difference.percent:+.1f}%)"
    return f"{difference.points:+.2f}{percent}"


def _about(params: Params) -> str:
    if params.active.shapes is not None:
        return (
            f"Profile {params.profile}: these verdicts are about the {params.active.label} that "
            "this profile draws, not about the paper's data. They neither confirm nor refute what "
            "the paper says."
        )
    return f"Profile {params.profile}: the paper's data ({params.active.label}), our training."


def _other_differences(claim: Claim, params: Params) -> list[str]:
    """Return what else the compared runs differ in: another possible reason of the difference."""
    pairs = {pair for part in claim.parts for pair in part.pairs}
    return [
        f"{one} and {other} in {key} ({values[0]}, {values[1]})"
        for one, other in sorted(pairs)
        if one in params.experiments and other in params.experiments
        for key, values in differences(one, other, params).items()
        if not (claim.varies and key.startswith(claim.varies))
    ]
