"""Make ``models/gemma4-tiny/train`` importable as ``train``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "models" / "gemma4-tiny"))
