if PROFILE.shapes:

    rule draw_shapes:
        output:
            archives=[PATHS.mirror / f"{name}.zip" for name in PROFILE.archives],
            checksums=PATHS.mirror / "SHA256SUMS",
            key_words=PATHS.key_words,
        log:
            LOGS / "draw_shapes.log",
        conda:
            ENVIRONMENT
        resources:
            **WORKFLOW.resources("prepare"),
        params:
            shapes=as_json(PROFILE.shapes),
            portable=PARAMS.portable,
            code=code_hash("draw_scenes"),
        message:
            "Drawing the procedural benchmark"
        shell:
            "mmnet shapes 2>&1 | tee {log}"


rule fetch_archive:
    input:
        lambda wildcards: WORKFLOW.drawn_archives(wildcards.archive),
    output:
        PATHS.fetched(PATHS.archive("{archive}")),
    log:
        LOGS / "fetch_archive" / "{archive}.log",
    conda:
        ENVIRONMENT
    params:
        # Neither mirrors nor code: the checksum alone says what is fetched.
        source=lambda wildcards: as_json(
            PROFILE.archives[wildcards.archive], less={"urls"}
        ),
    message:
        "Fetching {wildcards.archive}"
    shell:
        "mmnet download {wildcards.archive} 2>&1 | tee {log}"


rule prepare_table:
    input:
        lambda wildcards: WORKFLOW.archive_input(wildcards.dataset),
    output:
        PATHS.table("{dataset}"),
    log:
        LOGS / "prepare_table" / "{dataset}.log",
    conda:
        ENVIRONMENT
    resources:
        **WORKFLOW.resources("prepare"),
    params:
        # The table has every split and whole sentences, whatever is evaluated.
        dataset=lambda wildcards: as_json(
            PROFILE.datasets[wildcards.dataset], less={"max_length", "splits"}
        ),
        code=code_hash("prepare"),
    message:
        "Preparing {wildcards.dataset}"
    shell:
        "mmnet prepare {wildcards.dataset} 2>&1 | tee {log}"


rule unpack_images:
    input:
        archive=WORKFLOW.archive_input("train2014"),
        tables=[PATHS.table(name) for name in DATASETS],
    output:
        PATHS.manifest,
    log:
        LOGS / "unpack_images.log",
    conda:
        ENVIRONMENT
    resources:
        **WORKFLOW.resources("prepare"),
    params:
        code=code_hash("prepare"),
    message:
        "Unpacking the images that the refs name"
    shell:
        "mmnet unpack-images 2>&1 | tee {log}"
