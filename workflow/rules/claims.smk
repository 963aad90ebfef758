from mmnet.report.claims.statements import wanted_runs

CLAIM_RUNS = [
    PARAMS.resolve(*run) for run in wanted_runs(PARAMS) if run[0] in PARAMS.experiments
]
CLAIM_ROWS = [PATHS.run(run.experiment, run.seed).rows for run in CLAIM_RUNS]


rule write_claims:
    input:
        WORKFLOW.needed(CLAIM_ROWS),
    output:
        [RESULTS / f"claims.{suffix}" for suffix in ("json", "md")],
        report(
            RESULTS / "claims.html",
            caption="../report/claims.rst",
            category="Claims",
            labels={"Claims": "with verdicts"},
        ),
    log:
        LOGS / "write_claims.log",
    conda:
        ENVIRONMENT
    resources:
        **WORKFLOW.resources("prepare"),
    params:
        profile=PARAMS.profile,
        label=PROFILE.label,
        procedural=PROFILE.shapes is not None,
        seeds=PARAMS.seeds,
        runs=WORKFLOW.predictions_of(CLAIM_RUNS),
        rows=WORKFLOW.found(CLAIM_ROWS),
        code=code_hash("claims"),
        page=code_hash("pages"),
    message:
        "Testing the paper's claims"
    shell:
        "mmnet report claims 2>&1 | tee {log}"
