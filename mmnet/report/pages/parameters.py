"""What the active profile's runs are made with: each run's own values, and all of the profile's."""

from pathlib import Path

import yaml

from mmnet.config.schema import Params
from mmnet.report.tables.typeset import markdown_table
from mmnet.runtime.files import atomic_write

COLUMNS = {
    "Data set": ("dataset_name",),
    "Tower": ("tower", "label"),
    "N_q": ("model", "num_queries"),
    "MMP": ("model", "mmp"),
    "MQE": ("model", "mqe"),
    "f_vg": ("model", "f_vg"),
    "Epochs": ("train", "epochs"),
    "Batch": ("train", "batch_size"),
    "lr": ("train", "lr"),
}


def write_parameters(folder: Path, *, params: Params) -> None:
    """Write `parameters.md` into `folder`."""
    with atomic_write(folder / "parameters.md") as file:
        file.write(to_markdown(params))


def to_markdown(params: Params) -> str:
    rows = [
        [name, ", ".join(experiment.tables), *_values(name, params)]
        for name, experiment in params.experiments.items()
    ]
    seeds = ", ".join(map(str, params.seeds))
    table = markdown_table(
        ["Experiment", "Tables", *COLUMNS],
        rows,
        caption=f"Profile {params.profile} ({params.active.label}), seeds: {seeds}.",
        labels=4,
    )
    values = params.model_dump(mode="json") | {
        "profiles": {params.profile: params.active.model_dump(mode="json")}
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return f"# Parameters\n\n{table}\n## All values\n\n```yaml\n{text}```\n"


def _values(experiment: str, params: Params) -> list[str]:
    texts = []
    for keys in COLUMNS.values():
        value = params.resolve(experiment, params.seeds[0])
        for key in keys:
            value = getattr(value, key)
        texts.append({True: "✓", False: "✗"}[value] if isinstance(value, bool) else str(value))
    return texts
