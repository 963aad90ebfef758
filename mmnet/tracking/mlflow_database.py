"""MLflow's client, and a database for it that several processes open, move and copy at will."""

import contextlib
import logging
import os
import re
import sqlite3
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from mmnet.runtime.files import atomic_path
from mmnet.tracking.record_names import experiment_name

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
SENT = "mmnet.artifacts"
"""The tag that says which artifacts a run has."""
PATIENCE = 30.0
"""Seconds for another process here that is at the same."""
BUSY = 10.0
"""Seconds for a database that another process writes."""


def database_of(uri: str) -> Path | None:
    """Return the file that an address names, in whatever way, if it is one of SQLite's."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(found[1]).resolve() if found else None


def artifacts_of(database: Path, experiment: str) -> str:
    """Return where an experiment's artifacts lie: beside the database that tells of them."""
    folder = experiment.removeprefix(experiment_name(""))
    return (database.resolve().parent / ARTIFACTS / folder).as_uri()


def hush() -> None:
    """Keep MLflow's own words out of our logs, and ours from its makers."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A call that hangs holds nothing up that could not be sent later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, about one another
        import mlflow.tracking.client  # noqa: F401  its import sets its own level
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def client_of(uri: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking.client import MlflowClient

        return MlflowClient(uri)


def prepare(path: Path) -> None:
    """See to it that the database is whole before MLflow opens it.

    MLflow would make a new one in place: opened by several processes at once, it is broken for
    good. Here it appears complete or not at all.
    """
    if not path.exists():
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=PATIENCE):
            if not path.exists():
                with atomic_path(path) as temporary:
                    temporary.unlink()
                    client_of(f"sqlite:///{temporary}").search_experiments()
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY)) as database:
        database.execute("BEGIN IMMEDIATE")
        _mend_places(path, database)
        database.commit()


def _mend_places(path: Path, database: sqlite3.Connection) -> None:
    """Let artifacts lie beside the database, wherever it was moved or copied to.

    MLflow keeps where each experiment's and each run's lie, as absolute paths: of a copy, in the
    folder of the original. Those that did not come along are sent again.
    """
    experiments = database.execute(
        "SELECT experiment_id, name, artifact_location FROM experiments WHERE name LIKE ?",
        [experiment_name("%")],
    ).fetchall()
    database.execute("SELECT 1 FROM runs LIMIT 1")
    for id, name, old in experiments:
        new = artifacts_of(path, name)
        # A server's own are named otherwise: mlflow-artifacts:, s3:.
        if old == new or re.match(r"(?!file:)[\w+-]+:", old):
            continue
        database.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", [new, id]
        )
        runs = database.execute(
            "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ?", [id]
        ).fetchall()
        for run, uri in runs:
            if not uri.startswith(f"{old}/"):
                continue
            moved = new + uri.removeprefix(old)
            database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", [moved, run])
            if not Path(unquote(urlsplit(moved).path)).is_dir():
                database.execute("DELETE FROM tags WHERE run_uuid = ? AND key = ?", [run, SENT])
