"""Records some steps of a run with ``jax.profiler``, for TensorBoard (xprof) and Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from retina_jax import parallel
from retina_jax.files import mirror
from retina_jax.progress import Reporter
from retina_jax.training.profiled_steps import named

FOLDER = "profile"


class Profiler:
    """Records ``steps`` of the loop to ``profile/`` in the workdir; its errors do not end the run.

    Of several processes, only one records: all run the same program in lockstep, and waiting for
    other hosts appears as time in collectives. Use it as a context manager, which ends an open
    recording.
    """

    def __init__(self, folder: Path, steps: range, report: Reporter):
        self._folder = folder / FOLDER
        self._steps = steps if parallel.is_main() else range(0)
        self._report = report
        self._files: Any = None
        self._annotation: Any = None
        self._reached = 0
        self.is_over = False
        """Whether the recording has ended or failed."""

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_) -> None:
        self._finish()

    def before(self, step: int) -> None:
        """Call this before waiting for the batch of a step."""
        if step not in self._steps:
            return
        if step == self._steps[0]:
            self._start()
        if self._files is not None:
            self._reached = step
            self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._annotation.__enter__()

    def after(self, step: int, outputs: Any) -> None:
        """Call this after dispatching a step; after the last, waits for ``outputs`` and writes."""
        if self._annotation is None:
            return
        self._annotation.__exit__(None, None, None)
        self._annotation = None
        if step == self._steps[-1]:
            jax.block_until_ready(outputs)
            self._finish()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        # tracing every Python call would slow the loop and fill the file
        options.python_tracer_level = 0
        self._files = mirror(self._folder)
        try:
            # a second file for Perfetto, which cannot read TensorBoard's
            jax.profiler.start_trace(
                self._files.local, create_perfetto_trace=True, profiler_options=options
            )
        except Exception as error:  # of a driver that forbids it, for example
            self._fail(error)

    def _finish(self) -> None:
        if self._files is None:
            return
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        try:
            jax.profiler.stop_trace()
            self._files.close()
        except Exception as error:
            self._fail(error)
            return
        self._files, self.is_over = None, True
        recorded = range(self._steps[0], self._reached + 1)
        self._report.say(
            f"profile of {named(recorded)} written to {self._folder}; open it with "
            f"tensorboard --logdir={self._folder.parent} (pip install tensorboard xprof), or open "
            "its perfetto_trace.json.gz at https://ui.perfetto.dev"
        )

    def _fail(self, error: Exception) -> None:
        self._files, self._steps, self.is_over = None, range(0), True
        self._report.note(f"the profile could not be recorded ({error}); training continues")
