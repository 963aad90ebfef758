FIGURE4_SCORES = [LAYOUT.scores(*run) for run in runs_of("table2", PARAMS)]


rule write_figure4:
    input:
        needed(FIGURE4_SCORES),
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
        profile=PARAMS.profile,
        label=PROFILE.label,
        seeds=PARAMS.seeds,
        runs=[
            (json.dumps(config.identity()), config.tower.label)
            for config in [PARAMS.resolve(*run) for run in runs_of("table2", PARAMS)]
        ],
        scores=found(FIGURE4_SCORES),
        code=code_version("mmnet.report.figures.figure4"),
    message:
        "Drawing Figure 4"
    shell:
        "mmnet figure 4 2>&1 | tee {log}"


rule pick_examples:
    input:
        runs=lambda wildcards: needed(files_of(pair_of(wildcards))),
        table=lambda wildcards: LAYOUT.table(run_config(wildcards).dataset_name),
        images=LAYOUT.manifest,
    output:
        LAYOUT.examples("{experiment}", "{seed}"),
    log:
        LOGS / "pick_examples" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: PROFILE.train.threads
    resources:
        **asks("predict"),
        gpu=lambda wildcards: gpus(run_config(wildcards).train),
    params:
        runs=lambda wildcards: identities(pair_of(wildcards)),
        files=lambda wildcards: found(files_of(pair_of(wildcards))),
        code=code_version("mmnet.evaluate.examples"),
    message:
        "Picking Figure 5's examples"
    shell:
        "mmnet examples --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"


rule read_queries:
    input:
        run=lambda wildcards: needed(files_of([run_config(wildcards)])),
        table=lambda wildcards: LAYOUT.table(run_config(wildcards).dataset_name),
        images=LAYOUT.manifest,
    output:
        LAYOUT.queries("{experiment}", "{seed}"),
    log:
        LOGS / "read_queries" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: PROFILE.train.threads + PROFILE.train.workers
    resources:
        **asks("predict"),
        gpu=lambda wildcards: gpus(run_config(wildcards).train),
    params:
        run=lambda wildcards: identities([run_config(wildcards)]),
        files=lambda wildcards: found(files_of([run_config(wildcards)])),
        code=code_version("mmnet.evaluate.examples"),
    message:
        "Reading the queries of {wildcards.experiment}"
    shell:
        "mmnet queries --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"


rule write_figure5:
    input:
        lambda wildcards: drawn_from(LAYOUT.examples),
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
        code=code_version("mmnet.report.figures.figure5"),
    message:
        "Drawing Figure 5"
    shell:
        "mmnet figure 5 2>&1 | tee {log}"


rule write_figure6:
    input:
        lambda wildcards: drawn_from(LAYOUT.queries),
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
        code=code_version("mmnet.report.figures.figure6"),
    message:
        "Drawing Figure 6"
    shell:
        "mmnet figure 6 2>&1 | tee {log}"
