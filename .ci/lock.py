"""After `uv pip compile`: drop the pins of other Pythons, and write environment.yml.

Usage: python .ci/lock.py requirements.lock requirements-dev.lock environment.yml
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

LINUX = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
}
ARM = {**LINUX, "platform_machine": "aarch64"}
MAC = {**LINUX, "platform_machine": "arm64", "platform_system": "Darwin", "sys_platform": "darwin"}
WINDOWS = {
    **LINUX,
    "os_name": "nt",
    "platform_machine": "AMD64",
    "platform_system": "Windows",
    "sys_platform": "win32",
}
HEAD = """\
# For conda users: the versions of requirements.lock for Linux on x86-64. Made by `make lock`.
name: mmnet
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def entries(lock: str) -> Iterator[tuple[Requirement, str]]:
    """Yield each pin of a lock, parsed, with its lines: the pin, its hashes, who wants it."""
    for block in re.split(r"^(?=\S)", lock, flags=re.MULTILINE):
        if block:
            yield Requirement(block.split("\\\n")[0].strip()), block


def installs(pin: Requirement, environment: dict[str, str]) -> bool:
    return pin.marker is None or pin.marker.evaluate(environment)


def prune(lock: str) -> str:
    """Return a lock without the pins of other Pythons.

    uv resolves for every Python from 3.11 up, and pyproject.toml takes 3.11 alone.
    """
    systems = (LINUX, ARM, MAC, WINDOWS)
    return "".join(
        block for pin, block in entries(lock) if any(installs(pin, system) for system in systems)
    )


def conda_environment(lock: str) -> str:
    pins = (pin for pin, _ in entries(lock) if installs(pin, LINUX))
    return HEAD + "".join(f"      - {pin.name}{pin.specifier}\n" for pin in pins)


def main(lock: Path, dev_lock: Path, environment: Path) -> None:
    for path in (lock, dev_lock):
        path.write_text(prune(path.read_text()))
    environment.write_text(conda_environment(lock.read_text()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
