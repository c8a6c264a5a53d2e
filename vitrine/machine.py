"""The machine: its device, threads and number formats, and the fingerprint that exactness holds within."""

import ctypes
import os
import platform
import resource
import shutil
import time
from collections.abc import Mapping

# Before torch starts its libraries: as many threads as asked, never fewer at the library's own choice.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from vitrine.config import MachineConfig
from vitrine.errors import ConfigError

# Raised by each change of the code that changes the bits of a step. The first, 1, was not written down.
ARITHMETIC = "2"


def best_device() -> str:
    """cuda where there is one, then mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(name: str) -> torch.device:
    """The device of that name, if this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"machine.device must be cpu, cuda, cuda:N or mps: got {name!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        built = "" if torch.backends.cuda.is_built() else " (this torch is built for the CPU alone)"
        raise ConfigError(
            f"machine.device = {name}, but torch finds {torch.cuda.device_count()} CUDA devices "
            f"here{built}. Try machine.device = {best_device()}."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"machine.device = mps, but torch finds no Metal device here. Try machine.device = {best_device()}."
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"machine.device must be cpu, cuda, cuda:N or mps: got {name!r}.")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices by instructions of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def physical_cores() -> int:
    """Processor cores that this process may use; $OMP_NUM_THREADS where it is set."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = torch.cpu.get_capabilities().get("num_physical_cores", allowed)
    return max(1, min(int(cores) or allowed, allowed))


def prepare(machine: MachineConfig) -> torch.device:
    """Set threads and determinism for this process, and return the device."""
    device = check_device(machine.device)
    if (
        machine.compile
        and device.type == "cpu"
        and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    ):
        raise ConfigError("machine.compile needs a C++ compiler (g++ or clang++), and there is none here.")
    torch.set_num_threads(machine.threads)
    keep_freed_memory()
    if device.type == "cuda" or machine.compile:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, where it is glibc: the next step wants as much again.

    Given back and taken anew, memory comes as pages that the system clears first: 4% of a step of 5 M parameters.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # as <malloc.h> numbers them
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # older ones take 32 MiB at most


def device_name(device: torch.device) -> str:
    """The name of the processor or GPU, as the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = torch.cpu.get_capabilities()
    return str(capabilities.get("cpu_name") or platform.processor() or platform.machine())


def memory_bytes(device: torch.device) -> int:
    """All the memory of the device: a GPU's own, or the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process holds: of the GPU's memory, or of the machine's (at most so far, where only that is known)."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # no Linux: macOS counts the largest so far, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fingerprint(machine: MachineConfig, precision: str, world_size: int, corpus_digest: str) -> dict[str, str]:
    """What the bits of a step depend on besides the hyperparameters. Equal fingerprints, equal bits."""
    device = check_device(machine.device)
    return {
        "arithmetic": ARITHMETIC,
        "torch": torch.__version__,
        "device": device.type,
        "device_name": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(machine.threads),
        "precision": precision,
        "compile": str(machine.compile).lower(),
        "world_size": str(world_size),
        "corpus": corpus_digest,
    }


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """How two fingerprints differ, for people."""
    then = {"arithmetic": "1"} | dict(then)
    return [f"{name}: {then.get(name)} then, {value} now" for name, value in now.items() if then.get(name) != value]


def matrix_rate(device: torch.device, dtype: torch.dtype, duration_s: float = 0.1) -> float:
    """Floating-point operations a second in products of (1024, 512) by (512, 512) matrices, measured."""
    x = torch.randn(1024, 512, device=device).to(dtype)
    weight = torch.randn(512, 512, device=device).to(dtype)
    torch.nn.functional.linear(x, weight)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < duration_s:
        for _ in range(4):
            torch.nn.functional.linear(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 4
    return count * 2 * 1024 * 512 * 512 / elapsed
