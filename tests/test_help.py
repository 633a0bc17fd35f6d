"""The help texts are part of the product: a change of theirs is seen in review."""

import pytest
from click.testing import CliRunner

import exporter.cli
import runtime_py.cli


@pytest.mark.parametrize(
    ("program", "command", "arguments"),
    [
        ("gemma-export", exporter.cli.main, []),
        ("gemma-run", runtime_py.cli.main, []),
        *(
            ("gemma-run", runtime_py.cli.main, [name])
            for name in ("check", "generate", "chat", "bench")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) if value else None,
)
def test_help(snapshot, monkeypatch, program, command, arguments):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    result = CliRunner().invoke(
        command, [*arguments, "--help"], prog_name=program, terminal_width=90
    )
    assert result.exit_code == 0
    assert result.output == snapshot
