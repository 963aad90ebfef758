"""Commands that use a trained model: segment, export. They need no params.yaml."""

import argparse

from mmnet.runtime.progress import readable, say


def segment(arguments: argparse.Namespace) -> int:
    from mmnet.use.load import load
    from mmnet.use.tasks import find_model, plan_output, read_tasks

    path = find_model(arguments.run_name, arguments.checkpoint)
    tasks = read_tasks(arguments.image, arguments.sentences, arguments.pairs)
    output, tasks = plan_output(
        arguments.output,
        tasks,
        format=arguments.format,
        overlay=arguments.overlay,
        queries=arguments.queries,
        force=arguments.force,
    )
    model = load(path, device=arguments.device, exact=True)

    from mmnet.use.segment import Segmenting

    work = Segmenting(model, tasks, output, threshold=arguments.threshold)
    if output.is_single:
        work.one()
    else:
        work.all()
    return 1 if work.failed else 0


def export(arguments: argparse.Namespace) -> None:
    from mmnet.use.load import choose_arithmetic
    from mmnet.use.tasks import find_run

    run = find_run(arguments.exported)
    choose_arithmetic(run.folder)

    from mmnet.use.export import export

    output = arguments.output
    cost = export(
        run,
        output,
        half=arguments.half,
        programs=arguments.programs,
        force=arguments.force,
        device=arguments.device,
    )
    if cost is not None:
        say(f"fp16, mIoU on val in percent: {cost}")
    for path in sorted(output.iterdir()):
        say(f"{path}: {readable(path.stat().st_size)}")
