"""What the active profile's runs are made with: each run's own values, and all of the profile's."""

from pathlib import Path

import yaml

from mmnet.config.schema import Config, Params
from mmnet.report.render import render
from mmnet.report.tables.typeset import pipe_table
from mmnet.runtime.files import atomic_write

HEADS = [
    *("Experiment", "Tables", "Data set", "Tower"),
    *("N_q", "MMP", "MQE", "f_vg", "Epochs", "Batch", "lr"),
]


def write_parameters(folder: Path, *, params: Params) -> None:
    """Write `parameters.md` into `folder`."""
    with atomic_write(folder / "parameters.md") as file:
        file.write(to_markdown(params))


def to_markdown(params: Params) -> str:
    rows = [
        [name, ", ".join(experiment.tables), *_values(params.resolve(name, params.seeds[0]))]
        for name, experiment in params.experiments.items()
    ]
    values = params.model_dump(mode="json")
    values["profiles"] = {params.profile: values["profiles"][params.profile]}
    return render(
        "parameters.md",
        params=params,
        table=pipe_table(HEADS, rows, "llll" + "r" * (len(HEADS) - 4)),
        values=yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100),
    )


def _values(config: Config) -> list[str]:
    model, train = config.model, config.train
    values = [
        *(config.dataset_name, config.tower.label),
        *(model.num_queries, model.mmp, model.mqe, model.f_vg),
        *(train.epochs, train.batch_size, train.lr),
    ]
    return [{True: "✓", False: "✗"}[v] if isinstance(v, bool) else str(v) for v in values]
