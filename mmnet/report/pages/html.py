"""Our Markdown as a page of HTML, which `snakemake --report` shows."""

import html
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

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
td[style] { white-space: nowrap; } /* numbers, the only cells with an alignment */
code { font-size: 13px; overflow-wrap: anywhere; }
"""


def write_page(markdown: Path) -> None:
    """Write NAME.html beside NAME.md."""
    with atomic_write(markdown.with_suffix(".html")) as file:
        file.write(to_html(markdown.read_text(encoding="utf-8"), title=markdown.stem))


def to_html(markdown: str, *, title: str) -> str:
    """Return a page; HTML in the Markdown is text, and wide tables scroll."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body>
{parser.render(markdown)}</body>
</html>
"""


def _table_open(*_: Any) -> str:
    return "<div><table>\n"


def _table_close(*_: Any) -> str:
    return "</table></div>\n"
