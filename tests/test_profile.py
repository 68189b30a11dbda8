"""A profiled run: its page and its trace, what binds, and that training does not notice."""

import json
import threading
from dataclasses import replace

import pytest
from small_runs import interrupted, main, only_run

from fastmfr import profiling
from fastmfr.config import Config
from fastmfr.config.sections import plain
from fastmfr.cuda_graph import Recordings
from fastmfr.decode.batches import Batches
from fastmfr.profiling import BACKWARD, CURVATURE, DATA, FORWARD, LOSSES, PREFIX, UPDATE, Clock, clocked, part_of_step
from fastmfr.prove.rows import Rows
from fastmfr.results import from_json
from fastmfr.training.profile_figures import REST, DeviceTimes, Figures, Operation, Span, device_times, read_trace
from fastmfr.training.profile_page import binding, too_often, write_page
from fastmfr.training.resuming import settings_kept

ASKED = ["--profile.steps=1", "--profile.after=1"]
COMPUTED = {FORWARD, LOSSES, BACKWARD, UPDATE}


def figures_of(folder, stage):
    return from_json(Figures, json.loads((folder / "profile" / f"{stage}.json").read_text()))


def weights(folder):
    return [(folder / f"{model}.safetensors").read_bytes() for model in ("base", "mfr")]


@pytest.fixture(scope="module")
def plain_weights(faces, tmp_path_factory):
    """The weights of a run without a profile."""
    from small_runs import arguments

    place = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        assert main(arguments(faces, place, patch)) == 0
    assert not (only_run(place) / "profile").exists()
    return weights(only_run(place))


@pytest.mark.slow
def test_a_profiled_run_trains_to_the_same_bits_and_leaves_a_trace_and_a_page(small, tmp_path, plain_weights):
    assert main([*small, *ASKED]) == 0
    folder = only_run(tmp_path)
    assert weights(folder) == plain_weights
    page = (folder / "profile/page.md").read_text()
    for stage, steps, parts in (("pretrain", 6, COMPUTED), ("meta", 3, COMPUTED | {CURVATURE})):
        figures = figures_of(folder, stage)
        assert parts | {DATA} <= set(figures.steady.parts)
        assert sum(figures.steady.shares.values()) == pytest.approx(1)
        assert 0 <= figures.steady.shares[REST] < 1
        # both stages keep their one state after the last step, which in meta is a traced one
        assert (profiling.SAVING in figures.whole.parts) == (stage == "pretrain")
        assert not {profiling.SAVING, profiling.SCORING} & set(figures.steady.parts)
        assert (figures.steady.steps, figures.traced.steps, figures.whole.steps) == (1, 1, steps - 1)
        assert f"## {stage}\n\nWhat binds: {binding(figures)}.{too_often(figures)}\n" in page
        events = read_trace(folder / f"profile/{stage}.trace.json.gz")["traceEvents"]
        named = {event["name"].removeprefix(PREFIX) for event in events if event["name"].startswith(PREFIX)}
        assert parts | {DATA, "step, traced"} <= named
        assert f"| {CURVATURE} |" in page if stage == "meta" else True
    assert list((folder / "profile").glob("partial*")) == []


@pytest.mark.slow
def test_a_profiled_run_that_is_stopped_while_it_is_traced_goes_on_to_the_same_bits(
    small, tmp_path, monkeypatch, plain_weights
):
    settings = [*small, "--profile.steps=2", "--profile.after=1"]
    interrupted(settings, monkeypatch, ("pretrain", 3))  # the first of the traced steps
    folder = only_run(tmp_path)
    assert not list(folder.glob("profile/*"))
    assert main(["--resume", str(folder), *ASKED]) == 0
    assert weights(folder) == plain_weights
    assert figures_of(folder, "meta").traced.steps == 1


def test_the_page_names_the_data_if_the_stream_is_slow(small, tmp_path, monkeypatch):
    following = Batches.__next__

    def slow(stream):
        if profiling._clock:  # not where images are cached or scored before and after the steps
            with part_of_step(DATA):
                threading.Event().wait(1)
        return following(stream)

    monkeypatch.setattr(Batches, "__next__", slow)
    assert main([*small, *ASKED, "--pretrain.steps=3", "--meta.steps=0"]) == 0
    page = (only_run(tmp_path) / "profile/page.md").read_text()
    assert "What binds: data: " in page
    assert "raise data.threads (now 1)" in page


def test_a_stage_of_too_few_steps_is_not_profiled_and_says_so(small, tmp_path, capsys):
    assert main([*small, "--profile.steps=2", "--pretrain.steps=1", "--meta.steps=0"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "no profile of pretrain is taken: want 14 steps for --profile.steps 2 after --profile.after 10" in said
    assert not (only_run(tmp_path) / "profile").exists()


def test_a_profile_is_no_other_run_to_resume_and_to_prove(tmp_path):
    profiled = replace(Config(), profile=replace(Config().profile, steps=3))
    assert settings_kept(profiled) == settings_kept(Config())
    (tmp_path / "prove.json").write_text(json.dumps({"settings": plain(profiled.by_dotted_name()), "arms": {}}))
    Rows(tmp_path, Config(), {})
    with pytest.raises(ValueError, match=r"meta\.steps was 4000, now 7"):
        Rows(tmp_path, replace(Config(), meta=replace(Config().meta, steps=7)), {})


def test_a_part_counts_as_the_outer_one_and_not_in_another_thread():
    clock = Clock()
    with clocked(clock):
        with part_of_step(CURVATURE), part_of_step(FORWARD):
            pass
        thread = threading.Thread(target=lambda: part_of_step(DATA).__enter__())
        thread.start()
        thread.join()
    seconds, times = clock.take()
    assert times == {CURVATURE: 1}
    assert list(seconds) == [CURVATURE]
    assert clock.take() == ({}, {})


def test_without_a_profile_a_part_is_one_shared_object_that_does_nothing():
    assert part_of_step(FORWARD) is part_of_step(BACKWARD) is profiling._NOTHING


def test_steps_are_taken_apart_only_while_the_clock_asks_for_it():
    recordings, clock = Recordings("", "shapes"), Clock()
    assert [recordings.take("key", lambda: "recording") for _ in range(2)] == [None, "recording"]
    with clocked(clock):
        assert recordings.take("key", lambda: "another") == "recording"
        clock.apart = True
        assert recordings.take("key", lambda: "another") is None
    assert recordings.take("key", lambda: "another") == "recording"


def event(cat, name, ts, dur, correlation=None):
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


def test_the_gpu_is_idle_where_no_kernel_covers_steps_as_trained_and_parts_are_of_steps_taken_apart():
    trace = [
        event("user_annotation", f"{PREFIX}step, traced", 0, 100),
        event("cuda_runtime", "cudaGraphLaunch", 5, 5, 1),
        event("kernel", "a", 10, 40, 1),
        event("kernel", "b", 30, 40, 1),  # beside the first: 10 to 70 is covered
        event("user_annotation", f"{PREFIX}step, apart", 200, 100),
        event("user_annotation", f"{PREFIX}{FORWARD}", 200, 20),
        event("user_annotation", f"{PREFIX}{BACKWARD}", 230, 20),
        event("gpu_user_annotation", f"{PREFIX}{BACKWARD}", 200, 100),
        event("cuda_runtime", "cudaLaunchKernel", 210, 1, 2),
        event("kernel", "c", 240, 10, 2),  # runs while the backward is launched
        event("cuda_runtime", "cudaLaunchKernel", 235, 1, 3),
        event("gpu_memcpy", "d", 260, 20, 3),
        event("cuda_runtime", "cudaLaunchKernel", 225, 1, 4),
        event("kernel", "e", 290, 5, 4),
    ]
    found = device_times({"traceEvents": trace})
    assert found.idle == pytest.approx(0.4)
    assert found.parts == pytest.approx({FORWARD: 10e-6, BACKWARD: 20e-6, REST: 5e-6})


def made(parts, **changes):
    span = Span(1, 1.0, parts, dict.fromkeys(parts, 1))
    settings = {"threads": 2, "cache": "none", "after": 10, "steady": span, "traced": span, "apart": Span()}
    return Figures(**{"stage": "meta", "device": "cuda", "longest": [Operation("a|b", 1, 0.5)], **settings, **changes})


@pytest.mark.parametrize(
    ("parts", "on_device", "begins"),
    [
        ({DATA: 0.62, FORWARD: 0.3}, None, "data: 62 % of a step waits for images; raise data.threads (now 2)"),
        ({DATA: 0.1, BACKWARD: 0.5, FORWARD: 0.3}, None, "arithmetic: 80 % of a step computes, most of it in backward"),
        ({FORWARD: 0.3}, None, "host: 70 % of a step is in none of the parts"),
        ({DATA: 0.02, FORWARD: 0.9}, DeviceTimes(0.5, {}), "host: the GPU is idle for 50 % of a step"),
        ({DATA: 0.6, FORWARD: 0.3}, DeviceTimes(0.5, {}), "data: 60 %"),
        ({profiling.RECORDS: 0.9}, DeviceTimes(0.01, {CURVATURE: 3.0, FORWARD: 1.0}), "arithmetic: 90 %"),
    ],
)
def test_what_binds_is_named(parts, on_device, begins):
    assert binding(made(parts, on_device=on_device)).startswith(begins)


def test_scores_and_states_that_come_too_often_are_named():
    whole = Span(9, 10.0, {profiling.SCORING: 4.0, profiling.SAVING: 0.9}, {})
    assert too_often(made({})) == ""
    assert too_often(made({}, whole=whole)) == (
        " Over all steps, scoring takes 40 %; raise choose.every or evaluate.every."
    )


def test_the_page_of_a_gpu_says_that_a_replay_is_opaque(tmp_path):
    from fastmfr.atomic import write_text
    from fastmfr.results import to_json

    apart = Span(2, 4.0, {FORWARD: 1.0}, {FORWARD: 2})
    figures = made({profiling.REPLAY: 0.9}, apart=apart, on_device=DeviceTimes(0.25, {FORWARD: 1.0}))
    write_text(tmp_path / "meta.json", json.dumps(to_json(figures)))
    write_page(tmp_path)
    page = (tmp_path / "page.md").read_text()
    assert "opaque" in page
    assert "So 2 more steps ran operation by operation (`step, apart` in the trace) and took 2.00 s each" in page
    assert "| forward | 0.00 ms | 0 % | 500.00 ms |" in page
    assert "The GPU is idle for 25 % of a step" in page
    rows = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(rows) == {9, 4}  # every row of a table has the columns of its head
