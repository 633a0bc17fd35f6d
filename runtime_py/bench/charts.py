"""Two kinds of charts as SVG text: stacked bars, and steps over a count."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 40
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_NUM_TICKS = 4  # at least; of the vertical axis


def stacked_bars(
    bars: Mapping[str, Mapping[str, float]],
    unit: str,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """One bar for each label, made of its series one above the other.

    Args:
        bars: label -> series -> value, 0 or more.
        unit: of the values, written beside the axis.
        ranges: label -> smallest and largest, drawn as a line over the bar.
    """
    totals = [sum(parts.values()) for parts in bars.values()]
    highest = max([*totals, *(high for _, high in (ranges or {}).values()), 0.0])
    scale = _Scale(highest)
    series = list(dict.fromkeys(name for parts in bars.values() for name in parts))
    pitch = _PLOT_WIDTH / max(1, len(bars))
    drawn = [scale.axis(unit)]
    for index, (label, parts) in enumerate(bars.items()):
        x, bottom = LEFT + pitch * index, 0.0
        width = min(0.64 * pitch, 64)
        left = x + (pitch - width) / 2
        for name, value in parts.items():
            y, base = scale.y(bottom + value), scale.y(bottom)
            drawn.append(
                f'<rect class="s{series.index(name)}" x="{left:.1f}" y="{y:.1f}" '
                f'width="{width:.1f}" height="{base - y:.1f}">'
                f"<title>{escape(f'{label}, {name}: {value:.4g} {unit}')}</title></rect>"
            )
            bottom += value
        if ranges and label in ranges:
            low, high = (scale.y(value) for value in ranges[label])
            middle = x + pitch / 2
            drawn.append(
                f'<path class="range" d="M{middle:.1f} {low:.1f}V{high:.1f}'
                f'M{middle - 5:.1f} {low:.1f}h10M{middle - 5:.1f} {high:.1f}h10"/>'
            )
        drawn.append(_text(x + pitch / 2, HEIGHT - BOTTOM + 16, label, "middle"))
    return _svg(drawn, unit) + (_legend(series) if len(series) > 1 else "")


def steps(lines: Mapping[str, Sequence[int]], horizontal: str, vertical: str) -> str:
    """Whole numbers over 0, 1, 2 ...; one panel for each line, one above the other."""
    length = max((len(values) for values in lines.values()), default=0)
    highest = max((value for values in lines.values() for value in values), default=0)
    panel = 12.0 * max(2, highest) + 18
    height = TOP + panel * len(lines) + BOTTOM
    pitch = _PLOT_WIDTH / max(1, length)
    drawn = []
    for index, (name, values) in enumerate(lines.items()):
        base = TOP + panel * (index + 1) - 4
        unit = (panel - 18) / max(1, highest)
        for tick in (0, highest):
            y = base - unit * tick
            drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            drawn.append(_text(LEFT - 6, y + 4, str(tick), "end"))
        points = [
            f"V{base - unit * value:.1f}H{LEFT + pitch * (token + 1):.1f}"
            for token, value in enumerate(values)
        ]
        start = f"M{LEFT} {base - unit * (values[0] if values else 0):.1f}"
        drawn.append(
            f'<path class="line" d="{start}{"".join(points)}"><title>{escape(name)}</title></path>'
        )
    drawn.append(_text(LEFT, height - BOTTOM + 16, "0", "middle"))
    drawn.append(_text(WIDTH - RIGHT, height - BOTTOM + 16, str(length), "end"))
    drawn.append(_text(LEFT + _PLOT_WIDTH / 2, height - BOTTOM + 30, horizontal, "middle"))
    return _svg(drawn, vertical, height)


class _Scale:
    """Values to heights, with round numbers on the axis."""

    def __init__(self, highest: float) -> None:
        rough = (highest or 1.0) / _NUM_TICKS
        power = 10.0 ** floor(log10(rough))
        self._tick = power * max(step for step in (1, 2, 5) if step * power <= rough * 1.000001)
        self._top = max(highest, self._tick)

    def y(self, value: float) -> float:
        return TOP + _PLOT_HEIGHT * (1 - value / self._top)

    def axis(self, unit: str) -> str:
        drawn, number = [], 0
        while (value := number * self._tick) <= self._top * 1.000001:
            y = self.y(value)
            drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            drawn.append(_text(LEFT - 6, y + 4, f"{value:.4g}", "end"))
            number += 1
        drawn.append(_text(4, TOP - 3, unit, "start"))
        return "".join(drawn)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(drawn: Sequence[str], label: str, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def _legend(series: Sequence[str]) -> str:
    items = (
        f'<span><i class="s{index}"></i>{escape(name)}</span>' for index, name in enumerate(series)
    )
    return f'<p class="legend">{"".join(items)}</p>'
