"""Finding, building and loading the shim."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runtime_py.backends import executorch_library
from runtime_py.backends.executorch_library import load_library
from runtime_py.backends.executorch_shim.build import (
    LIBRARIES,
    PACKAGE,
    SHIM_NAME,
    BuildError,
    build_wheel,
    compile_shim,
)
from runtime_py.errors import RunError

FOLDER = Path(__file__).parent
BUNDLE = FOLDER / "toy.pte"
SHIM = Path(executorch_library.__file__).parent / "executorch_shim"


@pytest.fixture
def fresh_load(monkeypatch, tmp_path):
    """load_library as in a process that has not loaded it, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_library.cache_clear()
    yield load_library
    load_library.cache_clear()


@pytest.fixture
def executorch():
    found = executorch_library._installed("executorch")
    if found is None:
        pytest.skip("executorch is not installed")
    return found


def only_executorch(monkeypatch, executorch):
    """As if our wheel were not installed."""
    monkeypatch.setattr(
        executorch_library,
        "_installed",
        lambda package: executorch if package == "executorch" else None,
    )


def test_without_executorch_the_next_step_is_named(monkeypatch, fresh_load):
    monkeypatch.setattr(executorch_library, "_installed", lambda _: None)
    with pytest.raises(RunError, match=r"pip install 'gemma-export\[executorch\]'"):
        fresh_load()


def test_without_compiler_and_wheel_the_next_step_is_named(monkeypatch, fresh_load, executorch):
    only_executorch(monkeypatch, executorch)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match="pip install gemma-export-executorch==") as raised:
        fresh_load()
    assert "no g++ on this machine" in str(raised.value)


@pytest.mark.slow
def test_the_shim_is_built_once(monkeypatch, fresh_load, executorch, tmp_path):
    only_executorch(monkeypatch, executorch)
    fresh_load()
    (built,) = (tmp_path / "gemma-export" / "executorch").iterdir()
    assert built.suffix == ".so"
    monkeypatch.setenv("PATH", "")
    load_library.cache_clear()
    fresh_load()


def test_what_does_not_compile_is_one_line(tmp_path):
    (tmp_path / "include").mkdir()
    with pytest.raises(BuildError) as raised:
        compile_shim(tmp_path, tmp_path / "out.so")
    assert "\n" not in str(raised.value)


def test_a_wheel_of_something_else_is_refused(tmp_path):
    with pytest.raises(BuildError, match="no wheel of executorch"):
        build_wheel(tmp_path / "numpy-2.0.0-cp311-cp311-linux_x86_64.whl", "g++", tmp_path)


@pytest.mark.slow
def test_a_wheel_has_the_shim_and_the_libraries(tmp_path, executorch):
    name = f"executorch-{executorch.version}-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for path in (executorch.folder / "include").rglob("*.h"):
            archive.write(path, Path("executorch", path.relative_to(executorch.folder)))
        for library in LIBRARIES:
            archive.write(executorch.folder / "lib" / library, f"executorch/lib/{library}")
    wheel = build_wheel(tmp_path / name, "g++", tmp_path / "dist")
    assert wheel.name == f"{PACKAGE}-{executorch.version}-py3-none-manylinux_2_28_x86_64.whl"
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    assert {path.name for path in (target / PACKAGE).iterdir()} >= {"lib", SHIM_NAME}
    symbols = subprocess.run(
        ["objdump", "-T", str(target / PACKAGE / SHIM_NAME)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    versions = {word[7:-1] for word in symbols.split() if word.startswith("(GLIBC_2.")}
    assert max(int(version.split(".")[0]) for version in versions) <= 28  # of manylinux_2_28


@pytest.mark.slow
@pytest.mark.parametrize("watch", ["sanitizers", "valgrind"])
def test_a_hundred_rounds_under_watch(tmp_path, executorch, watch):
    """Load twice, run, run past the end, unload, and load damaged files."""
    sanitized = watch == "sanitizers"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"] if sanitized else []
    include, lib = executorch.folder / "include", executorch.folder / "lib"
    c10 = include / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    driver_object, driver = tmp_path / "driver.o", tmp_path / "driver"
    source = FOLDER / "executorch_driver.c"
    subprocess.run(
        ["gcc", "-g", *flags, f"-I{SHIM}", "-c", str(source), "-o", str(driver_object)], check=True
    )
    defines = ["C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL"]
    # No clones: their choice is made before a sanitizer has begun.
    subprocess.run(
        [
            *("g++", "-g", "-O1", "-std=c++17", *flags, "-DGX_NO_CLONES"),
            *(f"-D{name}" for name in defines),
            *("-isystem", str(include), "-isystem", str(c10)),
            *(str(path) for path in sorted(SHIM.glob("*.cpp"))),
            *(str(driver_object), f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed"),
            *(f"-l{name[3:-3]}" for name in LIBRARIES),
            *("-o", str(driver)),
        ],
        check=True,
    )
    content = BUNDLE.read_bytes()
    damaged = {
        "cut.pte": content[:-1],
        "empty.pte": b"",
        "lacking.pte": content.replace(b"llama::custom_sdpa", b"llama::custom_spda"),
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    valgrind = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full"]
    valgrind += ["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]
    command = [str(driver), "100" if sanitized else "5", str(BUNDLE)]
    command += [str(tmp_path / name) for name in damaged]
    done = subprocess.run(
        command if sanitized else valgrind + command, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
