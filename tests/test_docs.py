"""The pages: made from what they tell of, and everything public is described in full."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import griffe
import jax.numpy as jnp
import numpy as np
import pytest
from griffe import DocstringSectionKind
from PIL import Image

import api
import checkerboard
import figures
import sizes
import upconv
from upconv import layer, lowering

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


# ------------------------------------------------------------------ docstrings

OBJECTS = {
    f"{module_name}.{name}": thing
    for module_name, module in api.modules()
    for name, thing in api.objects(module).items()
}

# What can be called with anything of the types that it declares.
RAISES_NOTHING = {
    "upconv.activations.Exponential",
    "upconv.activations.TanhShrink",
    "upconv.constraints.NonNeg",
    "upconv.rules.named_leaves",
}
# Types of variables: they mark, and have nothing of their own to describe.
MARKERS = {"upconv.nnx.Loss", "upconv.nnx.NonTrainable"}


def arguments(name: str) -> set[str]:
    return {p.name for p in api.parameters(OBJECTS[name])}


def described_by(name: str) -> str:
    """Itself, or that of its module to whose description its own refers for its arguments."""
    thing = OBJECTS[name]
    module = name.rpartition(".")[0]
    if not api.described_arguments(thing) and thing.docstring is not None:
        for mentioned in re.findall(r"`(\w+)`", thing.docstring.value.partition("\n\n")[0]):
            other = f"{module}.{mentioned}"
            if other != name and other in OBJECTS and arguments(other) == arguments(name):
                return other
    return name


def test_everything_exported_is_described() -> None:
    """Functions and classes, that is, be they exported a second time at the top."""
    assert {module.name for module in pkgutil.iter_modules(upconv.__path__)} > set(api.INTERNAL)
    shown = {name.split(".")[-1] for name in OBJECTS}
    for name, _ in api.modules():
        module = importlib.import_module(name)
        exported = ((n, getattr(module, n)) for n in module.__all__)
        found = {n for n, thing in exported if inspect.isclass(thing) or inspect.isfunction(thing)}
        assert found <= shown, name


@pytest.mark.parametrize("name", sorted(OBJECTS.keys() - MARKERS))
def test_a_docstring_has_the_sections_that_apply(name: str) -> None:
    thing = OBJECTS[described_by(name)]
    sections = api.sections(thing)
    # linen's modules take a name, which Flax adds to their fields.
    assert api.described_arguments(thing) - {"name"} == arguments(name)
    if isinstance(thing, griffe.Function):
        assert DocstringSectionKind.returns in sections
    raises = DocstringSectionKind.raises in sections
    assert raises == (name not in RAISES_NOTHING), "Raises, or an entry in RAISES_NOTHING"
    assert api.examples(OBJECTS[name]) or api.examples(thing)


@pytest.mark.parametrize("name", sorted(MARKERS))
def test_a_marker_says_what_it_marks(name: str) -> None:
    assert OBJECTS[name].docstring is not None


def test_exceptions_are_of_the_types_that_are_raised() -> None:
    """A list of exceptions names their types alone, so that it can be read by the eye."""
    for name, thing in OBJECTS.items():
        for raised in api.sections(thing).get(DocstringSectionKind.raises, []):
            for entry in raised:
                assert str(entry.annotation) in ("TypeError", "ValueError"), name


# ------------------------------------------------------------------ pages


def test_the_page_of_the_api_is_that_of_the_docstrings() -> None:
    assert (DOCS / "api.md").read_text() == api.page(), "out of date: run `make docs`"


@pytest.mark.parametrize("path", figures.PAGES, ids=lambda path: path.parent.name)
def test_the_tables_of_figures_are_those_of_the_records(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- figures: ") == text.count("<!-- end -->") == len(shown(text)) > 0
    assert text == figures.page(text), "out of date: run `make docs`"


def shown(text: str) -> list[str]:
    return [found[2] for found in figures.BLOCK.finditer(text)]


def test_every_table_of_figures_is_shown_once() -> None:
    names = [name for path in figures.PAGES for name in shown(path.read_text(encoding="utf-8"))]
    assert sorted(names) == sorted(figures.TABLES)


def test_a_figure_is_the_fastest_others_time_over_ours() -> None:
    """From the records themselves, with no help of the bench's."""
    step = {
        name: rows["step_ms"] for name, rows in figures.record("cpu")["results"]["dcgan1"].items()
    }
    ours = step["upconv"]
    jax = min(step[name] for name in ("flax", "lax", "equinox", "keras"))
    others = min(step[name] for name in ("torch", "torch_channels_last", "tensorflow"))
    (line,) = (x for x in figures.TABLES["step"]().splitlines() if x.startswith("| dcgan1 |"))
    cells = line.strip("| ").split(" | ")
    assert cells[1:3] == [f"{ours:.1f}", f"{jax / ours:.1f}"]
    assert cells[5] == f"{others / ours:.3f}"

    rows = [row for row in figures.record("h100")["peers"] if row["layer"] == "dcgan4"]
    flax, cudnn = (
        next(r["step_us"] for r in rows if (r["peer"], r["dtype"]) == (peer, "bfloat16"))
        for peer in ("flax", "convolutions")
    )
    assert figures.on_gpu("bfloat16")["step flax"]["dcgan4"] == flax / cudnn
    assert figures.spread([1.0, 4.0]) == "2.00 (1.00 to 4.00)"


def test_every_id_of_the_api_is_its_own_and_every_link_leads_to_what_it_names() -> None:
    """GitHub knows ids in lower case alone, and goes to the first of those that are the same."""
    text = api.page()
    found = ids(text)
    assert len({i.lower() for i in found}) == len(found)
    named = dict(re.findall(r'^#+ <a id="([^"]+)"></a>`([^`]+)`$', text, flags=re.MULTILINE))
    links = re.findall(r"\[`([^`]+)`\]\(#([^)]+)\)", text)
    assert {anchor for _, anchor in links} == named.keys()
    for name, anchor in links:
        assert named[anchor].split(".")[-1] == name.split(".")[-1], anchor
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= {*found, *map(heading, headings(text))}


def test_a_call_of_a_layer_is_described_like_a_function() -> None:
    layers = [name for name in OBJECTS if re.search(r"\.Conv(\dD)?Transpose$", name)]
    assert len(layers) == 8
    for name in layers:
        called = "\n\n".join(api.members(OBJECTS[name])).partition("**Members**")[0]
        assert "layer(inputs: ArrayLike) -> jax.Array" in called
        for section in ("Arguments", "Returns", "Raises"):
            assert f"**{section}**" in called, name
    assert called in api.page()


def test_every_type_that_a_signature_names_is_explained() -> None:
    found = api.types()
    assert found.keys() == api.MEANINGS.keys()
    assert {"Padding", "Ints", "Initializer", "Regularizer", "Constraint", "Rules"} <= found.keys()
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \| ", api.page(), flags=re.MULTILINE))
    assert rows.keys() == found.keys()
    assert rows["Ints"].replace("\\|", "|") == str(layer.Ints).replace("collections.abc.", "")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_links_to_exists(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        target, _, anchor = link.partition("#")
        if target.startswith("https:"):
            continue
        there = path.parent / target if target else path
        assert there.exists(), link
        if anchor:
            text = there.read_text()
            assert anchor in {*ids(text), *map(heading, headings(text))}, link


def ids(text: str) -> list[str]:
    """Those that are given, rather than made from a heading."""
    return re.findall(r'<a id="([^"]+)">', text)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def heading(text: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, row by row, its head first."""
    found = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]
        for table in found
    ]


def test_the_tables_of_ways_name_what_there_is() -> None:
    """Which map each way is of, and which of them can be asked for."""
    text = (DOCS / "how-it-works.md").read_text()
    (names,) = (t for t in tables(text) if t[0][0].strip() == "`lowering`")
    assert [name for row in names[2:] for name in re.findall(r'"(\w+)"', row[0])] == [
        *lowering.LOWERINGS
    ]
    text = (DOCS / "lowerings.md").read_text()
    (ways,) = (t for t in tables(text) if t[0][0].strip() == "way")
    maps = {"T": lowering.CONV_TRANSPOSE, "C": lowering.CONV, "G": lowering.CORRELATE_KERNEL}
    said = {row[0].strip("` "): row for row in ways[2:]}
    for letter, table in maps.items():
        assert {name for name, row in said.items() if letter in row[1].split(", ")} == {*table}
    can = {name for name, row in said.items() if row[3] == "yes"}
    assert can == {*lowering.LOWERINGS} - {"auto", lowering.REFERENCE}


def test_the_examples_of_how_it_works_are_right() -> None:
    text = (DOCS / "how-it-works.md").read_text()
    blocks = re.findall(r"^```python\n(>>> .*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "how-it-works.md", None, 0)
    assert test.examples
    output: list[str] = []
    runner.run(test, out=output.append)
    assert not runner.failures, "".join(output)


def test_pictures_are_small() -> None:
    pictures = [path for path in (DOCS / "images").iterdir() if path.is_file()]
    assert len(pictures) > 5
    assert all(path.stat().st_size < 100_000 for path in pictures)


# ------------------------------------------------------------------ checkerboards


@pytest.mark.slow
@pytest.mark.parametrize(("column", "steps"), [(1, 0), (2, checkerboard.Config.steps)])
def test_the_table_of_checkerboards_is_what_is_measured(column: int, steps: int) -> None:
    text = (DOCS / "how-it-works.md").read_text()
    (head,) = re.findall(r"^\| energy at period 2 .*$", text, flags=re.MULTILINE)
    assert (f"after {steps} steps" if steps else "at initialization") in head.split("|")[column + 1]
    found = checkerboard.measure(checkerboard.Config(), steps)
    for label, (_, energy) in found.items():
        (row,) = re.findall(rf"^\| {label} \|.*$", text, flags=re.MULTILINE)
        stated = float(row.split("|")[column + 1].removesuffix(" % "))
        assert 100 * energy == pytest.approx(stated, rel=0.05 if steps == 0 else 0.25)
    assert found["4x4, icnr"][1] < 0.2 * min(found["5x5"][1], found["4x4"][1])


@pytest.mark.slow
def test_the_picture_of_checkerboards_has_a_panel_for_everything(tmp_path: Path) -> None:
    path, said = tmp_path / "new" / "picture.png", []
    checkerboard.main(checkerboard.Config(steps=1, features=2, picture=path), said.append)
    assert len(said) == 2 * (len(checkerboard.KINDS) + 1) + 1
    with Image.open(path) as made, Image.open(DOCS / "images" / "checkerboard.png") as shown:
        assert made.size == shown.size
        assert np.asarray(made).std() > 30


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("steps", 0, "must be positive and finite, got 0"),
        ("learning_rate", float("nan"), "must be positive and finite, got nan"),
        ("features", -1, "must be positive and finite, got -1"),
        ("seed", -1, r"must be from 0 to below 2\*\*63, got -1"),
        ("seed", 2**63, r"must be from 0 to below 2\*\*63, got 9223372036854775808"),
        ("picture", Path("cb.xyz"), "cb.xyz: Pillow writes no files of this name; try .png"),
    ],
)
def test_what_no_checkerboard_can_be_made_with_is_refused_first(
    key: str, value: Any, rule: str
) -> None:
    with pytest.raises(ValueError, match=f"^{key}: {rule}"):
        checkerboard.Config(**{key: value})


# ------------------------------------------------------------------ drawings


@pytest.mark.parametrize("name", sizes.DRAWINGS)
def test_a_drawing_is_that_of_the_geometry(name: str) -> None:
    text = (DOCS / "images" / f"sizes_{name}.svg").read_text()
    assert text == sizes.svg(sizes.DRAWINGS[name]), "out of date: run `make docs`"
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("name", sizes.DRAWINGS)
def test_the_numbers_in_a_drawing_are_those_of_the_layer(name: str) -> None:
    """What a kernel of ones makes of ones counts the products."""
    drawing = sizes.DRAWINGS[name]
    x, kernel = jnp.ones((drawing.n, 1)), jnp.ones((drawing.k, 1, 1))
    for options, geometry in zip(drawing.options, drawing.geometries(), strict=True):
        y = upconv.conv_transpose(x, kernel, **options)
        np.testing.assert_array_equal(y[:, 0], sizes.products(geometry))
        assert upconv.output_shape(x.shape, 1, (drawing.k,), **options) == y.shape


def test_every_drawing_is_shown() -> None:
    text = (DOCS / "how-it-works.md").read_text()
    for path in (DOCS / "images").glob("sizes_*.svg"):
        assert f"images/{path.name}" in text
        assert path.stem.removeprefix("sizes_") in sizes.DRAWINGS
