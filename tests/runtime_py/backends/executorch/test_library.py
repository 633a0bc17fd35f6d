"""Finding, compiling and loading the shim, and the compiled ones that the package brings."""

import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runtime_py.backends.executorch import library as executorch_library
from runtime_py.backends.executorch.library import load_library
from runtime_py.backends.executorch.shim import prebuilt
from runtime_py.backends.executorch.shim.compiler import BuildError, compile_shim
from runtime_py.backends.executorch.shim.installed import (
    PINNED_VERSION,
    Installed,
    find_executorch,
)
from runtime_py.errors import RunError

ROOT = Path(__file__).parents[4]
ELF_MACHINES = {"aarch64": 0xB7, "x86_64": 0x3E}
# Of manylinux_2_28, which ExecuTorch's own wheels are. Debian 11 has 31, 28 and 12, Debian 12 more.
NEWEST = {b"GLIBC_2.": 28, b"GLIBCXX_3.4.": 25, b"CXXABI_1.3.": 11}
REBUILD = "python -m runtime_py.backends.executorch.shim.build"

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture
def fresh_load(monkeypatch, tmp_path):
    """load_library as in a process that has not loaded it, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_library.cache_clear()
    yield load_library
    load_library.cache_clear()


@pytest.fixture
def executorch():
    found = find_executorch()
    if found is None:
        pytest.skip("executorch is not installed")
    return found


@pytest.fixture
def on_machine(monkeypatch):
    def pretend(machine, libc="glibc", num_bits=64):
        monkeypatch.setattr(prebuilt, "_NUM_BITS", num_bits)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))

    return pretend


@pytest.fixture(params=prebuilt.ARCHITECTURES)
def shim(request):
    return prebuilt.FOLDER / prebuilt.shim_name(request.param)


def test_without_executorch_the_next_step_is_named(monkeypatch, fresh_load, on_machine):
    monkeypatch.setattr(executorch_library, "find_executorch", lambda: None)
    on_machine("aarch64")
    with pytest.raises(RunError, match=r"pip install --no-deps 'executorch==1\.5\.1', or"):
        fresh_load()


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (("riscv64",), "riscv64 with glibc and 64-bit Python"),
        (("x86_64", ""), "x86_64 with no glibc and 64-bit Python"),
        (("x86_64", "musl"), "x86_64 with musl and 64-bit Python"),
        (("aarch64", "glibc", 32), "aarch64 with glibc and 32-bit Python"),
    ],
)
def test_a_machine_without_wheels_is_not_told_to_install_one(
    monkeypatch, fresh_load, on_machine, machine, found
):
    monkeypatch.setattr(executorch_library, "find_executorch", lambda: None)
    on_machine(*machine)
    with pytest.raises(RunError, match="choose another runtime") as raised:
        fresh_load()
    assert found in str(raised.value)
    assert "pip install" not in str(raised.value)


def test_libraries_that_do_not_load_are_one_line(monkeypatch, fresh_load, tmp_path):
    """As those of another libc or processor."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libexecutorch.so").write_bytes(b"\x7fELF" + bytes(60))
    broken = Installed(tmp_path, PINNED_VERSION)
    monkeypatch.setattr(executorch_library, "find_executorch", lambda: broken)
    with pytest.raises(RunError, match=r"does not load \(.*; .* --runtime$") as raised:
        fresh_load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("architecture", prebuilt.ARCHITECTURES)
def test_the_pinned_release_needs_no_compiler(on_machine, architecture):
    on_machine(architecture)
    found = prebuilt.find_prebuilt(PINNED_VERSION)
    assert found == prebuilt.FOLDER / prebuilt.shim_name(architecture)


@pytest.mark.skipif(not prebuilt.has_wheels(), reason="no shim is made for this machine")
def test_this_machine_loads_the_compiled_shim(monkeypatch, fresh_load, executorch, tmp_path):
    if executorch.version != PINNED_VERSION:
        pytest.skip(f"executorch {executorch.version} is installed")
    monkeypatch.setenv("PATH", "")
    fresh_load()
    assert not list(tmp_path.iterdir())


def test_a_shim_for_something_else_is_not_taken(on_machine, tmp_path):
    folder = tmp_path / "prebuilt"
    shutil.copytree(prebuilt.FOLDER, folder)
    on_machine("x86_64")
    assert prebuilt.find_prebuilt(PINNED_VERSION, folder) is not None
    assert prebuilt.find_prebuilt("1.5.0", folder) is None
    for machine in (("riscv64",), ("armv7l",), ("x86_64", ""), ("x86_64", "glibc", 32)):
        on_machine(*machine)
        assert prebuilt.find_prebuilt(PINNED_VERSION, folder) is None
    on_machine("x86_64")
    path = folder / prebuilt.shim_name("x86_64")
    path.write_bytes(path.read_bytes()[:-1])
    assert prebuilt.find_prebuilt(PINNED_VERSION, folder) is None
    path.unlink()
    assert prebuilt.find_prebuilt(PINNED_VERSION, folder) is None


def test_a_shim_of_other_sources_is_not_taken(monkeypatch, on_machine):
    on_machine("aarch64")
    monkeypatch.setattr(prebuilt, "source_digest", lambda: "0" * 16)
    assert prebuilt.find_prebuilt(PINNED_VERSION) is None


def test_without_shim_and_compiler_the_next_step_is_named(monkeypatch, fresh_load, executorch):
    monkeypatch.setattr(executorch_library, "find_prebuilt", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match=r"no g\+\+ on this machine.*install g\+\+, or") as raised:
        fresh_load()
    assert f"ExecuTorch {executorch.version}" in str(raised.value)


@needs_compiler
def test_without_a_shim_it_is_compiled_once(executorch, tmp_path):  # noqa: ARG001
    """In fresh interpreters: a process should have one shim."""
    program = (
        "import sys\n"
        "from runtime_py.backends.executorch import library as executorch_library\n"
        "executorch_library.find_prebuilt = lambda _: None\n"
        "library = executorch_library.load_library()\n"
        "sys.stdout.write(library._name)\n"
    )

    def load(**environment):
        command = [sys.executable, "-c", program]
        environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return Path(done.stdout)

    built = load(PATH="/usr/bin:/bin")
    assert built.parent == tmp_path / "gemma-export" / "executorch"
    assert load(PATH="") == built
    assert list(built.parent.iterdir()) == [built]


def test_no_shim_is_loaded_from_where_others_can_write(monkeypatch, fresh_load, tmp_path):
    made_up = Installed(tmp_path / "lib", "0.0")
    monkeypatch.setattr(executorch_library, "find_executorch", lambda: made_up)
    monkeypatch.setattr(executorch_library, "LIBRARIES", ())
    folder = tmp_path / "gemma-export" / "executorch"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(RunError, match=f"{folder}: others can write to it.*chmod 700"):
        fresh_load()


@needs_compiler
def test_what_does_not_compile_is_one_line(tmp_path):
    (tmp_path / "include").mkdir()
    with pytest.raises(BuildError) as raised:
        compile_shim(Installed(tmp_path, PINNED_VERSION), tmp_path / "out.so")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["include"]


def test_the_shims_are_made_from_these_sources():
    made_from = prebuilt.read_made_from()
    for key, needed in prebuilt.what_it_is_made_from(PINNED_VERSION).items():
        assert made_from.get(key) == needed, (
            f"{prebuilt.FOLDER}: made from {key} {made_from.get(key)}, now {needed}; "
            f"rebuild with {REBUILD} and commit"
        )


def test_the_pinned_release_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert extras["executorch"] == [f"executorch=={PINNED_VERSION}"]


def test_the_package_has_the_shims_and_their_sources():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["runtime_py"]
    packed = {path for pattern in patterns for path in (ROOT / "runtime_py").glob(pattern)}
    folder = prebuilt.FOLDER.parent
    assert {path for path in folder.rglob("*.*") if path.suffix not in (".py", ".pyc")} <= packed


def test_a_shim_is_small_and_for_its_processor(shim):
    content = shim.read_bytes()
    assert content[:5] == b"\x7fELF\x02"
    assert ELF_MACHINES[shim.stem.rpartition("-")[2]] == int.from_bytes(content[18:20], "little")
    assert len(content) < 200_000


def test_a_shim_asks_for_no_newer_libraries_than_executorch_does(shim):
    content = shim.read_bytes()
    for prefix, newest in NEWEST.items():
        found = {int(number) for number in re.findall(re.escape(prefix) + rb"(\d+)", content)}
        assert max(found, default=0) <= newest, f"{shim}: {prefix.decode()}{max(found)}"
    assert b"GLIBC_2." in content
    assert b"libtorch" not in content
    assert b"libc10" not in content


def test_a_shim_names_no_path(shim):
    paths = re.findall(rb"[\w.-]*/[\w./+-]+", shim.read_bytes())
    assert {path for path in paths if path.isascii() and len(path) > 8} == {b"runtime/platform/"}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_on_x86_the_attention_is_chosen_by_the_processor():
    shim = prebuilt.FOLDER / prebuilt.shim_name("x86_64")
    command = ["readelf", "--relocs", "--wide", str(shim)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "R_X86_64_IRELATIV" in done.stdout


@pytest.mark.slow
@needs_compiler
def test_two_builds_give_the_same_bytes(tmp_path, executorch):
    built = []
    for name in ("one", "another_place"):
        folder = tmp_path / name
        folder.symlink_to(executorch.folder)
        compile_shim(Installed(folder, executorch.version), tmp_path / f"{name}.so")
        built.append((tmp_path / f"{name}.so").read_bytes())
    assert built[0] == built[1]
