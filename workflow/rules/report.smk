rule write_table1:
    input:
        [LAYOUT.scores(name, seed) for name, seed in runs_of("table1")],
    output:
        [RESULTS / f"table1.{suffix}" for suffix in ("tex", "csv", "md")],
    log:
        LOGS / "write_table1.log",
    conda:
        ENVIRONMENT
    params:
        profile=PARAMS.profile,
        label=PROFILE.label,
        seeds=PARAMS.seeds,
        rows=[
            (name, PROFILE.towers[PARAMS.experiments[name].tower].label)
            for name, _ in runs_of("table1")
        ],
        code=code_version("mmnet.report.tables"),
    message:
        "Writing Table 1"
    shell:
        "mmnet report table1 2>&1 | tee {log}"


rule write_data_report:
    input:
        [LAYOUT.table(name) for name in DATASETS],
    output:
        [RESULTS / f"data.{suffix}" for suffix in ("csv", "md")],
    log:
        LOGS / "write_data_report.log",
    conda:
        ENVIRONMENT
    params:
        profile=PARAMS.profile,
        label=PROFILE.label,
        datasets=[
            (name, dataset.splits, dataset.max_length)
            for name, dataset in PROFILE.datasets.items()
        ],
        code=code_version("mmnet.report.data"),
    message:
        "Describing the data"
    shell:
        "mmnet report data 2>&1 | tee {log}"
