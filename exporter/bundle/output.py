"""Decide, before any work is done, whether a bundle may go where the user wants it."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from exporter.errors import ExportError
from runtime_py.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from runtime_py.errors import RunError
from runtime_py.terminal.printable import shown

MAX_NAME_BYTES = 200  # most file systems allow 255; the staging folder's name is longer
# Files that other tools put into a bundle's folder and can make again: npm the library of --target
# web's page (config.LITERT_JS), LiteRT-LM a cache beside the model.
_LIBRARY_FILE, _LIBRARY = Path("node_modules/.package-lock.json"), Path("node_modules/@litertjs")
_PACKED = ".xnnpack_cache"
_MOUNTS = Path("/proc/self/mountinfo")
_NAMED = 3  # the most user files that a message names


def check_output(output: Path, overwrite: bool, sources: Sequence[Path]) -> Path:
    """The folder that the bundle will be: `output` with links resolved.

    Args:
        output: as the user gave it.
        overwrite: whether an existing bundle may be replaced.
        sources: files and folders that the bundle is made from.

    Raises:
        ExportError: if anything but a bundle would be lost, or the folder cannot be made.
    """
    try:
        place = Path(os.path.realpath(output))
        _refuse_place(output, place)
        for source in sources:
            _refuse_unreadable(source)
            _refuse_overlap(output, place, source)
        if place.exists():
            _refuse_loss(output, place, overwrite)
    except OSError as error:
        raise ExportError(f"{output}: {error.strerror}; choose another --output") from None
    return place


def _refuse_place(output: Path, place: Path) -> None:
    here = Path.cwd()
    if place == here or place in here.parents:
        raise ExportError(
            f"{output}: the folder you are in, or one above it; name a folder for the bundle"
        )
    if len(os.fsencode(place.name)) > MAX_NAME_BYTES:
        raise ExportError(
            f"{shown(output)}: a name of {len(os.fsencode(place.name))} bytes, a bundle's has at "
            f"most {MAX_NAME_BYTES}; choose another --output"
        )
    if output.is_symlink() and not output.exists():
        raise ExportError(
            f"{output}: a link to {os.readlink(output)}, which is not there; remove it or choose "
            "another --output"
        )
    if _is_mount(place):
        raise ExportError(f"{output}: a mount point, which cannot be replaced; name a folder in it")


def _is_mount(place: Path) -> bool:
    """Also a folder mounted from the same file system, which Path.is_mount does not see."""
    name = str(place)
    for char in "\\ \t\n":
        name = name.replace(char, f"\\{ord(char):03o}")
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        mounts = ""
    return place.is_mount() or any(line.split(" ")[4] == name for line in mounts.splitlines())


def _refuse_unreadable(source: Path) -> None:
    """Refuse a path that the system rejects, such as one with too long a name.

    Whoever reads a missing file says so.
    """
    try:
        source.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ExportError(f"{shown(source, 300)}: {error.strerror}; name another") from None


def _refuse_overlap(output: Path, place: Path, source: Path) -> None:
    """Refuse sources inside the replaced folder, and a bundle inside a source."""
    if _lies_in(place, source):
        raise ExportError(f"{output}: lies in {source}, which is read; choose another --output")
    parts = sorted(source.iterdir()) if source.is_dir() else []  # an entry may be a link
    for path in (source, *parts):
        if _lies_in(Path(os.path.realpath(path)), place):
            raise ExportError(
                f"{output}: {path} lies in it, which is read; choose another --output"
            )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, by whatever name."""
    if not folder.is_dir():
        return False
    return any(part.exists() and part.samefile(folder) for part in (path, *path.parents))


def _refuse_loss(output: Path, place: Path, overwrite: bool) -> None:
    if not overwrite:
        raise ExportError(f"{output}: exists already; add --overwrite or choose another --output")
    if not place.is_dir():
        raise ExportError(f"{output}: a file, not a bundle; choose another --output")
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise ExportError(f"{output}: you may not write there; choose another --output")
    if not any(place.iterdir()):
        return
    if not (place / MANIFEST_NAME).is_file():
        raise ExportError(
            f"{output}: not a bundle (no {MANIFEST_NAME}), so --overwrite leaves it alone; "
            "choose another --output"
        )
    try:
        manifest = parse_manifest(place)
    except RunError:
        raise ExportError(
            f"{output}: its {MANIFEST_NAME} is not one of ours, so --overwrite leaves it alone; "
            "remove the folder yourself or choose another --output"
        ) from None
    others = list(islice(_others(place, manifest), _NAMED + 1))
    if others:
        more = " …" if len(others) > _NAMED else ""
        names = ", ".join(shown(name) for name in others[:_NAMED])
        raise ExportError(
            f"{output}: holds {names}{more}, which the bundle does not list, so --overwrite leaves "
            "it alone; move that elsewhere or choose another --output"
        )


def _others(place: Path, manifest: Manifest) -> Iterator[str]:
    """The files in a bundle's folder that are not the bundle's, by name."""
    web = manifest.device == "web"
    files = {Path(name) for name in (MANIFEST_NAME, *manifest.files)}
    files |= {_LIBRARY_FILE} if web else set()
    folders = {parent for path in files for parent in path.parents}
    models = tuple(entry.model for entry in manifest.runtimes.values())
    for where, subfolders, names in os.walk(place, onerror=_raise):
        there = Path(where).relative_to(place)
        links = {name for name in subfolders if (place / there / name).is_symlink()}
        for name in sorted((*names, *links)):
            path = (there / name).as_posix()
            if there / name not in files and not (
                path.startswith(models) and path.endswith(_PACKED)
            ):
                yield path
        kept = [name for name in sorted(subfolders) if there / name in folders]
        yield from (
            f"{(there / name).as_posix()}/"
            for name in sorted(set(subfolders) - links - set(kept))
            if not (web and there / name == _LIBRARY)
        )
        subfolders[:] = kept


def _raise(error: OSError) -> None:
    raise error
