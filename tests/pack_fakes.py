"""Small sources of every kind that can be packed, all of the same people."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastmfr.domains import open_domain


def picture(n, form="JPEG", size=(12, 10)):
    """The encoded bytes of a picture that differs from n to n."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(n).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


FACES = {"ann": [picture(1), picture(2, "PNG")], "bob": [picture(3)], "cy": [picture(n) for n in (4, 5, 6)]}
SHUFFLED = [("cy", 0), ("ann", 0), ("bob", 0), ("cy", 1), ("ann", 1), ("cy", 2)]  # images of one person stay in order


def suffix(encoded):
    return "png" if encoded.startswith(b"\x89") else "jpg"


def folder(path, faces):
    for name, images in faces.items():
        (path / name).mkdir(parents=True)
        for k, encoded in enumerate(images):
            (path / name / f"{k}.{suffix(encoded)}").write_bytes(encoded)
    return [path]


def listing(path, tab="\t"):
    folder(path / "images", FACES)
    lines = [f"images/{name}/{k}.{suffix(FACES[name][k])}{tab}{name}\n" for name, k in SHUFFLED]
    (path / "list.txt").write_text("\n".join(lines))
    return [path / "list.txt"]


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def shards(path):
    path.mkdir()
    samples = []
    for n, (name, k) in enumerate(SHUFFLED):
        label = ("cls", name.encode()) if n % 2 else ("json", json.dumps({"label": name, "age": 30}).encode())
        image = (f"{'d/' * n}{n:04}.{suffix(FACES[name][k])}", FACES[name][k])
        samples.append([image, (f"{'d/' * n}{n:04}.{label[0]}", label[1])][:: 1 if n % 3 else -1])
    halves = samples[:3], samples[3:]
    return [tar(path / f"{k}.tar", [member for sample in half for member in sample]) for k, half in enumerate(halves)]


def parquet(path, rows, metadata=None):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"image": [image for image, _ in rows], "label": [label for _, label in rows]})
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def plain_parquet(path):
    path.mkdir()
    return [parquet(path / "a.parquet", [(FACES[name][k], name) for name, k in SHUFFLED])]


def hugging_face(path):
    path.mkdir()
    features = {"info": {"features": {"label": {"names": ["ann", "bob", "cy"], "_type": "ClassLabel"}}}}
    rows = [({"bytes": FACES[name][k], "path": f"{k}.jpg"}, list(FACES).index(name)) for name, k in SHUFFLED]
    metadata = {"huggingface": json.dumps(features)}
    return [parquet(path / f"{k}.parquet", half, metadata) for k, half in enumerate((rows[:2], rows[2:]))]


def tar_of(path, rows):
    members = [
        (f"{k}.{end}", content)
        for k, (encoded, label) in enumerate(rows)
        for end, content in (("jpg", encoded), ("cls", f"{label}\r\n".encode()))
    ]
    return tar(path / "a.tar", members)


def json_of(path, rows):
    members = [
        (f"{k}.{end}", content)
        for k, (encoded, label) in enumerate(rows)
        for end, content in (("jpg", encoded), ("json", json.dumps({"label": label}).encode()))
    ]
    return tar(path / "a.tar", members)


def list_of(path, rows):
    for k, (encoded, _) in enumerate(rows):
        (path / f"{k}.jpg").write_bytes(encoded)
    (path / "list.txt").write_text("".join(f"{k}.jpg\t{label}\n" for k, (_, label) in enumerate(rows)))
    return path / "list.txt"


def parquet_of(path, rows):
    return parquet(path / "a.parquet", rows)


def people(out):
    """{name: its images} of a packed folder."""
    domain = open_domain(out)
    names = dict(line.split("\t") for line in (out / "identities.txt").read_text().splitlines())
    bounds = zip(domain.offsets, domain.offsets[1:], strict=False)
    return {names[domain.identity_name(k)]: [bytes(domain.jpeg(i)) for i in range(*b)] for k, b in enumerate(bounds)}
