rule pretrain_clip:
    input:
        images=LAYOUT.manifest,
        tables=[LAYOUT.table(name) for name in CAPTIONS],
    output:
        LAYOUT.clip("{tower}"),
    log:
        LOGS / "pretrain_clip" / "{tower}.log",
    benchmark:
        LOGS / "pretrain_clip" / "{tower}.benchmark.tsv"
    wildcard_constraints:
        tower=towers_from("captions"),
    conda:
        ENVIRONMENT
    threads: PROFILE.pretrain.threads if PROFILE.pretrain else 1
    resources:
        **asks("train"),
        gpu=gpus(PROFILE.pretrain),
    params:
        tower=lambda wildcards: as_json(PROFILE.towers[wildcards.tower], less={"label"}),
        pretrain=as_json(PROFILE.pretrain),
        code=code_version("mmnet.train.pretrain"),
    message:
        "Pre-training the CLIP tower {wildcards.tower} on captioned crops"
    shell:
        "mmnet pretrain {wildcards.tower} 2>&1 | tee {log}"


rule download_clip:
    output:
        LAYOUT.fetched(LAYOUT.clip("{tower}")),
    log:
        LOGS / "download_clip" / "{tower}.log",
    wildcard_constraints:
        tower=towers_from("openai"),
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
        towers_in_use(),
    message:
        "CLIP's weights are there"


rule train_mmnet:
    input:
        unpack(run_inputs),
    output:
        checkpoint=LAYOUT.checkpoint("{experiment}", "{seed}"),
        metrics=LAYOUT.metrics("{experiment}", "{seed}"),
    log:
        LOGS / "train_mmnet" / "{experiment}.seed{seed}.log",
    benchmark:
        LOGS / "train_mmnet" / "{experiment}.seed{seed}.benchmark.tsv"
    conda:
        ENVIRONMENT
    threads: cores
    resources:
        **asks("train"),
        gpu=shared_gpus,
    params:
        config=lambda wildcards: json.dumps(run_config(wildcards).identity()),
        code=code_version("mmnet.train.loop"),
    message:
        "Training {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "mmnet train --experiment {wildcards.experiment} --seed {wildcards.seed} 2>&1 | tee {log}"
