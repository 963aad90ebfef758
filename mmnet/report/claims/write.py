"""Does the evidence support what the paper says? Each of its claims, with a verdict.

A claim's parts are differences of mIoU that it puts above zero: claim_list.py has them,
claim_evidence.py tests them on our rows per sentence.
"""

import json
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
    Interval,
    Outcome,
    RowsOf,
    combined,
    corrected_level,
    differences,
    judge,
    read_runs,
)
from mmnet.report.claims.statements import CLAIMS, Claim, Part
from mmnet.report.tables.common import TITLES
from mmnet.runtime.files import atomic_write

Tested = list[tuple[Claim, list[Outcome]]]


def write_claims(rows_of: RowsOf, folder: Path, *, params: Params) -> None:
    """Write `claims.json` and `claims.md` into `folder`.

    Raises:
        DataError: rows are missing, damaged, of other values, or of different sentences.
        ConfigError: experiments are not of their claim's data set, or not measured alike.
    """
    runs = read_runs(rows_of, params)
    tested = [(c, [judge(part, c, runs, params) for part in c.parts]) for c in CLAIMS]
    texts = {"claims.json": to_json(tested, params), "claims.md": to_markdown(tested, params)}
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)


def to_json(tested: Tested, params: Params) -> str:
    """Return all there is to know, in points of mIoU."""
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
                "differ_besides": _besides(claim, params),
                "parts": [_record(outcome) for outcome in outcomes],
            }
            for claim, outcomes in tested
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _record(outcome: Outcome) -> dict[str, Any]:
    def rounded(value: Difference | Interval | None) -> Any:
        if isinstance(value, Difference):
            percent = None if value.percent is None else round(value.percent, 4)
            return {"points": round(value.points, 4), "percent": percent}
        return value and [round(end, 4) for end in value]

    return {
        "better": outcome.part.better,
        "worse": outcome.part.worse or outcome.rival,
        "dataset": outcome.part.dataset,
        "split": outcome.part.split,
        "sentences": outcome.sentences,
        "images": outcome.images,
        "published": rounded(outcome.published),
        "estimate": rounded(outcome.estimate),
        "interval": rounded(outcome.interval),
        "corrected_interval": rounded(outcome.corrected),
        "verdict": outcome.verdict,
        "reason": outcome.reason,
    }


def to_markdown(tested: Tested, params: Params) -> str:
    """Return the report: verdicts, how they were reached, and the paper's own words."""
    heads = ["Claim", "Where", "Tested", "In the paper", "Here", f"{LEVEL:.0%} interval", "Verdict"]
    lines = [heads, ["---"] * 3 + ["---:"] * 3 + ["---"]]
    for claim, outcomes in tested:
        verdicts = [outcome.verdict for outcome in outcomes]
        labels = [claim.text[0].upper() + claim.text[1:], claim.where]
        cells = [_cells(outcome, claim) for outcome in outcomes]
        if len(outcomes) > 1:
            whole = f"**{combined(verdicts)}**"
            if any(outcome.estimate for outcome in outcomes):
                whole += f" ({verdicts.count(SUPPORTED)} of {len(outcomes)} parts supported)"
            lines.append([*labels, "all of:", "", "", "", whole])
            lines += [["", "", *row] for row in cells]
        else:
            *values, verdict = cells[0]
            lines.append([*labels, *values, verdict.replace(verdicts[0], f"**{verdicts[0]}**", 1)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    quotes = "\n".join(f"- {claim.where}: {claim.quote}" for claim, _ in tested)
    return f"""# The paper's claims

{_about(params)}

{table}

Differences are of mIoU, in points, and in brackets in percent of the lesser: the paper mixes the
two (its "about 4%" is the second, of 2.72 points, and so are its margins of ViT-L). Its drops of
"1.23", for both removals, are no difference of Table 4's rows.

## Method

{_method(params)}{_differing(params)}

## In the paper's words

{quotes}
"""


def _cells(outcome: Outcome, claim: Claim) -> list[str]:
    """What was tested, the paper's difference, ours, its interval, the verdict."""
    low_high = outcome.interval
    verdict, reason = outcome.verdict, outcome.reason
    if not reason and low_high and low_high[1] < 0 and verdict != CONTRADICTED:
        reason = f"below zero at {LEVEL:.0%}, but not at {corrected_level(claim):.1%}"
    return [
        _tested(outcome.part, outcome.rival),
        _shown(outcome.published),
        _shown(outcome.estimate),
        f"{low_high[0]:+.2f} to {low_high[1]:+.2f}" if low_high else "--",
        f"{verdict}: {reason}" if reason else verdict,
    ]


def _tested(part: Part, rival: str) -> str:
    worse = [f"`{name}`" for name in part.worse] or [rival]
    pairs = [f"`{name}` - {other}" for name, other in zip(part.better, worse, strict=True)]
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


def _method(params: Params) -> str:
    seeds = ", ".join(map(str, params.seeds))
    trained = (
        f"Of seeds {seeds}: each sentence's difference is the mean over the seeds, paired by seed."
        if len(params.seeds) > 1
        else f"Of seed {seeds} alone."
    )
    text = (
        f"A paired bootstrap of each sentence's difference in IoU: {RESAMPLES:,} resamples, the "
        "same draws every time, of whole images, since the sentences of one image are not "
        f"independent; percentile intervals. {trained} The intervals say what other images would "
        "give these trained models, not what other trainings would.",
        f"A difference is supported if its {LEVEL:.0%} interval lies above zero, contradicted if "
        f"it lies below, and undecided otherwise, or with fewer than {MIN_IMAGES} images.",
        "A claim of several parts is supported if all are; contradicted if any is; or else not "
        "testable or not tested if any is not; or else undecided. Support needs no correction for "
        "their number, since all must pass. But any one of k could contradict by chance, so a part "
        f"does only if its interval at 1 - {1 - LEVEL:.2f}/k lies below zero (Bonferroni). Across "
        f"claims nothing is corrected: of {len(CLAIMS)}, the odd verdict may be chance.",
        "Other methods' published numbers (the best of each split) are taken as exact. Which IoU "
        "they are, the paper does not say: LAVT's is overall IoU, usually lower than the mIoU that "
        "is held against it here.",
    )
    return "\n\n".join(text)


def _besides(claim: Claim, params: Params) -> list[str]:
    """What else the compared runs differ in: another possible reason of their difference."""
    pairs = {pair for part in claim.parts for pair in zip(part.better, part.worse, strict=False)}
    return [
        f"{pair[0]} and {pair[1]} in {key} ({values[0]}, {values[1]})"
        for pair in sorted(pairs)
        if all(name in params.experiments for name in pair)
        for key, values in differences(pair, params).items()
        if not (claim.varies and key.startswith(claim.varies))
    ]


def _differing(params: Params) -> str:
    found = [note for claim in CLAIMS for note in _besides(claim, params)]
    if not found:
        return ""
    lines = "\n".join(f"- {note}" for note in dict.fromkeys(found))
    return f"\n\nBesides what the claims are about, these runs differ:\n\n{lines}"
