"""Two kinds of charts as SVG text: stacked bars, and steps over a count.

They are drawn narrow, so that their text can be read on a phone, where they fill the screen.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

WIDTH = 400
LEFT, RIGHT, TOP, BOTTOM = 92, 16, 6, 42
ROW = 28  # height of a bar with its margins
PANEL = 18  # height of a panel's margins
_PLOT_WIDTH = WIDTH - LEFT - RIGHT
_NUM_TICKS = 3  # at least, on the horizontal axis
_STEP_LEFT = 34  # numbers need less room than names


def stacked_bars(
    bars: Mapping[str, Mapping[str, float]],
    unit: str,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """One horizontal bar for each label, made of its series one after the other.

    Args:
        bars: label -> series -> value, 0 or more.
        unit: of the values, written below the axis.
        ranges: label -> smallest and largest, drawn as a line over the bar.
    """
    totals = [sum(parts.values()) for parts in bars.values()]
    highest = max([*totals, *(high for _, high in (ranges or {}).values()), 0.0])
    bottom = TOP + ROW * len(bars)
    scale = _Scale(highest)
    series = list(dict.fromkeys(name for parts in bars.values() for name in parts))
    drawn = [scale.axis(unit, bottom)]
    for index, (label, parts) in enumerate(bars.items()):
        top, start = TOP + ROW * index, 0.0
        for name, value in parts.items():
            x, end = scale.x(start), scale.x(start + value)
            drawn.append(
                f'<rect class="s{series.index(name)}" x="{x:.1f}" y="{top + 4}" '
                f'width="{end - x:.1f}" height="{ROW - 8}">'
                f"<title>{escape(f'{label}, {name}: {value:.4g} {unit}')}</title></rect>"
            )
            start += value
        middle = top + ROW / 2
        if ranges and label in ranges:
            low, high = (scale.x(value) for value in ranges[label])
            drawn.append(
                f'<path class="range" d="M{low:.1f} {middle:.1f}H{high:.1f}'
                f'M{low:.1f} {middle - 5:.1f}v10M{high:.1f} {middle - 5:.1f}v10"/>'
            )
        drawn.append(_text(LEFT - 6, middle + 4, label, "end"))
    return _svg(drawn, unit, bottom + BOTTOM) + (_legend(series) if len(series) > 1 else "")


def steps(lines: Mapping[str, Sequence[int]], horizontal: str, vertical: str) -> str:
    """Whole numbers over 0, 1, 2 ...; one panel for each line, one above the other."""
    length = max((len(values) for values in lines.values()), default=0)
    highest = max((value for values in lines.values() for value in values), default=0)
    panel = 12.0 * max(2, highest) + PANEL
    height = TOP + panel * len(lines) + BOTTOM
    left, right = _STEP_LEFT, WIDTH - RIGHT
    pitch = (right - left) / max(1, length)
    drawn = []
    for index, (name, values) in enumerate(lines.items()):
        base = TOP + panel * (index + 1) - 4
        unit = (panel - PANEL) / max(1, highest)
        for tick in (0, highest):
            y = base - unit * tick
            drawn.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
            drawn.append(_text(left - 6, y + 4, str(tick), "end"))
        points = [
            f"V{base - unit * value:.1f}H{left + pitch * (token + 1):.1f}"
            for token, value in enumerate(values)
        ]
        start = f"M{left} {base - unit * (values[0] if values else 0):.1f}"
        drawn.append(
            f'<path class="line" d="{start}{"".join(points)}"><title>{escape(name)}</title></path>'
        )
    drawn.append(_text(left, height - BOTTOM + 16, "0", "middle"))
    drawn.append(_text(right, height - BOTTOM + 16, str(length), "end"))
    drawn.append(_text((left + right) / 2, height - BOTTOM + 32, horizontal, "middle"))
    return _svg(drawn, vertical, height)


class _Scale:
    """Maps values to x coordinates, with round numbers on the axis."""

    def __init__(self, highest: float) -> None:
        rough = (highest or 1.0) / _NUM_TICKS
        power = 10.0 ** floor(log10(rough))
        self._tick = power * max(step for step in (1, 2, 5) if step * power <= rough * 1.000001)
        self._end = max(highest, self._tick)

    def x(self, value: float) -> float:
        return LEFT + _PLOT_WIDTH * value / self._end

    def axis(self, unit: str, bottom: float) -> str:
        drawn, number = [], 0
        while (value := number * self._tick) <= self._end * 1.000001:
            x = self.x(value)
            drawn.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
            drawn.append(_text(x, bottom + 16, f"{value:.4g}", "middle"))
            number += 1
        drawn.append(_text(LEFT + _PLOT_WIDTH / 2, bottom + 34, unit, "middle"))
        return "".join(drawn)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(drawn: Sequence[str], label: str, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def _legend(series: Sequence[str]) -> str:
    items = (
        f'<span><i class="s{index}"></i>{escape(name)}</span>' for index, name in enumerate(series)
    )
    return f'<p class="legend">{"".join(items)}</p>'
