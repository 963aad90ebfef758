"""MLflow's store: opened safely by many processes at once, and sent what it lacks, once.

Sending is idempotent: a run is found again by its tag, and only what the store lacks is sent.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from mmnet.tracking.mlflow_database import (
    DATABASE,
    PATIENCE,
    SENT,
    artifacts_of,
    client_of,
    database_of,
    hush,
    prepare,
)
from mmnet.tracking.mlflow_views import saved_view
from mmnet.tracking.record_names import experiment_name, experiment_note
from mmnet.tracking.run_files import milliseconds
from mmnet.tracking.run_points import Point
from mmnet.tracking.run_record import RunRecord
from mmnet.tracking.store_errors import StoreError, shown, speaking

if TYPE_CHECKING:
    from mlflow.entities import Run

BATCH = 800
"""MLflow takes 1,000 values a call, parameters and tags among them."""
DELETED = "deleted in MLflow, and left so (mlflow runs restore)"


class Sent(NamedTuple):
    """What a store lacked of a run."""

    is_new: bool
    metrics: int
    artifacts: list[str]
    note: str = ""
    is_had: bool = True


class Store:
    """The store that MLFLOW_TRACKING_URI names, or a database in the repository's root.

    Raises:
        TrackingError: it cannot be reached, written or read; here and in each method.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        own = f"sqlite:///{self.root / DATABASE}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        self.database = database_of(self.uri)
        self.parents: dict[tuple[str, str], str] = {}
        with speaking(self.uri):
            hush()
            if self.database:
                prepare(self.database)
            self.client = client_of(self.uri)

    def __str__(self) -> str:
        return shown(self.uri)

    def send(self, record: RunRecord) -> Sent:
        """Send what the store lacks of a run."""
        with speaking(self.uri):
            experiment = self._experiment(record.profile)
            if record.is_of_results and (trained := self._as_trained(experiment, record)):
                is_had = trained.info.lifecycle_stage != "deleted"
                return Sent(False, 0, [], "there, as it was trained" if is_had else DELETED, is_had)
            run, is_new = self._find_or_create(experiment, record)
            if run.info.lifecycle_stage == "deleted":
                return Sent(False, 0, [], DELETED, is_had=False)
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
            if found.lifecycle_stage == "deleted":
                raise self._deleted(profile)
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
            place = artifacts_of(self.database, name) if self.database else None
            tags = {"mlflow.note.content": experiment_note(profile)}
            try:
                return str(self.client.create_experiment(name, place, tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(name)  # another process was first
        if found is None or found.lifecycle_stage == "deleted":
            raise self._deleted(profile)
        return str(found.experiment_id)

    def _deleted(self, profile: str) -> StoreError:
        return StoreError(
            f"{self}: its experiment {experiment_name(profile)!r} is deleted. Restore it (mlflow "
            "experiments restore) or remove it for good (mlflow gc), then: mmnet mlflow-sync."
        )

    def _as_trained(self, experiment: str, record: RunRecord) -> "Run | None":
        """Return the run that left these results, should it have been sent where it was trained."""
        scores = {point.key for point in record.points if point.step == 0}
        for run in self._search(experiment, f"tags.`mmnet.content` = '{record.content}'"):
            if run.data.tags["mmnet.id"] != record.id and scores <= run.data.metrics.keys():
                return run
        return None

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
        there = json.loads(run.data.tags.get(SENT, "{}"))
        names = [name for name, digest in sums.items() if there.get(name) != digest]
        if names:
            with tempfile.TemporaryDirectory() as folder:
                for name in names:
                    (Path(folder) / name).write_bytes(artifacts[name])
                self.client.log_artifacts(run.info.run_id, folder)
            self.client.set_tag(run.info.run_id, SENT, json.dumps(there | sums))
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
