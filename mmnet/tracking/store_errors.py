"""What may be wrong with MLflow's store, each in one line with its remedy."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator

from filelock import Timeout

from mmnet.runtime.errors import MMNetError, TrackingError

AGAIN = "then: mmnet mlflow-sync"


class StoreError(TrackingError):
    """A store that no run can be sent to, or read from."""


@contextlib.contextmanager
def speaking(uri: str) -> Iterator[None]:
    """Raise whatever goes wrong as one line.

    Raises:
        StoreError: the store cannot be reached, written or read.
        TrackingError: it does not take what it was just sent, and may take other runs.
    """
    try:
        yield
    except MMNetError:
        raise
    except Exception as error:
        if reason := _reason(error, uri):
            raise StoreError(f"{shown(uri)}: {reason}") from error
        text = _first(" ".join(str(error).split()))[:300]
        raise TrackingError(f"{shown(uri)}: MLflow says: {text}. Mend that, {AGAIN}.") from error


def shown(uri: str) -> str:
    """Return an address without the name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri).removeprefix("sqlite:///")


def in_one_line(error: Exception) -> str:
    """Return what an error says; of one that nobody foresaw, which it is."""
    if isinstance(error, MMNetError):
        return str(error)
    text = " ".join(str(error).split())[:300].rstrip(".")
    return f"{text}." if isinstance(error, OSError) else f"{type(error).__name__}: {text}."


def _reason(error: Exception, uri: str) -> str | None:
    """Return what is wrong with the store, for all runs alike."""
    text = " ".join(str(error).split())
    if isinstance(error, Timeout) or "database is locked" in text:
        return f"another process holds it. Wait for that, or end it, {AGAIN}."
    if isinstance(error, sqlite3.DatabaseError) or "sqlite3." in text:
        if "readonly" in text or "unable to open" in text:
            return f"cannot be written. Mend the permissions of file and folder, {AGAIN}."
        if "disk is full" in text:
            return f"the disk is full. Free some space, {AGAIN}."
        return (
            f"is no database of MLflow's, or damaged ({_first(text)}). Move it away, {AGAIN}, "
            "which makes it anew from the runs' files."
        )
    code = getattr(error, "error_code", "")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        return (
            "the server does not let us in. Set MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, {AGAIN}."
        )
    if re.search(r"failed with (timeout )?exception|[Mm]ax retries exceeded|timed out", text):
        return f"the server does not answer. Start it, or mend MLFLOW_TRACKING_URI, {AGAIN}."
    if "out-of-date database schema" in text:
        return f"was made by another version of MLflow. Run mlflow db upgrade {uri}, {AGAIN}."
    return None


def _first(text: str) -> str:
    """The first sentence of what SQLAlchemy wraps in its own."""
    return text.partition(" [SQL")[0].strip(" .")
