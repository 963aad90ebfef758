from mmnet.report.pages.latex import NO_ENGINE, find_engine

TARGETS, LEFT_OUT = WORKFLOW.targets
# Of `rule all` only where it can be made.
PAPER = [RESULTS / "paper.pdf"] if find_engine() and not LEFT_OUT else []


onstart:
    if LEFT_OUT:
        logger.warning(
            f"Left out, as params.yaml lacks experiments: {', '.join(LEFT_OUT)}."
        )
    elif not PAPER:
        logger.warning(NO_ENGINE)


rule write_paper:
    input:
        [RESULTS / f"{table}.tex" for table in TABLES],
        [RESULTS / f"figure{number}.pdf" for number in (4, 5, 6)],
        RESULTS / "claims.json",
    output:
        [RESULTS / f"paper.{suffix}" for suffix in ("tex", "pdf")],
    log:
        LOGS / "write_paper.log",
    conda:
        ENVIRONMENT
    params:
        profile=PARAMS.profile,
        label=PROFILE.label,
        seeds=PARAMS.seeds,
        code=code_hash("pages"),
    message:
        "Typesetting the tables, figures and claims"
    shell:
        "mmnet paper 2>&1 | tee {log}"
