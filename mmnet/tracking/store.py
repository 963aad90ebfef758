"""MLflow's store: opened safely by many processes at once, and sent what it lacks, once.

A training is found by the tag `mmnet.identity` (of two experiments that are one training, each has
a run). Nothing here depends on MLflow's variables for the current run or experiment.

Artifacts of a database are in `mlartifacts/` beside it, which MLflow's tables name only as
`mlflow-artifacts:/PROFILE`: both can be moved or copied together, and an MLflow server started
with `--artifacts-destination` finds them.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from mmnet.runtime.errors import MMNetError, TrackingError
from mmnet.runtime.files import atomic_path
from mmnet.tracking.record import NOTE, Point, Record, milliseconds
from mmnet.tracking.views import saved_view

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
IDENTITY, TABLE, SENT = "mmnet.identity", "mmnet.table", "mmnet.artifacts"
"""Tags: a training's identity; a table's name; the artifacts' SHA-256 by file name."""
LOCK_SECONDS = 30.0
BATCH = 800
"""MLflow takes 1,000 values a call, parameters and tags among them."""
AGAIN = "then run `mmnet mlflow-sync`"
REASONS = (
    (r"Timeout|database is locked", f"another process holds it; wait for it or end it, {AGAIN}"),
    (
        r"readonly|unable to open|PermissionError",
        f"cannot be written; fix the permissions of the file and its folder, {AGAIN}",
    ),
    (r"disk is full|No space left", f"the disk is full; free some space, {AGAIN}"),
    (
        r"DatabaseError|sqlite3\.",
        f"is damaged or not an MLflow database; move it away, {AGAIN}: it is made again from the "
        "runs' files",
    ),
    (
        r"UNAUTHENTICATED|PERMISSION_DENIED|CUSTOMER_UNAUTHORIZED|error code 40[13]",
        "the server refused access; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        f"MLFLOW_TRACKING_TOKEN, {AGAIN}",
    ),
    (
        r"[Mm]ax retries exceeded|timed out|failed with (timeout )?exception|Connection",
        f"the server does not answer; start it or correct MLFLOW_TRACKING_URI, {AGAIN}",
    ),
)
"""Words of an error that concerns every run -> what to say of it."""


class StoreError(TrackingError):
    """A store that no run can be sent to or read from."""


class Sent(NamedTuple):
    """What a store lacked of a run."""

    run_id: str
    is_new: bool = False
    metrics: int = 0
    artifacts: tuple[str, ...] = ()
    is_deleted: bool = False
    """It is in MLflow's trash, and left there."""

    def __str__(self) -> str:
        if self.is_deleted:
            return "is deleted in MLflow (mlflow runs restore brings it back)"
        news = [f"{self.metrics} metrics"] * bool(self.metrics) + [*self.artifacts]
        return (", ".join(news) or "nothing new") + " (a new run)" * self.is_new


class Store:
    """The store that MLFLOW_TRACKING_URI names, or the database in the repository's root.

    Raises:
        StoreError: it cannot be reached, written or read; here and in each method.
    """

    def __init__(self, root: Path) -> None:
        root = root.resolve()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / DATABASE}"
        self.database = database_of(self.uri)
        self.lock = FileLock(
            (self.database or root / DATABASE).with_name(f".{DATABASE}.lock"), timeout=LOCK_SECONDS
        )
        self.parents: dict[tuple[str, str], str] = {}
        with one_line(self.uri):
            silence_mlflow()
            from mlflow.tracking.client import MlflowClient

            if self.database:
                self._create_database(self.database)
            self.client = MlflowClient(self.uri)

    def __str__(self) -> str:
        return shown(self.uri)

    def send(self, record: Record) -> Sent:
        """Send what the store lacks of a run.

        Raises:
            TrackingError: it does not take this run, and may take others.
        """
        with one_line(self.uri):
            experiment = self.experiment(record.profile)
            run, is_new = self._find_or_create(experiment, record)
            run_id = run.info.run_id
            if run.info.lifecycle_stage == "deleted":
                return Sent(run_id, is_deleted=True)
            tags = record.tags | {
                k: v for k, v in record.defaults.items() if k not in run.data.tags
            }
            if record.tables:
                tags["mlflow.parentRunId"] = self._parent(experiment, record.tables[0])
            points = _lacking(run, record.points)
            self._log(run, points, record.params, tags)
            artifacts = self._log_artifacts(run, record.artifacts)
            if run.info.status != record.status:
                if record.status == "RUNNING":
                    self.client.update_run(run_id, status="RUNNING")
                else:
                    self.client.set_terminated(run_id, record.status, record.ended)
            return Sent(run_id, is_new, len(points), artifacts)

    def scored(self, profile: str, experiment: str, seed: int) -> list["Run"]:
        """Return the runs of an experiment and seed that have scores, the last one first."""
        which = f"tags.experiment = '{experiment}' and tags.seed = '{seed}'"
        with one_line(self.uri):
            runs = self.client.search_runs(
                [self.experiment(profile)], which, order_by=["attributes.start_time DESC"]
            )
        return [run for run in runs if "scores.json" in _artifacts_sent(run)]

    def artifact(self, run: "Run", name: str) -> bytes:
        """Return what an artifact of a run holds."""
        with one_line(self.uri), tempfile.TemporaryDirectory() as folder:
            return Path(self._artifacts_of(run).download_artifacts(name, folder)).read_bytes()

    def experiment(self, profile: str) -> str:
        """Return the id of a profile's experiment, which is created if need be."""
        name, note = f"mmnet {profile}", f"Runs of mmnet's profile `{profile}`. {NOTE}"
        place = f"mlflow-artifacts:/{profile}" if self.database else None
        with one_line(self.uri):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                with self.lock:
                    found = self.client.get_experiment_by_name(name)
                    if found is None:
                        return str(
                            self.client.create_experiment(
                                name, place, {"mlflow.note.content": note}
                            )
                        )
        if found.lifecycle_stage == "deleted":
            raise StoreError(
                f"{self}: experiment {name!r} is deleted; restore it (mlflow experiments restore) "
                f"or remove it for good (mlflow gc), {AGAIN}."
            )
        return str(found.experiment_id)

    def page(self, profile: str, server: str) -> str:
        """Return the address of a profile's runs on the store's server, or else on `server`."""
        server = self.uri if self.uri.startswith("http") else server
        path = f"#/experiments/{self.experiment(profile)}/runs"
        return f"{shown(server).rstrip('/')}/{path}?workflowType=machine_learning"

    def _create_database(self, path: Path) -> None:
        """Let a new database appear complete or not at all: MLflow would build it in place."""
        from mlflow.tracking.client import MlflowClient

        if path.exists() and path.stat().st_size:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if not path.exists() or not path.stat().st_size:
                with atomic_path(path) as temporary:
                    MlflowClient(f"sqlite:///{temporary}").search_experiments()

    def _find_or_create(self, experiment: str, record: Record) -> tuple["Run", bool]:
        def create() -> "Run":
            tags = {key: record.tags[key] for key in (IDENTITY, "experiment")}
            run: Run = self.client.create_run(experiment, record.started, tags, record.name)
            return run

        digest, name = record.tags[IDENTITY], record.tags["experiment"]
        which = f"tags.`{IDENTITY}` = '{digest}' and tags.experiment = '{name}'"
        return self._first(experiment, which, create)

    def _parent(self, experiment: str, table: dict[str, str]) -> str:
        """Return the run that stands for a table; MLflow's list shows those of its rows below."""

        def create() -> "Run":
            tags = {TABLE: table["name"], "mlflow.note.content": f"{table['title']}."}
            now = milliseconds()
            run: Run = self.client.create_run(experiment, now, tags, table["title"])
            self.client.set_terminated(run.info.run_id, "FINISHED", now)
            self.client.set_experiment_tag(experiment, *saved_view(table, now))
            return run

        key = experiment, table["name"]
        if key not in self.parents:
            run, _ = self._first(experiment, f"tags.`{TABLE}` = '{table['name']}'", create)
            self.parents[key] = run.info.run_id
        return self.parents[key]

    def _first(
        self, experiment: str, which: str, create: Callable[[], "Run"]
    ) -> tuple["Run", bool]:
        """Return the run that a tag names; should two machines create it at once, the older one."""
        from mlflow.entities import ViewType

        def found() -> list["Run"]:
            runs = self.client.search_runs([experiment], which, ViewType.ALL)
            order = ("lifecycle_stage", "start_time", "run_id")  # active before deleted
            return sorted(runs, key=lambda run: [getattr(run.info, name) for name in order])

        if runs := found():
            return runs[0], False
        with self.lock:
            if runs := found():
                return runs[0], False
            made = create()
            first = found()[0]
        if first.info.run_id == made.info.run_id:
            return made, True
        self.client.delete_run(made.info.run_id)
        return first, False

    def _log(
        self, run: "Run", points: list[Point], params: dict[str, str], tags: dict[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        new_params = [Param(k, v) for k, v in params.items() if k not in run.data.params]
        new_tags = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
        metrics = [Metric(point.key, point.value, point.time, point.step) for point in points]
        for start in range(0, len(metrics) or 1, BATCH):
            batch = metrics[start : start + BATCH], new_params, new_tags
            if any(batch):
                self.client.log_batch(run.info.run_id, *batch)
            new_params, new_tags = [], []

    def _log_artifacts(self, run: "Run", artifacts: dict[str, bytes]) -> tuple[str, ...]:
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in artifacts.items()}
        sent, repository = _artifacts_sent(run), self._artifacts_of(run)
        there = {file.path for file in repository.list_artifacts()} if sent else set()
        names = [name for name in sums if name not in there or sent.get(name) != sums[name]]
        if names:
            with tempfile.TemporaryDirectory() as folder:
                for name in names:
                    (Path(folder) / name).write_bytes(artifacts[name])
                repository.log_artifacts(folder)
            self.client.set_tag(run.info.run_id, SENT, json.dumps(sent | sums))
        return tuple(names)

    def _artifacts_of(self, run: "Run") -> "ArtifactRepository":
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = run.info.artifact_uri
        if self.database and uri.startswith("mlflow-artifacts:"):
            path = uri.removeprefix("mlflow-artifacts:").lstrip("/")
            uri = (self.database.parent / ARTIFACTS / path).as_uri()
        return get_artifact_repository(uri, tracking_uri=self.uri)


def database_of(uri: str) -> Path | None:
    """Return the SQLite file that an address names, however it is written; None of any other."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(found[1]).resolve() if found else None


def shown(uri: str) -> str:
    """Return an address without the name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri).removeprefix("sqlite:///")


def silence_mlflow() -> None:
    """Import MLflow, with its output and telemetry off, and calls that end within seconds."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }.items():
        os.environ.setdefault(name, value)
    packages = "mlflow|alembic|sqlalchemy|urllib3|pydantic|google"
    warnings.filterwarnings("ignore", module=rf"({packages})\b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.store.tracking.sqlalchemy_store
        import mlflow.tracking.client  # noqa: F401  its import sets its own level
    for name in packages.split("|"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Raise whatever goes wrong with a store as one line.

    Raises:
        StoreError: the store cannot be reached, written or read.
        TrackingError: it refuses what it was just sent.
    """
    try:
        yield
    except MMNetError:
        raise
    except Exception as error:
        text = " ".join(f"{getattr(error, 'error_code', '')} {error}".split())
        for words, reason in REASONS:
            if re.search(words, f"{type(error).__name__} {text}"):
                raise StoreError(f"{shown(uri)}: {reason}.") from error
        text = text.partition(" [SQL")[0][:300].strip(" .")
        raise TrackingError(f"{shown(uri)}: MLflow reports: {text}. Fix that, {AGAIN}.") from error


def _lacking(run: "Run", points: list[Point]) -> list[Point]:
    last = {metric.key: metric for metric in run.data._metric_objs}  # `metrics` lacks their steps
    return [
        point
        for point in points
        if point.key not in last
        or point.step > last[point.key].step
        # Evaluated again.
        or (point.step == 0 and point.value != last[point.key].value)
    ]


def _artifacts_sent(run: "Run") -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(run.data.tags.get(SENT, "{}"))
    return sent
