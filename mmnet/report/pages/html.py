"""Our Markdown as a page of HTML: what `snakemake --report` shows as it is.

Of Markdown it knows what our reports have: headings, paragraphs, lists, tables, bold, code.
"""

import html
import re
from pathlib import Path

from mmnet.runtime.files import atomic_write

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1e293b; background: #fff; margin: 2rem; }
p, ul { max-width: 50rem; }
div { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; border: solid #1e293b; border-width: 2px 0;
  font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #1e293b; vertical-align: bottom; }
tbody tr:nth-child(even) { background: #f1f5f9; }
.number { text-align: right; }
td.number { white-space: nowrap; }
code { font-size: 13px; overflow-wrap: anywhere; }
"""


def write_page(markdown: Path) -> None:
    """Write NAME.html beside NAME.md."""
    with atomic_write(markdown.with_suffix(".html")) as file:
        file.write(to_html(markdown.read_text(encoding="utf-8"), title=markdown.stem))


def to_html(markdown: str, *, title: str) -> str:
    body = "\n".join(map(_block, re.split(r"\n{2,}", markdown.strip())))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body>
{body}
</body>
</html>
"""


def _block(text: str) -> str:
    """Convert what stands between empty lines."""
    lines = text.splitlines()
    if heading := re.match(r"(#+) (.*)", text):
        level = len(heading[1])
        return f"<h{level}>{_inline(heading[2])}</h{level}>"
    if text.startswith("```"):
        return f"<pre><code>{html.escape(chr(10).join(lines[1:-1]))}</code></pre>"
    if text.startswith("|"):
        return _table(lines)
    if text.startswith("- "):
        items = [f"<li>{_inline(item)}</li>" for item in text.removeprefix("- ").split("\n- ")]
        return f"<ul>{''.join(items)}</ul>"
    return f"<p>{_inline(text)}</p>"


def _table(lines: list[str]) -> str:
    heads, rules, *rows = (re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines)
    marks = [' class="number"' if rule.strip().endswith(":") else "" for rule in rules]

    def row(cells: list[str], tag: str) -> str:
        texts = [_inline(cell.strip().replace(r"\|", "|")) for cell in cells]
        filled = zip(marks, texts, strict=True)
        return f"<tr>{''.join(f'<{tag}{mark}>{text}</{tag}>' for mark, text in filled)}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return (
        f"<div><table>\n<thead>{row(heads, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
