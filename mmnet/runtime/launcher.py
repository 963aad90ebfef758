"""Running one command in several processes by torchrun, and saying once why they ended.

A process that `launch` started writes its error to torchrun's error file. `launch` reads these
files and raises the error that caused the others.
"""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmnet.runtime.errors import LostPeersError, MMNetError

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
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Return whether this process reports and writes for all; a single one always does.

    Without torchrun, RANK may be a leftover of another launcher such as MPI, and does not count.
    """
    return not is_launched() or os.environ["RANK"] == "0"


def end_with_launcher() -> None:
    """End this process with SIGTERM once torchrun is gone: nothing else would free its GPU."""
    if is_launched():
        launcher = int(os.environ.get(LAUNCHER, os.getppid()))
        threading.Thread(target=_watch, args=(launcher,), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(CHECK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)


def is_recorded(error: MMNetError) -> bool:
    """Leave an error to the `launch` that started this process; return whether there is one."""
    if not is_launched() or os.environ.get(LAUNCHER) != str(os.getppid()):
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True


def launch(arguments: list[str], processes: int, *, threads: int) -> int:
    """Run `mmnet ARGUMENTS` in several processes; return 0, or the exit code of a traceback.

    Raises:
        MMNetError: the error that caused the others, with the exit code of its process.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

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
            return _exit_code(error.failures, processes)
        except SignalException as error:
            code = 128 + error.sigval
            failures = _failures(Path(folder), code)
            return _exit_code(failures, processes) if failures else code
    return 0


def _failures(folder: Path, code: int) -> dict[int, "ProcessFailure"]:
    """Read the error files, as torchrun does unless a signal ends it."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    ranks = {int(path.parent.name): path for path in folder.glob("**/error.json")}
    return {rank: ProcessFailure(rank, 0, code, str(path)) for rank, path in ranks.items()}


def _exit_code(failures: Mapping[int, "ProcessFailure"], processes: int) -> int:
    """Return the exit code of the failure that caused the others, whose traceback has been shown.

    Raises:
        MMNetError: an error with a line of its own, or a signal, was the cause.
    """
    rank, cause = min(failures.items(), key=lambda item: (_order(item[1]), item[0]))
    code = cause.exitcode
    if recorded := _recorded(cause):
        raise MMNetError(recorded[1], code if code > 0 else 1)
    if code < 0:
        raise MMNetError(
            f"process {rank + 1} of {processes} was ended by {cause.signal_name()}. Run the same "
            "command again to resume.",
            128 - code,
        )
    return code


def _recorded(failure: "ProcessFailure") -> tuple[str, str] | None:
    """Return the type and the line of the error that a process recorded; None for no error."""
    message = failure.error_file_data["message"]
    if not isinstance(message, dict):
        return None
    kind, _, line = message["message"].partition(": ")
    return kind, line


def _order(failure: "ProcessFailure") -> tuple[int, bool]:
    """Return a failure's place in the order from causes to consequences."""
    is_killed = failure.exitcode < 0  # with an error recorded, while it was ending
    if recorded := _recorded(failure):
        return {"Stopped": 1, LostPeersError.__name__: 4}.get(recorded[0], 0), is_killed
    if failure.exitcode == -signal.SIGTERM:
        return 5, is_killed  # torchrun ended it because another one had failed
    return 2 if is_killed else 3, is_killed
