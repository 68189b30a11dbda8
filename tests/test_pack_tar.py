"""Tar files as sources: what is taken, what is refused and why, and that nothing is followed or written outside."""

import io
import os
import tarfile

import numpy as np
import pytest
from helpers import command
from pack_fakes import FACES, folder, people, picture, shards, tar

from fastmfr.pack.build import pack

main = command("pack")


def test_samples_of_a_tar_that_cannot_be_used_are_refused(tmp_path):
    members = [
        ("a.jpg", picture(1)),
        ("a.cls", b"7"),
        ("alone.jpg", picture(2)),
        ("label.cls", b"7"),
        ("two.jpg", picture(3)),
        ("two.png", picture(4, "PNG")),
        ("two.cls", b"7"),
        ("bad.jpg", picture(5)),
        ("bad.json", b"{"),
        ("none.jpg", picture(5)),
        ("none.json", b"[]"),
        ("odd.jpg", picture(5)),
        ("odd.json", b'{"label": 1.5}'),
        ("readme.txt", b"hello"),
        (".jpg", picture(6)),
        ("blank.jpg", picture(5)),
        ("blank.cls", b" "),
        ("cut.jpg", picture(5)[:40]),
        ("cut.cls", b"7"),
        ("huge.jpg", picture(5)),
        ("huge.cls", b"7" * (1 << 21)),
    ]
    packed = pack([tar(tmp_path / "a.tar", members)], tmp_path / "out")
    assert people(tmp_path / "out") == {"7": [picture(1)]}
    reasons = {
        "alone.jpg": "no label",
        "readme.txt": "neither an image nor a label by its name",
        ".jpg": "no label",
        "label": "no image",
        "two": "more than one image",
        "bad": "not JSON",
        "none": 'no "label"',
        "odd": "its label is 1.5",
        "blank": "its label is ' '",
        "cut.jpg": "frame header",
        "huge": "2,097,152 bytes",
    }
    assert {key.removeprefix("a.tar:") for key, _ in packed.refused} == set(reasons)
    for key, reason in packed.refused:
        assert reasons[key.removeprefix("a.tar:")] in reason


def test_names_in_a_tar_write_nothing_outside_and_links_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        for name, content in [("link.cls", b"1"), ("../../evil.jpg", picture(1)), ("../../evil.cls", b"../../me\nx")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    (tmp_path / "inner").mkdir()
    pack([tmp_path / "a.tar"], tmp_path / "inner" / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "inner"]
    assert os.listdir(tmp_path / "inner") == ["out"]
    assert people(tmp_path / "inner" / "out") == {"../../me\\nx": [picture(1)]}


def test_a_damaged_tar_gives_data_or_a_sentence(tmp_path):
    [whole, _] = shards(tmp_path / "source")
    sound, rng, packed, sentences = whole.read_bytes().rstrip(b"\0"), np.random.default_rng(0), 0, []
    for n in range(60):
        damaged = bytearray(sound)
        for at in rng.integers(0, len(damaged), rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        if n % 2:  # the headers are what can mislead
            block = 512 * rng.integers(0, len(damaged) // 512)
            damaged[block + 124 + rng.integers(12)] = rng.integers(256)  # its size
        whole.write_bytes(damaged)
        try:
            packed += pack([whole], tmp_path / f"out{n}", workers=1).images
        except ValueError as refusal:
            sentences.append(str(refusal))
    assert packed > 20
    assert [sentence for sentence in sentences if str(whole) in sentence]


def test_a_tar_that_would_lead_back_to_itself_is_refused(tmp_path):
    [whole, _] = shards(tmp_path / "source")
    content = bytearray(whole.read_bytes())
    content[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, as GNU tar writes numbers that octal digits do not hold
    content[148:156] = b"%06o\0 " % (256 + sum(content[:148]) + sum(content[156:512]))
    whole.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole, uncompressed tar file"):
        pack([whole], tmp_path / "out")


def refused(packed):
    return {key.partition(":")[2]: reason for key, reason in packed.refused}


def test_keys_with_dots_and_images_of_every_format_are_taken(tmp_path):
    names = ["m.01.jpg", "m.02.WEBP", "d.x/m.03.tif", "n.bmp", "o.jfif", "p.jpe"]
    kinds = {"webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
    members = []
    for k, name in enumerate(names):
        key, _, suffix = name.rpartition(".")
        members += [(name, picture(k, kinds.get(suffix.lower(), "JPEG"))), (f"{key}.cls", b"%d" % k)]
    packed = pack([tar(tmp_path / "a.tar", members)], tmp_path / "out")
    assert (packed.refused, packed.notes) == ([], [])
    assert [len(images) for images in people(tmp_path / "out").values()] == [1] * len(names)


def test_what_lies_beside_the_image_of_a_sample_is_counted_and_what_belongs_to_none_is_refused(tmp_path, capsys):
    members = []
    for k in range(3):
        beside = [(f"{k}.txt", b"a caption"), (f"{k}.mask.png", picture(9, "PNG")), (f"{k}.tif", picture(9, "TIFF"))]
        members += [(f"{k}.jpg", picture(k)), *beside, (f"{k}.cls", b"%d" % k), (f"{k}.emb.npy", b"0")]
    members += [("3.cls", b"3"), ("4.gif", b"GIF"), ("3.9.jpg", picture(5)), ("LICENSE", b"free")]
    assert main([str(tar(tmp_path / "a.tar", members)), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "members beside images by suffix: 3 of '.npy', 3 of '.png', 3 of '.tif', 3 of '.txt'\n" in said
    assert people(tmp_path / "out") == {str(k): [picture(k)] for k in range(3)}
    lines = [line.split("\t")[0] for line in (tmp_path / "out" / "refused.txt").read_text().splitlines()]
    assert sorted(lines) == ["a.tar:3", "a.tar:3.9.jpg", "a.tar:4.gif", "a.tar:LICENSE"]


def test_a_class_folder_in_a_tar_is_a_class_folder(tmp_path):
    [faces] = folder(tmp_path / "faces", FACES)
    (faces / "ann" / "0.jpg").rename(faces / "ann" / "0")  # without a suffix
    (faces / "ann" / "0.1.jpg").write_bytes(picture(7))
    (faces / "ann" / "1.jpg").write_bytes(picture(9))  # beside 1.png
    (faces / "loose.jpg").write_bytes(picture(8))
    (faces / "ann" / "notes.txt").write_text("no image")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(faces, "faces", filter=lambda member: None if member.name.endswith("loose.jpg") else member)
        file.add(faces / "loose.jpg", "loose.jpg")
    packed = pack([tmp_path / "a.tar"], tmp_path / "out")
    found = {name: sorted(images) for name, images in people(tmp_path / "out").items()}
    assert found == {**FACES, "ann": sorted([*FACES["ann"], picture(7), picture(9)])}
    assert sorted(refused(packed)) == ["faces/ann/notes.txt", "loose.jpg"]


def test_links_are_refused_by_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, content in [("1.jpg", picture(1)), ("1.cls", b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "1.jpg"
        file.addfile(link)
    assert "a link or a special file" in refused(pack([tmp_path / "a.tar"], tmp_path / "out"))["2.jpg"]
