"""Write a bundle beside its place and rename it there when it is complete."""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from exporter.errors import ExportError
from exporter.text import TextFiles
from runtime_py.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelEntry,
    RuntimeEntry,
    RuntimeName,
    TokenEntry,
    file_entry,
    write_manifest,
)
from runtime_py.reference import Reference, write_reference

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")  # index.html, and web/ with what it loads
_NO_ROOM_BYTES = 1 << 20
_TOOLS = ("gemma-export", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """Everything in a bundle besides the runtimes' own files, which lie in the folder already."""

    name: str
    device: str
    model: ModelEntry
    text: TextFiles
    draft_length: int
    runtimes: Mapping[RuntimeName, RuntimeEntry]
    reference: Reference
    sources: Mapping[str, str]  # of what was downloaded


def add_page(folder: Path) -> None:
    """Put the page that runs the bundle's LiteRT graphs in a browser into its folder."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)


def write_bundle(folder: Path, contents: BundleContents) -> Manifest:
    """Add tokenizer, chat template, reference and manifest to a folder that holds the graphs."""
    shutil.copyfile(contents.text.tokenizer, folder / "tokenizer.json")
    template = contents.text.chat_template
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_reference(folder / "reference.npz", contents.reference)
    manifest = Manifest(
        format_version=1,
        name=contents.name,
        device=contents.device,
        made_by={tool: _version(tool) for tool in _TOOLS},
        model=contents.model,
        tokens=TokenEntry(
            tokenizer="tokenizer.json",
            chat_template=None if template is None else "chat_template.jinja",
            bos_token_id=contents.text.bos_token_id,
            stop_token_ids=contents.text.stop_token_ids,
        ),
        draft_length=contents.draft_length,
        runtimes=dict(contents.runtimes),
        reference="reference.npz",
        sources=dict(contents.sources),
        files={
            path.relative_to(folder).as_posix(): file_entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    )
    write_manifest(folder, manifest)
    total_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    logger.info("bundle      %d files, %.1f MB", len(manifest.files) + 1, total_mb)
    return manifest


def _version(tool: str) -> str:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "source"


@contextmanager
def staged(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends; no trace if it fails.

    Raises:
        ExportError: if `output` exists and may not be replaced, or the disk is full or refuses.
    """
    refuse_existing(output, overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(
            tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent)
        )
    except OSError as error:
        raise ExportError(f"{output.parent}: {error.strerror}; choose another --output") from None
    try:
        yield folder
        _publish(folder, output)
    except Exception as error:
        full = _is_full(folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        if full:
            raise ExportError(
                f"{output}: the disk is full; free some room or choose another --output"
            ) from error
        if isinstance(error, OSError):
            where = error.filename or output
            raise ExportError(f"{where}: {error.strerror or error}; nothing was written") from error
        raise
    except BaseException:  # Ctrl-C
        shutil.rmtree(folder, ignore_errors=True)
        raise


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Say no before the work begins rather than after it."""
    if not output.exists() and not output.is_symlink():
        return
    if not overwrite:
        raise ExportError(f"{output}: exists already; add --overwrite or choose another --output")
    if not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST_NAME).is_file()):
        raise ExportError(
            f"{output}: not a bundle (no {MANIFEST_NAME}), so --overwrite leaves it alone; "
            "choose another --output"
        )


def _publish(folder: Path, output: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)  # mkdtemp makes it private
    if not output.exists():
        folder.rename(output)
        return
    old = folder.with_suffix(".old")
    output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_full(folder: Path, error: Exception) -> bool:
    """Tools that meet a full disk do not all say so: some die of the file they could not write."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    with suppress(OSError):
        return shutil.disk_usage(folder).free < _NO_ROOM_BYTES
    return False
