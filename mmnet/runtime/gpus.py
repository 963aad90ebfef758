"""Which GPUs a process uses: those that no other process of this user holds.

Snakemake counts GPUs (`--resources gpu=4`) but assigns none, so that all jobs would use the first.
A GPU is held by a file lock of the operating system, which ends with its holder.
"""

import contextlib
import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mmnet.runtime.errors import MMNetError
from mmnet.runtime.files import writing
from mmnet.runtime.launcher import is_launched
from mmnet.runtime.progress import say
from mmnet.runtime.system import user_id

LOCKS = Path(f"/tmp/mmnet-gpus-{user_id()}")
"""For all checkouts of this user. Not in TMPDIR, which shells and queues set differently."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
HELD = "MMNET_HELD_GPUS"
"""Set for the children of a holder, which use the same GPUs."""
RETRY_EVERY = 1.0  # seconds


def take_for(device: str, count: int) -> contextlib.AbstractContextManager[list[str]]:
    """Hold `count` GPUs unless `device` names one (cuda:1) or torchrun has assigned them."""
    is_assigned = device not in ("auto", "cuda") or is_launched()
    return contextlib.nullcontext([]) if is_assigned else take(count)


@contextlib.contextmanager
def take(count: int) -> Iterator[list[str]]:
    """Wait until `count` GPUs are free, hold them, and hide all others from CUDA.

    CUDA reads CUDA_VISIBLE_DEVICES once, when it is initialised: call this before. Yields UUIDs;
    none where nvidia-smi lists no GPU.

    Raises:
        MMNetError: there are GPUs, but fewer than `count`.
    """
    if HELD in os.environ:
        yield os.environ[HELD].split(",")
        return
    known = visible()
    if not known:
        yield []
        return
    if len(known) < count:
        raise MMNetError(
            f"{count} GPUs requested, {len(known)} available ({', '.join(known)}). Request fewer, "
            f"or change {VISIBLE}."
        )
    with contextlib.ExitStack() as locks:
        with writing(LOCKS):
            LOCKS.mkdir(mode=0o700, exist_ok=True)
            if not (gpus := _lock(known, count, locks)):
                say(f"waiting for {count} of {len(known)} GPUs (fuser -v {LOCKS}/* lists users)")
            while not gpus:
                time.sleep(RETRY_EVERY)
                gpus = _lock(known, count, locks)
        say(f"using {', '.join(gpus)}")
        os.environ[VISIBLE] = os.environ[HELD] = ",".join(gpus)
        locks.callback(os.environ.pop, HELD)  # VISIBLE stays: CUDA does not read it again
        yield gpus


def visible() -> list[str]:
    """Return the UUIDs of the GPUs that CUDA_VISIBLE_DEVICES permits, as nvidia-smi counts them."""
    try:
        listed = subprocess.check_output(["nvidia-smi", "-L"], stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    uuids = re.findall(r"^GPU .*\(UUID: (GPU-[\w-]+)\)", listed, flags=re.MULTILINE)
    if (given := os.environ.get(VISIBLE)) is None:
        return uuids
    known = {name: uuid for index, uuid in enumerate(uuids) for name in (str(index), uuid)}
    # CUDA too ignores what follows an unknown name.
    names = itertools.takewhile(known.__contains__, map(str.strip, given.split(",")))
    return list(dict.fromkeys(known[name] for name in names))


def _lock(known: list[str], count: int, locks: contextlib.ExitStack) -> list[str]:
    """Lock `count` GPUs, or none: jobs that hold some and want more would wait for each other."""
    gpus = []
    with contextlib.ExitStack() as attempt, FileLock(LOCKS / "choosing"):
        for uuid in known:
            with contextlib.suppress(Timeout):
                attempt.enter_context(FileLock(LOCKS / uuid, blocking=False))
                gpus.append(uuid)
            if len(gpus) == count:
                locks.push(attempt.pop_all())
                return gpus
    return []
