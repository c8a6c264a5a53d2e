"""What depends on the processor: the fingerprint, the number format, and that no test does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY
from vitrine.config import MachineConfig
from vitrine.runs.reader import RunReader
from vitrine.training import device

ON_X86 = torch.cpu.get_capabilities().get("architecture") == "x86_64"
HERE = MachineConfig(device="cpu", threads=1)


def fingerprint() -> dict[str, str]:
    return device.fingerprint(HERE, "float32", 1, "c0ffee")


@pytest.fixture
def no_limits(monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not ON_X86, reason="the instruction sets of x86")
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize("value", ["SSE41", "sse41"])
def test_the_fingerprint_has_the_instructions_that_onednn_may_use(name, value, no_limits, monkeypatch):
    free = fingerprint()
    monkeypatch.setenv(name, value)
    assert device.differences(free, fingerprint()) == [f"onednn: {free['onednn']} then, sse41 now"]


@pytest.mark.parametrize(
    ("features", "limit", "effective"),
    [
        (["sse4_1", "avx", "avx2"], "", "avx2"),
        (["sse4_1", "avx", "avx2"], "AVX512_CORE", "avx2"),
        (["sse4_1", "avx", "avx2", "avx512_bw"], "avx2_vnni", "avx2"),
        (["sse4_1", "avx", "avx2", "avx512_bw", "avx512_vnni", "avx512_bf16"], "", "avx512_core_bf16"),
        (["sse4_1", "avx", "avx2", "avx512_bw", "amx_bf16"], "AVX10_1_512_AMX", "avx512_core_amx"),
        (["sse4_1", "avx", "avx2", "avx512_bw", "amx_bf16"], "AVX10_1_512", "avx512_core"),
        (["sse4_1", "avx"], "nonsense", "avx"),
    ],
)
def test_it_is_the_largest_that_the_processor_has_up_to_the_limit(features, limit, effective, no_limits, monkeypatch):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"} | dict.fromkeys(features, True)
    )
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert device.onednn_instructions() == effective


def test_the_fingerprint_has_what_the_environment_asks_of_mkl(no_limits, monkeypatch):
    free = fingerprint()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert device.differences(free, fingerprint()) == ["mkl: none then, MKL_CBWR=COMPATIBLE now"]


def test_what_an_older_fingerprint_did_not_note_is_not_a_difference_but_its_arithmetic_is():
    now = fingerprint()
    older = {name: value for name, value in now.items() if name not in ("onednn", "mkl")}
    assert device.differences(older, now) == []
    del older["arithmetic"]
    assert device.differences(older, now) == [f"arithmetic: 1 then, {device.ARITHMETIC} now"]


@pytest.mark.parametrize(("bfloat16_s", "chosen"), [(0.5, True), (0.9, False), (46.0, False)])
def test_bfloat16_is_chosen_where_its_products_are_clearly_faster(bfloat16_s, chosen, monkeypatch):
    monkeypatch.setattr(device, "_product_s", {torch.float32: 1.0, torch.bfloat16: bfloat16_s}.get)
    before = torch.get_num_threads()
    assert device.prefers_bfloat16.__wrapped__(torch.device("cpu")) is chosen
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not ON_X86, reason="the instruction sets of x86")
def test_a_processor_that_may_not_use_its_bfloat16_instructions_trains_in_float32(book, tmp_path):
    command = [sys.executable, "-m", "vitrine", "train", str(book), *TINY, "--steps", "2", "--run", "r"]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert RunReader(tmp_path / "r").config.training.precision == "float32"


@pytest.mark.full
@pytest.mark.parametrize(
    "environment",
    [
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    ],
    ids=["avx2", "oldest"],
)
def test_exactness_replay_and_the_tour_hold_with_other_instructions(environment):
    files = [f"tests/{name}.py" for name in ("test_exactness", "inspection/test_replay", "studio/test_tour")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not full", *files]
    folder = Path(__file__).parents[2]
    # Tests of their own: they share no runs with these, which other instructions have made.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=folder, env=own | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
