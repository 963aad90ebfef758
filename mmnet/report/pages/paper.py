"""All tables, figures and claims as one LaTeX document: `paper.tex` and `paper.pdf`."""

import json
import re
from pathlib import Path
from typing import Any

from mmnet.config.schema import Params
from mmnet.config.tables import TABLES
from mmnet.report.claims.write import capitalised, compared, numbers
from mmnet.report.pages.latex import compile_tex
from mmnet.report.render import render
from mmnet.report.tables.typeset import tex, tex_line
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write
from mmnet.runtime.progress import say

FIGURES = ("figure4", "figure5", "figure6")
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
        params=params,
        tables=TABLES,
        claims=claims,
        level=f"{claims['level']:.0%}",
        groups=[_claim(claim) for claim in claims["claims"]],
        tex=tex,
    )


def _claim(claim: dict[str, Any]) -> dict[str, Any]:
    """Return a claim's line and its parts'. A reason that all parts share is given once."""
    reasons = {part["reason"] for part in claim["parts"]}
    shared = reasons.pop() if len(reasons) == 1 else ""
    return {
        "text": tex(capitalised(claim["claim"])),
        "where": tex(claim["where"]),
        "verdict": claim["verdict"],
        "reason": tex(f": {shared}" if shared else ""),
        "parts": [
            tex_line(_cells(part, part["reason"] if reasons else "")) for part in claim["parts"]
        ],
    }


def _cells(part: dict[str, Any], reason: str) -> list[str]:
    # An experiment's name may break after its underscores.
    runs = r"\_\allowbreak ".join(map(tex, compared(part).split("_")))
    return [
        runs.replace("`", "").replace(" - ", " -- "),
        *(re.sub(r"[+-]\d+\.\d+(\\%)?", r"$\g<0>$", tex(text)) for text in numbers(part)),
        tex(f"{part['verdict']}: {reason}" if reason else part["verdict"]),
    ]
