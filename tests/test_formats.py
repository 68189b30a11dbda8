"""Images in BMP, WebP and TIFF are trained on and scored as they lie in folders, and the run says so once a domain."""

from helpers import command
from PIL import Image

from fastmfr.decode import other_formats
from fastmfr.domains import open_domain

main = command("train")


def test_a_run_takes_other_formats_and_says_so_once(small, faces, tmp_path, capsys):
    suffixes = ("bmp", "webp", "tiff", "tif")
    domain = open_domain(faces["street"])
    for person in range(domain.identities):
        folder = tmp_path / "mixed" / f"m{person:02d}"
        folder.mkdir(parents=True)
        for k, image in enumerate(range(*domain.offsets[person : person + 2].tolist())):
            (folder / f"{k}.jpg").write_bytes(bytes(domain.jpeg(image)))
            with Image.open(folder / f"{k}.jpg") as picture:
                picture.save(folder / f"{k}.{suffixes[k % 4]}")
            (folder / f"{k}.jpg").unlink()
    argv = [*(word for word in small if "sources.street" not in word), "--data.validation=0.25"]
    assert (
        main(
            [
                *argv,
                f"--data.sources.mixed={tmp_path / 'mixed'}",
                "--data.validation=0.25",
                "--pretrain.steps=1",
                "--meta.steps=1",
            ]
        )
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("mixed holds images in BMP, TIFF, WEBP: Pillow turns them into PNG") == 1
    assert "studio holds" not in said


def test_nothing_is_said_of_jpeg_and_png(faces):
    assert list(other_formats([open_domain(faces["studio"])])) == []
