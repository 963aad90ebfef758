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
from mmnet.config.tables import TABLES
from mmnet.tracking.provenance import describe_device, packages, revision

FILES = [f"{name}.{suffix}" for name in (*TABLES, "readings") for suffix in ("csv", "md")]
FILES += ["claims.json", "claims.md", "curves.csv", "data.md"]


def main(source: Path, target: Path) -> None:
    """Copy what there is, and write about.md."""
    params = load_params(Path("params.yaml"), [f"profile={target.name}"])
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    seeds = {
        table: sorted(set(pd.read_csv(path)["seed"].dropna().astype(int)))
        for table in TABLES
        if (path := source / f"{table}.csv").is_file()
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
        *(f"- seeds of {table}: {', '.join(map(str, of))}" for table, of in seeds.items()),
        f"- versions: {', '.join(f'{name} {version}' for name, version in packages().items())}",
    ]
    (target / "about.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
