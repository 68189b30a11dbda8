"""Settings of the whole suite: one thread less to fight over, so that small tensors stay fast."""

import os

import pytest
import torch

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter; it must be set before they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
