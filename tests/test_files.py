"""Devices, pipes and sockets that a folder or a list names are refused at once; none is waited for or read."""

import os
import socket

import pytest
from evaluation_fakes import PEOPLE, class_folder, face

from fastmfr.domains import open_domain
from fastmfr.evaluate import open_sets
from fastmfr.pack.build import pack
from fastmfr.protocols import ImageFiles, read_folds, read_pairs
from fastmfr.protocols.files import regular_bytes

KINDS = ["pipe", "device", "socket", "link to a device", "link to a pipe"]


def strange(path, kind):
    """Something at `path` that is no regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name(f".{path.name}"))
        path.symlink_to(path.with_name(f".{path.name}"))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(path.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{here}/{path.name}")  # an address may have 107 bytes
            os.close(here)
    else:  # a device cannot be made without being root
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_class_folder_it_is_a_bad_image(tmp_path, kind):
    people = class_folder(tmp_path / "people")
    strange(people / "p00" / "1.jpg", kind)
    domain = open_domain(people)
    with pytest.raises(ValueError, match=r"1.jpg is a (pipe|device|socket); want a regular file"):
        domain.jpeg(1)
    assert bytes(domain.jpeg(2)) == face(0, 2)
    packed = pack([people], tmp_path / "out")
    assert packed.images == 3 * PEOPLE - 1
    assert [(key, "want a regular file" in reason) for key, reason in packed.refused] == [("p00/1.jpg", True)]


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_list_it_is_a_bad_image(tmp_path, kind):
    people = class_folder(tmp_path / "people", people=2)
    strange(people / "p00" / "1.jpg", kind)
    (people / "list.txt").write_text("p00/0.jpg\ta\np00/1.jpg\ta\n/dev/zero\tb\np01/0.jpg\tb\n")
    packed = pack([people / "list.txt"], tmp_path / "out")
    assert packed.images == 2
    assert [key for key, _ in packed.refused] == ["p00/1.jpg", "/dev/zero"]
    listed = ImageFiles("listed", people, ["p00/1.jpg", "/dev/zero"])
    for image in range(2):
        with pytest.raises(ValueError, match="no image"):
            listed.jpeg(image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["list.txt", "shard.tar", "rows.parquet"])
def test_as_a_source_it_is_refused(tmp_path, kind, name):
    with pytest.raises(ValueError, match=r"is a (pipe|device|socket); want a regular file: copy its content into one"):
        pack([strange(tmp_path / name, kind)], tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_list_it_is_refused(tmp_path, kind):
    class_folder(tmp_path)
    (tmp_path / "probe.txt").write_text("p00/1.jpg\n")
    strange(tmp_path / "gallery.txt", kind)
    with pytest.raises(ValueError, match="want a regular file"):
        read_folds(tmp_path)
    pairs = strange(tmp_path / "pairs.txt", kind)
    with pytest.raises(FileNotFoundError, match="there is no list"):
        read_pairs(pairs)
    with pytest.raises((ValueError, FileNotFoundError)):
        list(open_sets("x", pairs))


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    with pytest.raises(ValueError, match=r"has 11 bytes; want an image of at most 10"):
        regular_bytes(tmp_path / "a", 10)
    huge = tmp_path / "s" / "huge.jpg"
    huge.parent.mkdir()
    with huge.open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(ValueError, match="want an image of at most 1,073,741,824"):
        open_domain(tmp_path).jpeg(0)
    assert regular_bytes(tmp_path / "a", None) == bytes(11)
