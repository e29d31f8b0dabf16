import subprocess
import sys

import pytest
import torch

from vlmo.distributed import choose_device

PAGES = """
import resource, torch, vlmo.distributed
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20, 500_000)  # 40 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages(), pages())
vlmo.distributed.keep_memory()
print(pages(), pages())
"""


def test_device_is_a_gpu_if_there_is_one(monkeypatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="'mps', but PyTorch sees no GPU of Apple"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == choose_device("mps") == torch.device("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device() == torch.device("cuda:3")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="sees 4 CUDA devices"):
        choose_device("cuda:4")
    with pytest.raises(ValueError, match="give 'cpu', 'cuda', 'cuda:N' or 'mps'"):
        choose_device("bogus")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_process_on_the_cpu_reuses_the_memory_of_freed_tensors() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    first, before, once, after = map(int, done.stdout.split())
    assert after < 10 < min(first, before, once)  # 40 MB are 9,766 pages of 4 kB, or 20 of 2 MB
