"""--batch-size -1: the largest batch that fits in the GPU's memory, found by measuring small ones."""

import gc

import numpy as np
import torch

from models.network import Network

CPU_BATCH = 16  # memory is seldom what limits a CPU
MOST = 256  # larger ones train worse and are no faster
SHARE = 0.8  # of the free memory to be filled
TRIED = (1, 2, 4, 8)


def largest_batch(model: Network, size: int, device: torch.device, amp: torch.dtype | None) -> int:
    """Measure the memory of training steps on `size` px images and extrapolate; CPU_BATCH where there is no CUDA."""
    if device.type != "cuda":
        return CPU_BATCH
    used: list[int] = []
    try:
        for batch in TRIED:
            used.append(_peak_bytes(model, size, batch, device, amp))  # noqa: PERF401 - what fits stays in the list
    except torch.cuda.OutOfMemoryError:
        return TRIED[max(len(used) - 1, 0)]
    for_one, fixed = np.polyfit(TRIED, used, 1)
    free, _ = torch.cuda.mem_get_info(device)
    return min(max(int((free * SHARE - fixed) / for_one), 1), MOST)


def _peak_bytes(model: Network, size: int, batch: int, device: torch.device, amp: torch.dtype | None) -> int:
    """Memory that a forward and backward pass takes at its peak, beyond what was taken before."""
    training = model.training
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    images = torch.zeros(batch, int(model.config.get("ch", 3)), size, size, device=device)
    statistics = {key: value.clone() for key, value in model.state_dict().items() if "running" in key or "num_" in key}
    with torch.autocast(device.type, amp, enabled=amp is not None):
        raw = model.train()(images.to(memory_format=torch.channels_last))
    torch.stack([level.float().mean() for level in raw]).sum().backward()  # type: ignore[no-untyped-call]
    peak = torch.cuda.max_memory_allocated(device) - before
    model.load_state_dict(statistics, strict=False)  # the zeros must not move the batch statistics
    model.zero_grad(set_to_none=True)
    model.train(training)
    del raw, images
    gc.collect()
    torch.cuda.empty_cache()
    return peak
