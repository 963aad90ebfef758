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
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from mmnet.config.schema import Params
from mmnet.config.tables import SHOWN, TITLES, runs_of
from mmnet.runtime.errors import MMNetError, TrackingError
from mmnet.runtime.files import atomic_path
from mmnet.tracking.record import IDENTITY, Record

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

NOTE = (
    "Runs of profile `{}`; Views has one for each table. Metrics are fractions: `val/...` of the "
    "best checkpoint, at the images' original size; `val per epoch/...` and `train/...` while "
    "training."
)
SENT = "mmnet.artifacts"
"""The tag with the SHA-256 of each artifact."""
REASONS = {
    r"not a database|malformed": "damaged, or not an MLflow database; move it away",
    r"UNAUTHENTICATED|PERMISSION_DENIED|CUSTOMER_UNAUTHORIZED|error code 40[13]": "access refused; "
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    r"[Mm]ax retries exceeded|timed out|failed with (timeout )?exception|Connection": "the server "
    "does not answer; start it or correct MLFLOW_TRACKING_URI",
}
"""Words of MLflow's error -> what is wrong and how to fix it. Others are clear as they are."""


class Store:
    """The store that MLFLOW_TRACKING_URI names, or the database `mlflow.db` in the repository.

    Raises:
        TrackingError: it cannot be reached, written or read; here and in each method.
    """

    def __init__(self, root: Path) -> None:
        own = root.resolve() / "mlflow.db"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own}"
        self.database = database_of(self.uri)
        self.lock = FileLock((self.database or own).with_name(".mlflow.db.lock"), timeout=30)
        with one_line(self.uri):
            silence_mlflow()
            from mlflow.tracking.client import MlflowClient

            if self.database:
                self.database.parent.mkdir(parents=True, exist_ok=True)
                with self.lock:
                    if not self.database.exists() or self.database.stat().st_size == 0:
                        # Complete or not at all: MLflow would build it in place.
                        with atomic_path(self.database) as temporary:
                            MlflowClient(f"sqlite:///{temporary}").search_experiments()
            self.client = MlflowClient(self.uri)

    def send(self, record: Record) -> tuple[str | None, str]:
        """Send what the store lacks of a run; return its id, None if it is deleted, and a report.

        A training is found by its identity; two experiments that are one training have a run each.
        """
        from mlflow.entities import ViewType

        with one_line(self.uri):
            experiment = self.experiment(record.profile)
            tags = {key: record.tags[key] for key in (IDENTITY, "experiment")}
            which = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
            with self.lock:
                found = self.client.search_runs([experiment], which, ViewType.ALL)
                if not found:
                    new = self.client.create_run(experiment, record.started, tags, record.name)
            run = min(found or [new], key=lambda run: run.info.lifecycle_stage)  # active first
            if run.info.lifecycle_stage == "deleted":
                return None, "deleted in MLflow; `mlflow runs restore` brings it back"
            news = self._log(run, record) + self._log_artifacts(run, record.artifacts)
            return run.info.run_id, ", ".join(news) or "nothing new"

    def experiment(self, profile: str) -> str:
        """Return the id of a profile's experiment, which is created if it does not exist."""
        name, place = f"mmnet {profile}", f"mlflow-artifacts:/{profile}" if self.database else None
        with one_line(self.uri), self.lock:
            if found := self.client.get_experiment_by_name(name):
                return str(found.experiment_id)
            tags = {"mlflow.note.content": NOTE.format(profile), **_views()}
            return str(self.client.create_experiment(name, place, tags))

    def page(self, profile: str, server: str) -> str:
        """Return the address of a profile's runs on the store's own server, or on `server`."""
        server = shown(self.uri).rstrip("/") if self.uri.startswith("http") else server
        runs = f"#/experiments/{self.experiment(profile)}/runs"
        return f"{server}/{runs}?workflowType=machine_learning"

    def _log(self, run: "Run", record: Record) -> list[str]:
        """Log parameters, tags and metrics that a run lacks, and its status; return the news."""
        from mlflow.entities import Metric, Param, RunTag

        run_id, status = run.info.run_id, run.info.status
        params = [Param(k, v) for k, v in record.params.items() if k not in run.data.params]
        tags = [RunTag(k, v) for k, v in record.tags.items() if run.data.tags.get(k) != v]
        last = {metric.key: metric for metric in run.data._metric_objs}  # `metrics` lacks steps
        metrics = [
            Metric(key, value, time, step)
            for key, value, time, step in record.points
            if key not in last
            or step > last[key].step
            or (step == 0 and value != last[key].value)  # evaluated again
        ]
        for start in range(0, len(metrics) or 1, 1000):  # as many as MLflow takes in one call
            self.client.log_batch(run_id, metrics[start : start + 1000], params, tags)
            params, tags = [], []
        # Files do not tell a failed training from a killed one: its process did.
        if status != record.status and (status, record.status) != ("FAILED", "KILLED"):
            if record.status == "RUNNING":
                self.client.update_run(run_id, status="RUNNING")
            else:
                self.client.set_terminated(run_id, record.status, record.ended)
        return [f"{len(metrics)} metrics"] if metrics else []

    def _log_artifacts(self, run: "Run", artifacts: dict[str, bytes]) -> list[str]:
        """Log the artifacts that a run lacks or has otherwise; return their names."""
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in artifacts.items()}
        sent, repository = _sent(run), self.artifacts_of(run)
        there = {file.path for file in repository.list_artifacts()} if sent else set()
        names = [name for name in sums if name not in there or sent.get(name) != sums[name]]
        if names:
            with tempfile.TemporaryDirectory() as folder:
                for name in names:
                    (Path(folder) / name).write_bytes(artifacts[name])
                repository.log_artifacts(folder)
            self.client.set_tag(run.info.run_id, SENT, json.dumps(sent | sums))
        return names

    def artifacts_of(self, run: "Run") -> "ArtifactRepository":
        """Return where a run's artifacts are: of a database, a folder beside it."""
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
    store, paths = Store(Path()), []
    experiment, file = store.experiment(params.profile), "scores.json"
    for name, seed in runs_of(table, params):
        which = f"tags.experiment = '{name}' and tags.seed = '{seed}'"
        with one_line(store.uri), tempfile.TemporaryDirectory() as downloads:
            found = [
                Path(store.artifacts_of(run).download_artifacts(file, downloads)).read_bytes()
                for run in store.client.search_runs([experiment], which)  # the last one first
                if file in _sent(run)
            ]
        if found:
            values = params.resolve(name, seed).prediction_values()
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
        "DISABLE_TELEMETRY": "true",
        "SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "HTTP_REQUEST_TIMEOUT": "10",
        "HTTP_REQUEST_MAX_RETRIES": "1",
    }.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
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
        raise TrackingError(f"{shown(uri)}: {reason}. Then run `mmnet mlflow-sync`.") from error


def _views() -> dict[str, str]:
    """Return the tags of an experiment that are its views: each table's runs, with its columns.

    MLflow has no call for these; its page writes them so.
    """
    now, tags = int(1000 * time.time()), {}
    scores = [f"metrics.`{split}/mIoU`" for split in ("val", "testA", "testB", "test")]
    for table, title in TITLES.items():
        columns = [f"params.`model.{switch}`" for switch in SHOWN.get(table, ())]
        columns = columns or ["tags.`dataset`", "tags.`backbone`"]
        order = {"orderByKey": columns[0], "orderByAsc": True, "selectedColumns": columns + scores}
        state = json.dumps({"searchFilter": f"tags.tables ILIKE '%{table}%'", **order})
        view = {"name": title, "createdAt": now, "updatedAt": now, "state": state}
        tags[f"mlflow.sharedViewState.{table}"] = json.dumps(view)
    return tags


def _sent(run: "Run") -> dict[str, str]:
    return dict(json.loads(run.data.tags.get(SENT, "{}")))
