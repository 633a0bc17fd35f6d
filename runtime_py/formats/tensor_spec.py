"""The type and shape of a tensor in a graph file."""

from dataclasses import dataclass

FREE = -1  # a size that each call chooses


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; sizes are FREE or at least 0."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ("?" if size == FREE else str(size) for size in self.shape)
        return f"{self.dtype}[{', '.join(sizes)}]"
