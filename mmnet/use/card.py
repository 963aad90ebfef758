"""The model card of an exported run: README.md, made from the run's own files."""

import json
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import PackageLoader

import mmnet
from mmnet.config.identity import Identity, flat
from mmnet.config.paths import RunPaths
from mmnet.evaluate.metrics import METRICS
from mmnet.report.render import ENVIRONMENT
from mmnet.report.tables.common import TITLES
from mmnet.runtime.files import read_json
from mmnet.runtime.fingerprint import PACKAGE
from mmnet.runtime.progress import duration
from mmnet.tracking.provenance import revision
from mmnet.tracking.record import Record
from mmnet.use.half import HalfCost

LICENCE = "apache-2.0"
METRIC_TYPES = {"mIoU": "mean_iou", "oIoU": "overall_iou"}
"""Names that model hubs know; Pr@X is `precision@X`."""


def scores_of(record: Record) -> dict[str, Any]:
    """Return what `mmnet evaluate` wrote of this training; nothing where it did not run."""
    scores: dict[str, Any] = json.loads(record.artifacts.get("scores.json", b"{}"))
    return scores


def model_card(
    run: RunPaths,
    identity: Identity,
    record: Record,
    *,
    is_procedural: bool,
    files: dict[str, str],
    half: HalfCost | None,
) -> str:
    """Return a run's model card, with a YAML header that model hubs read.

    `record` holds what its files have; `files` maps the names of the exported files to their
    SHA-256; `half` is given for fp16.
    """
    scores = scores_of(record)
    splits = scores.get("splits", {})
    epochs = map(json.loads, record.artifacts.get("metrics.jsonl", b"").splitlines())
    dataset = TITLES[identity.values["dataset_name"]]
    suffix = " (procedural benchmark)" * is_procedural
    card = ENVIRONMENT.overlay(loader=PackageLoader("mmnet.use")).get_template("model_card.md.j2")
    return card.render(
        header=_header(run, identity, splits, dataset + suffix, is_procedural=is_procedural),
        title=f"MMNet, {record.tags['backbone']}, {dataset}{suffix}",
        is_procedural=is_procedural,
        dataset=dataset,
        run=run,
        values=identity.values,
        every_value=flat(identity.values),
        metrics=METRICS,
        splits=splits,
        threshold=scores.get("config", {}).get("evaluate", {}).get("threshold"),
        epochs=list(epochs),
        facts=_facts(run, identity, record),
        hashes=_hashes(identity, record) | files,
        files=files,
        half=half,
    )


def _header(
    run: RunPaths,
    identity: Identity,
    splits: dict[str, Any],
    dataset: str,
    *,
    is_procedural: bool,
) -> str:
    name = "-".join(["mmnet", *(["mini"] if is_procedural else []), run.experiment])
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Referring image segmentation",
            dataset_type=identity.values["dataset_name"] + "-procedural" * is_procedural,
            dataset_name=dataset,
            dataset_split=split,
            metric_type=METRIC_TYPES.get(metric, metric.replace("Pr", "precision")),
            metric_name=metric,
            metric_value=round(100 * values[metric], 2),
        )
        for split, values in splits.items()
        for metric in METRICS
    ]
    data = ModelCardData(
        language="en",
        license=LICENCE,
        library_name="mmnet",
        pipeline_tag="image-segmentation",
        tags=["referring-image-segmentation", "clip", *["procedural-benchmark"] * is_procedural],
        model_name=name.replace("_", "-"),
        # Without results there is no index: the name alone is none.
        eval_results=results or None,
    )
    return data.to_yaml()


def _facts(run: RunPaths, identity: Identity, record: Record) -> dict[str, str]:
    """Return how the model came about, in words; what the run's files lack is said to be so."""
    tags, unknown = record.tags, "not on record"
    seconds = read_json(run.work(identity).progress).get("seconds")
    clean = tags.get("git.clean", "yes")
    changed = "" if clean == "yes" else f", with uncommitted changes in {clean[4:]}"
    versions = {k[8:]: tag for k, tag in tags.items() if k.startswith("version.")}
    is_clone = (PACKAGE.parent / ".git").exists()  # installed, it may be in another's repository
    own = revision(PACKAGE.parent)["commit"] if is_clone else None
    facts = {
        "Run": f"{run.profile}/{run.experiment}, seed {run.seed}",
        "Git revision of the training": tags.get("git.commit", unknown) + changed,
        "Trained on": tags.get("device", unknown),
        "Training time": duration(seconds) if seconds else unknown,
        "Packages": ", ".join(f"{name} {v}" for name, v in versions.items()) or unknown,
        "Exported by": f"mmnet {mmnet.__version__}" + (f", git revision {own}" if own else ""),
    }
    if "accepted" in tags:
        facts["Published in spite of"] = tags["accepted"]
    return facts


def _hashes(identity: Identity, record: Record) -> dict[str, str]:
    tags = record.tags
    return {
        "training (values, data, code)": identity.digest,
        "table of sentences": tags["data.table"],
        "list of images": tags["data.images"],
        "weights that it started from": tags["data.weights"],
        "code": tags["code"],
        "checkpoint.pt": tags["checkpoint.sha256"],
    }
