"""Find the models that a user named: local folders, or models of a hub, which are downloaded.

Everything that needs no weights is checked before they are downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from exporter.checkpoint.adapter import read_adapter_config
from exporter.checkpoint.config import parse_drafter, parse_target
from exporter.checkpoint.files import read_json
from exporter.checkpoint.kinds import require_folder
from exporter.checkpoint.packed import packed_types
from exporter.config import HubModel, Location, ModelSource
from exporter.hub.snapshot import fetch
from exporter.progress import Bar


@dataclass(frozen=True)
class Folders:
    """Where a target and its drafter lie."""

    target: Path
    drafter: Path | None
    commits: Mapping[str, str]  # "target", "drafter" -> repository@commit, if downloaded


def find_folders(source: ModelSource, bar: Bar) -> Folders:
    """Download the models that are not local folders.

    Raises:
        ExportError: something named is not there, is no checkpoint, or does not fit the rest.
    """
    parts = {"target": source.model, "drafter": source.drafter}
    for where in parts.values():
        if isinstance(where, Path):
            require_folder(where)
    if source.adapter is not None:
        read_adapter_config(source.adapter)
    asked = [where for where in parts.values() if isinstance(where, HubModel)]
    snapshots = fetch(asked, bar, check=partial(_check_pair, source)) if asked else {}
    folders = {model: snapshot.folder for model, snapshot in snapshots.items()}
    return Folders(
        _folder(source.model, folders),
        None if source.drafter is None else _folder(source.drafter, folders),
        {
            part: f"{where.repo}@{snapshots[where].commit}"
            for part, where in parts.items()
            if isinstance(where, HubModel)
        },
    )


def _folder(where: Location, folders: Mapping[HubModel, Path]) -> Path:
    return folders[where] if isinstance(where, HubModel) else where


def _check_pair(source: ModelSource, folders: Mapping[HubModel, Path]) -> None:
    """Refuse models that are not Gemma 4, or are stored in an unsupported way."""
    config, named = _config(source.model, folders)
    spec = parse_target(config, named)
    packed_types(config, named)
    if source.drafter is not None:
        config, named = _config(source.drafter, folders)
        parse_drafter(config, named, spec)
        packed_types(config, named)


def _config(where: Location, folders: Mapping[HubModel, Path]) -> tuple[dict[str, Any], str]:
    """The object in config.json, and its name for errors."""
    path = _folder(where, folders) / "config.json"
    named = f"{where}: config.json" if isinstance(where, HubModel) else str(path)
    return read_json(path), named
