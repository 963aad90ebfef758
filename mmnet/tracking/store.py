"""MLflow's store: opened safely by many processes at once, and sent what it lacks, once.

Artifacts of a database are in `mlartifacts/` beside it. MLflow's tables name them only as
`mlflow-artifacts:/PROFILE/...`, so both can be moved or copied together; an MLflow server finds
them by its `--artifacts-destination`.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from mmnet.config.schema import Params
from mmnet.config.tables import runs_of
from mmnet.runtime.errors import MMNetError, TrackingError
from mmnet.runtime.files import atomic_path
from mmnet.tracking.record import IDENTITY, NOTE, Record, milliseconds, saved_view

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

TABLE, SENT = "mmnet.table", "mmnet.artifacts"
"""Tags: of a table's run, its name; of a training's, the SHA-256 of each artifact."""
LOCK_SECONDS = 30.0
BATCH = 1000
"""Metrics that MLflow takes in one call."""
REASONS = {
    r"The file lock|database is locked": "another process holds it; wait for it or end it",
    r"readonly|unable to open|Permission denied": "not writable; fix the permissions",
    r"disk is full|No space left": "the disk is full; free some space",
    r"DatabaseError|sqlite3\.": "damaged, or not an MLflow database; move it away",
    r"UNAUTHENTICATED|PERMISSION_DENIED|CUSTOMER_UNAUTHORIZED|error code 40[13]": "access refused; "
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    r"[Mm]ax retries exceeded|timed out|failed with (timeout )?exception|Connection": "the server "
    "does not answer; start it or correct MLFLOW_TRACKING_URI",
}
"""Words of MLflow's error -> what is wrong and how to fix it."""


class Store:
    """The store that MLFLOW_TRACKING_URI names, or the database `mlflow.db` in the repository.

    Raises:
        TrackingError: it cannot be reached, written or read; here and in each method.
    """

    def __init__(self, root: Path) -> None:
        own = root.resolve() / "mlflow.db"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own}"
        self.database = database_of(self.uri)
        lock = (self.database or own).with_name(".mlflow.db.lock")
        self.lock = FileLock(lock, timeout=LOCK_SECONDS)
        with one_line(self.uri):
            silence_mlflow()
            from mlflow.tracking.client import MlflowClient

            if self.database:
                self._create_database(self.database)
            self.client = MlflowClient(self.uri)

    def send(self, record: Record) -> tuple[str | None, str]:
        """Send what the store lacks of a run; return its id, None if it is deleted, and a report.

        A training is found by its identity; two experiments that are one training have a run each.
        """
        with one_line(self.uri):
            experiment = self.experiment(record.profile)
            own = {key: record.tags[key] for key in (IDENTITY, "experiment")}
            run, is_new = self._first(experiment, own, record.name, record.started)
            if run.info.lifecycle_stage == "deleted":
                return None, "deleted in MLflow; `mlflow runs restore` brings it back"
            tags = dict(record.tags)
            if record.tables:
                tags["mlflow.parentRunId"] = self._parent(experiment, record.tables[0])
            count = self._log(run, record, tags)
            artifacts = self._log_artifacts(run, record.artifacts)
            if run.info.status != record.status and record.status == "RUNNING":
                self.client.update_run(run.info.run_id, status="RUNNING")
            elif run.info.status != record.status:
                self.client.set_terminated(run.info.run_id, record.status, record.ended)
            news = [f"{count} metrics"] * bool(count) + artifacts
            report = (", ".join(news) or "nothing new") + " (a new run)" * is_new
            return run.info.run_id, report

    def scores(self, profile: str, experiment: str, seed: int) -> list[bytes]:
        """Return what the scores.json of an experiment and seed hold, the last training first."""
        which = f"tags.experiment = '{experiment}' and tags.seed = '{seed}'"
        order, name = ["attributes.start_time DESC"], "scores.json"
        with one_line(self.uri), tempfile.TemporaryDirectory() as folder:
            runs = self.client.search_runs([self.experiment(profile)], which, order_by=order)
            return [
                Path(self._artifacts_of(run).download_artifacts(name, folder)).read_bytes()
                for run in runs
                if name in _sent(run)
            ]

    def experiment(self, profile: str) -> str:
        """Return the id of a profile's experiment, which is created if it does not exist."""
        name, place = f"mmnet {profile}", f"mlflow-artifacts:/{profile}" if self.database else None
        with one_line(self.uri), self.lock:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                tags = {"mlflow.note.content": f"Runs of mmnet's profile `{profile}`. {NOTE}"}
                return str(self.client.create_experiment(name, place, tags))
            if found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"{shown(self.uri)}: experiment {name!r} is deleted; restore it (mlflow "
                    "experiments restore) or remove it for good (mlflow gc)."
                )
            return str(found.experiment_id)

    def page(self, profile: str, server: str) -> str:
        """Return the address of a profile's runs on the store's own server, or on `server`."""
        server = shown(self.uri).rstrip("/") if self.uri.startswith("http") else server
        runs = f"#/experiments/{self.experiment(profile)}/runs"
        return f"{server}/{runs}?workflowType=machine_learning"

    def _create_database(self, path: Path) -> None:
        """Let a new database appear complete or not at all: MLflow would build it in place."""
        from mlflow.tracking.client import MlflowClient

        path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if not path.exists() or path.stat().st_size == 0:
                with atomic_path(path) as temporary:
                    MlflowClient(f"sqlite:///{temporary}").search_experiments()

    def _parent(self, experiment: str, table: dict[str, str]) -> str:
        """Return the id of a table's run; MLflow's list shows the runs of its rows below it."""
        now = milliseconds()
        run, _ = self._first(experiment, {TABLE: table["name"]}, table["title"], now)
        if run.info.status == "RUNNING":  # it is new
            self.client.set_experiment_tag(experiment, *saved_view(table, now))
            self.client.set_terminated(run.info.run_id, "FINISHED", now)
        return str(run.info.run_id)

    def _first(
        self, experiment: str, tags: dict[str, str], name: str, started: int
    ) -> tuple["Run", bool]:
        """Return the first run with these tags, and whether it had to be created."""
        from mlflow.entities import ViewType

        which = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with self.lock:
            runs = self.client.search_runs([experiment], which, ViewType.ALL)
            if not runs:
                return self.client.create_run(experiment, started, tags, name), True
        order = ("lifecycle_stage", "start_time", "run_id")  # active before deleted
        return min(runs, key=lambda run: [getattr(run.info, key) for key in order]), False

    def _log(self, run: "Run", record: Record, tags: dict[str, str]) -> int:
        """Log the parameters, tags and metrics that a run lacks; return how many metrics."""
        from mlflow.entities import Metric, Param, RunTag

        new_params = [Param(k, v) for k, v in record.params.items() if k not in run.data.params]
        new_tags = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
        if new_params or new_tags:
            self.client.log_batch(run.info.run_id, params=new_params, tags=new_tags)
        last = {metric.key: metric for metric in run.data._metric_objs}  # `metrics` lacks steps
        metrics = [
            Metric(*point)
            for point in record.points
            if point.key not in last
            or point.step > last[point.key].step
            or (point.step == 0 and point.value != last[point.key].value)  # evaluated again
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run.info.run_id, metrics[start : start + BATCH])
        return len(metrics)

    def _log_artifacts(self, run: "Run", artifacts: dict[str, bytes]) -> list[str]:
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in artifacts.items()}
        sent, repository = _sent(run), self._artifacts_of(run)
        there = {file.path for file in repository.list_artifacts()} if sent else set()
        names = [name for name in sums if name not in there or sent.get(name) != sums[name]]
        if names:
            with tempfile.TemporaryDirectory() as folder:
                for name in names:
                    (Path(folder) / name).write_bytes(artifacts[name])
                repository.log_artifacts(folder)
            self.client.set_tag(run.info.run_id, SENT, json.dumps(sent | sums))
        return names

    def _artifacts_of(self, run: "Run") -> "ArtifactRepository":
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        scheme, _, path = run.info.artifact_uri.partition(":/")
        if self.database and scheme == "mlflow-artifacts":
            return get_artifact_repository((self.database.parent / "mlartifacts" / path).as_uri())
        return get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)


def write_scores(table: str, folder: Path, *, params: Params) -> list[Path]:
    """Write the score file of each run of a table that MLflow has scores of; return their paths.

    Of several trainings of one run, the last with today's values is taken; if none has them, the
    last one, which the table refuses.

    Raises:
        TrackingError: MLflow's store cannot be read.
    """
    store = Store(Path())
    paths = []
    for name, seed in runs_of(table, params):
        values = params.resolve(name, seed).prediction_values()
        if found := store.scores(params.profile, name, seed):
            scores = next((s for s in found if json.loads(s)["config"] == values), found[0])
            paths.append(folder / f"{name}.seed{seed}.json")
            paths[-1].write_bytes(scores)
    return paths


def database_of(uri: str) -> Path | None:
    """Return the SQLite file that an address names, however it is written; None of any other."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(found[1]).resolve() if found else None


def shown(uri: str) -> str:
    """Return an address without the name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri).removeprefix("sqlite:///")


def silence_mlflow() -> None:
    """Import MLflow with its output and telemetry off, and with calls that end within seconds."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }.items():
        os.environ.setdefault(name, value)
    packages = ("mlflow", "alembic", "sqlalchemy", "urllib3", "pydantic", "google")
    warnings.filterwarnings("ignore", module=rf"({'|'.join(packages)})\b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.store.tracking.sqlalchemy_store
        import mlflow.system_metrics.system_metrics_monitor
        import mlflow.tracking.client  # noqa: F401
    for name in packages:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # MLflow's import sets its own


@contextlib.contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Raise whatever goes wrong with a store as one line.

    Raises:
        TrackingError: the store cannot be reached, written or read.
    """
    try:
        yield
    except MMNetError:
        raise
    except Exception as error:
        text = " ".join(f"{getattr(error, 'error_code', '')} {error}".split())
        known = [REASONS[k] for k in REASONS if re.search(k, f"{type(error).__name__} {text}")]
        reason = known[0] if known else text.partition(" [SQL")[0][:300].strip(" .")
        raise TrackingError(f"{shown(uri)}: {reason}, then run `mmnet mlflow-sync`.") from error


def _sent(run: "Run") -> dict[str, str]:
    return dict(json.loads(run.data.tags.get(SENT, "{}")))
