rule predict_masks:
    input:
        checkpoint=LAYOUT.checkpoint("{experiment}", "{seed}"),
        table=lambda wildcards: LAYOUT.table(run_config(wildcards).dataset_name),
        images=LAYOUT.manifest,
    output:
        rows=LAYOUT.rows("{experiment}", "{seed}"),
        predictions=LAYOUT.predictions("{experiment}", "{seed}"),
    log:
        LOGS / "predict_masks" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: cores
    resources:
        **asks("predict"),
        gpu=shared_gpus,
    params:
        evaluate=lambda wildcards: as_json(run_config(wildcards).evaluate),
        code=code_version("mmnet.evaluate.predict"),
        grid=code_version("mmnet.evaluate.preview"),
    message:
        "Predicting {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "mmnet predict --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"


rule score_run:
    input:
        LAYOUT.rows("{experiment}", "{seed}"),
    output:
        scores=LAYOUT.scores("{experiment}", "{seed}"),
        percents=LAYOUT.percents("{experiment}", "{seed}"),
    log:
        LOGS / "score_run" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    params:
        splits=lambda wildcards: run_config(wildcards).dataset.splits,
        label=lambda wildcards: run_config(wildcards).tower.label,
        code=code_version("mmnet.evaluate.metrics"),
    message:
        "Scoring {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "mmnet evaluate --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"
