"""Settings of the whole suite: one thread less to fight over, so that small tensors stay fast."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
