"""The chart: an SVG of how many times longer the peers' training steps take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from upconv.bench.layers import TIMES, LayerSpec
from upconv.bench.measuring import Results, Row
from upconv.bench.peers import ELSEWHERE, ON_JAX
from upconv.bench.report import number
from upconv.bench.results import best, ratios

TITLE = "Time of a training step, in multiples of upconv's"
SCALE = f"logarithmic scale; left of 1{TIMES}: faster than upconv"
# There is no background: these tones are legible on white and on black.
TEXT = "#76808c"
COLORS = {ON_JAX: "#2f81f7", ELSEWHERE: "#d2691e"}
FONTS = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
NAMES = {"torch_channels_last": "torch", "keras": "keras (jax)"}
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 800, 236, 118, 64, 11, 12


class Family(NamedTuple):
    """Peers of one color; of each layer, the fastest of them is drawn.

    Attributes:
      peers: all of them, be they measured or not.
      color: of their bars.
      ratios: by layer, the fastest one's time over ours.
    """

    peers: Sequence[str]
    color: str
    ratios: dict[str, float]


class Scale(NamedTuple):
    """A logarithmic scale from `low` at the left to `high` at the right."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """The x of a value."""
        width = (WIDTH - LEFT - RIGHT) / math.log(self.high / self.low)
        return LEFT + width * math.log(value / self.low)

    def ticks(self) -> list[float]:
        """The values that get a line."""
        steps = (m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5))
        return [tick for tick in steps if self.low <= tick <= self.high]


def draw(results: Results, layers: Mapping[str, LayerSpec], subtitle: str) -> str:
    """An SVG: for each layer, the training step of each family's fastest peer over ours.

    Bars start at 1×, our own time, on a logarithmic scale.
    """
    families = _families(results)
    values = [value for family in families for value in family.ratios.values()]
    scale = Scale(min([0.5, *values]), max([2.0, *values]))
    pitch = BAR * max(len(families), 2) + GAP
    bottom = TOP + pitch * len(results)
    parts = [*_axis(scale, bottom, pitch)]
    for row, (name, rows) in enumerate(results.items()):
        top, height = TOP + pitch * row + GAP / 2, pitch - GAP
        parts += _labels(name, str(layers[name]), top + height / 2)
        parts += _bars(name, rows, families, scale, top)
    parts += _legend(families, results)
    return _document(parts, subtitle, bottom + 38)


def conditions(report: Mapping[str, Any]) -> str:
    """A subtitle: the dtype, the device and the version of jax that a report was made with."""
    env = report["environment"]
    device = f"{env['cpu']}, {env['cores']} cores" if env["device"] == "cpu" else env["device"]
    return f"{report['dtype']}, {device}, jax {env['versions']['jax']}"


def _families(results: Results) -> list[Family]:
    """Those of which anyone was measured."""
    families = (
        Family(peers, color, ratios(results, "step_ms", peers)) for peers, color in COLORS.items()
    )
    return [family for family in families if family.ratios]


def _axis(scale: Scale, bottom: float, pitch: float) -> Iterator[str]:
    for tick in scale.ticks():
        x = scale.place(tick)
        # The other lines stop at every layer, where they would cross its labels.
        dashes = "" if tick == 1 else f"{GAP} {pitch - GAP}"
        yield _line(x, TOP - GAP / 2, bottom + GAP / 2, 1 if tick == 1 else 0.5, dashes)
        yield _text(x, bottom + 18, f"{tick:g}{TIMES}", "middle")
    yield _text((LEFT + WIDTH - RIGHT) / 2, bottom + 32, SCALE, "middle", size=9.5)


def _labels(name: str, sizes: str, middle: float) -> Iterator[str]:
    yield _text(LEFT - 12, middle - 2, name, "end", "bold")
    yield _text(LEFT - 12, middle + 10, sizes, "end", size=9.5)


def _bars(
    layer: str, rows: Mapping[str, Row], families: Sequence[Family], scale: Scale, top: float
) -> Iterator[str]:
    for index, (peers, color, found) in enumerate(families):
        if layer in found:
            peer = best(rows, "step_ms", peers) or ""
            label = f"{number(found[layer], TIMES)}  {NAMES.get(peer, peer)}"
            end = scale.place(found[layer])
            yield _bar(scale.place(1), end, top + index * BAR, color, label)


def _legend(families: Sequence[Family], results: Results) -> Iterator[str]:
    for index, (peers, color, _) in enumerate(families):
        there = dict.fromkeys(
            NAMES.get(p, p) for p in peers if any(p in rows for rows in results.values())
        )
        x = LEFT + index * 250
        yield f'<rect x="{x}" y="40" width="10" height="10" fill="{color}"/>'
        yield _text(x + 16, 49, f"fastest of {', '.join(there)}")


def _document(parts: Sequence[str], subtitle: str, height: float) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
            f'  width="{WIDTH}" height="{height}" role="img" fill="{TEXT}"',
            f'  font-family="{FONTS}">',
            f"<title>{escape(TITLE)}, by layer; {escape(subtitle)}</title>",
            _text(LEFT, 16, TITLE, weight="bold", size=14),
            _text(LEFT, 31, subtitle, size=9.5),
            *parts,
            "</svg>\n",
        ]
    )


def _text(
    x: float, y: float, words: str, anchor: str = "start", weight: str = "normal", size: float = 11
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-size="{size}">{escape(words)}</text>'
    )


def _line(x: float, top: float, bottom: float, opacity: float, dashes: str) -> str:
    ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom:g}"'
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line {ends} stroke="{TEXT}" stroke-opacity="{opacity}"{dashed}/>'


def _bar(start: float, end: float, y: float, color: str, label: str) -> str:
    left, right = sorted((start, end))
    return (
        f'<rect x="{left:.1f}" y="{y + 1:.1f}" width="{right - left:.1f}" height="{BAR - 2}" '
        f'fill="{color}"/>' + _text(right + 5, y + BAR - 2, label, size=9.5)
    )
