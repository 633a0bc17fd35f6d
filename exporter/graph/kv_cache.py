"""The seam between the graph and a runtime's state: the KV rows.

Each lowering has its own implementation; tests/exporter/graph/tensor_cache.py is the plain one that
they are compared with.
"""

from typing import Protocol

from torch import Tensor


class KVCache(Protocol):
    """Rows that the target writes and the drafter reads. `layer` is always a target layer."""

    def write(self, layer: int, keys: Tensor, values: Tensor, input_pos: Tensor) -> None:
        """Store keys and values [1, T, G, E] at the consecutive rows input_pos [T]."""

    def attend(self, layer: int, queries: Tensor, mask: Tensor | None) -> Tensor:
        """Queries [1, T, H, E] over the rows -> [1, T, H, E].

        `mask` [1, 1, T, C] is additive; None where the cache itself knows what is visible.
        """
