"""Write tests/golden/loop-traces.json anew: python -m tests.golden_traces."""

from tests.golden_traces.record import GOLDEN, record, written

GOLDEN.write_text(written(record()))
