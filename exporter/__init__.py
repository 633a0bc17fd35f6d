"""gemma-export: Gemma 4 and its MTP drafters for devices."""

import os

# By default OpenMP's threads wait for each other in a busy loop: beside any other process, two of
# them took 25 times as long as one. The setting must stand before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
