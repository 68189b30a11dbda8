import pickle
import warnings

import numpy as np
import pytest
from evaluation_fakes import class_folder, face, lfw_bin, trials

from fastmfr.protocols import (
    PairList,
    leave_each_out,
    paper_protocol,
    read_bin,
    read_folds,
    read_pairs,
    read_templates,
)
from fastmfr.protocols.paper import unlike_the_paper

SAME = [same for *_, same in trials()]


def as_array(encoded):
    return np.frombuffer(encoded, np.uint8)


@pytest.mark.parametrize("stored", [bytes, bytearray, as_array])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_reads_a_bin_however_it_was_pickled(tmp_path, stored, protocol):
    images, pairs = read_bin(lfw_bin(tmp_path / "lfw.bin", stored, protocol=protocol))
    assert (images.name, images.images) == ("lfw", 120)
    assert pairs.is_mate.tolist() == SAME
    for number, (first, second, _) in enumerate(trials()):
        assert bytes(images.jpeg(pairs.first[number])) == face(*first)
        assert bytes(images.jpegs([pairs.second[number]])[0]) == face(*second)


def test_reads_flags_that_are_numpy_bools_and_bytes_of_python_2(tmp_path):
    path = tmp_path / "old.bin"
    # protocol 2 as Python 2 wrote it: (['ab', 'cd'], [True]), its str marked as such
    path.write_bytes(b"\x80\x02]q\x00(U\x02abq\x01U\x02cdq\x02e]q\x03\x88a\x86q\x04.")
    images, pairs = read_bin(path)
    assert [bytes(images.jpeg(k)) for k in (0, 1)] == [b"ab", b"cd"]
    assert pairs.is_mate.tolist() == [True]
    path.write_bytes(pickle.dumps(([b"ab", b"cd"], [np.bool_(False)])))
    assert read_bin(path)[1].is_mate.tolist() == [False]
    path.write_bytes(pickle.dumps(([b"ab", b"cd"], np.array([True]))))
    assert read_bin(path)[1].is_mate.tolist() == [True]


class Runs:
    def __reduce__(self):
        return (open, ("run.txt", "w"))


class Imports:
    def __reduce__(self):
        return (warnings.warn, ("ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([Runs(), b""], [True]), "it would run io.open|it would run _io.open"),
        (([Imports(), b""], [True]), "it would run _?warnings.warn"),
        (([b"", b""], [True, False]), "2 images and 2 flags; want two images a flag"),
        (([], []), "0 images and 0 flags"),
        (["one", "two", "three"], r"should hold \(images, flags\), but it holds list"),
        ((["text", "text"], [True]), "should hold encoded images, but it holds str"),
    ],
)
def test_a_bin_that_would_run_something_or_holds_something_else_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_bin(tmp_path / "bad.bin")
    assert not (tmp_path / "run.txt").exists()


def test_a_bin_that_is_cut_short_or_missing_is_refused(tmp_path):
    path = lfw_bin(tmp_path / "lfw.bin")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot be read as a \.bin of image pairs"):
        read_bin(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_bin(tmp_path / "none.bin")


def plain(folder, form="{}/{}.jpg", tab="\t", fold=False):
    rows = [
        [form.format(f"p{p:02}", a), form.format(f"p{q:02}", b), str(int(same)), *[str(n // 6)][:fold]]
        for n, ((p, a), (q, b), same) in enumerate(trials())
    ]
    (folder / "pairs.txt").write_text("# by hand\n" + "".join(tab.join(row) + "\n" for row in rows))
    return folder / "pairs.txt"


def lfw(folder, tab="\t"):
    rows = [[f"p{p:02}", str(a + 1), *[f"p{q:02}"][: not same], str(b + 1)] for (p, a), (q, b), same in trials()]
    (folder / "pairs.txt").write_text(f"10{tab}3\n" + "".join(tab.join(row) + "\n" for row in rows))
    return folder / "pairs.txt"


@pytest.mark.parametrize("tab", ["\t", " "])
def test_reads_plain_pairs_with_people_by_their_folders(tmp_path, tab):
    images, pairs = read_pairs(plain(class_folder(tmp_path), tab=tab))
    assert pairs.is_mate.tolist() == SAME
    assert pairs.fold is None
    assert np.array_equal(pairs.people[0] == pairs.people[1], pairs.is_mate)
    for number, (first, second, _) in enumerate(trials()):
        assert bytes(images.jpeg(pairs.first[number])) == face(*first)
        assert bytes(images.jpeg(pairs.second[number])) == face(*second)
    assert images.images <= 36


def test_folders_that_are_not_people_are_not_taken_for_them(tmp_path):
    class_folder(tmp_path / "all", form="p{person:02}-{image}.jpg")
    images, pairs = read_pairs(plain(tmp_path, "all\\{}-{}.jpg", fold=True))
    assert pairs.people is None
    assert pairs.fold.tolist() == np.repeat(np.arange(10), 6).tolist()
    assert bytes(images.jpeg(0)) == face(*next(trials())[0])


def test_reads_the_lists_of_lfw_and_rfw(tmp_path):
    class_folder(tmp_path / "data", images=4, form="p{person:02}/p{person:02}_{image:04}.jpg")
    images, pairs = read_pairs(lfw(tmp_path), "lfw", tmp_path / "data")
    assert pairs.is_mate.tolist() == SAME
    assert pairs.fold.tolist() == np.repeat(np.arange(10), 6).tolist()
    assert np.array_equal(pairs.people[0] == pairs.people[1], pairs.is_mate)
    (person, image), *_ = next(trials())
    assert images.key(0) == f"p{person:02}/p{person:02}_{image + 1:04}.jpg"
    assert bytes(images.jpeg(0)) == face(person, image + 1)


def test_a_pair_is_left_out_for_either_of_its_images():
    three = np.arange(3)
    pairs = PairList(three, three + 3, three > 0, fold=three, people=np.stack([three, three + 1])).without({0, 5})
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.is_mate.tolist()) == ([1], [4], [True])
    assert (pairs.fold.tolist(), pairs.people.tolist()) == ([1], [[1], [2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1.jpg\tb/1.jpg\t2\n", "line 1 of .* is no pair"),
        ("a/1.jpg\n", "line 1 of .* is no pair"),
        ("# nothing\n", "names no pair"),
        ("a/1.jpg b/1.jpg 1 0 0\n", "line 1 of .* is no pair"),
    ],
)
def test_a_list_of_pairs_that_is_none_is_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "pairs.txt")
    with pytest.raises(FileNotFoundError, match="there is no list of pairs"):
        read_pairs(tmp_path / "none.txt")


def test_reads_gallery_and_probe_lists_by_label_or_by_folder(tmp_path):
    class_folder(tmp_path)
    (tmp_path / "gallery.txt").write_text("# gallery\np00/0.jpg\tann lee\np01/0.jpg\tbob\n")
    (tmp_path / "probe.txt").write_text("p01/1.jpg\tbob\np00/1.jpg\tann lee\np00/2.jpg\tann lee\n")
    images, (pairs,) = read_folds(tmp_path)
    assert [images.key(image) for image in pairs.probe] == ["p01/1.jpg", "p00/1.jpg", "p00/2.jpg"]
    assert (pairs.gallery_id.tolist(), pairs.probe_id.tolist()) == ([0, 1], [1, 0, 0])
    (tmp_path / "probe.txt").write_text("p01/1.jpg\np00/1.jpg\n")
    (tmp_path / "gallery.txt").write_text("p00/0.jpg\np01/0.jpg\n")
    _, (pairs,) = read_folds(tmp_path)
    assert (pairs.gallery_id.tolist(), pairs.probe_id.tolist()) == ([0, 1], [1, 0])


def test_reads_the_ten_folds_of_casia_as_they_come(tmp_path):
    """protocols/ beside the images, names with \\ and .bmp, VIS enrolled and NIR looked up; the crops are .png here."""
    class_folder(tmp_path / "s1" / "VIS", images=1, form="{person:05}/001.png")
    class_folder(tmp_path / "s1" / "NIR", images=2, form="{person:05}/00{image}.png")
    (tmp_path / "protocols").mkdir()
    for fold in range(1, 11):
        vis = [f"s1\\VIS\\{person:05}\\001.bmp\r\n" for person in range(6)]
        nir = [f"s1\\NIR\\{(person + fold) % 6:05}\\00{image}.bmp\r\n" for person in range(6) for image in (0, 1)]
        (tmp_path / "protocols" / f"vis_gallery_{fold}.txt").write_text("".join(vis))
        (tmp_path / "protocols" / f"nir_probe_{fold}.txt").write_text("".join(nir))
    images, folds = read_folds(tmp_path, "casia")
    assert (images.images, len(folds)) == (18, 10)
    for fold, pairs in enumerate(folds, start=1):
        assert pairs.gallery_id.tolist() == list(range(6))
        assert pairs.probe_id.tolist() == [(person + fold) % 6 for person in range(6) for _ in (0, 1)]
    assert bytes(images.jpeg(folds[0].gallery[2])) == face(2, 0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no gallery.txt with a probe.txt"),
        ({"gallery.txt": "a/1.jpg"}, "holds gallery.txt without its partner"),
        ({"gallery.txt": "a/1.jpg", "probe.txt": "\n"}, "probe.txt names no image"),
        ({"gallery.txt": "a/1.jpg", "probe.txt": "1.jpg\n"}, "line 1 of .* names no identity"),
        ({"gallery.txt": "a/1.jpg", "probe.txt": b"\xff\xd8\xff"}, "should be a text file"),
    ],
)
def test_lists_that_are_none_are_refused_with_a_sentence(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_folds(tmp_path)


def test_an_image_that_is_gone_or_is_no_file_is_refused_when_its_turn_comes(tmp_path):
    (tmp_path / "gallery.txt").write_text("/dev/zero\ta\n")
    (tmp_path / "probe.txt").write_text("gone.jpg\ta\n")
    images, _ = read_folds(tmp_path)
    for image in (0, 1):
        with pytest.raises(ValueError, match="there is no image"):
            images.jpeg(image)


def ijb(folder):
    """Two people with two templates each; a template of person p holds a video of two images and a photograph."""
    class_folder(folder / "loose_crop", people=2, images=6, form="{person}{image}.jpg")
    (folder / "meta").mkdir()
    rows = [
        f"{person}{3 * half + k}.jpg {10 * person + half} {min(k, 1)}\n"
        for person in (0, 1)
        for half in (0, 1)
        for k in range(3)
    ]
    (folder / "meta" / "ijbx_face_tid_mid.txt").write_text("".join(rows))
    (folder / "meta" / "ijbx_template_pair_label.txt").write_text("0 1 1\n10 11 1\n0 10 0\n1 11 0\n")
    return folder


def test_reads_templates_as_ijb_comes(tmp_path):
    images, templates = read_templates(ijb(tmp_path))
    assert images.notes == ()
    assert (images.images, templates.templates, len(templates.template_of_medium)) == (12, 4, 8)
    assert np.bincount(templates.medium).tolist() == [1, 2] * 4
    assert templates.pairs.is_mate.tolist() == [True, True, False, False]
    assert bytes(images.jpeg(7)) == face(1, 1)
    left = templates.without({0: "", 1: "", 2: ""})  # template 0 is left with nothing
    assert len(left.image) == 9
    assert left.pairs.first.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ijbx_template_pair_label.txt", "0 99 1\n", "compares 0 with 99"),
        ("ijbx_template_pair_label.txt", "0 1 5\n", r"compares 0 with 1 \(5\)"),
        ("ijbx_face_tid_mid.txt", "00.jpg 1\n", "line 1 of .* is not `image template medium`"),
        ("ijbx_face_tid_mid.txt", "", "has no line `image template medium`"),
    ],
)
def test_templates_that_are_none_are_refused_with_a_sentence(tmp_path, name, text, message):
    (ijb(tmp_path) / "meta" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_templates(tmp_path)
    with pytest.raises(ValueError, match="holds no templates"):
        read_templates(tmp_path / "loose_crop")


RACES = {name: f"{name}.rec" for name in ("caucasian", "asian", "african", "indian")}


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("gfr-r-1", "indian"),
        ("gfr-r-2", "african"),
        ("gfr-r-3", "asian"),
        ("gfr-r-4", "caucasian"),
    ],
)
def test_gfr_r_leaves_one_race_out(name, target):
    protocol = paper_protocol(name).over(RACES)
    assert protocol == leave_each_out(RACES)[target]
    assert set(protocol.sources) == set(RACES) - {target}
    assert paper_protocol(name).far == (1e-2, 1e-3, 1e-4)


def test_gfr_v_learns_from_four_races_and_names_what_is_missing():
    paths = RACES | {"meglass": "m", "casia-nir-vis": "c"}
    protocol = paper_protocol("gfr-v").over(paths)
    assert list(protocol.targets) == ["casia-nir-vis", "meglass"]
    assert paper_protocol("gfr-v").missing(paths) == ["cacd-vs", "multi-pie", "public-ivs"]
    with pytest.raises(ValueError, match="lacks indian; give each as NAME: PATH"):
        paper_protocol("gfr-v").over({name: path for name, path in paths.items() if name != "indian"})
    with pytest.raises(ValueError, match="there is no protocol 'gfr'"):
        paper_protocol("gfr")


def test_lists_of_another_size_than_the_papers_are_told():
    assert unlike_the_paper("indian", (1000, 1000), (1000, 1000)) is None
    assert unlike_the_paper("studio", (10, 10), (10, 20)) is None
    said = unlike_the_paper("meglass", (1710, 3420), (1700, 3400))
    assert "gallery 1,710 people 3,420 images, probe 1,700 people 3,400 images; the paper has" in said
