"""Code run in forks of the tests' own process, none of which imports PyTorch again."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO


def forked(
    act: Callable[[], object],
    *,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    **environment: str,
) -> int:
    """Start a process that does one thing and ends; return its id."""
    pid = os.fork()
    if pid == 0:
        code: Any = 1
        try:
            os.environ.update(environment)
            for number, file in ((1, stdout), (2, stderr)):
                if file is not None:
                    os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = stdout or sys.stdout, stderr or sys.stderr
            act()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a process; return its exit code, or less than 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_two(act: Callable[[], object]) -> list[int]:
    """Do one thing in two processes, as if torchrun had started them; return their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    group["TORCHELASTIC_RUN_ID"] = "test"
    return [ended(pid) for pid in [forked(act, RANK=rank, **group) for rank in "01"]]
