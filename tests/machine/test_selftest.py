"""The self-test decides once a machine, and a run follows what was decided for it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from nucleate.machine import doctor, selftest, tuning
from nucleate.machine.extension import DISABLE
from nucleate.machine.selftest import SelfTest, keep, measure, self_test
from nucleate.machine.tuning import Tuning, as_dict, choose_tuning, replay_tuning, tuned

GOOD = SelfTest(
    device="cpu",
    name="x",
    cores=4,
    torch="2",
    matmul_error=3e-7,
    matmul_gain=2.0,
    fused_gain=2.0,
    bf16_gain=2.0,
    channels_last_gain=1.2,
    thread_gain=1.5,
    seconds=0.1,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLEATE_CACHE", str(tmp_path / "cache"))
    self_test.cache_clear()
    yield tmp_path / "cache"
    self_test.cache_clear()


@pytest.fixture
def decided(monkeypatch):
    def set_to(test: SelfTest) -> None:
        monkeypatch.setattr(tuning, "self_test", lambda device: test)

    return set_to


def choose(convolutional: bool = False, precision: str = "auto", threads: int | None = None) -> Tuning:
    chosen = choose_tuning(precision=precision, threads=threads, convolutional=convolutional, device="cpu")
    return replace(chosen, native=None)


def test_what_pays_is_taken_and_nothing_else(decided):
    decided(GOOD)
    assert choose() == Tuning(threads=4, matmul="fast", fused=True)
    assert choose(True) == Tuning(threads=4, matmul="fast", fused=True, bf16=True, channels_last=True)
    decided(replace(GOOD, matmul_gain=0.7, fused_gain=1.0, bf16_gain=0.1, thread_gain=0.5))
    assert choose(True) == Tuning(threads=1, channels_last=True)
    decided(replace(GOOD, matmul_error=3e-3, channels_last_gain=0.9, bf16_gain=1.0))
    assert choose(True) == Tuning(threads=4, fused=True)


def test_fp32_turns_every_shortcut_off(decided):
    decided(GOOD)
    assert choose(True, "fp32") == Tuning(threads=len(os.sched_getaffinity(0)))
    assert choose(True, "fp32", 3) == Tuning(threads=3)


def test_the_first_self_test_of_a_machine_is_the_one_that_counts(own_cache, monkeypatch):
    gains = iter((1.0, 9.0))
    monkeypatch.setattr(selftest, "measure", lambda device: replace(GOOD, device=device, matmul_gain=next(gains)))
    assert self_test().matmul_gain == 1.0
    self_test.cache_clear()
    assert self_test().matmul_gain == 1.0
    (kept,) = own_cache.iterdir()
    kept.write_text("{damaged")
    self_test.cache_clear()
    assert self_test().matmul_gain == 9.0
    self_test.cache_clear()
    assert self_test().matmul_gain == 9.0


@pytest.mark.parametrize("content", ["[]", "{}", json.dumps(asdict(GOOD) | {"cores": "4"})])
def test_a_file_that_is_no_self_test_is_not_used(own_cache, monkeypatch, content):
    keep(GOOD, replace=True)
    (kept,) = own_cache.iterdir()
    kept.write_text(content)
    monkeypatch.setattr(selftest, "measure", lambda device: replace(GOOD, matmul_gain=5.0))
    assert self_test().matmul_gain == 5.0


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NUCLEATE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(selftest, "measure", lambda device: GOOD)
    assert self_test() == GOOD
    assert not keep(GOOD, replace=False)


def test_measuring_changes_nothing_global_and_gives_sane_numbers():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_rng_state()
    test = measure()
    assert before[:2] == (torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert torch.equal(before[2], torch.get_rng_state())
    assert test.cores == len(os.sched_getaffinity(0)) and test.torch == torch.__version__
    gains = {name: value for name, value in asdict(test).items() if name.endswith("gain")}
    assert (gains.pop("bf16_gain") > 0) == tuning.bf16_is_native()
    assert all(value > 0 for value in gains.values())


def test_what_cannot_be_replayed_is_refused(monkeypatch):
    plain = as_dict(Tuning(threads=2))
    assert replay_tuning(plain) == Tuning(threads=2)
    monkeypatch.setattr(tuning, "medium_keeps_float32", lambda: False)
    with pytest.raises(ValueError, match="not exact on this machine"):
        replay_tuning(plain | {"matmul": "fast"})
    monkeypatch.setattr(tuning, "bf16_is_native", lambda device: False)
    with pytest.raises(ValueError, match="only emulates"):
        replay_tuning(plain | {"bf16": True})
    with pytest.raises(ValueError, match="this version knows"):
        replay_tuning(plain | {"warp": True})
    for begun in (True, False):
        monkeypatch.setattr(tuning, "in_use", partial(bool, not begun))
        with pytest.raises(ValueError, match=f"begun {'with' if begun else 'without'} native code"):
            replay_tuning(plain | {"native": begun})
    assert replay_tuning({k: v for k, v in plain.items() if k != "native"}) == Tuning(threads=2)


def test_native_code_is_part_of_a_tuning(monkeypatch):
    monkeypatch.setenv(DISABLE, "1")
    assert choose_tuning(precision="fp32", threads=1, convolutional=False, device="cpu").native is False


def test_a_tuning_is_put_back(monkeypatch):
    before = torch.get_num_threads()
    with tuned(Tuning(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_known_faults_are_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    monkeypatch.setenv("NUCLEATE_DATA", str(tmp_path / "absent"))
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = "\n".join(doctor.faults())
    for part in ("no CUDA driver", "unset it", "no folder", "torchvision::nms does not exist"):
        assert part in found


def test_nothing_wrong_is_no_fault(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("NUCLEATE_DATA", raising=False)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.faults() == []
