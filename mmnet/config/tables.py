"""The runs that a table is made of, and whether they may stand in one table.

What params.yaml alone can tell: the rules ask before any job, the report again.
"""

from typing import Any

from mmnet.config.identity import flat
from mmnet.config.schema import Config, Params, TableName
from mmnet.runtime.errors import ConfigError

Run = tuple[str, int]
"""Experiment and seed."""

SPLIT = "testA"
"""What Tables 2-4 and Figures 4-6 are about."""

MIN_SEEDS = 3
"""With fewer, an interval is about the trainings that there are, not about methods."""

TABLES: tuple[TableName, ...] = ("table1", "table2", "table3", "table4")
"""The paper's."""
SWITCHES = ("num_queries", "mmp", "mqe", "f_vg", "unscored_masks")
"""Keys of `model` that tell a row of Tables 2-4."""
SHOWN = {
    "table2": ("num_queries",),
    "table3": ("num_queries", "mmp"),
    "table4": ("f_vg", "mqe", "unscored_masks"),
}
"""Those that a table shows; in the others its rows must agree."""
TITLES = {
    "table1": "Table 1: three data sets",
    "table2": "Table 2: number of queries",
    "table3": "Table 3: Multi-Mask Projector",
    "table4": "Table 4: f_vg and MQE",
    "readings": "Table R: open readings",
}


def is_ours_alone(table: str, config: Config) -> bool:
    """Whether the paper's table has no such row: without MQE, the mean of the masks, not a sum."""
    model = config.model
    return table == "table4" and not model.mqe and model.unscored_masks == "mean"


def experiments_of(table: str, params: Params) -> list[str]:
    return [name for name, experiment in params.experiments.items() if table in experiment.tables]


def runs_of(table: str, params: Params) -> list[Run]:
    """Return a table's runs, in the order of params.yaml."""
    return [(name, seed) for name in experiments_of(table, params) for seed in params.seeds]


def configs_of(table: str, params: Params) -> list[Config]:
    """Return one config for each experiment of a table."""
    return [params.resolve(name, params.seeds[0]) for name in experiments_of(table, params)]


def check_rows(table: str, params: Params) -> None:
    """Refuse experiments that one table cannot compare.

    Raises:
        ConfigError: two are one row, or differ in what the table does not show.
    """
    taken: dict[str, str] = {}
    configs = configs_of(table, params)
    for config in configs:
        other = taken.setdefault(row := row_of(table, config), config.experiment)
        if other != config.experiment:
            # Otherwise two experiments would pass for two seeds of one.
            raise ConfigError(
                f"params.yaml: experiments {other} and {config.experiment} are both {row}, one row "
                f"of {table}. Take {table} off the `tables` of one."
            )
        first, expected = configs[0].experiment, _held(table, configs[0])
        for key, value in _held(table, config).items():
            if value != expected[key]:
                raise ConfigError(
                    f"params.yaml: experiments {first} and {config.experiment} of {table} have "
                    f"{key} {expected[key]} and {value}, which the table does not show. Make them "
                    f"equal, or take {table} off the `tables` of one."
                )
    if table in SHOWN and configs and SPLIT not in configs[0].dataset.splits:
        name = configs[0].dataset_name
        raise ConfigError(
            f"params.yaml: {table} shows {SPLIT}, which profiles.{params.profile}.datasets.{name}."
            f"splits lacks. Add it, or give the experiments of {table} another dataset."
        )


def row_of(table: str, config: Config) -> str:
    """Name a run's row of a table by what tells it from the others."""
    if table not in SHOWN:
        return f"{config.tower.label} on {config.dataset_name}"
    return ", ".join(f"{key} {getattr(config.model, key)}" for key in SHOWN[table])


def _held(table: str, config: Config) -> dict[str, Any]:
    """What all rows of a table must share: Pr@X and IoU are of one threshold."""
    held: dict[str, Any] = {"evaluate.threshold": config.evaluate.threshold}
    if table in SHOWN:
        held |= {"dataset": config.dataset_name, "tower": config.tower_name}
        hidden = [key for key in SWITCHES if key not in SHOWN[table]]
        held |= {f"model.{key}": getattr(config.model, key) for key in hidden}
    return held


def unlike(table: str, params: Params) -> list[str]:
    """Return a phrase for every other value in which an experiment differs from the first."""
    first, *others = [(c.experiment, flat(c.training_values())) for c in configs_of(table, params)]
    shown = {f"model.{key}" for key in SWITCHES}
    return [
        f"{name} has {key} {value}, {first[0]} {first[1].get(key)}"
        for name, values in others
        for key, value in values.items()
        if key.startswith(("model.", "train.")) and key not in shown and value != first[1].get(key)
    ]


def shown_run(params: Params) -> str:
    """Return the experiment of Table 3 with MMP that has a twin without; of several, most queries.

    Raises:
        ConfigError: there is none.
    """
    configs = configs_of("table3", params)
    paired = [config for config in configs if config.model.mmp and _twins(params, config)]
    if not paired:
        raise ConfigError(
            "params.yaml: Figures 5 and 6 need two experiments of table3 that differ in model.mmp "
            "alone. Add them to `experiments`."
        )
    return max(paired, key=lambda config: config.model.num_queries).experiment


def without_mmp(params: Params, config: Config) -> Config:
    """Return the run that differs from `config` in lacking MMP, and in nothing else.

    Raises:
        ConfigError: there is none.
    """
    twins = _twins(params, config)
    if not twins or not config.model.mmp:
        raise ConfigError(
            f"params.yaml: no experiment of table3 differs from {config.experiment} in model.mmp: "
            f"false alone. Name another, such as {shown_run(params)}."
        )
    return twins[0]


def _twins(params: Params, config: Config) -> list[Config]:
    def but_mmp(config: Config) -> dict[str, Any]:
        return config.model_dump(exclude={"experiment": True, "model": {"mmp"}})

    others = [params.resolve(name, config.seed) for name in experiments_of("table3", params)]
    return [o for o in others if not o.model.mmp and but_mmp(o) == but_mmp(config)]
