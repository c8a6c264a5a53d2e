"""`vitrine doctor`: the machine, its speed of matrix products, and whether it computes the same bits twice."""

import os
import platform
import shutil
import sys
from typing import Any

import torch

from vitrine.config import merge
from vitrine.model.flat import digest
from vitrine.presets import PRESETS, Facts, resolve
from vitrine.step import MicroBatch, step
from vitrine.text.cache import cache_folder
from vitrine.training.device import (
    best_device,
    check_device,
    device_name,
    matrix_rate,
    memory_bytes,
    physical_cores,
    prefers_bfloat16,
)
from vitrine.training.distributed import Processes
from vitrine.training.state import build_state


def examine() -> dict[str, Any]:
    """The findings, by name."""
    device = check_device(best_device())
    threads, narrow = physical_cores(), prefers_bfloat16(device)
    torch.set_num_threads(threads)
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "system": platform.platform(),
        "device": str(device),
        "device_name": device_name(device),
        "threads": threads,
        "threads_hint": f"machine.threads = {threads} unless you set it; while another program is busy, "
        "--set threads=1 is often faster",
        "load": round(os.getloadavg()[0], 2),  # programs that run or wait for a core, over the last minute
        "memory_bytes": memory_bytes(device),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "cache": str(cache_folder()),
        "bfloat16": narrow,
        "float32_flops": matrix_rate(device, torch.float32),
        "bfloat16_flops": matrix_rate(device, torch.bfloat16),
        "repeats_to_the_bit": _digest_of_three_steps(str(device), threads, narrow)
        == _digest_of_three_steps(str(device), threads, narrow),
    }


def _digest_of_three_steps(device: str, threads: int, narrow: bool) -> str:
    """The parameters after three steps of a small model on random tokens."""
    facts = Facts(vocab_size=65, train_tokens=10_000, device=device, threads=threads, bfloat16=narrow)
    config = resolve(merge(PRESETS["nano"], {"model": {"dropout": 0.1}}), facts)
    decoder, state = build_state(config, Processes())
    where = decoder.embedding.weight.device
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(65, (16, config.model.context + 1), generator=generator).to(where)
        draws = torch.randint(2**31, (16,), generator=generator).to(where, torch.int32)
        step(state, [MicroBatch(tokens[:, :-1], tokens[:, 1:], draws, 1.0, True)])
    return digest(state.parameters.entries.named(state.parameters.values))
