"""Draws how long a transposed convolution's output is: one axis, from `upconv.geometry` itself.

    python docs/sizes.py          # writes docs/images/sizes_*.svg

A drawing has, from above, the input pixels; the taps of the kernel that each of them multiplies,
where they land in the full output; and the output, every pixel with the number of products that it
sums, the cropped ones beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from upconv import geometry
from upconv.geometry import Geometry

IMAGES = Path(__file__).parent / "images"

CELL = 34  # of a pixel, in px
MIDDLE = CELL * 0.6  # from the top of a cell to the baseline of its text
LEFT = 96  # of column 0 of the full output
WIDTH = 500
GREY, BLUE, ORANGE = "#76808c", "#3b82f6", "#d97706"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What one picture shows.

    Attributes:
      n: input length.
      k: kernel length.
      options: arguments of `upconv.conv_transpose`, and a row of output for each of them.
    """

    n: int
    k: int
    options: Sequence[dict[str, Any]]

    def geometries(self) -> list[Geometry]:
        """One for each row of output."""
        return [geometry.transposed((self.n,), (self.k,), **options) for options in self.options]


DRAWINGS = {
    "valid": Drawing(4, 3, [{"strides": 2}]),
    "same": Drawing(4, 5, [{"strides": 2, "padding": "same"}]),
    "output_padding": Drawing(
        4,
        3,
        [
            {"strides": 2, "padding": 1, "output_padding": 0},
            {"strides": 2, "padding": 1, "output_padding": 1},
            {"strides": 2, "padding": 0, "output_padding": 1},
        ],
    ),
    "dilation": Drawing(4, 3, [{"strides": 2, "dilation_rate": 2}]),
}


def landings(g: Geometry) -> list[list[int]]:
    """For each input pixel, where in the full output its products land."""
    (n,), (k,), (s,), (d,) = g.input_size, g.kernel_size, g.strides, g.dilation_rate
    return [[i * s + t * d for t in range(k)] for i in range(n)]


def products(g: Geometry) -> list[int]:
    """How many products each output pixel sums.

    >>> products(geometry.transposed((4,), (3,), strides=2))
    [1, 1, 2, 1, 2, 1, 2, 1, 1]
    """
    landed = [place - g.crop[0] for places in landings(g) for place in places]
    return [landed.count(j) for j in range(g.output_size[0])]


def svg(drawing: Drawing) -> str:
    """The picture, in colours for light and dark pages alike."""
    geometries = drawing.geometries()
    g = geometries[0]
    y_outputs = CELL * (g.input_size[0] + 2) + 20
    height = y_outputs + len(geometries) * (CELL + 28) - 24
    K, F = g.span[0], g.full_size[0]
    body = [*_inputs(g), *_taps(g)]
    for row, (h, options) in enumerate(zip(geometries, drawing.options, strict=True)):
        body += _output(h, options, y_outputs + row * (CELL + 28))
    lines = ", ".join(f"{k}={v!r}" for k, v in drawing.options[0].items())
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" fill="{GREY}" font-size="12" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
    )
    title = f"<title>{drawing.n} pixels, {drawing.k} taps, {lines}: K = {K}, F = {F}</title>"
    return "\n".join([head, title, *body, "</svg>\n"])


def _inputs(g: Geometry) -> Iterator[str]:
    """Every input pixel, above the first of its taps."""
    yield _text(LEFT - 12, 4 + MIDDLE, f"x: n = {g.input_size[0]}", "end")
    for i, places in enumerate(landings(g)):
        yield _cell(places[0], 4, BLUE, f"x{i}", opacity=0.85, ink="white")


def _taps(g: Geometry) -> Iterator[str]:
    """A row for each input pixel: its products, with what dilation leaves out between them."""
    said = f"K = {g.span[0]}, stride {g.strides[0]}"
    said += f", dilation {g.dilation_rate[0]}" if g.dilation_rate != (1,) else ""
    # In front of the last row, where there is room.
    yield _text(LEFT, CELL * (g.input_size[0] + 0.25) + MIDDLE, said, "start")
    for i, places in enumerate(landings(g)):
        y = CELL * (i + 1.25)
        for column in range(places[0], places[-1] + 1):
            t = places.index(column) if column in places else None
            text = "" if t is None else f"w{t}"
            yield _cell(column, y, BLUE, text, opacity=0 if t is None else 0.22)


def _output(g: Geometry, options: dict[str, Any], y: float) -> Iterator[str]:
    """A row of output: kept pixels with their number of products, cropped ones crossed out."""
    lo, out, full = g.crop[0], g.output_size[0], g.full_size[0]
    rest = {k: v for k, v in options.items() if k not in ("strides", "dilation_rate")}
    shown = ", ".join(f"{k}={v!r}" for k, v in rest.items()) or "padding='valid'"
    crop, zeros = (lo, max(full - lo - out, 0)), max(lo + out - full, 0)
    said = f"F = {full}, crop {crop[0]} and {crop[1]}" if any(crop) else f"F = {full}"
    said += f", {zeros} zero" if zeros else ""
    yield _text(LEFT, y - 6, _escape(f"{shown}: {said}, output {out}"), "start")
    yield _text(LEFT - 12, y + MIDDLE, f"y: {out}", "end")
    counts = products(g)
    for column in range(max(full, lo + out)):
        if not lo <= column < lo + out:
            yield _cell(column, y, GREY, "×", opacity=0.08, dash=True)  # noqa: RUF001
        else:
            count = counts[column - lo]
            yield _cell(column, y, ORANGE, str(count), opacity=0.18 * count, dash=not count)


def _cell(
    column: int,
    y: float,
    colour: str,
    text: str,
    *,
    opacity: float,
    ink: str = GREY,
    dash: bool = False,
) -> str:
    x = LEFT + column * CELL
    dashes = ' stroke-dasharray="3 3"' if dash or not opacity else ""
    side = CELL - 2
    square = (
        f'<rect x="{x + 1}" y="{y:g}" width="{side}" height="{side}" rx="3" fill="{colour}" '
        f'fill-opacity="{opacity:g}" stroke="{colour}" stroke-opacity="0.6"{dashes}/>'
    )
    return square + _text(x + CELL / 2, y + MIDDLE, text, "middle", ink) if text else square


def _text(x: float, y: float, text: str, anchor: str, ink: str = GREY) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{ink}">{text}</text>'


def _escape(text: str) -> str:
    return text.replace("'", "&quot;")


if __name__ == "__main__":
    for name, drawing in DRAWINGS.items():
        (IMAGES / f"sizes_{name}.svg").write_text(svg(drawing))
