"""Does the evidence support what the paper says? Each of its claims, with a verdict.

A claim's parts are differences of mIoU that it puts above zero: claims.yaml has them, evidence.py
tests them on our rows per sentence.
"""

import json
from pathlib import Path
from typing import Any

from mmnet.config.schema import Params
from mmnet.config.tables import MIN_SEEDS
from mmnet.report.claims.evidence import (
    METHODS,
    MIN_IMAGES,
    SUPPORTED,
    UNDECIDED,
    combined,
    corrected_level,
    differences,
    judge,
)
from mmnet.report.claims.statements import CLAIMS, Claim, wanted_runs
from mmnet.report.interval import LEVEL
from mmnet.report.render import render
from mmnet.report.rows import MECHANISM, RowsOf, Runs, read_runs
from mmnet.report.tables.common import TITLES
from mmnet.report.tables.typeset import pipe_table
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write

ABOUT_QUERIES = {"model.num_queries", "model.mmp", "model.mqe"}
"""What a claim about the queries varies."""
Values = dict[str, Any]
"""A claim, or a part of one, as claims.json has it."""


def write_claims(rows_of: RowsOf, folder: Path, *, params: Params) -> None:
    """Write `claims.json`, in points of mIoU, and `claims.md` into `folder`.

    Raises:
        DataError: rows are missing, damaged, of other parameters, or of different sentences.
        ConfigError: experiments are not of their claim's data set, or not measured alike.
    """
    runs = read_runs(wanted_runs(params), rows_of, params)
    if runs.missing and not params.allow_missing:
        raise DataError(
            f"claims ({params.profile}): no rows of {runs.missing_names}. Train and predict "
            "them: snakemake does when asked for results/claims.md. Or set allow_missing: true in "
            "params.yaml."
        )
    claims = [_tested(claim, runs, params) for claim in CLAIMS]
    about: Values = {"profile": params.profile, "about": _about(params), "seeds": params.seeds}
    about |= {"metric": "mIoU", "level": LEVEL, "seeds_needed": MIN_SEEDS}
    rounded = [
        claim | {key: _rounded(claim[key]) for key in ("parts", "mechanism")} for claim in claims
    ]
    content = json.dumps({**about, "claims": rounded}, indent=1, ensure_ascii=False)
    for name, text in (("json", f"{content}\n"), ("md", _markdown(about, claims))):
        with atomic_write(folder / f"claims.{name}") as file:
            file.write(text)


def _tested(claim: Claim, runs: Runs, params: Params) -> Values:
    parts = [judge(part, claim, runs, params) for part in claim.parts]
    return {
        **{"name": claim.name, "claim": claim.text, "where": claim.where, "quote": claim.quote},
        "verdict": combined([part["verdict"] for part in parts]),
        "corrected_level": round(corrected_level(claim), 6),
        "differ_besides": _other_differences(claim, params),
        "mechanism": _mechanism(claim, runs),
        "parts": parts,
    }


def _mechanism(claim: Claim, runs: Runs) -> dict[str, dict[str, float]]:
    """Return how different the queries of each experiment are that a claim about them compares."""
    if not ABOUT_QUERIES & {*claim.varies}:
        return {}
    measures = {
        name: runs.queries(name, part.split)
        for part in claim.parts
        for name in (*part.better, *part.worse)
    }
    return {name: of_run for name, of_run in measures.items() if of_run}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(number) for key, number in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(number) for number in value]
    return round(value, 4) if isinstance(value, float) else value


def _markdown(about: Values, claims: list[Values]) -> str:
    """Return the report: verdicts, how they were reached, and the paper's own words."""
    level = f"{LEVEL:.0%}"
    heads = ["Claim", "Where", "Tested", "In the paper", "Here", f"{level} interval", "Verdict"]
    rows = [row for claim in claims for row in _rows(claim)]
    return render(
        "claims.md",
        **about | {"level": level},
        table=pipe_table(heads, rows, "lllrrrl"),
        alpha=f"{1 - LEVEL:.2f}",
        min_images=MIN_IMAGES,
        claims=claims,
        measures=MECHANISM,
        notes=list(dict.fromkeys(note for claim in claims for note in claim["differ_besides"])),
    )


def _rows(claim: Values) -> list[list[str]]:
    """Return a row for the claim and, where it has several parts, one for each."""
    labels, verdict = [capitalised(claim["claim"]), claim["where"]], f"**{claim['verdict']}**"
    parts = claim["parts"]
    cells = [[compared(part), *numbers(part), _verdict(part, claim)] for part in parts]
    for part, of_part in zip(parts, cells, strict=True):
        if part["interval"] and part["interval_about"] != METHODS:
            of_part[-2] += f" ({part['interval_about']})"
    if len(parts) == 1:
        *others, reason = cells[0]
        return [[*labels, *others, reason.replace(claim["verdict"], verdict, 1)]]
    if any(part["estimate"] for part in parts):
        supported = [part["verdict"] for part in parts].count(SUPPORTED)
        verdict += f" ({supported} of {len(parts)} parts supported)"
    return [[*labels, "all of:", "", "", "", verdict], *(["", "", *of_part] for of_part in cells)]


def _verdict(part: Values, claim: Values) -> str:
    reason, ends = part["reason"], part["interval"]
    if not reason and ends and ends[1] < 0 and part["verdict"] == UNDECIDED:
        reason = f"below zero at {LEVEL:.0%}, but not at {claim['corrected_level']:.1%}"
    return f"{part['verdict']}: {reason}" if reason else str(part["verdict"])


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def compared(part: Values) -> str:
    """Say what a part compares: runs, or a run and a published number, on which split."""
    worse = [part["worse"]] if isinstance(part["worse"], str) else [f"`{n}`" for n in part["worse"]]
    pairs = [f"`{one}` - {other}" for one, other in zip(part["better"], worse, strict=True)]
    mean = "mean of " if len(pairs) > 1 else ""
    return f"{mean}{', '.join(pairs)}; {TITLES[part['dataset']]} {part['split']}"


def numbers(part: Values) -> list[str]:
    """Return the paper's difference, ours, and the interval of ours."""
    ends = part["interval"]
    interval = f"{ends[0]:+.2f} to {ends[1]:+.2f}" if ends else "--"
    return [_shown(part["published"]), _shown(part["estimate"]), interval]


def _shown(difference: Values | None) -> str:
    if difference is None:
        return "--"
    percent = difference["percent"]
    return f"{difference['points']:+.2f}" + ("" if percent is None else f" ({percent:+.1f}%)")


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
