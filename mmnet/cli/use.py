"""Commands that use a trained model: segment, serve. They need no params.yaml."""

import argparse
import os


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


def serve(arguments: argparse.Namespace) -> None:
    from mmnet.use.page.serve import bound, serve
    from mmnet.use.tasks import find_model

    path = find_model(arguments.run_name, arguments.checkpoint)
    with bound(arguments.port) as listening:  # before the model, which takes longer
        serve(path, arguments.device, listening, opens=arguments.open)
    # Nothing is left to be written, and with torch the interpreter's own end takes seconds.
    os._exit(0)
