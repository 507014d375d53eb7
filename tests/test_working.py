"""What a process holds of the run that it works on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gradspec.commands.working import device_here


@pytest.mark.parametrize(
    ("asked", "worker", "gpus", "device"),
    [
        (None, 3, 2, None),
        ("cpu", 3, 2, "cpu"),
        ("cuda:1", 2, 4, "cuda:1"),
        ("cuda", 0, 2, "cuda:0"),
        ("cuda", 3, 2, "cuda:1"),  # more workers than GPUs share them evenly
        ("cuda", "SLURMCluster-3", 1, "cuda"),  # a job that was given GPUs of its own
        ("cuda", None, 2, "cuda"),  # no worker at all
    ],
)
def test_each_worker_of_a_machine_takes_its_own_gpu(monkeypatch, asked, worker, gpus, device):
    distributed = pytest.importorskip("distributed", reason="workers need the extra cluster")

    def get_worker():
        if worker is None:
            raise ValueError("No worker found")
        return SimpleNamespace(name=worker)

    monkeypatch.setattr(distributed, "get_worker", get_worker)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert device_here(asked) == device
