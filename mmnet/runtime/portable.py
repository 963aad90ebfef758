"""Arithmetic that gives the same bits on every x86-64 CPU of level v3 (AVX2), on fixed threads.

Libraries choose their kernels by the CPU, and another order of a sum gives another rounding. These
variables choose for them. JPEG coding needs none: libjpeg-turbo has no kernels beyond AVX2, and
Pillow and pycocotools choose none.
"""

import functools
import os
import platform
import sys
from pathlib import Path

from mmnet.runtime.errors import MMNetError

VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products: MKL promises no other branch on AMD's CPUs
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",  # NumPy's own kernels, of all beyond its baseline
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's matrix products
}
READERS = ("torch", "numpy")
"""Libraries that read them once, when they are imported."""
X86_V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
"""What the level v3 of x86-64 requires, by Linux's names."""


@functools.cache
def is_supported(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU is of x86-64's level v3."""
    if platform.machine() != "x86_64" or not cpuinfo.is_file():
        return False
    with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        flags = next((line for line in lines if line.startswith("flags")), "")
    return {*flags.split()} >= X86_V3


def use() -> None:
    """Set the variables, for this process and those that it starts.

    Raises:
        MMNetError: a library has been imported without them.
    """
    if VARIABLES.items() <= os.environ.items():
        return
    if loaded := [name for name in READERS if name in sys.modules]:
        wanted = " ".join(f"{name}={value}" for name, value in VARIABLES.items())
        raise MMNetError(
            f"{loaded[0]} was imported before portable arithmetic was chosen. Start Python with "
            f"{wanted}, or set `portable: false` in the profile."
        )
    os.environ.update(VARIABLES)
