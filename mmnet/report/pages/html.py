"""Our Markdown as a page of HTML, which `snakemake --report` shows."""

from pathlib import Path

from markdown_it import MarkdownIt

from mmnet.report.render import render
from mmnet.runtime.files import atomic_write


def write_page(markdown: Path) -> None:
    """Write NAME.html beside NAME.md."""
    with atomic_write(markdown.with_suffix(".html")) as file:
        file.write(to_html(markdown.read_text(encoding="utf-8"), title=markdown.stem))


def to_html(markdown: str, *, title: str) -> str:
    """Return a page; HTML in the Markdown is text, and wide tables scroll."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    # Its only tables are Markdown's: what a cell says of a table is escaped.
    body = body.replace("<table>", "<div><table>").replace("</table>", "</table></div>")
    return render("page.html", title=title, body=body)
