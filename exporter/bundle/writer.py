"""Write a bundle's files besides the runtimes' graphs; the manifest comes last."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from exporter.text.files import TextFiles, token_entry
from runtime_py.bundle.manifest import (
    FORMAT_MAJOR,
    FORMAT_MINOR,
    Manifest,
    ModelEntry,
    RuntimeEntry,
    RuntimeName,
    file_entry,
    write_manifest,
)
from runtime_py.bundle.reference import Reference, write_reference

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "webpage"  # index.html, and web/ with its modules
_TOOLS = ("gemma-export", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """Everything in a bundle besides the graphs, which are in the folder already."""

    name: str
    device: str
    model: ModelEntry
    text: TextFiles
    special_tokens: Mapping[str, str]
    draft_length: int
    runtimes: Mapping[RuntimeName, RuntimeEntry]
    reference: Reference
    sources: Mapping[str, str]  # of downloaded models


def add_page(folder: Path) -> None:
    """Add the page that runs the bundle's LiteRT graphs in a browser."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)


def write_bundle(folder: Path, contents: BundleContents) -> Manifest:
    """Add tokenizer, chat template, reference and manifest to the folder with the graphs."""
    shutil.copyfile(contents.text.tokenizer, folder / "tokenizer.json")
    template = contents.text.chat_template
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokens = token_entry(contents.text, contents.special_tokens)
    write_reference(folder / "reference.npz", replace(contents.reference, tokens=tokens))
    manifest = Manifest(
        format_version=f"{FORMAT_MAJOR}.{FORMAT_MINOR}",
        name=contents.name,
        device=contents.device,
        made_by={tool: _version(tool) for tool in _TOOLS},
        model=contents.model,
        tokens=tokens,
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
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "source"
