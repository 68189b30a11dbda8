"""`embed` writes what the library computes, whatever ends it on the way, and every row under its own key."""

import csv
import json
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_fakes import class_folder, face
from helpers import command

from fastmfr.backbone import build
from fastmfr.config import parse
from fastmfr.domains import open_domain
from fastmfr.embedding import embed_into, open_source, rows
from fastmfr.evaluate import embed_domain
from fastmfr.pack.build import pack
from fastmfr.progress import new_console
from fastmfr.run_folder import in_use
from fastmfr.weights import open_model, save_weights

main = command("embed")
SMALL = ["--model.width=0.0625", "--data.size=16", "--device=cpu", "--threads=1", "--evaluate.batch_images=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of a network nobody trained."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config, _ = parse(["--config", "mfr", "--data.sources.a", "a", "--data.decode=pillow", *SMALL])
    (folder / "config.yaml").write_text(config.to_yaml())
    save_weights(build("mfr28", width=0.0625, image_size=16), folder / "mfr.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(run):
    return open_model(run)


@pytest.fixture
def faces(tmp_path):
    return class_folder(tmp_path / "faces", people=7)


@pytest.fixture
def embed(model):
    """Embeds a source into a folder, and returns what was said."""

    def embed(source, out, model=model, **options):
        return "\n".join(embed_into(out, open_source(source), model, console=new_console(), **options))

    return embed


def read(folder):
    """(embeddings, key, identity, decoded) of a folder."""
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = parquet.read_table(folder / "keys.parquet").to_pydict()
    assert columns["row"] == list(range(len(columns["row"])))
    return np.load(folder / "embeddings.npy"), columns["key"], columns["identity"], columns["decoded"]


@contextmanager
def stopped_at(row, error):
    """Raises `error` in place of writing the batch that begins with `row`; batches before it are saved at once."""
    write = rows.Rows.write

    def stopping(self, embedding_BD, bad):
        if self.done == row:
            raise error
        write(self, embedding_BD, bad)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows.Rows, "write", stopping)
        patch.setattr(rows, "SAVED_EVERY", 0.0)
        yield


def test_rows_are_to_the_bit_what_the_library_computes(run, model, faces, tmp_path, capsys):
    assert main([str(run), str(faces), "--out", str(tmp_path / "out"), "--mirror", "sum", "--no-normalise"]) == 0
    assert "embed 16/21 · 0 s left" in capsys.readouterr().out
    embedding, key, identity, decoded = read(tmp_path / "out")
    settings = {"mirror": "sum", "normalise": False, "batch_images": 8, "decoder": "pillow"}
    want, _ = embed_domain(model.backbone, open_domain(faces), model.preprocess, model.device, **settings)
    assert embedding.dtype == np.float32
    assert np.array_equal(embedding, want.numpy())
    assert key[:4] == ["p00/0.jpg", "p00/1.jpg", "p00/2.jpg", "p01/0.jpg"]
    assert identity == [name.partition("/")[0] for name in key]
    assert all(decoded)


def test_rows_of_one_batch_are_to_the_bit_those_of_open_model(tmp_path, embed, model):
    faces = class_folder(tmp_path / "faces", people=2)
    embed(faces, tmp_path / "out", mirror="concat")
    embedding, key, *_ = read(tmp_path / "out")
    want = model.embed([faces / name for name in key], mirror="concat")
    assert embedding.shape == (6, 64)
    assert np.array_equal(embedding, want.numpy())


@pytest.mark.parametrize("row", [0, 8, 16])
def test_a_killed_command_goes_on_and_ends_with_the_same_bytes(faces, tmp_path, capsys, embed, row):
    (faces / "p00/1.jpg").write_bytes(b"no picture")
    embed(faces, tmp_path / "whole")
    with stopped_at(row, RuntimeError("killed")), pytest.raises(RuntimeError, match="killed"):
        embed(faces, tmp_path / "out")
    assert not (tmp_path / "out/embeddings.npy").exists()
    capsys.readouterr()
    embed(faces, tmp_path / "out")
    assert (f"going on after {row} of 21 images" in capsys.readouterr().out) == (row > 0)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {".lock", "embeddings.json", "embeddings.npy", "keys.parquet"}
    for name in names - {".lock"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_command_killed_while_it_ends_goes_on(faces, tmp_path, monkeypatch, embed):
    with monkeypatch.context() as patched:
        patched.setattr("fastmfr.embedding.write.write_keys", None)
        with pytest.raises(TypeError):
            embed(faces, tmp_path / "out")
    assert json.loads((tmp_path / "out/progress.json").read_text()) == {"rows": 21, "bad": {}}
    assert "21 images of 7 people" in embed(faces, tmp_path / "out")
    assert read(tmp_path / "out")[0].shape == (21, 32)


def test_ctrl_c_says_how_to_go_on(run, faces, tmp_path, capsys):
    with stopped_at(8, KeyboardInterrupt()):
        assert main([str(run), str(faces), "--out", str(tmp_path / "out")]) == 130
    assert f"stopped; type the command again to go on in {tmp_path / 'out'}" in capsys.readouterr().err
    made_with = json.loads((tmp_path / "out/embeddings.json").read_text())["settings"]
    assert (made_with["mirror"], made_with["normalise"]) == ("none", True)


def test_a_finished_folder_is_left_as_it_is(faces, tmp_path, embed):
    embed(faces, tmp_path / "out")
    before = (tmp_path / "out/embeddings.npy").stat().st_mtime_ns
    assert "is whole already, (21, 32): there is nothing to do" in embed(faces, tmp_path / "out")
    assert (tmp_path / "out/embeddings.npy").stat().st_mtime_ns == before


def test_an_image_that_cannot_be_decoded_is_told_and_has_a_row_of_zeros(faces, tmp_path, embed):
    embed(faces, tmp_path / "whole")
    for name in ("p02/1.jpg", "p06/2.jpg"):
        (faces / name).write_bytes(b"no picture")
    said = embed(faces, tmp_path / "out")
    assert "2 images could not be decoded; their rows are zeros" in said
    assert "row 7, p02/1.jpg: neither JPEG nor PNG" in said
    (embedding, key, _, decoded), (want, *_) = read(tmp_path / "out"), read(tmp_path / "whole")
    bad = [key.index("p02/1.jpg"), key.index("p06/2.jpg")]
    assert bad == [row for row, whole in enumerate(decoded) if not whole] == [7, 20]
    want[bad] = 0
    assert np.array_equal(embedding, want)


def test_a_folder_made_with_something_else_is_refused(faces, tmp_path, embed, model):
    out, others = tmp_path / "out", tmp_path / "w.safetensors"
    embed(faces, out)
    before = (out / "embeddings.npy").read_bytes()
    others.write_bytes(b"others")
    with pytest.raises(ValueError, match=r"settings\.mirror was 'none', now 'sum'.* name another folder by --out"):
        embed(faces, out, mirror="sum")
    with pytest.raises(ValueError, match=r"settings\.std was 128\.0, now 127\.5"):
        embed(faces, out, replace(model, preprocess=replace(model.preprocess, std=127.5)))
    with pytest.raises(ValueError, match=r"weights\.sha256 was '\w+', now '\w+' .*mfr\.safetensors, now .*w\.safe"):
        embed(faces, out, replace(model, weights=others))
    class_folder(faces, people=8)
    with pytest.raises(ValueError, match=r"source\.images was 21, now 24"):
        embed(faces, out)
    assert (out / "embeddings.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("embeddings.npy", "mine", r"holds embeddings\.npy but no embeddings\.json"),
        ("embeddings.json", "[]", r"embeddings\.json is damaged"),
    ],
)
def test_a_folder_of_something_unknown_is_refused(faces, tmp_path, embed, name, content, words):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        embed(faces, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == content


@pytest.mark.parametrize("damage", ["{", '{"rows": 8}', '{"rows": 900, "bad": {}}'])
def test_a_damaged_record_of_progress_begins_again(faces, tmp_path, capsys, embed, damage):
    with stopped_at(16, RuntimeError("killed")), pytest.raises(RuntimeError, match="killed"):
        embed(faces, tmp_path / "out")
    (tmp_path / "out/progress.json").write_text(damage)
    embed(faces, tmp_path / "out")
    assert "going on" not in capsys.readouterr().out
    assert np.abs(np.linalg.norm(read(tmp_path / "out")[0], axis=1) - 1).max() < 1e-6


def test_folders_may_have_any_name(tmp_path, embed):
    person = "  Ann, \"Lee\"\t= ü\n; 'x' "
    for name in (f"{person}/a b,\n.jpg", "\udcff/1.jpg", "[b]/2.jpg"):
        file = tmp_path / "faces" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(face(1, 2))
    embed(tmp_path / "faces", tmp_path / "out, 'x'\n")
    _, key, identity, _ = read(tmp_path / "out, 'x'\n")
    assert sorted(key) == sorted([f"{person}/a b,\n.jpg", "\\udcff/1.jpg", "[b]/2.jpg"])
    assert sorted(identity) == sorted([person, "\\udcff", "[b]"])


def test_without_pyarrow_keys_are_a_csv_file(tmp_path, monkeypatch, embed):
    faces = class_folder(tmp_path / "faces", people=2, form='"p{person}",\n/{image}.jpg')
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pyarrow is not installed, so the keys are in keys.csv" in embed(faces, tmp_path / "out")
    with (tmp_path / "out/keys.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[:2] == [["row", "key", "identity", "decoded"], ["0", '"p0",\n/0.jpg', '"p0",\n', "True"]]
    assert len(table) == 7


def test_a_recordio_folder_has_the_embeddings_of_its_class_folder(faces, tmp_path, embed):
    pack([faces], tmp_path / "packed")
    embed(faces, tmp_path / "a")
    embed(tmp_path / "packed", tmp_path / "b")
    (files, *_), (records, key, identity, _) = read(tmp_path / "a"), read(tmp_path / "b")
    assert np.array_equal(files, records)
    assert key[0].startswith("train.rec:")
    assert identity == [str(number // 3) for number in range(21)]


def test_a_list_is_embedded_line_by_line(faces, tmp_path, embed):
    (faces / "Ann Lee").mkdir()
    (faces / "Ann Lee/my face.jpg").write_bytes(face(8, 1))
    listed = ["p01/0.jpg\tx y", "p00/0.jpg z", "Ann Lee/my face.jpg", "p01/0.jpg", "# p02/0.jpg", "", "p09/0.jpg"]
    (faces / "list.txt").write_text("\n".join(listed))
    embed(faces / "list.txt", tmp_path / "out")
    embedding, key, identity, decoded = read(tmp_path / "out")
    assert key == ["p01/0.jpg", "p00/0.jpg", "Ann Lee/my face.jpg", "p01/0.jpg", "p09/0.jpg"]
    assert identity == ["x y", "z", "Ann Lee", "p01", "p09"]
    assert decoded == [True] * 4 + [False]
    assert np.array_equal(embedding[0], embedding[3])
    assert not embedding[4].any()
    assert len({row.tobytes() for row in embedding}) == 4


def test_a_list_has_another_fingerprint_once_an_image_is_another(faces):
    (faces / "list.txt").write_text("p01/0.jpg\np00/0.jpg\n")
    before = open_source(faces / "list.txt").fingerprint
    assert open_source(faces / "list.txt").fingerprint == before
    (faces / "p00/0.jpg").write_bytes(face(3, 3) + b"\0")
    assert open_source(faces / "list.txt").fingerprint != before


def test_what_is_no_source_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "some.bin").write_bytes(b"\x80\xff\x00")
    for name, error, words in (
        ("none", FileNotFoundError, "a source is a class folder, a RecordIO folder or a list of paths"),
        ("empty.txt", ValueError, "names no image; want a line"),
        ("some.bin", ValueError, "should be a text file of lines"),
        ("/dev/null", ValueError, "is a device"),
    ):
        with pytest.raises(error, match=words):
            open_source(tmp_path / name)


def test_a_mistake_leaves_no_folder(run, faces, tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path), str(faces), "--out", str(tmp_path / "out")]) == 1
    assert "there are no weights at" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main([str(run), str(faces), "--out", str(tmp_path / "out")]) == 1
    assert "runs in one process, but torchrun started this one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_hold_nan_are_told_with_the_image(faces, tmp_path, embed, model):
    network = build("mfr28", width=0.0625, image_size=16)
    network.bn.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="embeddings of 8 of 8 images are not finite") as raised:
        embed(faces, tmp_path / "out", replace(model, backbone=network))
    assert raised.value.__notes__ == ["image 0 here is faces/p00/0.jpg, row 0"]


def test_a_full_disk_is_an_error_before_the_first_row(faces, tmp_path, monkeypatch, embed):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"embeddings\.npy\.partial"):
        embed(faces, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.partial"))


def test_two_processes_do_not_write_one_folder(faces, tmp_path, embed):
    (tmp_path / "out").mkdir()
    with in_use(tmp_path / "out"), pytest.raises(ValueError, match="is in use by another process, "):
        embed(faces, tmp_path / "out")
