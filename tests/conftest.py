"""Settings of the whole suite, and whole runs of seconds, for the tests that need one."""

import os

import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter; it must be set before they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from small_runs import DOMAINS, IMAGES, PEOPLE, arguments

from fastmfr import synthetic


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """One thread less to fight over, so that small tensors stay fast, here and in processes that a test starts."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """{domain: path} of small procedural domains, made once."""
    root = tmp_path_factory.mktemp("faces")
    return synthetic.make(root, domains=DOMAINS, identities=PEOPLE, images=IMAGES, size=32, workers=1)


@pytest.fixture
def undrawn(monkeypatch):
    """Makes figures and draws none: each PNG is one white pixel. Drawing takes most of the time of a page."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Image.new("RGB", (1, 1), "white").save(path))


@pytest.fixture
def page():
    """Asked for by a test that looks at the page of a run; drawing it takes as long as the training of these runs."""


@pytest.fixture
def sheets():
    """Likewise for the sheets of images and of the hardest pairs."""


@pytest.fixture
def small(faces, tmp_path, request, monkeypatch):
    """Arguments of a run of seconds; later arguments win. Pictures are drawn if `page` or `sheets` is asked for."""
    return arguments(faces, tmp_path, monkeypatch, request.fixturenames)
