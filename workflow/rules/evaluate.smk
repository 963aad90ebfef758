rule predict_masks:
    input:
        checkpoint=PATHS.run("{experiment}", "{seed}").checkpoint,
        table=lambda wildcards: PATHS.table(run_config(wildcards).dataset_name),
        images=PATHS.manifest,
    output:
        rows=PATHS.run("{experiment}", "{seed}").rows,
        predictions=PATHS.run("{experiment}", "{seed}").predictions,
    log:
        LOGS / "predict_masks" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    threads: run_cores
    resources:
        **WORKFLOW.resources("predict"),
        gpu=run_gpus,
    params:
        evaluate=lambda wildcards: as_json(run_config(wildcards).evaluate),
        splits=lambda wildcards: run_config(wildcards).dataset.splits,
        code=lambda wildcards: code_hash("predict", run_config(wildcards)),
        preview=code_hash("preview"),
    message:
        "Predicting {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "mmnet predict --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"


rule score_run:
    input:
        PATHS.run("{experiment}", "{seed}").rows,
    output:
        scores=PATHS.run("{experiment}", "{seed}").scores,
        percents=PATHS.run("{experiment}", "{seed}").percents,
    log:
        LOGS / "score_run" / "{experiment}.seed{seed}.log",
    conda:
        ENVIRONMENT
    params:
        splits=lambda wildcards: run_config(wildcards).dataset.splits,
        label=lambda wildcards: run_config(wildcards).tower.label,
        code=code_hash("score"),
    message:
        "Scoring {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "mmnet evaluate --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"
