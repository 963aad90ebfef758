"""All tables, figures and claims as one LaTeX document: `paper.tex` and `paper.pdf`."""

import json
from pathlib import Path
from typing import Any

from mmnet.config.schema import Params
from mmnet.config.tables import TABLES
from mmnet.report.pages.latex import PREAMBLE, compile_tex
from mmnet.report.tables.common import TITLES
from mmnet.report.tables.typeset import tex
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write

FIGURES = {
    "figure4": "Gain over the fewest queries, by metric: the runs of Table 2.",
    "figure5": "The prediction without and with the Multi-Mask Projector (MMP), for sentences "
    "chosen by the rule that the figure states.",
    "figure6": "What each query reads, its mask and its score, for one sentence. Not in the paper.",
}
"""The PDFs to show, and their captions; numbered as they are named."""
AGAIN = "Make it again: mmnet report claims."


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
            f"{folder / 'paper.tex'} needs {', '.join(missing)} beside it. Make all with: "
            "snakemake --cores all."
        )
    source = folder / "paper.tex"
    with atomic_write(source) as file:
        file.write(to_tex(read_claims(folder / "claims.json", params), params))
    pdf, log = compile_tex(source, inputs)
    if beyond := [line for line in log.splitlines() if line.startswith("Overfull")]:
        print(f"{source}: {len(beyond)} lines or boxes reach beyond the margin.")
    with atomic_write(folder / "paper.pdf", "wb") as file:
        file.write(pdf)


def read_claims(path: Path, params: Params) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        held = {key: claims[key] for key in ("profile", "seeds")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}). {AGAIN}") from None
    for key, value in held.items():
        if value != (now := getattr(params, key)):
            raise DataError(f"{path}: is of {key} {value!r}, not {now!r}. {AGAIN}")
    return claims


def to_tex(claims: dict[str, Any], params: Params) -> str:
    tables = "\n".join(rf"\input{{{name}}}" for name in TABLES)
    return rf"""% Compile it where the tables and figures lie.
\documentclass{{article}}
{PREAMBLE}\usepackage[a4paper, textwidth=6.95in, textheight=10.4in]{{geometry}}
\usepackage{{array, booktabs, graphicx, longtable}}
\setcounter{{topnumber}}{{4}}
\setcounter{{totalnumber}}{{6}}
\renewcommand{{\topfraction}}{{0.95}}
\renewcommand{{\textfraction}}{{0.02}}
\renewcommand{{\floatpagefraction}}{{0.6}}
% Where they are named, not on pages of their own, and those at the top.
\makeatletter \def\fps@table{{!htbp}} \setlength{{\@fptop}}{{0pt}} \makeatother
\begin{{document}}
\begin{{center}}
  \Large MMNet: Multi-Mask Network for Referring Image Segmentation, regenerated
\end{{center}}
{tex(_about(params))}

\section*{{Tables}}
{tables}
\clearpage
\section*{{Figures}}
{_figures()}\clearpage
{_claims(claims)}\end{{document}}
"""


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


def _figures() -> str:
    return "".join(
        rf"""\setcounter{{figure}}{{{int(name.removeprefix("figure")) - 1}}}
\begin{{figure}}[!htbp]
  \centering
  \includegraphics[width=\linewidth, height=0.9\textheight, keepaspectratio]{{{name}.pdf}}
  \caption{{{tex(caption)}}}
\end{{figure}}
"""
        for name, caption in FIGURES.items()
    )


def _claims(claims: dict[str, Any]) -> str:
    """One table over as many pages as it takes: a claim and its verdict, then its parts."""
    level = f"{claims['level']:.0%}"
    lines = []
    for claim in claims["claims"]:
        text = claim["claim"][0].upper() + claim["claim"][1:]
        head = rf"\textbf{{{tex(text)}}} ({tex(claim['where'])}): \textbf{{{claim['verdict']}}}"
        reasons = {part["reason"] for part in claim["parts"]}
        if alike := len(reasons) == 1:  # said once, not in each line
            head += tex(f": {reason}" if (reason := reasons.pop()) else "")
        # \\* keeps a claim and its first part on one page.
        lines.append(rf"\addlinespace \multicolumn{{5}}{{@{{}}p{{\linewidth}}@{{}}}}{{{head}}} \\*")
        lines += [
            rf"{' & '.join(_part(part, with_reason=not alike))} \\" for part in claim["parts"]
        ]
    rows = "\n".join(lines)
    heads = " & ".join(["Tested", "In the paper", "Here", tex(f"{level} interval"), "Verdict"])
    return rf"""\section*{{Claims}}
\noindent {tex(claims["about"])} Differences are of mIoU, in points, and in brackets in percent of
the lesser. {tex(level)} intervals of a paired bootstrap over images,
{claims["resamples"]:,} resamples. A claim of several parts is supported if all of them are.

{{\footnotesize\setlength{{\tabcolsep}}{{4pt}}\setlength{{\LTleft}}{{0pt}}\setlength{{\LTright}}{{0pt}}
\begin{{longtable}}{{@{{\extracolsep{{\fill}}}}>{{\raggedright}}p{{2.9in}}rrr>{{\raggedright\arraybackslash}}p{{0.98in}}@{{}}}}
\toprule
{heads} \\
\midrule
\endhead
\bottomrule
\endfoot
{rows}
\end{{longtable}}}}
"""


def _part(part: dict[str, Any], *, with_reason: bool) -> list[str]:
    worse = part["worse"] if isinstance(part["worse"], list) else [part["worse"]]
    pairs = [f"{_name(a)} -- {_name(b)}" for a, b in zip(part["better"], worse, strict=True)]
    mean = "mean of " if len(pairs) > 1 else ""
    interval = part["interval"]
    return [
        f"{mean}{', '.join(pairs)}; {tex(TITLES[part['dataset']])} {tex(part['split'])}",
        _difference(part["published"]),
        _difference(part["estimate"]),
        f"${interval[0]:+.2f}$ to ${interval[1]:+.2f}$" if interval else "--",
        tex(": ".join(filter(None, [part["verdict"], part["reason"] if with_reason else ""]))),
    ]


def _name(text: str) -> str:
    """An experiment, which may break after its underscores; or another method."""
    return r"\_\allowbreak ".join(map(tex, text.split("_")))


def _difference(difference: dict[str, float] | None) -> str:
    if difference is None:
        return "--"
    percent = difference["percent"]
    return f"${difference['points']:+.2f}$" + ("" if percent is None else rf" (${percent:+.1f}\%$)")
