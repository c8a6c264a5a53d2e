"""The machine: device, threads, number formats, and the fingerprint within which results are exact."""

import ctypes
import functools
import os
import platform
import resource
import shutil
import time
from collections.abc import Mapping

import torch

from vitrine.config import MachineConfig
from vitrine.errors import ConfigError

# Raised by each change of the code that changes the bits of a step. Version 1 was not recorded.
ARITHMETIC = "2"

CLEARLY_FASTER = 1.2  # bfloat16 rounds more: it must be clearly faster

# The instruction sets of oneDNN on x86, the larger later, each with the feature of the processor that it needs.
ONEDNN_SETS = {
    "sse41": "sse4_1",
    "avx": "avx",
    "avx2": "avx2",
    "avx2_vnni": "avx_vnni",
    "avx2_vnni_2": "avx_ne_convert",
    "avx512_core": "avx512_bw",
    "avx512_core_vnni": "avx512_vnni",
    "avx512_core_bf16": "avx512_bf16",
    "avx512_core_fp16": "avx512_fp16",
    "avx512_core_amx": "amx_bf16",
    "avx512_core_amx_fp16": "amx_fp16",
    "avx10_2": "avx10_2",
}
# As oneDNN itself reads these values.
ONEDNN_ALIASES = {
    "avx10_1_512": "avx512_core_fp16",
    "avx10_1_512_amx": "avx512_core_amx",
    "avx10_1_512_amx_fp16": "avx512_core_amx_fp16",
    "avx10_2_512": "avx10_2",
}


def best_device() -> str:
    """cuda where there is one, then mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(name: str) -> torch.device:
    """The device of that name. Raises ConfigError if this machine lacks it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"machine.device must be cpu, cuda, cuda:N or mps: got {name!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        built = "" if torch.backends.cuda.is_built() else " (this torch is built only for the CPU)"
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


@functools.cache
def prefers_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are clearly faster than of float32 ones: on a processor, measured.

    A processor that has the instructions may not use them (ONEDNN_MAX_CPU_ISA); without them bfloat16 is up to 50
    times slower.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that another program on one of the cores does not distort it
    try:
        return _product_s(torch.float32) > CLEARLY_FASTER * _product_s(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)


def _product_s(dtype: torch.dtype) -> float:
    """The shortest time of a small matrix product, repeated for a few milliseconds, at least twice."""
    x, weight = torch.ones(128, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    torch.nn.functional.linear(x, weight)
    times = list[float]()
    while len(times) < 2 or (sum(times) < 0.004 and len(times) < 20):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)


def physical_cores() -> int:
    """Processor cores that this process may use; $OMP_NUM_THREADS where it is set."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = torch.cpu.get_capabilities().get("num_physical_cores", allowed)
    return max(1, min(int(cores) or allowed, allowed))


def prepare_device(machine: MachineConfig) -> torch.device:
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
    """Make glibc keep freed memory: the next step needs as much again.

    Memory that is given back and taken again has to be cleared by the system: 4% of a step with 5 M parameters.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # as <malloc.h> numbers them
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # older versions accept 32 MiB at most


def device_name(device: torch.device) -> str:
    """The name of the processor or GPU, as the system reports it."""
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
    """Bytes that this process holds: of the GPU's memory, or of the machine's (the peak so far, if only that is known)."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: macOS reports the peak, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def onednn_instructions() -> str:
    """The instruction set that oneDNN uses: the largest that the processor has, up to ONEDNN_MAX_CPU_ISA."""
    named = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    limit = ONEDNN_ALIASES.get(named.lower(), named.lower())
    features = torch.cpu.get_capabilities()
    if features.get("architecture") != "x86_64":
        return limit or "default"
    names = list(ONEDNN_SETS)
    allowed = names[: names.index(limit) + 1] if limit in names else names  # oneDNN ignores what it does not know
    return next((name for name in reversed(allowed) if features.get(ONEDNN_SETS[name])), "none")


def mkl_limits() -> str:
    """Environment variables of MKL that change its instructions or its order of summation."""
    asked = (f"{name}={os.environ[name]}" for name in ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS") if os.environ.get(name))
    return " ".join(asked) or "none"


def fingerprint(machine: MachineConfig, precision: str, world_size: int, corpus_digest: str) -> dict[str, str]:
    """What the bits of a step depend on besides the hyperparameters. Equal fingerprints, equal bits."""
    device = check_device(machine.device)
    return {
        "arithmetic": ARITHMETIC,
        "torch": torch.__version__,
        "device": device.type,
        "device_name": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "onednn": onednn_instructions(),
        "mkl": mkl_limits(),
        "threads": str(machine.threads),
        "precision": precision,
        "compile": str(machine.compile).lower(),
        "world_size": str(world_size),
        "corpus": corpus_digest,
    }


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """How two fingerprints differ, as text. A fact that was not recorded then does not count as different."""
    then = {"arithmetic": "1"} | dict(then)
    return [f"{name}: {then[name]} then, {value} now" for name, value in now.items() if then.get(name, value) != value]


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
