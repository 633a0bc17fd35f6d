"""A tool of another release is refused by name, before anything is lowered."""

import pytest

from exporter.errors import ExportError
from exporter.lower import executorch, litert, versions


@pytest.mark.parametrize("found", ["0.0.1", None])
@pytest.mark.parametrize(
    ("lowering", "needed"),
    [(litert, r"litert-torch==0\.10\.0"), (executorch, r"executorch==1\.5\.1")],
    ids=["litert", "executorch"],
)
def test_other_releases_of_the_tools_are_refused(monkeypatch, lowering, needed, found):
    def version(_package):
        if found is None:
            raise versions.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(versions.metadata, "version", version)
    with pytest.raises(ExportError, match=f"pip install {needed}"):
        lowering.check({})
