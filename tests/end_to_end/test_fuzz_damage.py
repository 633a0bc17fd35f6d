"""Damaged checkpoints: each gives one clear line, takes no memory and leaves nothing behind."""

import json
import random
import resource
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from exporter.cli.command import main
from runtime_py.terminal.printable import one_line
from tests.end_to_end.fuzz import Case, draw_case, save_case
from tests.end_to_end.fuzz_damage import DAMAGES
from tests.exporter.tiny_models import E2B, UNIFIED_12B

NUM_DAMAGED = 160  # ten of every kind
NUM_QUICK = len(DAMAGES)
MAX_GROWTH_BYTES = 400 << 20


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> list[Path]:
    """Two good pairs, one of them in shards, with everything that an export asks for."""
    folders = []
    for shape, sharded in ((E2B, False), (UNIFIED_12B, True)):
        folder = tmp_path_factory.mktemp("pair")
        case = draw_case(0)
        save_case(Case(shape, False, case.dtype, sharded, True, 7), folder)
        template = "{% for message in messages %}{{ message.content }} {% endfor %}"
        (folder / "target" / "chat_template.jinja").write_text(template)
        folders.append(folder)
    return folders


def export(folder: Path) -> tuple[int, str, BaseException | None]:
    """gemma-export on the pair in a folder: exit code, stderr, what broke through."""
    arguments = {
        "--target": "desktop",
        "--model": folder / "target",
        "--drafter": folder / "drafter",
        "--prompts": folder / "prompts.jsonl",
        "--runtime": "onnx",
        "--quantize": "float32",
        "--context": 96,
        "--output": folder / "bundle",
    }
    options = [str(word) for pair in arguments.items() for word in pair]
    result = CliRunner().invoke(main, [*options, "--no-check"], prog_name="gemma-export")
    broke = None if isinstance(result.exception, SystemExit) else result.exception
    return result.exit_code, result.stderr, broke


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(
            seed,
            id=f"{DAMAGES[seed % len(DAMAGES)].__name__}-{seed}",
            marks=[pytest.mark.slow] if seed >= NUM_QUICK else [],
        )
        for seed in range(NUM_DAMAGED)
    ],
)
def test_a_damaged_pair(pairs, tmp_path, seed):
    draw = random.Random(seed)
    folder = Path(shutil.copytree(draw.choice(pairs), tmp_path / "pair", symlinks=True))
    did = DAMAGES[seed % len(DAMAGES)](draw, folder)
    before = sorted(path.name for path in folder.iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, said, broke = export(folder)
    assert broke is None, (did, broke)
    assert code == 1, (did, said)
    errors = [line for line in said.splitlines() if line.startswith("gemma-export: error: ")]
    assert len(errors) == 1, (did, said)
    assert said.splitlines()[-1] == errors[0]
    assert one_line(errors[0]) == errors[0]
    assert len(errors[0]) < 700, (did, errors[0])
    assert "Traceback" not in said
    assert sorted(path.name for path in folder.iterdir()) == before, did
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    assert growth < MAX_GROWTH_BYTES, (did, growth)


def test_the_good_pairs_are_good(pairs):
    """Else every damage would be found for nothing."""
    from exporter.checkpoint.reader import read_checkpoint, read_drafter
    from exporter.text.files import read_text_files

    for folder in pairs:
        target = read_checkpoint(folder / "target")
        assert read_drafter(folder / "drafter", target).names()
        assert read_text_files(folder / "target").chat_template
        assert json.loads((folder / "target" / "config.json").read_text())
