"""The shim under sanitizers and valgrind, driven by a C program without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest

from runtime_py.backends.executorch.shim.compiler import DEFINITIONS, include_flags, source_files
from runtime_py.backends.executorch.shim.installed import LIBRARIES, find_executorch

FOLDER = Path(__file__).parent
BUNDLE = FOLDER / "toy.pte"
CONTENT = BUNDLE.read_bytes()
BAD_FILES = {
    "cut.pte": CONTENT[:-1],
    "half.pte": CONTENT[: len(CONTENT) // 2],
    "empty.pte": b"",
    "other.pte": b"PK\x03\x04" * 100,
    "lacking.pte": CONTENT.replace(b"llama::custom_sdpa", b"llama::custom_spda"),
    "damaged.pte": CONTENT[:64] + b"\xff" * 64 + CONTENT[128:],
}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]


def build_driver(folder, flags):
    executorch = find_executorch()
    if executorch is None:
        pytest.skip("executorch is not installed")
    if shutil.which("g++") is None or shutil.which("gcc") is None:
        pytest.skip("no compiler")
    sources = source_files()
    driver_object, driver = folder / "driver.o", folder / "driver"
    source = FOLDER / "executorch_driver.c"
    command = ["gcc", "-g", *flags, f"-I{sources[0].parent}", "-c", str(source)]
    subprocess.run([*command, "-o", str(driver_object)], check=True)
    # No clones: their choice is made before a sanitizer has begun.
    command = ["g++", "-g", "-O1", "-std=c++17", "-DGX_NO_CLONES", *flags]
    command += [f"-D{name}" for name in DEFINITIONS]
    command += [*include_flags(executorch), *map(str, sources), str(driver_object)]
    command += [f"-L{executorch.lib}", f"-Wl,-rpath,{executorch.lib}", "-Wl,--no-as-needed"]
    command += [f"-l{name[3:-3]}" for name in LIBRARIES]
    subprocess.run([*command, "-o", str(driver)], check=True)
    return driver


def watched(folder, command, times):
    for name, content in BAD_FILES.items():
        (folder / name).write_bytes(content)
    paths = [str(folder / name) for name in BAD_FILES]
    done = subprocess.run(
        [*command, str(times), str(BUNDLE), *paths], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hundred_rounds_under_sanitizers(tmp_path):
    """Load twice, run every method, run past the end, unload, and load bad files; no leak."""
    watched(tmp_path, [str(build_driver(tmp_path, SANITIZERS))], 100)


@pytest.mark.slow
def test_five_rounds_under_valgrind(tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind")
    valgrind = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full"]
    valgrind += ["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]
    watched(tmp_path, [*valgrind, str(build_driver(tmp_path, []))], 5)
