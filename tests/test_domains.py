"""Domains: class folders and RecordIO folders behave alike, people can be held out, labels never collide."""

import os
import sys

import numpy as np
import pytest

import fastmfr
from fastmfr.domains import join, open_domain
from fastmfr.pack import RecordWriter

COUNTS = [2, 1, 3]


def encoded(identity, n):
    return b"\xff\xd8\xff" + bytes([identity, n])


@pytest.fixture
def folder(tmp_path):
    for identity, count in enumerate(COUNTS):
        (tmp_path / "people" / f"s{identity}").mkdir(parents=True)
        for n in range(count):
            (tmp_path / "people" / f"s{identity}" / f"{n}.jpg").write_bytes(encoded(identity, n))
    return tmp_path / "people"


@pytest.fixture(params=["folder", "records"])
def domain(request, folder, tmp_path):
    if request.param == "folder":
        return open_domain(folder)
    with RecordWriter(tmp_path / "packed") as writer:
        for identity, count in enumerate(COUNTS):
            for n in range(count):
                writer.add(identity, encoded(identity, n))
    return open_domain(tmp_path / "packed", name="people")


def test_folders_and_records_give_the_same_domain(domain):
    assert (domain.name, domain.identities, domain.images) == ("people", 3, 6)
    assert domain.offsets.tolist() == [0, 2, 3, 6]
    assert domain.offsets.dtype == np.int64
    assert [bytes(domain.jpeg(i)) for i in range(6)] == [encoded(k, n) for k in range(3) for n in range(COUNTS[k])]
    assert [bytes(image) for image in domain.jpegs(np.array([5, 0]))] == [encoded(2, 2), encoded(0, 0)]
    assert not any(array.flags.writeable for array in (domain.jpeg(0), domain.jpegs([0])[0], domain.offsets))
    assert repr(domain) == "Domain('people', identities=3, images=6)"


def test_keys_and_names_can_be_looked_up(folder, domain):
    records = domain.path != folder
    assert domain.key(3) == ("train.rec:4" if records else "s2/0.jpg")
    assert domain.identity_name(2) == ("2" if records else "s2")


def test_people_restricts_and_renumbers(domain):
    chosen = domain.people([2, 0])
    assert chosen.offsets.tolist() == [0, 3, 5]
    want = [encoded(k, n) for k, n in ((2, 0), (2, 1), (2, 2), (0, 0), (0, 1))]
    assert [bytes(chosen.jpeg(i)) for i in range(5)] == want
    assert [bytes(image) for image in chosen.jpegs(np.array([4, 2]))] == [encoded(0, 1), encoded(2, 2)]
    assert (chosen.key(3), chosen.identity_name(1)) == (domain.key(0), domain.identity_name(0))
    again = chosen.people(np.array([1]))
    assert (again.images, bytes(again.jpeg(1)), again.name) == (2, encoded(0, 1), "people")
    assert domain.images == 6


@pytest.mark.parametrize("numbers", [[], [3], [-1], [1, 1], [0.5], 2])
def test_people_refuses_numbers_that_are_not_different_identities(domain, numbers):
    with pytest.raises(ValueError, match=r"want (different )?identity numbers of 'people'"):
        domain.people(numbers)


def test_numbers_outside_the_domain_are_index_errors(domain):
    for image in (-1, 6):
        for method in (domain.jpeg, domain.key, lambda i: domain.jpegs(np.array([0, i]))):
            with pytest.raises(IndexError, match="images of 'people' are 0 to 5"):
                method(image)
    for identity in (-1, 3):
        with pytest.raises(IndexError, match=r"identity .* of 'people' was asked for; it has 3"):
            domain.identity_name(identity)


def test_joint_labels_keep_the_identities_of_domains_apart(domain):
    joint = join([domain, domain.people([1]), domain])
    assert joint.identities == 7
    domain_B, identity_B = np.repeat([0, 1, 2], [3, 1, 3]), np.array([0, 1, 2, 0, 0, 1, 2])
    label_B = joint.label(domain_B, identity_B)
    assert label_B.tolist() == list(range(7))
    assert label_B.dtype == np.int64


def test_joint_labels_refuse_what_is_not_there(domain):
    joint = join([domain, domain])
    with pytest.raises(ValueError, match="the domains joined are 0 to 1, got 0 to 2"):
        joint.label([0, 2], [0, 0])
    for identity in (-1, 3):
        with pytest.raises(ValueError, match="an identity number is outside its domain"):
            joint.label([0], [identity])
    with pytest.raises(ValueError, match="at least one domain to join"):
        join([])


def test_a_folder_is_read_in_order_whatever_else_lies_in_it(folder):
    (folder / "s1" / "A.JPEG").write_bytes(b"1")
    (folder / "s1" / "b.Png").write_bytes(b"2")
    (folder / "s1" / "notes.txt").write_text("not an image")
    (folder / "s1" / ".hidden.jpg").write_bytes(b"3")
    (folder / "empty").mkdir()
    (folder / ".cache").mkdir()
    (folder / "readme.jpg").write_bytes(b"4")
    domain = open_domain(folder)
    assert [domain.identity_name(k) for k in range(domain.identities)] == ["s0", "s1", "s2"]
    assert [domain.key(i) for i in range(2, 5)] == ["s1/0.jpg", "s1/A.JPEG", "s1/b.Png"]


def test_folders_that_are_no_domain_say_what_was_looked_for(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        open_domain(tmp_path / "nowhere")
    for empty in (tmp_path / "empty", folder / "s0"):  # nothing at all; images, but no identities
        empty.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"holds no domain: looked for train.rec, and for one folder an identity"):
            open_domain(empty)
    with pytest.raises(ValueError, match=r"holds the folder 's\d' where images were .* open .*people itself"):
        open_domain(tmp_path)


def test_an_image_that_went_away_is_named(folder):
    domain = open_domain(folder)
    os.remove(folder / "s1" / "0.jpg")
    with pytest.raises(ValueError, match=r"s1/0.jpg was there when the domain was opened"):
        domain.jpeg(2)


def test_says_how_to_build_a_missing_extension(domain, monkeypatch):
    monkeypatch.delattr(fastmfr, "_native", raising=False)
    monkeypatch.delitem(sys.modules, "fastmfr.native", raising=False)
    monkeypatch.setitem(sys.modules, "fastmfr._native", None)
    if (domain.path / "train.rec").exists():
        with pytest.raises(ImportError, match="the compiled extension is not built"):
            open_domain(domain.path)
    else:
        assert open_domain(domain.path).images == 6  # a folder needs no extension
