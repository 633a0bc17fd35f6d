"""The small pair on a hub on loopback: see the fixtures `server` and `hub`."""

import hashlib
from pathlib import Path

import pytest

from exporter.config import HubModel
from exporter.errors import ExportError
from exporter.hub.snapshot import Hub, fetch
from exporter.progress import no_bar
from runtime_py.terminal.printable import one_line
from tests.exporter.hub.fake_hub import FakeHub

TARGET, DRAFTER = HubModel("maker/target"), HubModel("maker/drafter")
WEIGHTS = "model.safetensors"


def error_of(*models: HubModel, hub: Hub) -> str:
    """What fetch says against them, which must be one short line."""
    with pytest.raises(ExportError) as caught:
        fetch(models, no_bar, hub)
    message = str(caught.value)
    assert one_line(message) == message
    assert len(message) < 500
    return message


def blob_of(server: FakeHub, hub: Hub, model: HubModel = TARGET) -> Path:
    """Where the weights lie in the cache."""
    content = server.repositories[model.repo].files[WEIGHTS]
    return hub.storage(model) / "blobs" / hashlib.sha256(content).hexdigest()
