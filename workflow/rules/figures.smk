rule write_figure4:
    input:
        WORKFLOW.needed(WORKFLOW.scores_of("table2")),
        WORKFLOW.needed(WORKFLOW.marking_rows("table2")),
    output:
        RESULTS / "figure4.pdf",
        report(
            RESULTS / "figure4.png",
            caption="../report/figure4.rst",
            category="Figures",
            labels={"Figure": "4: gain over N_q"},
        ),
    log:
        LOGS / "write_figure4.log",
    conda:
        ENVIRONMENT
    params:
        **WORKFLOW.table_params("table2"),
        code=code_hash("figures"),
    message:
        "Drawing Figure 4"
    shell:
        "mmnet figure 4 2>&1 | tee {log}"


rule pick_examples:
    input:
        runs=lambda wildcards: WORKFLOW.needed(files_of(pair_of(wildcards))),
        table=lambda wildcards: PATHS.table(run_config(wildcards).dataset_name),
        images=PATHS.manifest,
    output:
        PATHS.run("{experiment}", "{seed}").examples,
    log:
        LOGS / "pick_examples" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: PROFILE.train.threads
    resources:
        **WORKFLOW.resources("predict"),
        gpu=one_gpu,
    params:
        runs=lambda wildcards: WORKFLOW.predictions_of(pair_of(wildcards)),
        files=lambda wildcards: WORKFLOW.found(files_of(pair_of(wildcards))),
        code=lambda wildcards: code_hash("examples", run_config(wildcards)),
    message:
        "Picking Figure 5's examples"
    shell:
        "mmnet examples --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"


rule read_queries:
    input:
        run=lambda wildcards: WORKFLOW.needed(files_of([run_config(wildcards)])),
        table=lambda wildcards: PATHS.table(run_config(wildcards).dataset_name),
        images=PATHS.manifest,
        key_words=[PATHS.key_words] if PROFILE.shapes else [],
    output:
        PATHS.run("{experiment}", "{seed}").queries,
    log:
        LOGS / "read_queries" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: PROFILE.train.threads + PROFILE.train.workers
    resources:
        **WORKFLOW.resources("predict"),
        gpu=one_gpu,
    params:
        run=lambda wildcards: WORKFLOW.predictions_of([run_config(wildcards)]),
        files=lambda wildcards: WORKFLOW.found(files_of([run_config(wildcards)])),
        code=lambda wildcards: code_hash("queries", run_config(wildcards)),
    message:
        "Reading the queries of {wildcards.experiment}"
    shell:
        "mmnet queries --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"


# What Figures 5 and 6 are drawn from.
rule figures:
    input:
        [SHOWN.examples, SHOWN.queries] if SHOWN else [],
    message:
        "The data of Figures 5 and 6 are there"


rule write_figure5:
    input:
        SHOWN.examples if SHOWN else [],
    output:
        RESULTS / "figure5.pdf",
        report(
            RESULTS / "figure5.png",
            caption="../report/figure5.rst",
            category="Figures",
            labels={"Figure": "5: with and without MMP"},
        ),
    log:
        LOGS / "write_figure5.log",
    conda:
        ENVIRONMENT
    params:
        label=PROFILE.label,
        code=code_hash("figures"),
    message:
        "Drawing Figure 5"
    shell:
        "mmnet figure 5 2>&1 | tee {log}"


rule write_figure6:
    input:
        SHOWN.queries if SHOWN else [],
    output:
        RESULTS / "figure6.pdf",
        report(
            RESULTS / "figure6.png",
            caption="../report/figure6.rst",
            category="Figures",
            labels={"Figure": "6: what the queries read"},
        ),
    log:
        LOGS / "write_figure6.log",
    conda:
        ENVIRONMENT
    params:
        label=PROFILE.label,
        code=code_hash("figures"),
    message:
        "Drawing Figure 6"
    shell:
        "mmnet figure 6 2>&1 | tee {log}"
