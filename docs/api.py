"""Writes docs/api.md: everything public, from its docstring.

    python docs/api.py

The source is read, not imported (by griffe), so that the page is the same wherever it is made.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
from griffe import (
    Attribute,
    Class,
    DocstringSectionKind,
    Function,
    Module,
    Parameter,
    ParameterKind,
)

HERE = Path(__file__).parent
PAGE = HERE / "api.md"

# What the others are made of. Their docstrings speak to those who read the source.
INTERNAL = ("geometry", "lowering", "bilinear", "functional", "layer", "bench")
# What comes first on the page, before the rest in alphabetical order.
FIRST = ("linen", "nnx", "transforms", "rules", "regularizers", "constraints", "initializers")

HEADER = """\
# API

Made from the docstrings by `make docs`; every example is run as a test. What it rests on is told
in [how-it-works.md](how-it-works.md).
"""

Object = Class | Function


def package() -> Module:
    """The source of upconv, as griffe reads it."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    options = {"returns_multiple_items": False, "warn_unknown_params": False}
    found = griffe.load(
        "upconv",
        search_paths=[HERE.parent / "src"],
        docstring_parser="google",
        docstring_options=options,
        allow_inspection=False,
    )
    assert isinstance(found, Module)
    return found


def modules() -> Iterator[tuple[str, Module]]:
    """The public modules, by dotted name, in the order of the page."""
    root = package()
    yield "upconv", root
    names = (name for name in root.modules if name not in INTERNAL)
    for name in sorted(names, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n)):
        yield f"upconv.{name}", root.modules[name]


def objects(module: Module) -> dict[str, Object]:
    """What a module exports and defines, by name; a type alias has no docstring to show."""
    found = {}
    for name in module.exports or ():
        member = module.members.get(str(name))
        target = member.final_target if isinstance(member, griffe.Alias) else member
        if isinstance(target, Class | Function):
            found[str(name)] = target
    return found


# ------------------------------------------------------------------ signatures


def parameters(thing: Object) -> list[Parameter]:
    """What it is called with, in order; for a class, the arguments of its constructor."""
    if isinstance(thing, Function):
        return [p for p in thing.parameters if p.name != "self"]
    for cls in (thing, *_bases(thing)):
        if "__init__" in cls.members and cls.members["__init__"].lineno:
            return parameters(cls.members["__init__"])
        if fields := _fields(cls):
            return fields
    return []


def _bases(cls: Class) -> list[Class]:
    """Those within upconv."""
    return [base for base in cls.mro() if base.path.startswith("upconv.")]


def _fields(cls: Class) -> list[Parameter]:
    """Arguments of a class whose constructor is made from its annotations."""
    found = []
    for name, member in cls.members.items():
        if not isinstance(member, Attribute) or member.annotation is None or name.startswith("_"):
            continue
        if "property" in member.labels or "instance-attribute" not in member.labels:  # ClassVar
            continue
        kind, default = ParameterKind.positional_or_keyword, member.value
        if keyword := re.fullmatch(r"_optional\((.*)\)", str(default)):
            kind, default = ParameterKind.keyword_only, keyword[1]
        found.append(Parameter(name, annotation=member.annotation, kind=kind, default=default))
    return found


def signature(name: str, thing: Object) -> str:
    """As it would be written, on one line or with one line per argument."""
    parts = []
    starred = False
    for p in parameters(thing):
        if p.kind is ParameterKind.keyword_only and not starred:
            parts.append("*")
        starred |= p.kind in (ParameterKind.keyword_only, ParameterKind.var_positional)
        stars = {ParameterKind.var_positional: "*", ParameterKind.var_keyword: "**"}
        text = f"{stars.get(p.kind, '')}{p.name}"
        text += f": {p.annotation}" if p.annotation is not None else ""
        plain = p.kind not in stars and p.default is not None
        parts.append(text + (f" = {p.default}".replace("'", '"') if plain else ""))
    result = ""
    if isinstance(thing, Function) and thing.returns is not None:
        result = f" -> {thing.returns}"
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


# ------------------------------------------------------------------ docstrings


def sections(thing: Any) -> dict[DocstringSectionKind, list[Any]]:
    """What the parts of a docstring hold, in the order in which they stand."""
    found: dict[DocstringSectionKind, list[Any]] = {}
    if thing.docstring is not None:
        for section in thing.docstring.parsed:
            found.setdefault(section.kind, []).append(section.value)
    return found


def described_arguments(thing: Object) -> set[str]:
    """Names of the arguments, or attributes, that a docstring describes."""
    found = sections(thing)
    lists = found.get(DocstringSectionKind.parameters, [])
    lists = lists + found.get(DocstringSectionKind.attributes, [])
    return {name.lstrip("*") for entries in lists for entry in entries for name in names(entry)}


def examples(thing: Object) -> list[str]:
    """The doctests of a docstring, one string for each run of lines."""
    texts = sections(thing).get(DocstringSectionKind.text, [])
    return [part for text in texts for part in re.split(r"\n\n+", text) if part.startswith(">>> ")]


def markdown(text: str) -> str:
    """A docstring's prose: its literals and formulas as Markdown has them, doctests fenced."""
    text = re.sub(r":math:`([^`]+)`", r"$`\1`$", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"::\n\n", ":\n\n", text)
    parts = re.split(r"\n\n+", text)
    return "\n\n".join(f"```python\n{p}\n```" if p.startswith(">>> ") else p for p in parts)


def names(described: Any) -> list[str]:
    """Whom an entry of a list of arguments is about: several may share one."""
    return [name.strip() for name in described.name.split(",")]


def _items(entries: Iterable[tuple[str, str]]) -> str:
    lines = (f"- {name}: {markdown(' '.join(text.split()))}" for name, text in entries)
    return "\n".join(lines)


def described(thing: Object) -> Iterator[str]:
    """The docstring in blocks of Markdown, in its own order."""
    if thing.docstring is None:
        return
    for section in thing.docstring.parsed:
        value = section.value
        match section.kind:
            case DocstringSectionKind.text:
                yield markdown(value)
            case DocstringSectionKind.parameters | DocstringSectionKind.attributes:
                yield "**Arguments**"
                each = ((", ".join(f"`{n}`" for n in names(p)), p.description) for p in value)
                yield _items(each)
            case DocstringSectionKind.returns:
                (returned,) = value
                yield f"**Returns**\n\n{markdown(returned.description)}"
            case DocstringSectionKind.raises:
                yield "**Raises**"
                yield _items((f"`{v.annotation}`", v.description) for v in value)
            case other:
                raise ValueError(f"{thing.path}: no way to show a section {other}")


def _methods(cls: Class) -> str:
    """What an instance has, its inherited members included: a line for each."""
    found: dict[str, tuple[str, str]] = {}
    for base in reversed([cls, *_bases(cls)]):
        for name, member in base.members.items():
            shown = name == "__call__" or not name.startswith("_")
            if shown and member.docstring is not None and not member.is_class:
                called = isinstance(member, Function)
                arguments = ", ".join(p.name for p in parameters(member)) if called else ""
                summary = member.docstring.value.split("\n\n")[0]
                head = "instance" if name == "__call__" else f".{name}"
                found[name] = (f"`{head}({arguments})`" if called else f"`{head}`", summary)
    return _items(found.values())


# ------------------------------------------------------------------ the page


def page() -> str:
    """The whole of it."""
    blocks = [HEADER.strip()]
    contents = []
    for module_name, module in modules():
        found = objects(module)
        anchors = (f"[`{n}`](#{_anchor(module_name, n)})" for n in found)
        contents.append(f"- [`{module_name}`](#{_anchor(module_name)}): {', '.join(anchors)}")
    blocks.append("\n".join(contents))
    for module_name, module in modules():
        blocks.append(f'## <a id="{_anchor(module_name)}"></a>`{module_name}`')
        assert module.docstring is not None, module_name
        blocks.append(markdown(module.docstring.value))
        for name, thing in objects(module).items():
            blocks.append(f'### <a id="{_anchor(module_name, name)}"></a>`{module_name}.{name}`')
            blocks.append(f"```python\n{signature(name, thing)}\n```")
            blocks.extend(described(thing))
            if isinstance(thing, Class) and (methods := _methods(thing)):
                blocks += ["**Members**", methods]
    return "\n\n".join(blocks) + "\n"


def _anchor(*parts: str) -> str:
    return ".".join(parts).lower()


if __name__ == "__main__":
    PAGE.write_text(page())
