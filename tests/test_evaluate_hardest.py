"""The hardest pairs, against all pairs sorted one by one."""

import json

import numpy as np
import pytest
import torch

from fastmfr.evaluate import all_pairs, hardest, hardest_pairs
from fastmfr.protocols import GalleryProbe, gallery_probe


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


def told(found):
    return [(kind, round(pair["cosine"], 5), pair["gallery"], pair["probe"]) for kind in found for pair in found[kind]]


# all at once; in blocks of one probe, in float32; with fewer candidates kept than there are
@pytest.mark.parametrize(("exact", "block", "kept"), [(2**24, 2**22, 2**20), (0, 20, 2**20), (0, 50, 400)], ids=str)
def test_finds_what_sorting_all_pairs_finds(exact, block, kept, monkeypatch):
    monkeypatch.setattr(all_pairs, "EXACT", exact)
    monkeypatch.setattr(all_pairs, "BLOCK", block)
    monkeypatch.setattr(hardest, "KEPT", kept)
    rows, pairs = embedded()
    assert told(hardest_pairs(rows, pairs, 5)) == list(by_hand(rows, pairs, 5))


def test_a_person_under_a_wrong_name_takes_one_place_in_each_list():
    rows = torch.eye(16).repeat_interleave(4, 0) + 0.01 * embedded(8, 8)[0].repeat(1, 3)[:, :16]
    rows[4:8] = rows[0]  # two folders of one person
    rows[20] = -rows[20]  # an image that is not the person
    found = hardest_pairs(rows, gallery_probe(np.arange(17) * 4))
    assert {found["impostor"][0]["gallery_id"], found["impostor"][0]["probe_id"]} == {0, 1}
    assert found["impostor"][0]["cosine"] > 0.9 > found["impostor"][1]["cosine"]
    assert found["genuine"][0]["gallery_id"] == found["genuine"][0]["probe_id"] == 5
    assert found["genuine"][0]["cosine"] < -0.9 < 0.9 < found["genuine"][1]["cosine"]
    assert [len(found[kind]) for kind in found] == [8, 8]
    for kind, a_pair in (("genuine", 1), ("impostor", 2)):
        people = {pair[side] for pair in found[kind] for side in ("gallery_id", "probe_id")}
        assert len(people) == 8 * a_pair


def test_a_list_is_shorter_where_there_are_too_few_people():
    rows, _ = embedded(people=3, images=2)
    pairs = GalleryProbe(np.array([0, 2]), np.array([0, 1]), np.array([1, 4]), np.array([0, 2]))
    found = hardest_pairs(rows, pairs)
    assert [len(found[kind]) for kind in found] == [1, 1]
    assert json.loads(json.dumps(found)) == found
