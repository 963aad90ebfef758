"""Where a run comes from, in the words of MLflow: its tags, and the data sets that went in."""

from typing import Any, NamedTuple

from mmnet.tracking.record_names import RUN_NOTE
from mmnet.tracking.run_files import RunFiles

SHOWN_CHANGES = 20


class Input(NamedTuple):
    split: str
    dataset: str
    digest: str
    source: str


def tags_of(
    run: RunFiles,
    record: dict[str, Any],
    tables: list[dict[str, str]],
    scores: dict[str, Any] | None,
) -> dict[str, str]:
    config, identity = record["config"], record["identity"]
    tower = config["tower"]
    tags = {
        "mmnet.id": record["id"],
        "mlflow.note.content": RUN_NOTE,
        "mlflow.source.name": "mmnet train",
        "mlflow.source.type": "LOCAL",
        "profile": run.layout.profile,
        "experiment": run.experiment,
        "seed": str(run.seed),
        "dataset": config["dataset_name"],
        "backbone": (scores or {}).get("backbone") or tower.get("label") or tower["architecture"],
        "tables": ", ".join(table["name"] for table in tables) or "none",
        **{table["name"]: table["row"] for table in tables},
    }
    for tag, key in (
        ("data.sentences", "table"),
        ("data.images", "images"),
        ("weights", "weights"),
        ("code", "code"),
    ):
        tags[tag] = identity.get(key) or ("none" if key in identity else "unknown")
    if "git" not in record:
        return tags | {"recorded": "from results alone; times are those of their files"}
    commit, changed = record["git"]["commit"], record["git"]["changed"]
    if commit:
        tags |= {
            "mlflow.source.git.commit": commit,
            "git.clean": f"no: {', '.join(changed[:SHOWN_CHANGES])}" if changed else "yes",
        }
    tags |= {f"version.{name}": version for name, version in record["packages"].items()}
    return tags | {"git.commit": commit or "unknown", "device": record["device"]}


def inputs_of(run: RunFiles, record: dict[str, Any]) -> list[Input]:
    digest = record["identity"].get("table")
    if digest is None:
        return []
    config = record["config"]
    name, source = config["dataset_name"], str(run.layout.table(config["dataset_name"]))
    return [Input(split, name, digest, source) for split in ("train", *config["dataset"]["splits"])]
