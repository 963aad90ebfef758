rule pretrain_clip:
    input:
        images=PATHS.manifest,
        tables=[
            PATHS.table(name)
            for name in (PROFILE.pretrain.captions if PROFILE.pretrain else [])
        ],
    output:
        PATHS.clip("{tower}"),
    log:
        LOGS / "pretrain_clip" / "{tower}.log",
    benchmark:
        LOGS / "pretrain_clip" / "{tower}.benchmark.tsv"
    wildcard_constraints:
        tower=WORKFLOW.towers_from("captions"),
    conda:
        ENVIRONMENT
    threads: PROFILE.pretrain.threads if PROFILE.pretrain else 1
    resources:
        **WORKFLOW.resources("train"),
        gpu=gpus(PROFILE.pretrain.device if PROFILE.pretrain else "cpu"),
    params:
        architecture=lambda wildcards: PROFILE.towers[wildcards.tower].architecture,
        pretrain=as_json(PROFILE.pretrain),
        portable=PARAMS.portable,
        code=lambda wildcards: code_hash(
            "pretrain", tower=PROFILE.towers[wildcards.tower].architecture
        ),
    message:
        "Pre-training the CLIP tower {wildcards.tower} on captioned crops"
    shell:
        "mmnet pretrain {wildcards.tower} 2>&1 | tee {log}"


rule download_clip:
    output:
        PATHS.fetched(PATHS.clip("{tower}")),
    log:
        LOGS / "download_clip" / "{tower}.log",
    wildcard_constraints:
        tower=WORKFLOW.towers_from("openai"),
    conda:
        ENVIRONMENT
    params:
        source=lambda wildcards: as_json(
            PROFILE.weights[wildcards.tower], less={"urls"}
        ),
    message:
        "Fetching OpenAI's CLIP for {wildcards.tower}"
    shell:
        "mmnet download-clip {wildcards.tower} 2>&1 | tee {log}"


# All that the trainings start from: of the towers in use, and not of the user's own files.
rule towers:
    input:
        WORKFLOW.towers_in_use,
    message:
        "CLIP's weights are there"


rule train_mmnet:
    input:
        unpack(run_inputs),
    output:
        checkpoint=PATHS.run("{experiment}", "{seed}").checkpoint,
        metrics=PATHS.run("{experiment}", "{seed}").metrics,
        identity=PATHS.run("{experiment}", "{seed}").identity,
    log:
        LOGS / "train_mmnet" / "{experiment}.seed{seed}.log",
    benchmark:
        LOGS / "train_mmnet" / "{experiment}.seed{seed}.benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: run_cores
    resources:
        **WORKFLOW.resources("train"),
        gpu=run_gpus,
    params:
        values=lambda wildcards: as_json(run_config(wildcards).training_values()),
        code=lambda wildcards: code_hash("train", run_config(wildcards)),
    message:
        "Training {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "mmnet train --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"
