"""All tables, figures and claims as one LaTeX document: `paper.tex` and `paper.pdf`."""

import json
from pathlib import Path
from typing import Any

from mmnet.config.schema import Params
from mmnet.config.tables import TABLES
from mmnet.report.pages.latex import compile_tex
from mmnet.report.render import render
from mmnet.report.tables.common import TITLES
from mmnet.report.tables.typeset import tex, tex_line
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write
from mmnet.runtime.progress import say

FIGURES = {
    "figure4": "Gain over the fewest queries, by metric: the runs of Table 2.",
    "figure5": "The prediction without and with the Multi-Mask Projector (MMP), for sentences "
    "chosen by the rule that the figure states.",
    "figure6": "What each query reads, its mask and its score, for one sentence. Not in the paper.",
}
"""The PDFs to show, and their captions; numbered as they are named."""
AGAIN = "Re-run mmnet report claims."


def write_paper(folder: Path, *, params: Params) -> None:
    """Write `paper.tex` and `paper.pdf` beside the tables, figures and claims in `folder`.

    Raises:
        DataError: some of those are missing, or the claims are damaged or of other runs.
        MMNetError: there is no TeX engine, or it stops.
    """
    inputs = [folder / f"{name}.tex" for name in TABLES]
    inputs += [folder / f"{name}.pdf" for name in FIGURES]
    needed = [*inputs, folder / "claims.json"]
    if missing := [path.name for path in needed if not path.exists()]:
        raise DataError(
            f"{folder / 'paper.tex'}: missing {', '.join(missing)} in the same folder. Write them: "
            "snakemake --cores all."
        )
    source = folder / "paper.tex"
    with atomic_write(source) as file:
        file.write(to_tex(read_claims(folder / "claims.json", params), params))
    pdf, log = compile_tex(source, inputs)
    if beyond := [line for line in log.splitlines() if line.startswith("Overfull")]:
        say(f"{source}: {len(beyond)} lines or boxes extend beyond the margin.")
    with atomic_write(folder / "paper.pdf", "wb") as file:
        file.write(pdf)


def read_claims(path: Path, params: Params) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        about = {key: claims[key] for key in ("profile", "seeds")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}). {AGAIN}") from None
    for key, value in about.items():
        if value != (now := getattr(params, key)):
            raise DataError(f"{path}: has {key} {value!r}, but params.yaml {now!r}. {AGAIN}")
    return claims


def to_tex(claims: dict[str, Any], params: Params) -> str:
    """Return the document; it reads the tables and figures by their bare names."""
    return render(
        "paper.tex",
        about=_about(params),
        tables=TABLES,
        figures=FIGURES,
        claims=claims,
        level=f"{claims['level']:.0%}",
        groups=[_claim(claim) for claim in claims["claims"]],
        tex=tex,
    )


def _about(params: Params) -> str:
    seeds = ", ".join(map(str, params.seeds))
    of = f"Profile {params.profile} ({params.active.label}), seeds: {seeds}."
    if params.active.shapes is not None:
        return (
            f"{of} All numbers are of the {params.active.label} that this profile draws and of "
            "models scaled down to it: they are not comparable with the paper's, which are not "
            "shown here but where a claim is quoted."
        )
    return (
        f"{of} Our numbers stand beside the paper's, as published (Yan, He, Wang, Liu: arXiv "
        "2305.14969)."
    )


def _claim(claim: dict[str, Any]) -> dict[str, Any]:
    """Return a claim's line and its parts'. A reason that all parts share is given once."""
    reasons = {part["reason"] for part in claim["parts"]}
    shared = reasons.pop() if len(reasons) == 1 else ""
    return {
        "text": tex(claim["claim"][0].upper() + claim["claim"][1:]),
        "where": tex(claim["where"]),
        "verdict": claim["verdict"],
        "reason": tex(f": {shared}" if shared else ""),
        "parts": [
            tex_line(_part(part, reason=part["reason"] if reasons else ""))
            for part in claim["parts"]
        ],
    }


def _part(part: dict[str, Any], *, reason: str) -> list[str]:
    worse = part["worse"] if isinstance(part["worse"], list) else [part["worse"]]
    pairs = [f"{_name(a)} -- {_name(b)}" for a, b in zip(part["better"], worse, strict=True)]
    mean = "mean of " if len(pairs) > 1 else ""
    interval = part["interval"]
    return [
        f"{mean}{', '.join(pairs)}; {tex(TITLES[part['dataset']])} {tex(part['split'])}",
        _difference(part["published"]),
        _difference(part["estimate"]),
        f"${interval[0]:+.2f}$ to ${interval[1]:+.2f}$" if interval else "--",
        tex(f"{part['verdict']}: {reason}" if reason else part["verdict"]),
    ]


def _name(text: str) -> str:
    """Return an experiment, which may break after its underscores; or another method."""
    return r"\_\allowbreak ".join(map(tex, text.split("_")))


def _difference(difference: dict[str, float] | None) -> str:
    if difference is None:
        return "--"
    percent = difference["percent"]
    return f"${difference['points']:+.2f}$" + ("" if percent is None else rf" (${percent:+.1f}\%$)")
