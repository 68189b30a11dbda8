import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from decode_fakes import EITHER, GOOD, PLAIN, SMALL_PNG, FakeDomain, batches, encode, flip_bits, in_turn, level, picture

from fastmfr.decode import ImageStream, Preprocess, dali_installed, mirror_flags


@pytest.mark.parametrize("decoder", EITHER)
def test_batches_come_in_order_and_stay_as_they_were(decoder):
    encoded = [level(number) for number in range(24)]
    options = {"batch_images": 4, "first": 1, "last": 5, "decoder": decoder}
    with ImageStream([FakeDomain(encoded)], in_turn(4, 24), PLAIN, **options) as stream:
        held = [(i, image_B3HW, image_B3HW.clone()) for i, image_B3HW in stream]
    assert [i for i, _, _ in held] == [1, 2, 3, 4]
    assert stream.wait_seconds > 0
    for i, image_B3HW, copy_B3HW in held:
        assert torch.equal(image_B3HW, copy_B3HW)
        assert image_B3HW.is_contiguous()
        assert image_B3HW.dtype == torch.float32
        assert image_B3HW[:, 0, 0, 0].tolist() == list(range(4 * i, 4 * i + 4))
    assert len({image_B3HW.data_ptr() for _, image_B3HW, _ in held}) == 4


def test_takes_images_of_several_domains():
    domains = [FakeDomain([level(10 * d + n) for n in range(4)], name=f"camera {d}") for d in range(3)]
    requests = lambda i: (np.array([2, 0, 1]), np.array([3, i, 1]))  # noqa: E731
    with ImageStream(domains, requests, PLAIN, batch_images=3, last=2) as stream:
        assert [image_B3HW[:, 0, 0, 0].tolist() for _, image_B3HW in stream] == [[23, 0, 11], [23, 1, 11]]


def test_a_stream_of_no_batches_ends_at_once():
    assert batches([level(0)] * 4, first=5, last=5) == ({}, {})


@pytest.mark.parametrize("decoder", EITHER)
def test_a_resumed_stream_is_the_tail_of_the_whole_one_bit_for_bit(decoder):
    encoded = [encode(picture(20 + n, 24, seed=n)) for n in range(24)]
    encoded[2], encoded[9], encoded[17] = flip_bits(SMALL_PNG), GOOD[:100], flip_bits(SMALL_PNG)
    options = {"preprocess": Preprocess(size=16), "batch_images": 5, "seed": 7, "last": 12, "decoder": decoder}
    whole, bad = batches(encoded, **options)
    assert set(bad) == {"studio/2.jpg", "studio/9.jpg", "studio/17.jpg"}
    for first in (1, 4, 11):
        tail, _ = batches(encoded, first=first, prefetch=1 + first % 3, threads=1, **options)
        assert list(tail) == list(range(first, 12))
        assert all(torch.equal(image_B3HW, whole[i]) for i, image_B3HW in tail.items())


@pytest.mark.parametrize("decoder", EITHER)
def test_a_batch_decoded_one_by_one_equals_what_it_would_have_been(decoder):
    encoded = [encode(picture(30, 20 + n, seed=n)) for n in range(4)]
    preprocess = Preprocess(size=16)
    want, _ = batches([*encoded[:3], encoded[0]], preprocess, decoder=decoder)
    # 3 is replaced by 0, the next of its four
    got, bad = batches([*encoded[:3], flip_bits(SMALL_PNG)], preprocess, decoder=decoder)
    assert bad
    assert torch.equal(got[0], want[0])


def test_mirrors_as_a_function_of_seed_batch_and_slot():
    flags = [mirror_flags(5, i, 4000, 0.5) for i in range(3)]
    assert all(np.array_equal(mirror_flags(5, i, 100, 0.5), flags[i][:100]) for i in range(3))
    assert all(0.46 < flag_B.mean() < 0.54 for flag_B in flags)
    assert not np.array_equal(mirror_flags(6, 0, 4000, 0.5), flags[0])
    for shift in (0, 1, 4):  # a Philox block holds four draws: consecutive counters must not share them
        assert 0.45 < (flags[0][shift:] == flags[1][: 4000 - shift]).mean() < 0.55
    assert mirror_flags(5, 0, 1000, 1.0).all()
    assert not mirror_flags(5, 0, 1000, 0.0).any()


@pytest.mark.parametrize("decoder", EITHER)
def test_gives_the_batches_before_an_error_then_the_error(decoder):
    def requests(i):
        if i == 3:
            raise KeyError("no such batch")
        return np.zeros(4, np.int64), np.arange(4)

    options = {"batch_images": 4, "prefetch": 3, "decoder": decoder}
    stream, got = ImageStream([FakeDomain([level(0)] * 4)], requests, PLAIN, **options), []
    with pytest.raises(KeyError, match="no such batch"):
        got.extend(i for i, _ in stream)
    assert got == [0, 1, 2]
    assert list(stream) == []


@pytest.mark.parametrize(
    ("domain", "image", "message"),
    [
        (np.full(4, 1), np.arange(4), r"batch 0: requests gave domains 1\.\.1, want 0\.\.0"),
        (np.full(4, -1), np.arange(4), r"batch 0: requests gave domains -1\.\.-1, want 0\.\.0"),
        (np.zeros(4, int), np.full(4, 12), r"batch 0: requests gave image 12 of domain studio, want 0\.\.11"),
        (np.zeros(4, int), np.full(4, -1), r"batch 0: requests gave image -1 of domain studio, want 0\.\.11"),
        (np.zeros(3, int), np.zeros(3, int), r"requests gave domain numbers int64 \(3,\), want whole numbers \(4,\)"),
        (np.zeros(4, int), np.zeros(4), r"requests gave image numbers float64 \(4,\), want whole numbers \(4,\)"),
    ],
)
def test_refuses_a_request_outside_the_domains(domain, image, message):
    stream = ImageStream([FakeDomain([level(0)] * 12)], lambda i: (domain, image), PLAIN, batch_images=4)
    with pytest.raises(ValueError, match=message):
        next(stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_images": 0}, "batch_images: want a whole number, at least 1, got 0"),
        ({"first": 3, "last": 2}, "last: want a whole number, at least 3, got 2"),
        ({"threads": 0}, "threads: want a whole number, at least 1"),
        ({"prefetch": 0}, "prefetch: want a whole number, at least 1"),
        ({"seed": -1}, "seed: want a whole number, at least 0, got -1"),
        ({"first": 1.0}, "first: want a whole number"),
        ({"device": "meta"}, "device: want cpu, or cuda .* got meta"),
    ],
)
def test_refuses_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ImageStream([FakeDomain([level(0)] * 4)], in_turn(4, 4), PLAIN, **{"batch_images": 4, **options})
    with pytest.raises(ValueError, match="number of domains: want a whole number, at least 1, got 0"):
        ImageStream([], in_turn(4, 4), PLAIN, batch_images=4)


def threads_of_this_process():
    return set(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("decoder", EITHER)
@pytest.mark.parametrize("vet", [False, True])
def test_leaves_no_thread_behind(vet, decoder):
    before = threads_of_this_process()
    domain = FakeDomain([level(0)] * 4)
    options = {"batch_images": 4, "vet": vet, "decoder": decoder}
    streams = [ImageStream([domain], in_turn(4, 4), PLAIN, **options) for _ in range(3)]
    assert [next(stream)[0] for stream in streams] == [0, 0, 0]
    running = threads_of_this_process() - before
    assert running
    streams.pop(0).close()
    streams.clear()  # dropped without being closed
    until = time.monotonic() + 5
    while running & threads_of_this_process() and time.monotonic() < until:  # Linux may list a joined one yet
        time.sleep(0.01)
    assert not running & threads_of_this_process()


def test_a_closed_stream_ends():
    with ImageStream([FakeDomain([level(0)] * 4)], in_turn(4, 4), PLAIN, batch_images=4) as stream:
        _, image_B3HW = next(stream)
    assert list(stream) == []
    assert image_B3HW.eq(0).all()


def test_streams_left_open_do_not_hold_up_the_end_of_the_program():
    decoders = ["cpu", "pillow"] if dali_installed() else ["pillow"]
    program = (
        "import decode_fakes as t\n"
        f"for decoder in {decoders!r}:\n"
        "    stream = t.ImageStream([t.FakeDomain([t.level(0)] * 4)], t.in_turn(4, 4), t.PLAIN, batch_images=4,"
        "                           decoder=decoder)\n"
        "    next(stream)\n"
        "    stream.itself = stream\n"  # so that not even the garbage collector closes it first
    )
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
