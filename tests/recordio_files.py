"""RecordIO files of every variant, written byte by byte."""

import random
import struct

from fastmfr.pack import MAGIC

FLOAT32, FLOAT64 = ("<IfQQ", "f"), ("<I4xdQQ", "d")


def jpeg(n, size=40):
    """Bytes that begin and end as a JPEG does and differ from image to image."""
    return b"\xff\xd8\xff\xe0" + random.Random(n).randbytes(size + n % 5) + b"\xff\xd9"


def part(body, flag=0):
    return MAGIC + struct.pack("<I", flag << 29 | len(body)) + body + bytes(-len(body) % 4)


def payload(label, key, image=b"", layout=FLOAT32):
    """A record's payload; `label` is a number for the header, or several that follow it."""
    header, letter = layout
    if isinstance(label, tuple):
        return struct.pack(header, len(label), 0, key, 0) + struct.pack(f"<{len(label)}{letter}", *label) + image
    return struct.pack(header, 0, label, key, 0) + image


def write(folder, records, missing=()):
    """Write train.rec and train.idx from (key, bytes of the record), leaving keys out of the index."""
    folder.mkdir(exist_ok=True)
    at, lines, rec = 0, [], b""
    for key, packed in records:
        if key not in missing:
            lines.append(f"{key}\t{at}\n")
        rec += packed
        at += len(packed)
    (folder / "train.rec").write_bytes(rec)
    (folder / "train.idx").write_text("".join(lines))
    return folder


def native(counts, layout=FLOAT32, start=1):
    """Records of an InsightFace file whose identities have `counts` images, at the keys from `start` on."""
    total = start + sum(counts)
    records = [(0, part(payload((total, total + len(counts)), 0, layout=layout)))]
    firsts, key = [], start
    for identity, count in enumerate(counts):
        firsts.append(key)
        for key in range(key, key + count):  # noqa: B020
            records.append((key, part(payload(float(identity), key, jpeg(key), layout))))
        key += 1
    for k, first in enumerate(firsts):
        records.append((total + k, part(payload((first, first + counts[k]), total + k, layout=layout))))
    return records


def flat(labels):
    """Records as im2rec writes them: no record 0, the identity as each image's label."""
    return [(key, part(payload(label, key, jpeg(key)))) for key, label in enumerate(labels)]


def in_parts(count):
    """Flat records of three parts each: the magic stands twice in every image."""
    images = [b"\xff\xd8\xff\xe0" + bytes(16) for _ in range(count)]
    return [(k, part(payload(1.0, k, images[k]), 1) + part(b"four", 2) + part(jpeg(k), 3)) for k in range(count)]


def contents(domain):
    return [bytes(domain.jpeg(i)) for i in range(domain.images)]
