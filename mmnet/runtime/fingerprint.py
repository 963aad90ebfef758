"""What a rule's results depend on in this package: a hash of the code it can reach."""

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_version(module: str) -> str:
    """Return a hash of a module and all of `mmnet` that it imports, directly or not.

    Comments, docstrings and layout do not count: mending them retrains nothing. Data files count,
    those that lie beside a module it can reach or a folder below.
    """
    digest = hashlib.sha256()
    data: set[Path] = set()
    for name in sorted(reachable(module)):
        path = _path(name)
        digest.update(f"{name}\n{_essence(path)}\n".encode())
        data.update(path.parent.glob("*.csv"), path.parent.glob("*/*.json"))
    for path in sorted(data):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def reachable(module: str) -> set[str]:
    """Return the names of a module and of all modules of `mmnet` that it imports."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_imports(_path(name)))
    return found


def _path(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.extend(a.name for a in node.names if a.name.split(".")[0] == "mmnet")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmnet":
            module = node.module or ""
            names.append(module)
            # `from mmnet.model import checkpoint` names a module, not a value.
            names.extend(
                f"{module}.{alias.name}"
                for alias in node.names
                if _path(f"{module}.{alias.name}").exists()
            )
    return names


@functools.cache
def _essence(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                child
                for child in node.body
                if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
            ]
    return ast.dump(tree)
