"""Different people stay different when they are packed, whatever their names; every label is kept or reported."""

import pytest
from helpers import command
from pack_fakes import FACES, folder, json_of, list_of, parquet_of, people, picture, tar_of

from fastmfr.pack.build import pack
from fastmfr.pack.names import known_names

main = command("pack")
NAMES = ["ann", "ann ", " ann", "?", "\\", "\\\\", "a\tb", "a\\tb", "a?b", "\x1b"]
NAMES += ["\udcc0\udcee", "\udcc0\udcef", "\\udcc0\\udcee"]  # bytes that are not UTF-8, and text that looks like them


def test_distinct_names_stay_distinct_when_a_packed_folder_is_packed_again(tmp_path):
    [faces] = folder(tmp_path / "a", {name: [picture(k), picture(k + 50)] for k, name in enumerate(NAMES)})
    for source, out in [(faces, tmp_path / "once"), (tmp_path / "once", tmp_path / "twice")]:
        packed = pack([source], out)
        assert (packed.images, packed.identities, packed.shared) == (2 * len(NAMES), len(NAMES), 0)
        assert sorted(known_names(out).values()) == sorted(NAMES)
        assert packed.notes == [
            "3 names differ from another only in the blanks around them, and stay different people: "
            "' ann', 'ann', 'ann '"
        ]
    assert (tmp_path / "once" / "train.rec").read_bytes() == (tmp_path / "twice" / "train.rec").read_bytes()


def test_labels_of_one_name_in_a_packed_folder_stay_different_people_and_are_reported(tmp_path, capsys):
    pack(folder(tmp_path / "a", FACES), tmp_path / "once")
    (tmp_path / "once" / "identities.txt").write_text("0\t2\n1\t2\n")  # as "?" for unprintable letters once made
    assert main([str(tmp_path / "once"), str(tmp_path / "twice")]) == 0
    assert "identities.txt has 2 labels under the name of another label; they stay" in capsys.readouterr().out
    assert sorted(map(len, people(tmp_path / "twice").values())) == [1, 2, 3]


@pytest.mark.parametrize("make", [tar_of, list_of, parquet_of, json_of])
def test_labels_in_text_keep_their_blanks_but_for_numbers(tmp_path, make):
    labels = ["ann", "ann ", "7", "8 "]
    packed = pack([make(tmp_path, [(picture(k), label) for k, label in enumerate(labels)])], tmp_path / "out")
    assert packed.identities == 4
    assert {"ann", "ann ", "7"} < set(known_names(tmp_path / "out").values())


@pytest.mark.parametrize("make", [tar_of, list_of, parquet_of, json_of])
def test_images_of_nobody_known_do_not_become_one_person(tmp_path, make):
    rows = [(picture(1), 4), (picture(2), -1), (picture(3), -1)]
    packed = pack([make(tmp_path, rows)], tmp_path / "out")
    assert people(tmp_path / "out") == {"4": [picture(1)]}
    assert ["its label is -1, as of an image of nobody known" in reason for _, reason in packed.refused] == [True] * 2


def test_bare_numbers_that_several_sources_share_are_reported(tmp_path):
    sources = [*folder(tmp_path / "a", {"7": [picture(1)], "ann": [picture(2)]}), *folder(tmp_path / "b", FACES)]
    assert pack(sources, tmp_path / "one").notes == []
    sources += folder(tmp_path / "c", {"7": [picture(3)]})
    packed = pack(sources, tmp_path / "two")
    assert packed.shared == 2
    assert packed.notes[0].startswith("1 labels in several sources are bare numbers (as 7), which mean someone else")
