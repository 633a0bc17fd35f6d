"""Keep the scale of rows that are a scale times small integers already."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
# bfloat16 rounds a multiple of a scale, and the number that gives the first guess of the scale, by
# up to a quarter of this each.
TOLERANCE = 2.0**-6
_PROBED_COLUMNS = 4  # enough to rule out nearly every row that is on no grid


def keep_grids(scales: Floats, rows: Floats, bounds: Floats, ends: tuple[int, int]) -> None:
    """Set the scale, in place, of every row that is a scale times integers between `ends`.

    Args:
        scales: [R]; those of other rows stay.
        rows: [R, C].
        bounds: [R] their largest magnitudes, none of them 0.
        ends: the lowest and the highest integer, -8 and 7 for 4 bits.

    Source: the purpose, not the method, is ai-edge-quantizer's dequantized_weight_recovery.
    """
    undecided = np.arange(len(rows))
    probes = rows[:, :_PROBED_COLUMNS]
    for largest in range(1, -ends[0] + 1):  # the integer of the row's largest magnitude
        guesses = bounds[undecided, None] / np.float32(largest)
        likely = _on_grid(probes[undecided], guesses, ends)
        found, guesses = undecided[likely], guesses[likely]
        sure = _on_grid(rows[found], guesses, ends)
        found, guesses = found[sure], guesses[sure]
        # Least squares over the row: the largest number alone was rounded once.
        integers = np.rint(rows[found] / guesses)
        squares = (integers * integers).sum(axis=1)
        some = squares > 0  # else a row of zeros
        scales[found[some]] = (rows[found] * integers).sum(axis=1)[some] / squares[some]
        undecided = np.setdiff1d(undecided, found, assume_unique=True)


def _on_grid(rows: Floats, scales: Floats, ends: tuple[int, int]) -> npt.NDArray[np.bool_]:
    quotients = rows / scales
    integers = np.rint(quotients)
    near = np.abs(quotients - integers) <= TOLERANCE * np.abs(integers)
    fits = near & (integers >= ends[0]) & (integers <= ends[1])
    every: npt.NDArray[np.bool_] = np.logical_and.reduce(fits, axis=1)
    return every
