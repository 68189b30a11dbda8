"""A profile of a stage: steps that are timed, steps that are traced by torch.profiler, and a page of what binds them.

Steps are counted in this process: a run that goes on profiles the steps after those of its state.
"""

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.autograd.profiler import record_function

from fastmfr.atomic import write_text
from fastmfr.profiling import OCCASIONAL, PREFIX, Clock, clocked
from fastmfr.results import to_json
from fastmfr.training.profile_figures import Figures, Operation, Span, device_times, read_trace
from fastmfr.training.profile_page import binding, write_page
from fastmfr.training.run import Run

FOLDER = "profile"  # in the run's folder
LONGEST = 12  # operations that the page names

STEADY, TRACED, APART, OTHER = "steady", "traced", "apart", "other"  # kinds of steps


class StageProfile:
    """Told of every step of a stage; does nothing unless `profile.steps` asks for a profile.

    Of several processes the first one takes the profile.

    Args:
        run: the run.
        stage: the stage.
        left: how many steps the stage takes in this process.
    """

    def __init__(self, run: Run, stage: str, left: int):
        self._run, self._stage, self._left = run, stage, left
        settings = run.config.profile
        self._is_on = bool(settings.steps) and run.ranks.is_first
        recorded = run.device.type == "cuda" and getattr(run.config, stage).cuda_graph
        kinds = [STEADY, TRACED, *([APART] if recorded else [])]
        self._kinds = [OTHER] * settings.after + [kind for kind in kinds for _ in range(settings.steps)]
        self._clock, self._spans = Clock(), {kind: Span() for kind in (STEADY, TRACED, APART)}
        self._whole = Span()
        self._done, self._began, self._open = 0, 0.0, ExitStack()
        self._profiler: torch.profiler.profile | None = None
        self._step: record_function | None = None  # the step that is open in the trace
        self._figures: Figures | None = None

    def begin(self) -> None:
        """Start the clock: the first step begins."""
        if not self._is_on:
            return
        if self._left < len(self._kinds):
            self._is_on = False
            self._run.logbook.warn(
                f"no profile of {self._stage} is taken: want {len(self._kinds)} steps for --profile.steps "
                f"{self._run.config.profile.steps} after --profile.after {self._run.config.profile.after}, and the "
                f"stage has {self._left} left; lower one of the two"
            )
            return
        self._open.enter_context(clocked(self._clock))
        self._enter(OTHER, self._kind(0))

    def step(self) -> None:
        """Note that a step has ended, and begin the next one."""
        if not self._is_on:
            return
        kind, following = self._kind(self._done), self._kind(self._done + 1)
        if kind != following:
            self._wait()
        self._add(kind, time.perf_counter() - self._began, *self._clock.take())
        self._leave_step()
        self._done += 1
        if kind != following:
            if self._done == len(self._kinds):
                self._finish()
            self._enter(kind, following)
        self._begin_step(following)

    def end(self) -> None:
        """Stop the clock, and write the page again, with the seconds of the whole stage."""
        if not self._is_on:
            return
        self._is_on = False
        self._leave_step()
        if self._profiler:  # the stage was ended before all steps were traced
            self._profiler.stop()
            self._profiler = None
        self._open.close()
        if self._figures:
            self._write()

    def _add(self, kind, seconds, parts, times):
        """Add a step. What a step only has now and then is no part of a steady one."""
        if kind in (STEADY, OTHER):
            self._whole.add(seconds, parts, times)
        if kind != OTHER:
            seconds -= sum(parts.get(name, 0.0) for name in OCCASIONAL)
            self._spans[kind].add(seconds, {name: parts[name] for name in parts if name not in OCCASIONAL}, times)

    def _kind(self, number):
        return self._kinds[number] if number < len(self._kinds) else OTHER

    def _enter(self, before, kind):
        """Go over to another kind of steps."""
        self._clock.traced, self._clock.apart = kind in (TRACED, APART), kind == APART
        if kind == TRACED and before != TRACED:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._run.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch prints when a trace begins and ends
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        self._begin_step(kind)

    def _begin_step(self, kind):
        self._step = None
        self._clock.take()
        if kind in (TRACED, APART):
            self._step = record_function(f"{PREFIX}step, {kind}")
            self._step.__enter__()
        self._began = time.perf_counter()

    def _leave_step(self):
        if self._step:
            self._step.__exit__(None, None, None)
            self._step = None

    def _wait(self):
        if self._run.device.type == "cuda":
            torch.cuda.synchronize(self._run.device)

    def _finish(self):
        """Write the trace, and the page as far as is known now."""
        assert self._profiler
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        folder = self._folder
        folder.mkdir(exist_ok=True)
        path, partial = self.trace, folder / f"partial-{self.trace.name}"
        profiler.export_chrome_trace(str(partial))
        partial.replace(path)
        on_device = device_times(read_trace(path)) if self._run.device.type == "cuda" else None
        config = self._run.config
        self._figures = Figures(
            stage=self._stage,
            device=str(self._run.device),
            threads=config.data.threads,
            cache=config.data.cache,
            after=config.profile.after,
            on_device=on_device,
            longest=_longest(profiler, on_device is not None),
            **{kind: self._spans[kind] for kind in (STEADY, TRACED, APART)},
        )
        self._write()
        self._run.logbook.say(f"profile   {self._stage}: {binding(self._figures)}; page {folder / 'page.md'}")

    @property
    def _folder(self) -> Path:
        return self._run.folder / FOLDER

    @property
    def trace(self) -> Path:
        """The file of the trace, for chrome://tracing or ui.perfetto.dev."""
        return self._folder / f"{self._stage}.trace.json.gz"

    def _write(self):
        assert self._figures
        self._figures.whole = self._whole
        write_text(self._folder / f"{self._stage}.json", json.dumps(to_json(self._figures), indent=1))
        write_page(self._folder)


def _longest(profiler, on_device):
    """The longest operations of the traced steps, of the device or of the host."""
    kind = torch.autograd.DeviceType.CUDA if on_device else torch.autograd.DeviceType.CPU
    found = [
        Operation(row.key, row.count, (row.self_device_time_total if on_device else row.self_cpu_time_total) / 1e6)
        for row in profiler.key_averages()
        if row.device_type == kind and not row.key.startswith(PREFIX)
    ]
    return sorted(found, key=lambda one: -one.seconds)[:LONGEST]
