"""Keep results as the reference that `mmnet compare` reads: text, with what made it.

Usage: python .ci/reference.py results docs/results/mini
"""

import platform
import shutil
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import torch

from mmnet.config.load import load_params
from mmnet.tracking.provenance import describe_device, packages, revision

TABLES = [
    f"{name}.{suffix}"
    for name in ("table1", "table2", "table3", "table4")
    for suffix in ("csv", "md")
]
OTHERS = ["claims.json", "claims.md", "readings.csv", "readings.md", "curves.csv", "data.md"]


def main(source: Path, target: Path) -> None:
    """Copy what there is, and write about.md."""
    params = load_params(Path("params.yaml"), [f"profile={target.name}"])
    target.mkdir(parents=True, exist_ok=True)
    there = [name for name in (*TABLES, *OTHERS) if (source / name).is_file()]
    for name in there:
        shutil.copyfile(source / name, target / name)
    seeds = {
        name: sorted(set(pd.read_csv(source / name)["seed"].dropna().astype(int)))
        for name in there
        if name in TABLES and name.endswith(".csv")
    }
    lines = [
        f"# Reference results of `{target.name}`",
        "",
        "`python -m mmnet compare` compares your tables with these.",
        "",
        f"- date: {date.today().isoformat()}",
        f"- commit: {revision(Path.cwd())['commit']}",
        f"- CPU: {describe_device(torch.device('cpu'))}; {platform.platform()}",
        f"- portable arithmetic: {'yes' if params.portable else 'no'}",
        *(f"- seeds of {Path(name).stem}: {', '.join(map(str, of))}" for name, of in seeds.items()),
        f"- versions: {', '.join(f'{name} {version}' for name, version in packages().items())}",
    ]
    (target / "about.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
