"""The picture of a run of `load.py` as SVG: turns a second, latencies and memory over time, kills as red lines."""

import math
from collections.abc import Iterator, Sequence
from html import escape

import msgspec
from load_figures import Series

__all__ = ["plot"]

WIDTH, HEIGHT = 1000, 200
LEFT, TOP, GAP = 70, 40, 50

Points = Sequence[tuple[float, float]]


class Panel(msgspec.Struct, frozen=True):
    """One diagram: a name, and by label what to draw."""

    name: str
    lines: dict[str, Points]
    logarithmic: bool = False


def plot(series: Series, *, title: str) -> str:
    """An SVG document."""
    moments = list(series)
    talked = [(at_s, moment.latencies) for at_s, moment in moments if moment.latencies.count]
    panels = [
        Panel("turns/s", {"acknowledged": [(at_s, each.latencies.count / series.step_s) for at_s, each in moments]}),
        Panel(
            "latency (ms)",
            {
                "p50": [(at_s, latencies.percentile_ms(50)) for at_s, latencies in talked],
                "p99": [(at_s, latencies.percentile_ms(99)) for at_s, latencies in talked],
                "max": [(at_s, latencies.max_ms) for at_s, latencies in talked],
            },
            logarithmic=True,
        ),
        Panel("memory (MB)", {"worker": [(at, m.anonymous_bytes / 2**20) for at, m in moments if m.anonymous_bytes]}),
    ]
    end_s = max(len(moments), 1) * series.step_s
    kills = [at_s for at_s, moment in moments if moment.kills]
    height = TOP + len(panels) * (HEIGHT + GAP)
    drawn = "\n".join(
        part for place, panel in enumerate(panels) for part in _draw(panel, TOP + place * (HEIGHT + GAP), end_s, kills)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>\n{drawn}\n</svg>\n'
    )


def _draw(panel: Panel, top: int, end_s: float, kills: Sequence[float]) -> Iterator[str]:
    values = [value for points in panel.lines.values() for _, value in points] or [1.0]
    low, high = (min(values) or 1.0, max(values)) if panel.logarithmic else (0.0, max(values) or 1.0)
    high = max(high, low * 1.1)

    def at(at_s: float, value: float) -> str:
        share = math.log(max(value, low) / low) / math.log(high / low) if panel.logarithmic else value / high
        return f"{LEFT + at_s / end_s * WIDTH:.1f},{top + HEIGHT - share * HEIGHT:.1f}"

    yield f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>'
    for kill_s in kills:
        x = LEFT + kill_s / end_s * WIDTH
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + HEIGHT}" stroke="#d00" stroke-width="0.4"/>'
    for place, (label, points) in enumerate(panel.lines.items()):
        color = ("#06c", "#e80", "#999")[place]
        yield f'<polyline fill="none" stroke="{color}" points="{" ".join(at(*point) for point in points)}"/>'
        yield f'<text x="{LEFT + 110 + 60 * place}" y="{top - 6}" fill="{color}">{label}</text>'
    yield f'<text x="{LEFT}" y="{top - 6}">{panel.name}</text>'
    yield f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{high:,.0f}</text>'
    yield f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">{low:,.0f}</text>'
    yield f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 16}" text-anchor="end">{end_s:,.0f} s</text>'
