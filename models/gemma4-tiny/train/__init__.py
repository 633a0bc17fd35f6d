"""How gemma4-tiny was made; ``python -m train --help`` in the folder above."""
