"""Tables as TeX and Markdown: what all of them share."""

from statistics import mean, stdev

TEX_SPREAD, MARKDOWN_SPREAD = "$_{{\\pm {}}}$", " ± {}"
SYMBOLS = {r"N\_q": "$N_q$", r"f\_vg": "$f_{vg}$", "✓": r"$\surd$", "✗": r"$\times$", "§": r"\S{}"}


def cell(values: list[float], spread: str, empty: str = "--") -> str:
    """Return one value, or the mean and the sample standard deviation of several."""
    if not values:
        return empty
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f}{spread.format(f'{stdev(values):.2f}')}"


def tex(text: str) -> str:
    """Return text as TeX prints it, the paper's symbols as the paper does."""
    special = {c: rf"\{c}" for c in "%_&#${}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    text = "".join((special | {"±": r"$\pm$"}).get(character, character) for character in text)
    for plain, symbol in SYMBOLS.items():
        text = text.replace(plain, symbol)
    return text


def tex_line(cells: list[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def tex_table(lines: list[str], *, columns: str, caption: str, label: str) -> str:
    r"""Return a table environment for `\input`, shrunk to the line where it is wider."""
    body = "\n".join(f"      {line}" for line in lines)
    return rf"""% Needs \usepackage{{booktabs}} and \usepackage{{graphicx}}.
\begin{{table}}
  \centering
  \caption{{{tex(caption)}}}
  \label{{{label}}}
  \setlength{{\tabcolsep}}{{4pt}}
  \medskip
  \resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
    \begin{{tabular}}{{@{{}}{columns}@{{}}}}
      \toprule
{body}
      \bottomrule
    \end{{tabular}}%
  }}
\end{{table}}
"""


def markdown_table(heads: list[str], rows: list[list[str]], *, caption: str, labels: int) -> str:
    """Return the caption and a table with pipes, whose first columns are labels."""
    rules = ["---"] * labels + ["---:"] * (len(heads) - labels)
    lines = [heads, rules, *([text.replace("|", r"\|") for text in row] for row in rows)]
    return "\n".join([caption, "", *(f"| {' | '.join(line)} |" for line in lines), ""])
