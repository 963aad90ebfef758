"""A hash of what Python code computes: layout, documentation and messages do not count."""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

REPORTING = {"say", "say_cut", "print", "warn", "Stopped"}
"""Functions whose arguments are messages; so are those of every `...Error`."""
PROGRESS = "track"
"""A function of which the first argument alone, the items, is no message."""
UNSEEN_IMPORTS = {
    *("__future__", "typing", "collections.abc"),
    *("mmnet.runtime.errors", "mmnet.runtime.files", "mmnet.runtime.progress"),
    "mmnet.train.advice",
}
"""Modules from which an import changes no number."""
SKIPPED_FIELDS = {"annotation", "returns", "type_comment", "type_params", "type_ignores"} | {
    *("kind", "ctx")
}


def fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """Return 12 hexadecimal digits for each path in `mmnet/`: of Python its meaning's hash."""
    found = {}
    for path in sorted(set(paths)):
        content = (PACKAGE / path).read_bytes()
        content = meaning(content).encode() if path.endswith(".py") else content
        found[f"mmnet/{path}"] = hashlib.sha256(content).hexdigest()[:12]
    return found


@functools.cache
def meaning(source: bytes) -> str:
    """Return Python code as text that is the same under each supported version of Python.

    Left out: comments, docstrings, annotations, `if TYPE_CHECKING:`, and the arguments of `raise`
    and of functions that report.
    """
    return "".join(_text(_bare(ast.parse(source))))


def _bare(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in REPORTING or name.endswith("Error"):
                node.args, node.keywords = [], []
            elif name == PROGRESS:
                node.args, node.keywords = node.args[:1], []
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [one for one in statements if _counts(one)])
    return tree


def _counts(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.ImportFrom):
        return statement.module not in UNSEEN_IMPORTS
    if isinstance(statement, ast.If):
        return getattr(statement.test, "id", "") != "TYPE_CHECKING"
    return True


def _text(node: object) -> Iterator[str]:
    """Yield a node's class and its fields, those that are empty left out: `ast.dump` differs."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        node = ast.Assign(targets=[node.target], value=node.value)
    if isinstance(node, ast.JoinedStr):  # 3.12 adds empty constants
        node = ast.JoinedStr([part for part in node.values if getattr(part, "value", None) != ""])
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for field in sorted(set(node._fields) - SKIPPED_FIELDS):
            value = getattr(node, field, None)
            if value is not None and value != []:
                yield f" {field}="
                yield from _text(value)
        yield ")"
    elif isinstance(node, list):
        yield from ("[", *(text for item in node for text in _text(item)), "]")
    else:
        yield repr(node)
