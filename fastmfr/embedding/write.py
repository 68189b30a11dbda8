"""Embed a source into a folder, batch by batch; go on where a process that was killed had saved.

Shape suffixes: B = images of a batch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fastmfr.atomic import write_text
from fastmfr.config.choices import Mirror
from fastmfr.decode import ImageStream, choose_decoder, dali_installed
from fastmfr.evaluate import embed
from fastmfr.evaluate.embed import in_order
from fastmfr.progress import Meter
from fastmfr.run_folder import in_use
from fastmfr.weights import Model

from .keys import CSV, PARQUET, write_keys
from .rows import NAME, Rows
from .source import Source

RECORD = "embeddings.json"
NOT_KEPT = {"fit": "crop"}  # settings that older records leave out
TOLD = 5  # bad images that are named


def embed_into(
    folder: Path,
    source: Source,
    model: Model,
    *,
    mirror: Mirror = "none",
    normalise: bool = True,
    console: Console,
) -> list[str]:
    """Write embeddings.npy, the table of keys and embeddings.json into a folder, or go on to do so.

    The rows are, bit for bit, those of `fastmfr.evaluate.embed_domain`. The row of an image that cannot be decoded
    is zeros. A killed and resumed process leaves the same bytes as one that was not killed, on the same machine.

    Args:
        folder: the folder, made if need be.
        source: the images.
        model: the model; its settings say how images are decoded, and how many at once.
        mirror: as `fastmfr.evaluate.embed` takes it.
        normalise: whether rows are brought to unit length.
        console: shows progress.

    Returns:
        Sentences on what was written.

    Raises:
        ValueError: the folder was made with other weights, settings or another source, or is in use; or an embedding is
            not finite.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(folder):
        before = _record_in(folder)
        record = _record(model, source, mirror, normalise, _decoder(model, source, before, console))
        _check(folder, before, record)
        write_text(folder / RECORD, json.dumps(record, indent=1))
        return _write(folder, model, source, record["settings"], console)


def _write(folder, model, source, settings, console) -> list[str]:
    """Write what is missing in the folder; returns sentences on what was written."""
    rows, images = Rows(folder, source.images.images), source.images.images
    if rows.whole:
        return [f"{folder / NAME} is whole already, {rows.finish()}: there is nothing to do"]
    if rows.done:
        console.print(f"going on after {rows.done:,} of {images:,} images")
    if rows.done < images:
        _embed(rows, model, source, settings, console)
        rows.save()
    keys = write_keys(folder, source, rows.bad)
    return [*_told(source, rows.bad), *_summary(folder, source, keys, rows.finish())]


def _embed(rows: Rows, model: Model, source: Source, settings: Mapping[str, Any], console: Console) -> None:
    """Write the rows that are missing. Batches are those of `embed_domain`: the last one is filled up."""
    images, batch_images, begun = source.images, settings["batch_images"], rows.done
    data = model.config.data
    with (
        ImageStream(
            [images],
            in_order(np.arange(images.images), batch_images),
            model.preprocess,
            batch_images=batch_images,
            first=-(-begun // batch_images),
            last=-(-images.images // batch_images),
            device=str(model.device),
            threads=data.threads,
            decoder=settings["decoder"],
            vet=data.vet,
        ) as stream,
        Meter(console, "embed", begun, images.images) as meter,
    ):
        for _, image_B3HW in stream:
            batch = range(rows.done, min(rows.done + batch_images, images.images))
            try:
                embedding_BD = embed(
                    model.backbone,
                    [image_B3HW],
                    model.device,
                    mirror=settings["mirror"],
                    normalise=settings["normalise"],
                )
            except ValueError as error:
                error.add_note(f"image 0 here is {images.label_of(batch.start)}, row {batch.start}")
                raise
            rows.write(embedding_BD[: len(batch)].cpu().numpy(), _bad_of(batch, images, stream.bad))
            meter.step(rows.done, rows.done - begun, stream.wait_seconds)


def _bad_of(batch, images, bad):
    """{row: reason} of the rows of a batch that stand in `bad` by their labels."""
    return {row: bad[label] for row in batch if (label := images.label_of(row)) in bad} if bad else {}


def _decoder(model, source, before, console):
    """The decoder: as set; the one that the folder was begun with in place of measuring again."""
    data, on_gpu = model.config.data, model.device.type == "cuda" and dali_installed()
    wanted = data.decode if on_gpu or data.decode != "mixed" else "cpu"  # a run's choice was its own machine's
    if wanted == "auto" and before:
        wanted = before["settings"].get("decoder", wanted)
    decoder, sentence = choose_decoder(
        wanted, [source.images], model.preprocess, model.device, data.threads, exact=True
    )
    if not dali_installed():
        console.print(sentence)
    return decoder


def _record(model, source, mirror, normalise, decoder):
    """What decides on the bytes of the rows, as JSON has it."""
    data, network, landmark_N52 = model.preprocess, model.config.model, source.images.landmark_N52
    with model.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "weights": {"file": str(model.weights.resolve()), "sha256": digest},
        "settings": {
            "backbone": network.name,
            "width": network.width,
            "embedding": network.embedding,
            "channels": "RGB",
            "size": data.size,
            "mean": data.mean,
            "std": data.std,
            "fit": data.fit,
            "mirror": mirror,
            "normalise": normalise,
            "decoder": decoder,
            "device": model.device.type,
            "batch_images": min(model.config.evaluate.batch_images, source.images.images),
        },
        "source": {
            "path": str(source.path),
            "images": source.images.images,
            "fingerprint": source.fingerprint,
            "landmarks": None if landmark_N52 is None else hashlib.sha256(landmark_N52.tobytes()).hexdigest(),
        },
    }


def _record_in(folder):
    """The record of a folder that was begun before; None for a folder without embeddings."""
    path = folder / RECORD
    if not path.is_file():
        taken = [name for name in (NAME, PARQUET, CSV) if (folder / name).exists()]
        if taken:
            raise ValueError(
                f"{folder} holds {taken[0]} but no {RECORD}, so what {taken[0]} was made with is not known; name "
                "another folder by --out"
            )
        return None
    try:
        record = json.loads(path.read_text())
        return {part: dict(record[part]) for part in ("weights", "settings", "source")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): whether {folder} can go on is not known") from None


def _check(folder, before, now):
    """Raises ValueError if a folder was begun with something else; the sentence has both values."""
    if before is None:
        return
    different = [
        f"{part}.{name} was {before[part].get(name, NOT_KEPT.get(name))!r}, now {value!r}"
        for part, values in now.items()
        for name, value in values.items()
        if (part, name) != ("weights", "file") and before[part].get(name, NOT_KEPT.get(name)) != value
    ]
    if different:
        files = f"weights {before['weights'].get('file')}, now {now['weights']['file']}"
        raise ValueError(
            f"{folder} was made with something else: {'; '.join(different)} ({files}); give the same again, or name "
            "another folder by --out"
        )


def _told(source, bad):
    """Sentences on the images that could not be decoded."""
    if not bad:
        return
    yield f"{len(bad):,} images could not be decoded; their rows are zeros and `decoded` is false in the keys:"
    for row, reason in sorted(bad.items())[:TOLD]:
        yield f"  row {row}, {source.images.key(row)}: {reason}"
    if len(bad) > TOLD:
        yield f"  and {len(bad) - TOLD:,} more"


def _summary(folder, source, keys, shape):
    counts = f"{source.images.images:,} images of {len(source.names):,} people"
    yield f"{counts}: {folder / NAME}, float32 {shape}, and {keys}"
    if keys.name == CSV:
        yield f"pyarrow is not installed, so the keys are in {CSV}; `pip install pyarrow` for {PARQUET}"
