"""The KV rows of transformers' model while texts grow, written in place."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64  # rows allocated at once


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """transformers' own layer of all rows, but for how it appends.

    Concatenating would copy every row for every token, into blocks each a little larger than the
    one before: the holes they leave grow to hundreds of megabytes.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [states[:, :, :0] for states in (key_states, value_states)]
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        for index, states in enumerate((key_states, value_states)):
            if self._rooms[index].shape[2] < stop:
                self._rooms[index] = _enlarged(self._rooms[index], stop + ROOM)
            self._rooms[index][:, :, start:stop] = states
        self.keys, self.values = (room[:, :, :stop] for room in self._rooms)
        return self.keys, self.values


def growing_cache() -> Cache:
    """For any number of layers; none drops rows that have left a window."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def _enlarged(rows: Tensor, length: int) -> Tensor:
    larger = rows.new_zeros((*rows.shape[:2], length, rows.shape[3]))
    larger[:, :, : rows.shape[2]] = rows
    return larger
