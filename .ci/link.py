"""Finish the virtual environment of a checkout: run it by the environment's Python.

`import mmnet` and the program `mmnet` are the checkout's. Programs call the Python beside them,
instead of the path that they were installed in, so that the checkout may be moved, and its path
have any character. (pip's own programs and setuptools allow neither.)
"""

import os
import re
import sys
import sysconfig
from pathlib import Path

START = b"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0" 2>/dev/null || echo "$0")")/python" "$0" "$@"
' '''
"""
PYTHON = re.compile(rb"\A#!(?:[^\n]*/bin/python[^\n]*\n|/bin/sh\n'''exec' [^\n]*\n' '''\n)")
MMNET = START + b"import sys\n\nfrom mmnet.cli.parser import main\n\nsys.exit(main())\n"


def link(checkout: Path) -> None:
    packages, programs = (Path(sysconfig.get_path(name)) for name in ("purelib", "scripts"))
    (packages / "mmnet.pth").write_text(f"{os.path.relpath(checkout, packages)}\n")
    (programs / "mmnet").write_bytes(MMNET)
    (programs / "mmnet").chmod(0o755)
    for program in programs.iterdir():
        if program.is_file() and not program.is_symlink():
            text = program.read_bytes()
            if (linked := PYTHON.sub(lambda _: START, text)) != text:
                program.write_bytes(linked)


if __name__ == "__main__":
    link(Path(sys.argv[1]).absolute())
