"""LaTeX: which engine there is, and a document as a PDF of the same bytes each time."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from mmnet.runtime.errors import MMNetError
from mmnet.runtime.files import atomic_write

ENGINES = ("pdflatex", "lualatex", "xelatex")
NO_ENGINE = (
    f"results/paper.pdf needs LaTeX, and none of {', '.join(ENGINES)} is on the PATH. Install one "
    "(Debian: apt-get install texlive-latex-recommended), then run again."
)
FIXED = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}


def find_engine() -> str | None:
    return next((engine for engine in ENGINES if shutil.which(engine)), None)


def compile_tex(source: Path, inputs: list[Path]) -> tuple[bytes, str]:
    """Return the PDF of `source`, which reads `inputs` by their bare names, and TeX's log.

    Raises:
        MMNetError: no engine is on the PATH, or TeX stops; its log is then beside `source`.
    """
    engine = find_engine()
    if engine is None:
        raise MMNetError(NO_ENGINE)
    kept = source.with_suffix(".log")
    kept.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for path in (source, *inputs):
            shutil.copy(path, scratch)
        # TeX breaks its log's lines, unless they may be long.
        environment = {**os.environ, **FIXED, "max_print_line": "1000"}
        command = [engine, "-interaction=nonstopmode", "-halt-on-error", source.name]
        for _ in range(2):  # references are known the second time
            run = subprocess.run(
                command, cwd=scratch, env=environment, capture_output=True, check=False
            )
            said = scratch / kept.name
            log = (said.read_bytes() if said.exists() else run.stdout).decode(errors="replace")
            if run.returncode:
                with atomic_write(kept) as file:
                    file.write(log)
                lines = [line for line in log.splitlines() if line.startswith("!")]
                reason = lines[0] if lines else f"exit code {run.returncode}"
                raise MMNetError(f"{source}: {engine} stops: {reason} Its log: {kept}.")
        return (scratch / source.with_suffix(".pdf").name).read_bytes(), log
