"""After `uv pip compile`: drop the pins of unsupported Pythons, and write environment.yml.

Usage: python .ci/lock.py requirements.lock requirements-dev.lock environment.yml
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LINUX = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{PYTHONS[0]}.0",
    "python_version": PYTHONS[0],
    "sys_platform": "linux",
}
ARM = {"platform_machine": "aarch64"}
MAC = {"platform_machine": "arm64", "platform_system": "Darwin", "sys_platform": "darwin"}
WINDOWS = {
    "os_name": "nt",
    "platform_machine": "AMD64",
    "platform_system": "Windows",
    "sys_platform": "win32",
}
SUPPORTED = [
    {**LINUX, **system, "python_full_version": f"{python}.0", "python_version": python}
    for system in ({}, ARM, MAC, WINDOWS)
    for python in PYTHONS
]
HEAD = """\
# For conda users: the versions of requirements.lock for Linux on x86-64. Made by `make lock`.
name: mmnet
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python={python}
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
    """Return a lock without the pins that no supported Python and system installs."""
    return "".join(
        block
        for pin, block in entries(lock)
        if any(installs(pin, environment) for environment in SUPPORTED)
    )


def conda_environment(lock: str) -> str:
    pins = (pin for pin, _ in entries(lock) if installs(pin, LINUX))
    head = HEAD.format(python=PYTHONS[0])
    return head + "".join(f"      - {pin.name}{pin.specifier}\n" for pin in pins)


def main(lock: Path, dev_lock: Path, environment: Path) -> None:
    for path in (lock, dev_lock):
        path.write_text(prune(path.read_text()))
    environment.write_text(conda_environment(lock.read_text()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
