"""Which run Figures 5 and 6 show, and its twin without the Multi-Mask Projector."""

from typing import Any

from mmnet.config import Config, Params
from mmnet.errors import ConfigError

SPLIT = "testA"
"""What Tables 2-4 and Figures 4-6 are about."""


def shown_run(params: Params) -> str:
    """Return the experiment of Table 3 with MMP that has a twin without; of several, most queries.

    Raises:
        ConfigError: there is none.
    """
    names = [name for name, e in params.experiments.items() if "table3" in e.tables]
    seed = params.seeds[0]
    with_mmp = [c for name in names if (c := params.resolve(name, seed)).model.mmp]
    paired = [config for config in with_mmp if _twins(params, config)]
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
    others = [
        params.resolve(name, config.seed)
        for name, experiment in params.experiments.items()
        if "table3" in experiment.tables
    ]
    return [
        other for other in others if not other.model.mmp and _but_mmp(other) == _but_mmp(config)
    ]


def _but_mmp(config: Config) -> dict[str, Any]:
    return config.model_dump(exclude={"experiment": True, "model": {"mmp"}})
