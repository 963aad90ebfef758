"""`mmnet segment`: the results of many pairs to files, a line of JSON each."""

import json
import signal
from collections.abc import Sequence
from typing import Any

from mmnet.runtime.errors import Stopped
from mmnet.runtime.files import atomic_write, write_json, writing
from mmnet.runtime.progress import say, track
from mmnet.runtime.signals import Interruption, listening
from mmnet.use.drawing import draw_queries
from mmnet.use.model import Model, Picture
from mmnet.use.pairs import Failure
from mmnet.use.result import QueryMasks, Result, write_png
from mmnet.use.tasks import ANNOTATIONS, RESULTS, Output, Task


class Segmenting:
    """The work on some pairs, and what of it goes into COCO's file.

    Raises:
        ConfigError: the threshold is not between 0 and 1, or the model's queries have no masks.
    """

    def __init__(
        self, model: Model, tasks: Sequence[Task], output: Output, *, threshold: float | None
    ) -> None:
        self.model, self.tasks, self.output = model, tasks, output
        self.threshold = model.threshold(threshold)
        if output.queries:
            model.check_queries()
        self.done = self.failed = 0
        self.images: dict[str, dict[str, Any]] = {}
        self.annotations: list[dict[str, Any]] = []
        self.picture: Picture | None = None

    def one(self) -> None:
        """Write the files of the only pair, and print what was found.

        Raises:
            MMNetError: the picture or sentence is invalid, or a file cannot be written.
        """
        (task,) = self.tasks
        result = self.model.look(task.image).find(task.sentence, self.threshold)
        self._write(result, task)
        files = ", ".join(str(path) for path in self.output.files(task).values())
        x, y, width, height = result.box or (0, 0, 0, 0)
        found = f"{width} x {height} pixels at ({x}, {y})" if result.area else "nothing found"
        print(f"{files}: {found}, confidence {result.confidence:.2f}", flush=True)

    def all(self) -> None:
        """Write the files of all pairs, and the lists of them.

        A pair that fails is a line with its error. A signal, or any other error, ends the work;
        what was finished by then is listed.

        Raises:
            MMNetError: a file cannot be written, or the device has too little memory.
            Stopped: interrupted.
        """
        pairs = [(task.image, task.sentence) for task in self.tasks]
        outcomes = self.model.try_many(pairs, threshold=self.threshold)
        shown = track(outcomes, name="segmenting", total=len(pairs), unit="pairs")
        results = self.output.folder / RESULTS
        fault: BaseException | None = None
        with listening() as stop, atomic_write(results) as file:
            try:
                for outcome in stop.watch(shown):
                    file.write(json.dumps(self._line(outcome)) + "\n")
                    self.done += 1
            except BaseException as error:
                fault = error
            finally:
                outcomes.close()
        if self.output.format == "coco":
            write_json(self.output.folder / ANNOTATIONS, self._coco())
        failed = f", {self.failed} of them with an error" if self.failed else ""
        say(f"{results}: {self.done} of {len(pairs)} pairs{failed}")
        if isinstance(fault, KeyboardInterrupt | Interruption):
            number = stop.signal or signal.SIGINT
            raise Stopped(f"interrupted; {results} has what was finished.", number)
        if fault is not None:
            with writing(results):
                raise fault

    def _line(self, outcome: Result | Failure) -> dict[str, Any]:
        """Return what results.jsonl says of a pair, whose files are written."""
        task = self.tasks[outcome.number]
        line: dict[str, Any] = {"image": task.image, "sentence": task.sentence, "id": task.id}
        if isinstance(outcome, Failure):
            self.failed += 1
            say(f"pair {outcome.number + 1}: {outcome.error}")
            return line | {"error": str(outcome.error)}
        queries = self._write(outcome, task)
        if self.output.format == "coco":
            self._annotate(outcome, task)
        files = self.output.files(task)
        polygons = self.output.format == "polygons"
        line |= {
            "size": list(outcome.size),
            "segmentation": outcome.polygons() if polygons else outcome.rle(),
            "box": outcome.box,
            "area": outcome.area,
            "confidence": round(outcome.confidence, 4),
            "threshold": outcome.threshold,
            "cut": outcome.cut,
            "file": files["mask"].name if "mask" in files else None,
            "model": self.model.config.name,
            "seconds": round(outcome.seconds, 4),
        }
        if outcome.pixels.notes:
            line["notes"] = outcome.pixels.notes
        return line | ({"queries": _numbers(queries)} if queries else {})

    def _write(self, result: Result, task: Task) -> QueryMasks | None:
        """Write a pair's pictures; return its queries, where they are wanted."""
        files = self.output.files(task)
        notes = [f"{task.image}: {note}" for note in result.pixels.notes]
        if result.cut:
            length = self.model.config.max_length
            notes.append(f"'{task.sentence[:40]}...': cut to {length} tokens")
        for note in notes:
            say(note)
        if "mask" in files:
            result.save(files["mask"])
        if "overlay" in files:
            write_png(result.overlay(), files["overlay"])
        if "queries" not in files:
            return None
        if self.picture is None or self.picture.pixels is not result.pixels:
            features = self.model.encode([result.pixels])
            self.picture = Picture(self.model, result.image, result.pixels, features)
        queries = self.picture.queries(task.sentence)
        write_png(draw_queries(result, queries), files["queries"])
        return queries

    def _annotate(self, result: Result, task: Task) -> None:
        height, width = result.size
        image = {"file_name": task.image, "height": height, "width": width}
        known = self.images.setdefault(task.image, {"id": len(self.images) + 1, **image})
        self.annotations.append(result.coco(known["id"], id=len(self.annotations) + 1))

    def _coco(self) -> dict[str, Any]:
        """Return COCO's file: images, annotations, and the one category of whatever is named."""
        return {
            "images": [*self.images.values()],
            "annotations": self.annotations,
            "categories": [{"id": 1, "name": "object"}],
        }


def _numbers(queries: QueryMasks) -> dict[str, Any]:
    """Return what json can write of queries: all but the masks."""
    return {
        "words": queries.words,
        "attention": queries.attention.round(4).astype(float).round(4).tolist(),
        "scores": queries.scores.astype(float).round(6).tolist(),
        # NaN: not defined for this model.
        "measures": {n: None if v != v else round(v, 6) for n, v in queries.measures.items()},
    }
