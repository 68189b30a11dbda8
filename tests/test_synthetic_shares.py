"""People with one image, twins, and what neither the shares nor a new domain may change: the faces made before."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastmfr.config import Synthetic
from fastmfr.progress import new_console
from fastmfr.synthetic import DOMAINS, identity, images_of, make, render, write_records
from fastmfr.synthetic.domains import CATALOG
from fastmfr.training.people import _make_faces

SHA256 = {  # of the pixels of three images of 45 and of 64 pixels, as drawn since the domains were made
    "studio": "f1370ab67d800c38",
    "street": "3d70f260cf1a1738",
    "tungsten": "9b3beb77dd1cba67",
    "nir": "587e0bb43a1e83a8",
    "surveillance": "344bee32c65982ed",
    "sketch": "2724ee3ffc934b36",
    "glasses": "82183950987654b0",
    "aged": "b2037c91d09350ac",
}
NEW = DOMAINS[len(SHA256) :]
PEOPLE = range(200)


@pytest.mark.parametrize("domain", SHA256)
def test_the_first_domains_keep_their_pixels(domain):
    pixels = b"".join(render(domain, [0, 3, 3], [0, 1, 7], size=size, seed=1).tobytes() for size in (45, 64))
    assert hashlib.sha256(pixels).hexdigest()[:16] == SHA256[domain]


@pytest.mark.parametrize("domain", NEW)
def test_a_new_domain_is_another_kind_of_picture_of_the_same_face(domain, monkeypatch):
    def look(name):
        return render(name, np.arange(4), np.zeros(4, int), size=48).astype(float)

    seen = look(domain)
    monkeypatch.setitem(CATALOG, domain, CATALOG["studio"])  # the same people, drawn as studio draws its own
    assert np.abs(seen - look(domain)).mean() > 10


def test_caricatures_differ_more_from_one_another_than_the_faces_drawn():
    def traits(domain, change):
        face = identity.describe(0, 8, PEOPLE, [0] * len(PEOPLE), CATALOG[domain].traits, {})
        if change:
            change(face, {**identity.TRAITS, **CATALOG[domain].traits})
        return np.stack([face.mouth_width, face.nose_tip, face.brow_y]).std(1).ravel()

    ratio = traits("caricature", CATALOG["caricature"].change) / traits("caricature", None)
    assert (ratio > 1.6).all()
    assert (ratio < 2.4).all()


def test_one_person_is_exaggerated_more_in_one_drawing_than_in_another():
    face = identity.describe(0, 8, [5] * 30, range(30), {}, {})
    before = face.mouth_width.copy()
    CATALOG["caricature"].change(face, identity.TRAITS)
    mean = identity.TRAITS["mouth_width"][0]
    factor = ((face.mouth_width - mean) / (before - mean)).ravel()
    assert factor.min() >= 1.4 - 1e-3
    assert factor.max() <= 2.6 + 1e-3
    assert np.ptp(factor) > 0.6


def test_most_images_hide_the_lower_face_by_a_mask_and_never_the_eyes(monkeypatch):
    people, images = np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)
    face = identity.describe(0, DOMAINS.index("masked"), people.tolist(), images.tolist(), {}, {})
    CATALOG["masked"].change(face, identity.TRAITS)
    masked = face.masked.ravel()
    seen = render("masked", people, images, size=32)
    monkeypatch.setitem(CATALOG, "masked", replace(CATALOG["masked"], cover=None))
    bare = render("masked", people, images, size=32)
    assert 0.5 < masked.mean() < 0.85
    assert np.array_equal(seen[~masked], bare[~masked])
    assert np.array_equal(seen[:, :11], bare[:, :11])
    assert (np.abs(seen[masked, 20:26, 13:19].astype(int) - bare[masked, 20:26, 13:19]).mean((1, 2, 3)) > 5).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("chosen", [identity.is_single, identity.is_twin])
def test_a_share_of_people_is_met_among_any_of_them(chosen, share):
    for people in (PEOPLE, range(1000, 1200)):
        assert abs(np.mean([chosen(person, share) for person in people]) - share) < 0.04


def test_twins_come_in_pairs_and_are_single_as_often_as_others():
    twins = [identity.is_twin(person, 0.5) for person in PEOPLE]
    assert twins[::2] == twins[1::2]
    single = [identity.is_single(person, 0.3) for person, twin in enumerate(twins) if twin]
    assert 0.2 < np.mean(single) < 0.4


def test_twins_are_nearer_to_one_another_than_other_people_but_differ():
    def traits(twins):
        face = identity.describe(3, 0, PEOPLE, [0] * len(PEOPLE), {}, {}, twins)
        numbers = [getattr(face, name).ravel() / spread for name, (_, spread) in identity.TRAITS.items()]
        return np.stack(numbers, 1), face

    (apart, plain), (near, face) = traits(0.0), traits(1.0)
    between = np.linalg.norm(apart[::2] - apart[1::2], axis=1)
    of_twins = np.linalg.norm(near[::2] - near[1::2], axis=1)
    assert of_twins.max() < between.min()
    assert of_twins.min() > 0.05 * between.mean()
    spread = near[1::2].std(0) / apart[1::2].std(0)
    assert spread.mean() == pytest.approx(1, abs=0.06)  # a second twin is no nearer to the mean face than others
    assert np.array_equal(near[::2], apart[::2])  # the first of twins is who that person is without twins
    assert (np.abs(face.pigment[::2] - face.pigment[1::2]).max((1, 2)) > 0.02).all()
    assert np.array_equal(face.pigment[::2], plain.pigment[::2])


def test_pixels_of_twins_are_nearer_than_those_of_other_people():
    people = np.arange(40)
    gray = render("studio", np.repeat(people, 8), np.tile(np.arange(8), 40), size=32, twins=1.0).mean(-1)
    gray = gray.reshape(40, 8, -1).mean(1)  # pose, light and expression average out
    gray -= gray.mean(0)
    gray /= np.linalg.norm(gray, axis=1, keepdims=True)
    likeness = gray @ gray.T
    of_twins = likeness[people[::2], people[1::2]]
    others = likeness[people[::2], np.roll(people[1::2], 1)]
    assert of_twins.mean() > others.mean() + 0.3


def test_the_images_of_others_stay_as_they_are():
    twins = [person for person in range(30) if person % 2 and identity.is_twin(person, 0.4)]
    others = [person for person in range(30) if person not in twins]
    with_twins, without = (
        {person: render("nir", [person], [2], size=32, twins=share) for person in range(30)} for share in (0.4, 0.0)
    )
    assert 4 <= len(twins) <= 8
    assert all(np.array_equal(with_twins[person], without[person]) for person in others)
    assert not any(np.array_equal(with_twins[person], without[person]) for person in twins)


def test_singles_have_one_image_the_first_of_those_they_would_have(tmp_path):
    settings = {"domains": ("street",), "identities": 8, "images": 3, "size": 32, "workers": 1}
    seen = []
    plain = make(tmp_path / "a", **settings)["street"]
    some = make(tmp_path / "b", single=0.5, progress=lambda done, total: seen.append((done, total)), **settings)
    counts = [len(list(folder.iterdir())) for folder in sorted(some["street"].iterdir())]
    assert counts == [images_of(person, 3, 0.5) for person in range(8)]
    assert 3 <= counts.count(1) <= 5
    assert seen[-1] == (sum(counts), sum(counts))
    single = next(folder for folder in sorted(some["street"].iterdir()) if len(list(folder.iterdir())) == 1)
    assert (single / "0000.jpg").read_bytes() == (plain / single.name / "0000.jpg").read_bytes()


def test_records_hold_single_people_too(tmp_path):
    write_records(tmp_path / "r", "nir", identities=6, images=2, size=32, single=0.5)
    rows = len((tmp_path / "r" / "train.idx").read_text().splitlines())
    images = sum(images_of(person, 2, 0.5) for person in range(6))
    assert rows == 1 + images + 6  # a header, the images, and a record of each person


def test_notes_of_faces_without_shares_are_those_of_before(tmp_path):
    settings = {"domains": ("nir",), "identities": 2, "images": 2, "size": 32, "workers": 1}
    make(tmp_path, **settings)
    note = json.loads((tmp_path / "nir.json").read_text())
    assert set(note) == {"start", "stop", "step", "images", "size", "seed", "version", "format"}
    with pytest.raises(ValueError, match=r"nir was made otherwise \(twins 0 instead of 0.5\)"):
        make(tmp_path, twins=0.5, **settings)


def test_faces_with_shares_are_not_taken_for_faces_without(tmp_path):
    settings = {"domains": ("nir",), "identities": 2, "images": 2, "size": 32, "workers": 1}
    make(tmp_path, single=0.25, **settings)
    assert make(tmp_path, single=0.25, **settings)["nir"].is_dir()
    with pytest.raises(ValueError, match=r"single 0.25 instead of 0\)"):
        make(tmp_path, **settings)


@pytest.mark.parametrize(
    ("shares", "folder"),
    [
        ({}, "8x3-32px"),
        ({"single": 0.5}, "8x3-32px-single0.5"),
        ({"twins": 0.25}, "8x3-32px-twins0.25"),
        ({"single": 0.5, "twins": 0.25}, "8x3-32px-single0.5-twins0.25"),
    ],
)
def test_a_run_keeps_faces_with_other_shares_in_other_folders(shares, folder, monkeypatch):
    asked = []

    def made(root, **settings):
        asked.append((root, {name: settings[name] for name in ("single", "twins") if name in settings}))
        return {"nir": root / "nir"}

    monkeypatch.setattr("fastmfr.synthetic.make", made)
    faces = Synthetic(folder="kept", identities=8, images=3, size=32, **shares)
    config = SimpleNamespace(data=SimpleNamespace(synthetic=faces))
    found = _make_faces({"lamp": "synthetic:nir"}, config, SimpleNamespace(console=new_console()))
    assert found == {"lamp": Path("kept") / folder / "nir"}
    assert asked == [(Path("kept") / folder, shares)]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"single": 1.0}, "data.synthetic.single at least 0 and below 1, got 1.0"),
        ({"twins": -0.1}, "data.synthetic.twins from 0 to 1, got -0.1"),
        ({"twins": "half"}, "data.synthetic.twins as a number"),
    ],
)
def test_refuses_shares_out_of_range(shares, message):
    with pytest.raises(ValueError, match=message):
        Synthetic(**shares)


def test_refuses_to_draw_a_share_out_of_range():
    with pytest.raises(ValueError, match=r"shares of people from 0 to 1, got 1.5"):
        render("nir", [0], [0], twins=1.5)
