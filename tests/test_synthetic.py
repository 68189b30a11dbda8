import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from fastmfr import synthetic
from fastmfr.synthetic import DOMAINS, make, render, write_folders, write_records


def pairs(identities, images):
    return np.repeat(np.arange(identities), images), np.tile(np.arange(images), identities)


def records(folder):
    """(flag, label, JPEG) of each record, by the offsets of train.idx; no image here is split in parts."""
    rec = (folder / "train.rec").read_bytes()
    for line in (folder / "train.idx").read_text().splitlines():
        offset = int(line.split("\t")[1])
        length = struct.unpack_from("<I", rec, offset + 4)[0]
        assert length >> 29 == 0
        flag, label = struct.unpack_from("<If", rec, offset + 8)
        yield flag, label, rec[offset + 32 : offset + 8 + length]


def opened(jpeg):
    image = Image.open(io.BytesIO(jpeg))
    image.load()
    return image


def test_names_its_domains_in_order():
    first = ("studio", "street", "tungsten", "nir", "surveillance", "sketch", "glasses", "aged")
    assert (*first, "caricature", "thermal", "newsprint", "masked", "makeup", "children") == DOMAINS


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [45, 112])  # odd, and the size of the field
def test_an_image_does_not_depend_on_its_batch(domain, size):
    identities, images = np.array([7, 2, 7, 7, 0, 2, 1]), np.array([1, 3, 0, 1, 0, 2, 9])
    together = render(domain, identities, images, size=size, seed=5)
    assert together.shape == (7, size, size, 3)
    assert together.dtype == np.uint8
    alone = [render(domain, [i], [k], size=size, seed=5)[0] for i, k in zip(identities, images, strict=True)]
    assert np.array_equal(together, alone)
    assert np.array_equal(together[0], together[3])


def test_seed_domain_identity_and_image_each_change_the_picture():
    base = render("studio", [1], [1], size=48)
    others = [
        render("studio", [1], [1], size=48, seed=1),
        render("glasses", [1], [1], size=48),
        render("studio", [2], [1], size=48),
        render("studio", [1], [2], size=48),
    ]
    assert all((base != other).mean() > 0.2 for other in others)


@pytest.mark.parametrize("domain", DOMAINS)
def test_many_faces_use_the_range_of_brightness_without_a_warning(domain):
    faces = render(domain, *pairs(60, 1), size=32)
    spread = faces.reshape(60, -1).std(1)
    assert spread.min() > 8
    assert faces.mean() > 25
    assert faces.mean() < 245


def test_domains_are_told_apart_by_their_colours_alone():
    def colours(images):
        flat = images.reshape(len(images), -1, 3).astype(np.float32)
        return np.concatenate([flat.mean(1), flat.std(1)], 1)

    identities, images = pairs(30, 2)
    seen = np.stack([colours(render(name, identities, images, size=48)) for name in DOMAINS])
    centre, scale = seen[:, :30].mean(1), seen[:, :30].std((0, 1))
    distance = (((seen[:, 30:, None] - centre) / scale) ** 2).sum(-1)
    right = distance.argmin(-1) == np.arange(len(DOMAINS))[:, None]
    assert right.mean() > 0.6  # chance is 0.07; street, glasses and masked share a camera


@pytest.mark.parametrize("domain", DOMAINS)
def test_pixels_tell_people_apart_over_several_images_but_not_in_one(domain):
    people, images = 20, 24
    rows = slice(6, 18 if domain == "masked" else 30)  # below the eyes a mask is of the image, not of the person
    gray = render(domain, *pairs(people, images), size=32).mean(-1)[:, rows, 6:26].reshape(people, images, -1)
    gray = (gray - gray.mean(-1, keepdims=True)) / gray.std(-1, keepdims=True)
    halves = gray - gray.mean((0, 1))
    halves = np.stack([halves[:, ::2].mean(1), halves[:, 1::2].mean(1)])  # pose, light and expression average out
    halves /= np.linalg.norm(halves, axis=-1, keepdims=True)
    assert ((halves[0] @ halves[1].T).argmax(1) == np.arange(people)).mean() >= 0.3  # chance is 0.05
    nearest = (gray[:, 0] @ gray[:, 1].T).argmax(1) == np.arange(people)
    assert nearest.mean() < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", [0], [0]), "want a domain of studio, .* got 'nowhere'"),
        (("nir", [0, 1], [0]), r"got \(2,\) and \(1,\)"),
        (("nir", [0], [-1]), "count from 0, got -1"),
    ],
)
def test_refuses_what_it_cannot_draw(arguments, message):
    with pytest.raises(ValueError, match=message):
        render(*arguments)


def test_refuses_a_size_too_small_for_a_face():
    with pytest.raises(ValueError, match=r"at least 32 pixels.* got size 16"):
        render("nir", [0], [0], size=16)


def test_folders_hold_jpegs_of_the_identities_of_a_range(tmp_path):
    write_folders(tmp_path / "f", "street", identities=range(40, 43), images=2, size=40, seed=3)
    files = sorted(path.relative_to(tmp_path / "f").as_posix() for path in (tmp_path / "f").rglob("*.jpg"))
    assert files == [f"{identity:07d}/{image:04d}.jpg" for identity in (40, 41, 42) for image in (0, 1)]
    image = opened((tmp_path / "f" / files[3]).read_bytes())
    assert (image.format, image.size, image.mode) == ("JPEG", (40, 40), "RGB")
    true = render("street", [41], [1], size=40, seed=3)[0]
    assert np.abs(np.asarray(image, np.float32) - true).mean() < 12


def test_records_hold_the_same_jpegs_labelled_from_zero(tmp_path):
    settings = {"identities": range(5, 8), "images": 3, "size": 40}
    write_records(tmp_path / "r", "nir", **settings)
    write_folders(tmp_path / "f", "nir", **settings)
    found = list(records(tmp_path / "r"))
    assert [flag for flag, _, _ in found] == [2] + [0] * 9 + [2] * 3
    assert [label for flag, label, _ in found if flag == 0] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    jpegs = [jpeg for flag, _, jpeg in found if flag == 0]
    assert jpegs == [path.read_bytes() for path in sorted((tmp_path / "f").rglob("*.jpg"))]
    assert opened(jpegs[0]).size == (40, 40)
    assert (tmp_path / "r" / "property").read_text().strip() == "3,40,40"


@pytest.mark.parametrize(("identities", "images"), [(0, 2), (range(3, 3), 2), (2, 0), ("all", 2)])
def test_refuses_an_empty_domain_and_writes_nothing(tmp_path, identities, images):
    for write in (write_folders, write_records):
        with pytest.raises(ValueError, match="at least one identity"):
            write(tmp_path / "d", "nir", identities=identities, images=images)
    assert not list(tmp_path.iterdir())


def test_makes_every_other_domain_as_records_and_reports_progress(tmp_path):
    seen = []
    made = make(
        tmp_path,
        domains=("studio", "street"),
        identities=2,
        images=2,
        size=32,
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert made == {"studio": tmp_path / "studio", "street": tmp_path / "street"}
    assert (made["studio"] / "train.rec").is_file()
    assert len(list(made["street"].rglob("*.jpg"))) == 4
    assert seen == [(0, 8), (2, 8), (4, 8), (6, 8), (8, 8)]
    assert json.loads((tmp_path / "street.json").read_text())["images"] == 2


def test_processes_make_the_same_bytes(tmp_path):
    settings = {"domains": ("sketch",), "identities": 3, "images": 2, "size": 32}
    one, two = (
        [(path.relative_to(folder), path.read_bytes()) for path in sorted(folder.rglob("*.jpg"))]
        for folder in (make(tmp_path / f"{workers}", workers=workers, **settings)["sketch"] for workers in (1, 2))
    )
    assert len(one) == 6
    assert one == two


def test_reuses_a_domain_made_alike_and_refuses_one_made_otherwise(tmp_path, monkeypatch):
    settings = {"domains": ("nir",), "images": 2, "size": 32, "workers": 1}
    made = make(tmp_path, identities=2, **settings)
    monkeypatch.setattr(synthetic.write, "render", None)  # drawing anything would fail
    seen = []
    assert make(tmp_path, identities=2, **settings, progress=lambda *counts: seen.append(counts)) == made
    assert seen == [(4, 4)]
    with pytest.raises(ValueError, match=r"nir was made otherwise \(stop 2 instead of 3\).* delete that folder"):
        make(tmp_path, identities=3, **settings)


def test_refuses_a_folder_it_did_not_make(tmp_path):
    (tmp_path / "nir").mkdir()
    with pytest.raises(ValueError, match=r"is not a synthetic domain \(nir.json is missing\)"):
        make(tmp_path, domains=("nir",), identities=1, images=1, size=32, workers=1)


@pytest.mark.parametrize("domain", ["studio", "street"])  # records, folders
def test_an_interruption_leaves_nothing_half_and_the_next_making_completes(tmp_path, domain):
    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    settings = {"domains": (domain,), "identities": 3, "images": 1, "size": 32, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=interrupt, **settings)
    assert not list(tmp_path.iterdir())
    assert make(tmp_path, **settings)[domain].is_dir()
    assert not list(tmp_path.glob(".*"))
