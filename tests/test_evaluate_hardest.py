"""The hardest pairs, against all pairs sorted one by one."""

import json

import numpy as np
import pytest
import torch
from evaluation_fakes import Named

from fastmfr.evaluate import all_pairs, hardest, hardest_pairs
from fastmfr.protocols import GalleryProbe, gallery_probe
from fastmfr.results import HardestPairs, from_json, to_json


def embedded(people=20, images=5, seed=0):
    """(embeddings, lists) of people that are hard to tell apart, one image of each enrolled."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(people, 6)).repeat(images, 0) + rng.normal(size=(people * images, 6))
    return torch.from_numpy(rows), gallery_probe(np.arange(people + 1) * images, seed=1)


def by_hand(rows, pairs, count):
    """(kind, cosine rounded, gallery, probe) of the pairs that are first in their order, no person twice in a list."""
    unit = torch.nn.functional.normalize(rows.double())
    every = [
        (float(unit[g] @ unit[p]), g, p, a, b)
        for g, a in zip(pairs.gallery, pairs.gallery_id, strict=True)
        for p, b in zip(pairs.probe, pairs.probe_id, strict=True)
    ]
    for kind, sign in (("genuine", 1), ("impostor", -1)):
        used, found = set(), 0
        for cosine, g, p, a, b in sorted(every, key=lambda pair: sign * pair[0]):
            if (a == b) == (kind == "genuine") and found < count and not used & {a, b}:
                used |= {a, b}
                found += 1
                yield kind, round(cosine, 5), int(g), int(p)


def listed(found):
    return [
        (kind, round(pair.cosine, 5), pair.gallery, pair.probe)
        for kind, pairs in (("genuine", found.genuine), ("impostor", found.impostor))
        for pair in pairs
    ]


# all at once; in blocks of one probe, in float32; with fewer candidates kept than there are
@pytest.mark.parametrize(("exact", "block", "kept"), [(2**24, 2**22, 2**20), (0, 20, 2**20), (0, 50, 400)], ids=str)
def test_finds_what_sorting_all_pairs_finds(exact, block, kept, monkeypatch):
    monkeypatch.setattr(all_pairs, "EXACT", exact)
    monkeypatch.setattr(all_pairs, "BLOCK", block)
    monkeypatch.setattr(hardest, "KEPT", kept)
    rows, pairs = embedded()
    assert listed(hardest_pairs(rows, pairs, Named(), "mfr", 5)) == list(by_hand(rows, pairs, 5))


def test_a_person_under_a_wrong_name_takes_one_place_in_each_list():
    rows = torch.eye(16).repeat_interleave(4, 0) + 0.01 * embedded(8, 8)[0].repeat(1, 3)[:, :16]
    rows[4:8] = rows[0]  # two folders of one person
    rows[20] = -rows[20]  # an image that is not the person
    found = hardest_pairs(rows, gallery_probe(np.arange(17) * 4), Named(), "mfr")
    assert {found.impostor[0].gallery_identity, found.impostor[0].probe_identity} == {"person 0", "person 1"}
    assert found.impostor[0].cosine > 0.9 > found.impostor[1].cosine
    assert found.genuine[0].gallery_identity == found.genuine[0].probe_identity == "person 5"
    assert found.genuine[0].cosine < -0.9 < 0.9 < found.genuine[1].cosine
    assert (len(found.genuine), len(found.impostor)) == (8, 8)
    for pairs, a_pair in ((found.genuine, 1), (found.impostor, 2)):
        assert len({name for pair in pairs for name in (pair.gallery_identity, pair.probe_identity)}) == 8 * a_pair


def test_a_list_is_shorter_where_there_are_too_few_people():
    rows, _ = embedded(people=3, images=2)
    pairs = GalleryProbe(np.array([0, 2]), np.array([0, 1]), np.array([1, 4]), np.array([0, 2]))
    found = hardest_pairs(rows, pairs, Named(), "mfr")
    assert (len(found.genuine), len(found.impostor)) == (1, 1)
    assert from_json(HardestPairs, json.loads(json.dumps(to_json(found)))) == found
