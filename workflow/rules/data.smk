if PROFILE.shapes:

    rule draw_shapes:
        output:
            archives=[LAYOUT.mirror / f"{name}.zip" for name in PROFILE.archives],
            checksums=LAYOUT.mirror / "SHA256SUMS",
        log:
            LOGS / "draw_shapes.log",
        conda:
            ENVIRONMENT
        resources:
            **asks("prepare"),
        params:
            shapes=as_json(PROFILE.shapes),
            code=code_version("mmnet.benchmark.scenes"),
        message:
            "Drawing the procedural benchmark"
        shell:
            "mmnet shapes 2>&1 | tee {log}"


rule fetch_archive:
    input:
        drawn_archives,
    output:
        LAYOUT.fetched(LAYOUT.archive("{archive}")),
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


# All that the profile reads, less the user's own copies.
rule archives:
    input:
        [
            LAYOUT.fetched(LAYOUT.archive(name))
            for name in PROFILE.archives
            if PROFILE.data.get(name) is None
        ],
    message:
        "The archives are there"


rule prepare_table:
    input:
        lambda wildcards: archive_input(wildcards.dataset),
    output:
        LAYOUT.table("{dataset}"),
    log:
        LOGS / "prepare_table" / "{dataset}.log",
    conda:
        ENVIRONMENT
    resources:
        **asks("prepare"),
    params:
        dataset=lambda wildcards: as_json(
            PROFILE.datasets[wildcards.dataset], less={"max_length"}
        ),
        code=code_version("mmnet.data.prepare"),
    message:
        "Preparing {wildcards.dataset}"
    shell:
        "mmnet prepare {wildcards.dataset} 2>&1 | tee {log}"


rule unpack_images:
    input:
        archive=archive_input("train2014"),
        tables=[LAYOUT.table(name) for name in DATASETS],
    output:
        LAYOUT.manifest,
    log:
        LOGS / "unpack_images.log",
    conda:
        ENVIRONMENT
    resources:
        **asks("prepare"),
    params:
        code=code_version("mmnet.data.prepare"),
    message:
        "Unpacking the images that the refs name"
    shell:
        "mmnet unpack-images 2>&1 | tee {log}"
