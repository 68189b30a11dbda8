"""Inspecting small made-up domains of which everything is known."""

import io

import numpy as np
import pytest
from helpers import command
from pack_fakes import folder, picture
from PIL import Image

from fastmfr.domains import open_domain
from fastmfr.inspect import overlap, survey
from fastmfr.inspect.overlap import MOST_PEOPLE
from fastmfr.inspect.sheet import draw_sheet
from fastmfr.pack.build import pack

main = command("inspect")


def domain(path, faces):
    return open_domain(*folder(path, faces))


@pytest.fixture
def two(tmp_path):
    """`one` repeats image 1 within ann and under bob; `two` has ann's image 2 under zoe, and its own bob."""
    one = {
        "ann": [picture(1), picture(2, "PNG"), picture(1)],
        "bob": [picture(1), picture(3, size=(30, 20))],
        "cy": [picture(4)],
        "dan": [b"", picture(5)[:-9], b"GIF89a", picture(6)],
        "9": [picture(7)],
    }
    two = {"bob": [picture(8), picture(9)], "zoe": [picture(2, "PNG"), b""], "9": [picture(10), picture(11)]}
    return domain(tmp_path / "one", one), domain(tmp_path / "two", two)


def test_a_survey_counts_sizes_formats_and_damage(two):
    found = survey(two[0], workers=2)
    assert found.names == ["9", "ann", "bob", "cy", "dan"]
    assert found.counts.tolist() == [1, 3, 2, 1, 4]
    assert found.sizes == {(12, 10): 7, (30, 20): 1}
    assert found.formats == {"JPEG": 7, "PNG": 1}
    reasons = [
        ("dan/0.jpg", "empty"),
        ("dan/1.jpg", "JPEG cut short: no end marker"),
        ("dan/2.jpg", "neither JPEG nor PNG, BMP, WebP or TIFF"),
    ]
    assert found.broken == reasons
    assert not found.sampled


def test_an_overlap_finds_copies_and_people_under_two_labels(two):
    surveys = [survey(one) for one in two]
    found = overlap(surveys)
    assert found.repeated == [2, 0]  # image 1 stands three times in `one`; the two empty ones are no copies
    assert found.groups == [[(0, 1), (0, 3), (0, 4)], [(0, 2), (1, 4)]]
    assert found.images == {(0, 1): 1}
    assert found.people == {((0, 1), (0, 2)): 1, ((0, 1), (1, 2)): 1}  # ann and bob of `one`; ann and zoe
    assert found.names == [((0, 2), (1, 1))]  # bob, not 9


def test_a_picture_that_everyone_has_makes_no_pairs(tmp_path):
    people = {f"p{k:02}": [picture(0), picture(k + 1)] for k in range(MOST_PEOPLE + 1)}
    found = overlap([survey(domain(tmp_path / "a", people))])
    assert (found.placeholders, found.people, found.repeated) == (1, {}, [MOST_PEOPLE])
    del people["p00"]
    found = overlap([survey(domain(tmp_path / "b", people))])
    assert (found.placeholders, len(found.people)) == (0, MOST_PEOPLE * (MOST_PEOPLE - 1) // 2)


def test_domains_without_copies_or_readable_images_have_no_overlap(tmp_path):
    for name, images in [("good", [picture(1), picture(2)]), ("bad", [b"", b""])]:
        found = overlap([survey(domain(tmp_path / name, {"ann": images}))])
        assert (found.groups, found.repeated, found.people) == ([], [0], {})


def test_names_of_a_packed_domain_are_those_of_its_people(tmp_path, two):
    pack([two[0].path], tmp_path / "packed")
    surveys = [survey(open_domain(tmp_path / "packed")), survey(two[0])]
    assert surveys[0].names == surveys[1].names
    assert [names[0][1] for names in overlap(surveys).names] == [1, 2, 3, 4]


def test_a_sample_is_of_whole_people_and_the_same_every_time(tmp_path):
    big = domain(tmp_path / "a", {f"p{k}": [picture(3 * k + i) for i in range(3)] for k in range(20)})
    found = survey(big, most=9)
    assert found.sampled
    assert len(found.image_N) == 9
    assert np.bincount(found.domain.identity_of(found.image_N)).tolist().count(3) == 3
    assert survey(big, most=9).image_N.tolist() == found.image_N.tolist()
    assert sum(found.sizes.values()) == 9
    assert not survey(big, most=60).sampled
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        survey(big, most=0)


def test_the_command_says_everything_and_writes_lists_and_sheets(tmp_path, two, capsys):
    assert main([str(one.path) for one in two] + ["--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    for sentence in (
        "│ one    │      5 │     11 │ 1 / 2 / 4 │      2 │ 88 % │      3 │      2 │",
        "one: width x height 12-30 x 10-20, most often 12 x 10 (7), 30 x 20 (1)",
        "one: people with a single image, of which no pair can be made: 2",
        "one: broken images: 3\n  dan/0.jpg: empty",
        "              2-3          2 ##############################\n",
        "images in one and in two, byte for byte: 1",
        "likely one person under two labels: 2\n  one:ann = one:bob (1)\n  one:ann = two:zoe (1)",
        "names in two domains, likely the same person: 1\n  one:bob = two:bob",
    ):
        assert sentence in said
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"broken.txt", "copies.txt", "one.png", "people.txt", "two.png"}
    assert (out / "broken.txt").read_text().splitlines()[3] == "two\tzoe/1.jpg\tempty"
    assert (out / "copies.txt").read_text().splitlines()[1] == "one:ann/1.png\ttwo:zoe/0.png"
    assert (out / "people.txt").read_text().splitlines() == [
        "one:ann\tone:bob\t1 same images",
        "one:ann\ttwo:zoe\t1 same images",
        "one:bob\ttwo:bob\tsame name",
    ]


def test_thumbnails_are_not_distorted(tmp_path):
    wide, buffer = Image.new("RGB", (60, 20), (255, 0, 0)), io.BytesIO()
    wide.save(buffer, "PNG")
    path = domain(tmp_path / "a", {"ann": [buffer.getvalue()]}).path
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "out" / "a.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 50)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert 2.7 < (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1) < 3.3


def test_only_the_first_of_many_broken_images_are_on_the_screen(tmp_path, capsys):
    path = domain(tmp_path / "a", {"ann": [b""] * 30, "bob": [picture(1)]}).path
    assert main([str(path), str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "a: broken images: 30 (the first 20 below, all of them with --out)" in said
    assert said.count(": empty") == 40
    assert "a-2: broken images: 30" in said  # the same folder twice, under two names
    assert len((tmp_path / "out" / "broken.txt").read_text().splitlines()) == 60


def test_a_domain_of_which_nothing_decodes_has_no_sheet(tmp_path, capsys):
    path = domain(tmp_path / "a", {"ann": [b"no image"]}).path
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert "a: no image of those picked decodes, so there is no contact sheet" in capsys.readouterr().out
    assert not (tmp_path / "out" / "a.png").exists()


def test_a_sample_is_said_to_be_one(tmp_path, capsys):
    path = domain(tmp_path / "a", {f"p{k}": [picture(k)] for k in range(5)}).path
    assert main([str(path), "--images", "2"]) == 0
    assert "a: a sample of 2 of 5 images was read" in capsys.readouterr().out


def test_what_is_no_domain_is_an_error_in_a_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "gone")]) == 1
    assert "error: there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_a_sheet_shows_16_bit_grey_as_it_is(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20), 30000, np.uint16)).save(buffer, "PNG")
    found = survey(domain(tmp_path / "a", {"ann": [buffer.getvalue()]}))
    assert draw_sheet(found, tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert (pixels == 117).mean() > 0.1  # 30000 / 257, and not white


def test_names_of_any_characters_are_written_out_in_one_line(tmp_path, capsys):
    faces = {"n\udcc0\udcee[b]": [picture(1), b""], "t\tab\nline": [picture(1)], "\x1b[31mred": [picture(3)]}
    path = domain(tmp_path / "a\x1b[x]", faces).path
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "│ a\\x1b[x] │" in said
    pair = "a\\x1b[x]:n\\udcc0\\udcee[b]{} = a\\x1b[x]:t\\tab\\nline{}"
    assert f"  {pair.format('', '')} (1)" in said
    lists = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.txt")}
    assert lists["broken.txt"] == "a\\x1b[x]\tn\\udcc0\\udcee[b]/1.jpg\tempty\n"
    assert lists["copies.txt"] == pair.format("/0.jpg", "/0.jpg").replace(" = ", "\t") + "\n"
    assert lists["people.txt"] == pair.format("", "").replace(" = ", "\t") + "\t1 same images\n"
