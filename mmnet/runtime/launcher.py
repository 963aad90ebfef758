"""Running one command in several processes by torchrun, and reporting once why they ended."""

import hashlib
import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmnet.runtime.errors import LostPeersError, MMNetError
from mmnet.runtime.system import user_id

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

LAUNCHER = "MMNET_LAUNCHER"
"""The process id of the `launch` that started this process."""
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""torchrun passes these on to its processes."""
SECONDS_TO_SAVE = 300
CHECK_EVERY = 1.0  # seconds


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    return {"TORCHELASTIC_RUN_ID", "RANK"} <= os.environ.keys()


def is_first() -> bool:
    """Return whether this process reports and writes for all; a single one always does.

    Without torchrun, RANK may be a leftover of another launcher such as MPI, and does not count.
    """
    return not is_launched() or os.environ["RANK"] == "0"


def end_with_launcher() -> None:
    """End this process with SIGTERM once torchrun is gone: nothing else would free its GPU."""
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(CHECK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    if is_launched():
        threading.Thread(target=watch, daemon=True).start()


def is_recorded(error: MMNetError) -> bool:
    """Leave an error to the `launch` that started this process; return whether there is one."""
    if not is_launched() or os.environ.get(LAUNCHER) != str(os.getppid()):
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True


def is_said(message: str) -> bool:
    """Return whether another process of the same torchrun has just said this; numbers may differ.

    Without `launch`, nothing collects what the processes report.
    """
    if not is_launched():
        return False
    key = f"{os.getppid()} {os.environ['TORCHELASTIC_RUN_ID']} {re.sub(r'[0-9]+', '', message)}"
    name = f"mmnet-said-{user_id()}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    path = Path(tempfile.gettempdir()) / name
    try:
        if path.exists() and time.time() - path.stat().st_mtime > SECONDS_TO_SAVE:
            path.unlink()  # of an earlier torchrun
        path.touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        return False
    return False


def launch(arguments: list[str], processes: int, *, threads: int) -> int:
    """Run `mmnet ARGUMENTS` in several processes; return the exit code.

    Raises:
        MMNetError: the error that caused the others, with the exit code of its process.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # DDP would warn that it looked for unused parameters and found none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ[LAUNCHER] = str(os.getpid())
    logging.disable()  # torchrun's own lines about what the processes report
    with tempfile.TemporaryDirectory(prefix="mmnet-") as folder:
        options = ["--standalone", "--nproc-per-node", str(processes), "--log-dir", folder]
        options += ["--signals-to-handle", SIGNALS, "--shutdown-timeout", str(SECONDS_TO_SAVE)]
        try:
            run.run(run.parse_args([*options, "-m", "mmnet", *arguments]))
        except ChildFailedError as error:
            return _raise_cause(error.failures)
        except SignalException as error:
            code = 128 + error.sigval
            files = Path(folder).glob("**/error.json")  # torchrun does not read them then
            failures = [ProcessFailure(int(f.parent.name), 0, code, str(f)) for f in files]
            return _raise_cause({f.local_rank: f for f in failures}) if failures else code
    return 0


def _raise_cause(failures: Mapping[int, "ProcessFailure"]) -> int:
    """Raise the error that caused the others; where it has a traceback, return its exit code."""
    # torchrun may have ended a process (exit code < 0) that had recorded its error.
    order = {rank: (_order(f), f.exitcode < 0, rank) for rank, f in failures.items()}
    rank = min(order, key=order.__getitem__)
    code = failures[rank].exitcode
    if recorded := _recorded(failures[rank]):
        raise MMNetError(recorded[1], max(code, 1))
    if code >= 0:
        return code
    name = failures[rank].signal_name()
    line = f"process {rank} was ended by {name}. Run the same command again to resume."
    raise MMNetError(line, 128 - code)


def _recorded(failure: "ProcessFailure") -> tuple[str, str] | None:
    """Return the type and the line of the error that a process recorded; None for no error."""
    if isinstance(message := failure.error_file_data["message"], dict):
        kind, _, line = message["message"].partition(": ")
        return kind, line
    return None


def _order(failure: "ProcessFailure") -> int:
    """Return a failure's place in the order from causes to consequences."""
    if recorded := _recorded(failure):
        return 3 if recorded[0] == LostPeersError.__name__ else 0
    if failure.exitcode == -signal.SIGTERM:
        return 4  # by torchrun, because another process had failed
    return 1 if failure.exitcode < 0 else 2
