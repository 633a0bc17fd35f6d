"""What a device says of itself, read from the /proc files of real ones."""

import platform
from pathlib import Path

import pytest

from runtime_py.device.device import FEATURES, read_device, this_device

CPUINFO = Path(__file__).parents[2] / "pi" / "cpuinfo"
MEMINFO = "MemTotal:        8245248 kB\nMemFree:  1 kB\nMemAvailable:    7340032 kB\nHugePages: 0\n"


@pytest.fixture
def proc(tmp_path):
    """A /proc folder with these files."""

    def write(**files):
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        return tmp_path

    return write


def test_a_raspberry_pi_5(proc):
    files = proc(cpuinfo=(CPUINFO / "cortex-a76").read_text(), meminfo=MEMINFO)
    found = read_device(files, "aarch64")
    assert found.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.processor == "Cortex-A76"
    assert found.features == {"asimddp": True, "asimdhp": True, "atomics": True, "i8mm": False}
    assert not found.lacks_lse
    assert (found.memory_bytes, found.available_bytes) == (8245248 << 10, 7 << 30)


def test_a_raspberry_pi_4_lacks_lse(proc):
    found = read_device(proc(cpuinfo=(CPUINFO / "cortex-a72").read_text()), "aarch64")
    assert found.name == "Cortex-A72, Raspberry Pi 4 Model B Rev 1.4"
    assert not any(found.features.values())
    assert found.lacks_lse
    assert found.memory_bytes is None


def test_the_device_tree_names_the_board(proc):
    files = proc(cpuinfo=(CPUINFO / "cortex-a72").read_text())
    (files / "device-tree").mkdir()
    (files / "device-tree" / "model").write_bytes(b"Raspberry Pi 400\0")
    assert read_device(files, "aarch64").model == "Raspberry Pi 400"


def test_a_flag_counts_only_if_every_core_has_it(proc):
    core = "processor : {}\nFeatures : fp {}\nCPU implementer : 0x41\nCPU part : {}\n\n"
    cores = core.format(0, "atomics", "0xd05") + core.format(1, "atomics asimddp", "0xd0a")
    found = read_device(proc(cpuinfo=cores), "aarch64")
    assert found.processor == "Cortex-A55 and Cortex-A75"
    assert found.features["atomics"]
    assert not found.features["asimddp"]


@pytest.mark.parametrize("cpuinfo", ["", "processor : 0\n\nprocessor : 1\n", "no colon\n\0\n"])
def test_where_nothing_is_said_nothing_is_claimed(proc, cpuinfo):
    found = read_device(proc(cpuinfo=cpuinfo, meminfo="MemTotal: lots kB\n"), "aarch64")
    assert found.features == {}
    assert not found.lacks_lse
    assert found.processor
    assert found.memory_bytes is None


def test_an_unknown_processor_is_given_by_its_numbers(proc):
    cpuinfo = "processor : 0\nCPU implementer : 0x61\nCPU part : 0x022\n"
    assert read_device(proc(cpuinfo=cpuinfo), "aarch64").processor == "processor 0x61/0x22"


def test_this_machine():
    found = this_device()
    assert found.architecture == platform.machine()
    assert found.num_cores >= 1
    assert set(found.features) in (set(), set(FEATURES.get(found.architecture, {})))
