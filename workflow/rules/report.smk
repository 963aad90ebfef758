# In the report's menu.
for TABLE in TABLES:

    rule:
        name:
            f"write_{TABLE}"
        input:
            WORKFLOW.needed(WORKFLOW.scores_of(TABLE)),
            WORKFLOW.needed(WORKFLOW.marking_rows(TABLE)),
        output:
            [RESULTS / f"{TABLE}.{suffix}" for suffix in ("tex", "csv", "md")],
            report(
                RESULTS / f"{TABLE}.html",
                caption="../report/table.rst",
                category="Tables",
                labels={"Table": TITLES[TABLE].removeprefix("Table ")},
            ),
        log:
            LOGS / f"write_{TABLE}.log",
        conda:
            ENVIRONMENT
        params:
            **WORKFLOW.table_params(TABLE),
            table=TABLE,
            code=code_hash("tables"),
            page=code_hash("pages"),
        message:
            f"Writing {TABLE}"
        shell:
            "mmnet report {params.table} 2>&1 | tee {log}"


if runs_of("readings", PARAMS):

    localrules:
        write_readings,

    rule write_readings:
        input:
            [
                (PATHS.run(*run).rows, PATHS.run(*run).metrics)
                for run in runs_of("readings", PARAMS)
            ],
        output:
            [RESULTS / f"readings.{suffix}" for suffix in ("tex", "csv", "md", "html")],
        log:
            LOGS / "write_readings.log",
        conda:
            ENVIRONMENT
        resources:
            **WORKFLOW.resources("prepare"),
        params:
            **WORKFLOW.table_params("readings"),
            code=code_hash("tables"),
            page=code_hash("pages"),
        message:
            "Writing Table R"
        shell:
            "mmnet report readings 2>&1 | tee {log}"


rule write_data_report:
    input:
        [PATHS.table(name) for name in DATASETS],
        [PATHS.key_words] if PROFILE.shapes else [],
    output:
        [RESULTS / f"data.{suffix}" for suffix in ("csv", "md")],
        report(
            RESULTS / "data.html",
            caption="../report/data.rst",
            category="Data",
            labels={"Data": "sizes, sentences, masks, leakage"},
        ),
    log:
        LOGS / "write_data_report.log",
    conda:
        ENVIRONMENT
    resources:
        **WORKFLOW.resources("prepare"),
    params:
        profile=PARAMS.profile,
        label=PROFILE.label,
        datasets=[
            (name, dataset.splits, dataset.max_length)
            for name, dataset in PROFILE.datasets.items()
        ],
        code=code_hash("pages"),
    message:
        "Describing the data"
    shell:
        "mmnet report data 2>&1 | tee {log}"


rule write_parameters:
    output:
        RESULTS / "parameters.md",
        report(
            RESULTS / "parameters.html",
            caption="../report/parameters.rst",
            category="Parameters",
            labels={"Parameters": "all runs"},
        ),
    log:
        LOGS / "write_parameters.log",
    conda:
        ENVIRONMENT
    params:
        profile=PARAMS.profile,
        values=as_json(PARAMS),
        code=code_hash("pages"),
    message:
        "Writing the parameters"
    shell:
        "mmnet report parameters 2>&1 | tee {log}"


rule write_curves:
    input:
        WORKFLOW.needed(WORKFLOW.curves),
    output:
        RESULTS / "curves.csv",
    log:
        LOGS / "write_curves.log",
    conda:
        ENVIRONMENT
    params:
        profile=PARAMS.profile,
        seeds=PARAMS.seeds,
        runs=list(PARAMS.experiments),
        metrics=WORKFLOW.found(WORKFLOW.curves),
        code=code_hash("pages"),
    message:
        "Collecting the training curves"
    shell:
        "mmnet curves 2>&1 | tee {log}"
