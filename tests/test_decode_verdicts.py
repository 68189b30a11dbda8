"""What is found out about an image is found out once, whatever streams meet it; and every bad one is reported."""

import numpy as np
import pytest
import torch
from decode_fakes import GOOD, PLAIN, SMALL_PNG, FakeDomain, encode, flip_bits, in_turn, level, picture

from fastmfr.decode import DecodedCache, ImageStream, Preprocess, Verdicts
from fastmfr.decode.pipeline import Vetting
from fastmfr.domains import open_domain
from fastmfr.pack import RecordWriter


@pytest.fixture
def looked_at(monkeypatch):
    """The encoded bytes that were decoded alone, in turn."""
    seen, vet = [], Vetting.__call__

    def looking(self, encoded):
        seen.append(bytes(encoded))
        vet(self, encoded)

    monkeypatch.setattr(Vetting, "__call__", looking)
    return seen


def spoilt():
    """Twelve images of three people; 2 and 9 cannot be decoded, which only decoding shows; 6 is cut short."""
    encoded = [level(n) for n in range(12)]
    encoded[2], encoded[9], encoded[6] = flip_bits(SMALL_PNG), flip_bits(level(9)), GOOD[:100]
    return encoded


def stream(domain, verdicts, **options):
    options = {"last": 3, "vet": True, **options}
    return ImageStream([domain], in_turn(4, 12), PLAIN, batch_images=4, verdicts=verdicts, **options)


def test_an_image_is_decoded_alone_once_for_all_streams_and_the_cache(looked_at):
    domain, verdicts = FakeDomain(spoilt()), Verdicts()
    first = [image_B3HW for _, image_B3HW in stream(domain, verdicts)]
    assert sorted(looked_at) == sorted(encoded for n, encoded in enumerate(domain.encoded) if n != 6)
    looked_at.clear()
    again = [image_B3HW for _, image_B3HW in stream(domain, verdicts)]
    kept = DecodedCache([domain], PLAIN, place="host", vet=True, verdicts=verdicts)
    assert looked_at == []
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert set(kept.bad) == set(verdicts.bad) == {"studio/2.jpg", "studio/6.jpg", "studio/9.jpg"}


def test_a_domain_of_the_same_name_has_verdicts_of_its_own(looked_at):
    verdicts = Verdicts()
    for _ in range(2):
        list(stream(FakeDomain([level(n) for n in range(12)]), verdicts))
    assert len(looked_at) == 24


def test_a_stream_names_the_bad_images_that_it_met_itself_with_the_reason_first_found():
    domain, verdicts = FakeDomain(spoilt()), Verdicts()
    with stream(domain, verdicts) as first, stream(domain, verdicts, first=1, last=2) as other:
        list(first), list(other)
    assert set(first.bad) == set(verdicts.bad)
    assert other.bad == {"studio/6.jpg": first.bad["studio/6.jpg"]}


def test_each_bad_image_is_told_once_when_it_is_met():
    told, domain = [], FakeDomain(spoilt())
    verdicts = Verdicts(report=told.append)
    with stream(domain, verdicts, prefetch=1) as images:
        next(images)
        assert [list(bad) for bad in told] == [["studio/2.jpg"]]
        list(images)
    list(stream(domain, verdicts))
    assert [list(bad) for bad in told] == [["studio/2.jpg"], ["studio/6.jpg"], ["studio/9.jpg"]]
    assert {key: reason for bad in told for key, reason in bad.items()} == verdicts.bad


def test_what_a_whole_batch_showed_to_be_bad_is_known_to_vetting_streams(looked_at):
    domain, verdicts = FakeDomain(spoilt()), Verdicts()
    unvetted = [image_B3HW for _, image_B3HW in stream(domain, verdicts, vet=False)]
    looked_at.clear()
    vetted = [image_B3HW for _, image_B3HW in stream(domain, verdicts)]
    assert not {domain.encoded[2], domain.encoded[9]} & set(looked_at)
    assert all(torch.equal(a, b) for a, b in zip(unvetted, vetted, strict=True))


SIDE, PEOPLE, EACH = 32, 250, 6


def offsets(folder):
    return [int(line.split()[1]) for line in (folder / "train.idx").read_text().splitlines()]


def damage(folder, keys_by_kind):
    """Spoils images of a RecordIO folder in place, as disks and copies do."""
    content, at = bytearray((folder / "train.rec").read_bytes()), offsets(folder)
    for kind, keys in keys_by_kind.items():
        for key in keys:
            start, end = at[key] + 32, at[key + 1]  # 8 bytes of the record, 24 of the image's header
            middle = (start + end) // 2
            if kind == "flipped":
                content[middle : middle + 20] = bytes(byte ^ 0xFF for byte in content[middle : middle + 20])
            elif kind == "truncated":
                content[middle:end] = bytes(end - middle)
            elif kind == "empty":
                content[at[key] + 4 : at[key] + 8] = (24).to_bytes(4, "little")
            else:
                content[start : start + 12] = b"not an image"
    (folder / "train.rec").write_bytes(content)
    return {f"{folder.name}/train.rec:{key}" for keys in keys_by_kind.values() for key in keys}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Two domains of 1,500 images of 32 pixels, and the keys of those that are bad: 0.5 %, in four ways."""
    root, bad = tmp_path_factory.mktemp("records"), set()
    for domain, name in enumerate(("studio", "street")):
        with RecordWriter(root / name, (SIDE, SIDE)) as writer:
            for number in range(PEOPLE * EACH):
                writer.add(number // EACH, encode(picture(SIDE, SIDE, seed=domain * 10_000 + number)))
        keys = {"flipped": [1, 100, 101], "truncated": [700], "empty": [901, 902], "no image": [1500 - domain]}
        bad |= damage(root / name, keys)
    return [root / "studio", root / "street"], bad


def test_a_pass_over_bad_records_reports_every_key_and_gives_the_same_batches_from_anywhere(damaged):
    folders, bad = damaged
    order = np.random.default_rng(0).permutation(2 * PEOPLE * EACH)

    def batches(first, verdicts):
        requests = lambda i: np.divmod(order[50 * i : 50 * i + 50], PEOPLE * EACH)  # noqa: E731
        domains = [open_domain(folder) for folder in folders]
        with ImageStream(
            domains,
            requests,
            Preprocess(size=SIDE),
            batch_images=50,
            first=first,
            last=60,
            vet=True,
            seed=5,
            verdicts=verdicts,
        ) as stream:
            return dict(stream), stream.bad

    told = []
    whole, found = batches(0, Verdicts(report=lambda bad: told.extend(bad)))
    assert len(bad) == 14
    assert set(found) == bad
    assert sorted(told) == sorted(bad)
    assert list(whole) == list(range(60))
    for first in (1, 31, 59):
        tail, met = batches(first, None)
        assert set(met) <= bad
        assert list(tail) == list(range(first, 60))
        assert all(torch.equal(image_B3HW, whole[number]) for number, image_B3HW in tail.items())


def test_the_cache_reports_every_bad_record_too(damaged):
    folders, bad = damaged
    verdicts = Verdicts()
    DecodedCache(
        [open_domain(folder) for folder in folders], Preprocess(size=SIDE), place="host", vet=True, verdicts=verdicts
    )
    assert set(verdicts.bad) == bad
