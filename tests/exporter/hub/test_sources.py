"""What is refused before the weights come from a hub."""

from functools import partial

import pytest

from exporter.config import ModelSource
from exporter.hub.snapshot import fetch
from exporter.hub.sources import find_folders
from exporter.progress import no_bar
from tests.exporter.damage import edit_config, error_of
from tests.exporter.hub.fake_hub import COMMIT
from tests.exporter.published import DRAFTER, TARGET


@pytest.fixture(autouse=True)
def _asked(hub, monkeypatch):
    monkeypatch.setattr("exporter.hub.sources.fetch", partial(fetch, hub=hub))


def source(model=TARGET, drafter=DRAFTER, **more):
    return ModelSource(name="mine", model=model, drafter=drafter, **more)


def publish(server, target, drafter):
    server.add(TARGET.repo, target)
    server.add(DRAFTER.repo, drafter)


def test_a_pair(server, target, drafter):
    publish(server, target, drafter)
    found = find_folders(source(), no_bar)
    assert found.commits == {part: f"maker/{part}@{COMMIT}" for part in ("target", "drafter")}
    assert (found.target / "model.safetensors").is_file()
    here = find_folders(source(model=target), no_bar)
    assert (here.target, list(here.commits)) == (target, ["drafter"])


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("target", {"model_type": "llama"}, "maker/target: config.json: model_type 'llama'"),
        ("target", {"quantization": {"group_size": 64, "bits": 4}}, "quantized by MLX"),
        ("drafter", {"model_type": "gemma4"}, "maker/drafter: config.json: model_type gemma4"),
        ("drafter", {"backbone_hidden_size": 64}, "use the drafter made for this target"),
    ],
)
def test_a_config_that_cannot_be(server, target, drafter, part, changes, said):
    edit_config({"target": target, "drafter": drafter}[part], **changes)
    publish(server, target, drafter)
    assert said in error_of(find_folders, source(), no_bar)
    assert not [request for request in server.requests if request.host == server.storage_url]


def test_a_folder_that_does_not_fit_the_hubs_drafter(server, target, drafter):
    publish(server, target, drafter)
    edit_config(target, vocab_size=66, vocab_size_per_layer_input=66)
    assert "--no-drafter" in error_of(find_folders, source(model=target), no_bar)
    assert not [request for request in server.requests if request.host == server.storage_url]


def test_what_is_missing_here_is_said_before_a_hub_is_asked(server, target, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert "no such folder" in error_of(find_folders, source(model=nowhere), no_bar)
    assert "no such folder" in error_of(find_folders, source(drafter=nowhere), no_bar)
    assert "no such folder" in error_of(find_folders, source(model=target, adapter=nowhere), no_bar)
    assert not server.requests
