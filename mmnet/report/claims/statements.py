"""The paper's claims that rows can test, as claims.yaml states them.

The Snakefile imports this module too, where NumPy and pandas may not be installed.
"""

from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict

from mmnet.config.profile import DatasetName
from mmnet.config.schema import Params, TableName


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(Strict):
    """One difference claimed to be above zero: mIoU of one run less another's, on one split."""

    better: tuple[str, ...]
    """Experiments; of several, the mean of the differences."""
    worse: tuple[str, ...] = ()
    """One for each of `better`. None: the best published number of another method."""
    dataset: DatasetName = "refcoco+"
    split: str = "testA"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(zip(self.better, self.worse, strict=False))


class Claim(Strict):
    name: str
    text: str
    where: str
    quote: str
    """The paper's words, where it has any."""
    varies: tuple[str, ...]
    """What the compared runs may differ in: beginnings of their configs' keys."""
    parts: tuple[Part, ...]
    """The claim is that all of them are true."""


class PublishedRow(Strict):
    """A row of published.csv."""

    table: TableName
    method: str
    backbone: str
    tower: str = ""
    """Of params.yaml, where the row is only about this tower."""


class Statements(Strict):
    claims: tuple[Claim, ...]
    rows: dict[str, PublishedRow]
    """Experiment → the row that it reproduces."""


_TEXT = resources.files("mmnet.report.claims").joinpath("claims.yaml").read_text(encoding="utf-8")
STATEMENTS = Statements.model_validate(yaml.safe_load(_TEXT))
CLAIMS, ROWS = STATEMENTS.claims, STATEMENTS.rows


def wanted_runs(params: Params) -> list[tuple[str, int]]:
    """Return the (experiment, seed) that the claims compare, each once."""
    parts = [part for claim in CLAIMS for part in claim.parts]
    names = dict.fromkeys(name for part in parts for name in (*part.better, *part.worse))
    return [(name, seed) for name in names for seed in params.seeds]
