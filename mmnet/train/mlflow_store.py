"""MLflow's store: opened safely by many processes at once, and sent what it lacks, once.

Sending is idempotent: a run is found again by its tag, and only what the store lacks is sent.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from mmnet.errors import TrackingError
from mmnet.files import atomic_path
from mmnet.train.mlflow_views import saved_view
from mmnet.train.record_names import experiment_name, experiment_note
from mmnet.train.run_files import milliseconds
from mmnet.train.run_points import Point
from mmnet.train.run_record import RunRecord
from mmnet.train.store_errors import shown, speaking

if TYPE_CHECKING:
    from mlflow.entities import Run

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
BATCH = 800
"""MLflow takes 1,000 values a call, parameters and tags among them."""
PATIENCE = 30.0
"""Seconds for another process here that is at the same."""
BUSY = 10.0
"""Seconds for a database that another process writes."""


class Sent(NamedTuple):
    """What a store lacked of a run."""

    is_new: bool
    metrics: int
    artifacts: list[str]
    note: str = ""


class Store:
    """The store that MLFLOW_TRACKING_URI names, or a database in the repository's root.

    Raises:
        TrackingError: it cannot be reached, written or read; here and in each method.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        own = f"sqlite:///{self.root / DATABASE}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        self.is_own = self.uri == own
        self.parents: dict[tuple[str, str], str] = {}
        with speaking(self.uri):
            _hush()
            if self.uri.startswith("sqlite:///"):
                _prepare_database(Path(self.uri.removeprefix("sqlite:///")))
            self.client = _client(self.uri)

    def __str__(self) -> str:
        return shown(self.uri)

    def send(self, record: RunRecord) -> Sent:
        """Send what the store lacks of a run."""
        with speaking(self.uri):
            experiment = self._experiment(record.profile)
            run, is_new = self._find_or_create(experiment, record)
            if run.info.lifecycle_stage == "deleted":
                return Sent(False, 0, [], "deleted in MLflow, and left so (mlflow runs restore)")
            id = run.info.run_id
            tags = dict(record.tags)
            if record.tables:
                tags["mlflow.parentRunId"] = self._parent(experiment, record.tables[0])
            points = _lacking(run, record.points)
            self._log(run, points, record.params, tags)
            self._log_inputs(run, record)
            artifacts = self._log_artifacts(run, record.artifacts)
            if run.info.status != record.status:
                if record.status == "RUNNING":
                    self.client.update_run(id, status="RUNNING")
                else:
                    self.client.set_terminated(id, record.status, record.ended)
            return Sent(is_new, len(points), artifacts)

    def runs(self, profile: str, experiment: str, seed: int) -> list["Run"]:
        """Return the finished runs of an experiment and seed, the last one first."""
        with speaking(self.uri):
            found = self.client.get_experiment_by_name(experiment_name(profile))
            if found is None:
                return []
            return list(
                self.client.search_runs(
                    [found.experiment_id],
                    f"attributes.status = 'FINISHED' and tags.experiment = '{experiment}' "
                    f"and tags.seed = '{seed}'",
                    order_by=["attributes.start_time DESC"],
                )
            )

    def _experiment(self, profile: str) -> str:
        from mlflow.exceptions import MlflowException

        name = experiment_name(profile)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = (self.root / ARTIFACTS / profile).as_uri() if self.is_own else None
            tags = {"mlflow.note.content": experiment_note(profile)}
            try:
                return str(self.client.create_experiment(name, place, tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(name)  # another process was first
        if found is None or found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"{self}: its experiment {name!r} is deleted. Restore it (mlflow experiments "
                "restore) or remove it for good (mlflow gc), then: mmnet mlflow-sync."
            )
        return str(found.experiment_id)

    def _find_or_create(self, experiment: str, record: RunRecord) -> tuple["Run", bool]:
        def create() -> "Run":
            tags = {"mmnet.id": record.id}
            run: Run = self.client.create_run(experiment, record.started, tags, record.name)
            return run

        return self._first(experiment, f"tags.`mmnet.id` = '{record.id}'", create)

    def _parent(self, experiment: str, table: dict[str, str]) -> str:
        """Return the run that stands for a table, under which those of its rows lie."""

        def create() -> "Run":
            tags = {"mmnet.table": table["name"], "mlflow.note.content": f"{table['title']}."}
            now = milliseconds()
            run: Run = self.client.create_run(experiment, now, tags, table["title"])
            self.client.set_terminated(run.info.run_id, "FINISHED", now)
            view = saved_view(table, now)
            self.client.set_experiment_tag(experiment, *view)
            return run

        key = experiment, table["name"]
        if key not in self.parents:
            with FileLock(self.root / f".{DATABASE}.lock", timeout=PATIENCE):
                run, _ = self._first(experiment, f"tags.`mmnet.table` = '{table['name']}'", create)
            self.parents[key] = run.info.run_id
        return self.parents[key]

    def _first(
        self, experiment: str, which: str, create: Callable[[], "Run"]
    ) -> tuple["Run", bool]:
        """Return the run that a tag names; should two machines make it at once, the older one."""
        if there := self._search(experiment, which):
            return there[0], False
        made = create()
        first = self._search(experiment, which)[0]
        if first.info.run_id == made.info.run_id:
            return made, True
        self.client.delete_run(made.info.run_id)
        return first, False

    def _search(self, experiment: str, which: str) -> list["Run"]:
        from mlflow.entities import ViewType

        found = self.client.search_runs([experiment], which, ViewType.ALL)
        # One that a race deleted above comes last.
        return sorted(
            found,
            key=lambda run: (
                run.info.lifecycle_stage == "deleted",
                run.info.start_time,
                run.info.run_id,
            ),
        )

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

    def _log_inputs(self, run: "Run", record: RunRecord) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if not record.inputs or (run.inputs and run.inputs.dataset_inputs):
            return
        inputs = [
            DatasetInput(
                # One data set for each split: a run may have each only once.
                Dataset(
                    name=f"{dataset} {split}",
                    digest=digest[:16],
                    source_type="local",
                    source=json.dumps({"uri": source}),
                ),
                [InputTag("mlflow.data.context", split)],
            )
            for split, dataset, digest, source in record.inputs
        ]
        self.client.log_inputs(run.info.run_id, inputs)

    def _log_artifacts(self, run: "Run", artifacts: dict[str, bytes]) -> list[str]:
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in artifacts.items()}
        there = json.loads(run.data.tags.get("mmnet.artifacts", "{}"))
        names = [name for name, digest in sums.items() if there.get(name) != digest]
        if names:
            with tempfile.TemporaryDirectory() as folder:
                for name in names:
                    (Path(folder) / name).write_bytes(artifacts[name])
                self.client.log_artifacts(run.info.run_id, folder)
            self.client.set_tag(run.info.run_id, "mmnet.artifacts", json.dumps(there | sums))
        return names


def _lacking(run: "Run", points: list[Point]) -> list[Point]:
    # `metrics` has the last values, but not their steps.
    last = {metric.key: metric.step for metric in run.data._metric_objs}
    values = run.data.metrics
    return [
        point
        for point in points
        if point.key not in last
        or point.step > last[point.key]
        # Evaluated again, elsewhere.
        or (point.step == last[point.key] and point.value != values[point.key])
    ]


def _hush() -> None:
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


def _client(uri: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking.client import MlflowClient

        return MlflowClient(uri)


def _prepare_database(path: Path) -> None:
    """See to it that the database is whole before MLflow opens it.

    MLflow would make a new one in place: opened by several processes at once, it is broken for
    good. Here it appears complete or not at all.
    """
    if not path.exists():
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=PATIENCE):
            if not path.exists():
                with atomic_path(path) as temporary:
                    temporary.unlink()
                    _client(f"sqlite:///{temporary}").search_experiments()
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("SELECT 1 FROM runs LIMIT 1")
        database.rollback()
