"""gemma-export: Gemma 4 and its MTP drafters for devices."""

import os

# OpenMP's threads wait for each other busily, unless told otherwise before torch is loaded: beside
# any other process two of them took 25 times as long as one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
