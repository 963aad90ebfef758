"""`mmnet serve`: the page on this computer's own address, until a signal ends it."""

import errno
import os
import signal
import socket
import sys
import webbrowser
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from mmnet.runtime.errors import MMNetError

HOST = "127.0.0.1"


def bound(port: int) -> socket.socket:
    """Return a socket that listens at a port of this computer; 0 takes a free one.

    Raises:
        MMNetError: the port is taken, or not allowed.
    """
    try:
        if not 0 <= port < 1 << 16:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return socket.create_server((HOST, port), backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EINVAL)
        raise MMNetError(
            f"port {port}: {reason}. Choose another: --port 0 takes a free one."
        ) from None


def serve(path: Path, device: str, listening: socket.socket, *, opens: bool = False) -> None:
    """Load a model and answer requests until SIGINT or SIGTERM, which end at once what waits.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another version of mmnet.
        ConfigError: there is no such device.
    """
    from PIL import Image

    from mmnet.use.load import load, local

    path = local(path)  # a hub's address is resolved once, for both uses of it
    model = load(path, device=device, exact=True)  # before torch is imported

    from mmnet.use.page.about import about
    from mmnet.use.page.app import application
    from mmnet.use.page.worker import Worker

    known = about(model.config, path if path.is_dir() else path.parent)
    model.look(Image.new("RGB", (8, 8))).find("the first one takes longer than others")
    worker = Worker(model)
    server = server_of(application(worker, known))
    address = f"http://{HOST}:{listening.getsockname()[1]}"
    print(f"In a browser: {address}  (Ctrl-C ends it)", flush=True)
    if opens and has_browser():
        webbrowser.open(address)
    # uvicorn raises its signal again once it has ended; that is what ended it, and no error.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        worker.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def server_of(application: Starlette) -> uvicorn.Server:
    """Return a server that says nothing, and waits for nobody when it ends."""
    return uvicorn.Server(
        uvicorn.Config(
            application,
            log_level="critical",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=0,
        )
    )


def has_browser() -> bool:
    """Whether a browser with a window can be opened; one in the terminal would hide the address."""
    if sys.platform == "darwin":
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
