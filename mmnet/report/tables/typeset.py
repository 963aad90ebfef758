"""A table as TeX and as Markdown."""

import re
from dataclasses import dataclass
from statistics import mean, stdev

from mmnet.report.render import render

SYMBOLS = {r"N\_q": "$N_q$", r"f\_vg": "$f_{vg}$", "✓": r"$\surd$", "✗": r"$\times$", "§": r"\S{}"}
SPECIAL = {c: rf"\{c}" for c in "%_&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
}


@dataclass(frozen=True)
class Row:
    labels: list[str]
    cells: list[str]
    """Numbers as Markdown shows them: `-1.23`, `68.14 ± 0.05`, `68.14 ± 0.05†`, or dashes."""
    rule: str = ""
    """TeX between the row above and this one."""
    continues: bool = False
    """Shares its labels, except for the last, with the row above."""


@dataclass(frozen=True)
class Table:
    name: str
    caption: str
    labels: list[str]
    """Heads of the columns of labels."""
    heads: list[tuple[str, list[str]]]
    """Heads of the columns of numbers, in groups; a group's title may be empty."""
    rows: list[Row]
    align: str
    """Of the columns of numbers, in TeX: l, c or r."""


def cell(values: list[float], empty: str = "--") -> str:
    """Return one value, or the mean and the sample standard deviation of several seeds' values."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else empty
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def tex(text: str) -> str:
    """Return text with TeX's special characters escaped and the paper's symbols set as symbols."""
    text = "".join(SPECIAL.get(character, character) for character in text)
    for plain, symbol in SYMBOLS.items():
        text = text.replace(plain, symbol)
    return text


def tex_line(cells: list[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def to_tex(table: Table) -> str:
    r"""Return a table environment for `\input`, shrunk to the line where it is wider."""
    lines = _spanning_heads(table)
    heads = [*table.labels, *(head for _, group in table.heads for head in group)]
    lines += [tex_line([tex(head) for head in heads]), r"\midrule"]
    for row in table.rows:
        hidden = len(row.labels) - 1 if row.continues else 0
        labels = [""] * hidden + [tex(label) for label in row.labels[hidden:]]
        lines += [row.rule] if row.rule else []
        lines.append(tex_line([*labels, *map(_tex_number, row.cells)]))
    columns = "l" * len(table.labels) + table.align * (len(heads) - len(table.labels))
    caption = tex(table.caption)
    return render("table.tex", name=table.name, caption=caption, columns=columns, lines=lines)


def _spanning_heads(table: Table) -> list[str]:
    if not any(title for title, _ in table.heads):
        return []
    spans, rules, first = [], [], len(table.labels) + 1
    for title, heads in table.heads:
        spans.append(rf"\multicolumn{{{len(heads)}}}{{c}}{{{tex(title)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + len(heads) - 1}}}")
        first += len(heads)
    return [" &" * len(table.labels) + f" {tex_line(spans)}", " ".join(rules)]


def _tex_number(text: str) -> str:
    text = re.sub(r"^-(?=\d)", "$-$", text)
    text = re.sub(r" ± ([\d.]+)†", r"$_{\\pm \1}^{\\dagger}$", text)
    return re.sub(r" ± ([\d.]+)", r"$_{\\pm \1}$", text)


def to_markdown(table: Table) -> str:
    heads = [f"{title} {head}".strip() for title, group in table.heads for head in group]
    align = "l" * len(table.labels) + "r" * len(heads)
    rows = [[*row.labels, *row.cells] for row in table.rows]
    return f"{table.caption}\n\n{pipe_table([*table.labels, *heads], rows, align)}\n"


def pipe_table(heads: list[str], rows: list[list[str]], align: str) -> str:
    """Return a Markdown table whose cells are not padded; `align` has an l or r per column."""
    rules = [{"l": "---", "r": "---:"}[letter] for letter in align]
    lines = [heads, rules, *([text.replace("|", r"\|") for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
