# One DAG for both profiles; params.yaml chooses. `snakemake --cores all --use-conda` makes all.
from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/params.smk"


configfile: "params.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/paper.smk"


# On a cluster these run where Snakemake does: downloads need the network, the others take seconds.
localrules:
    fetch_archive,
    download_clip,
    towers,
    figures,
    score_run,
    write_parameters,
    write_curves,
    write_paper,
    write_table1,
    write_table2,
    write_table3,
    write_table4,
    write_figure4,
    write_figure5,
    write_figure6,


rule all:
    default_target: True
    input:
        [RESULTS / name for name in TARGETS],
        "results/curves.csv",
        "results/data.md",
        "results/parameters.md",
        PAPER,


name_nearest_target(
    workflow.rules,
    {
        "experiment": list(PARAMS.experiments),
        "seed": PARAMS.seeds,
        "dataset": DATASETS,
        "archive": list(PROFILE.archives),
        "tower": list(PROFILE.towers),
    },
)
