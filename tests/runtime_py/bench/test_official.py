"""Where the official runtime is refused, and why."""

from dataclasses import replace
from pathlib import Path

import pytest

from runtime_py.bench import official
from runtime_py.device.device import this_device
from runtime_py.errors import RunError

PI_4 = {
    "model": "Raspberry Pi 4 Model B Rev 1.4",
    "architecture": "aarch64",
    "processor": "Cortex-A72",
    "flags": frozenset({"fp", "asimd", "crc32"}),
}


@pytest.fixture
def on_a_pi_4(monkeypatch):
    device = replace(this_device(), **PI_4)
    monkeypatch.setattr(official, "this_device", lambda: device)
    monkeypatch.setattr(official, "is_installed", lambda: True)


@pytest.mark.usefixtures("on_a_pi_4")
def test_a_processor_without_lse_is_refused_by_name():
    model = Path("model.litertlm")
    assert not official.can_run(model)
    with pytest.raises(RunError, match=r"model\.litertlm.*LSE atomics.*Cortex-A72, Raspberry Pi 4"):
        official.OfficialEngine(model, mtp=False, num_threads=1)


@pytest.mark.parametrize(
    "change",
    [
        {"flags": frozenset({"fp", "atomics"})},
        {"flags": None},  # nothing is known against it
        {"architecture": "x86_64", "flags": frozenset({"avx2"})},
    ],
)
def test_others_are_not_refused(change):
    assert official.refusal(replace(this_device(), **(PI_4 | change))) is None
