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
INTERNAL = (
    "geometry", "auto", "lowering", "bilinear", "functional", "layer", "flax_layer", "records",
    "errors", "bench",
)  # fmt: skip
# What comes first on the page, before the rest in alphabetical order.
FIRST = ("linen", "nnx", "transforms", "rules", "regularizers", "constraints", "initializers")

# The modules of layers: an instance of theirs is called a layer.
LAYERS = ("linen", "nnx")

HEADER = """\
# API

Made from the docstrings by `make docs`; every example is run as a test. What it rests on is told
in [how-it-works.md](how-it-works.md). Types that signatures name are at the end, under
[Types](#types).
"""

# What the types that signatures name are for; what they are is read from the source.
MEANINGS = {
    "Activation": "from the layer's outputs to those to give instead",
    "Constraint": "from an updated parameter to the one to use instead",
    "CustomObjects": "classes and functions by the names that they are stored under",
    "Distribution": "one of these names",
    "FlaxLayer": "Flax's layers, and ours of the same name",
    "Initializer": "`(key, shape, dtype)` to an array",
    "Ints": "one for all spatial axes, or one for each",
    "LinenLayer": "a layer of `upconv.linen`",
    "Metadata": "what the variable of a parameter is made with, beside its value",
    "Mode": "one of these names",
    "NnxLayer": "a layer of `upconv.nnx`",
    "Padding": "a name, or pixels: a number for all axes, or a number or a pair for each",
    "Pair": "a layer of `upconv.linen`, and its variables",
    "Regularizer": "from a parameter, or the outputs, to a penalty, a scalar",
    "Rules": "what the layers of a model declare, by the path of the parameter",
    "Size": "an integer, or a symbolic dimension of `jax.export`",
}

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
        text += f": {_annotation(p.annotation)}" if p.annotation is not None else ""
        plain = p.kind not in stars and p.default is not None
        parts.append(text + (f" = {p.default}".replace("'", '"') if plain else ""))
    result = ""
    if isinstance(thing, Function) and thing.returns is not None:
        result = f" -> {_annotation(thing.returns)}"
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def _annotation(annotation: Any) -> str:
    """As it is written, without the names of modules that nobody but the source speaks of."""
    return re.sub(rf"(?<![\w.])(?:{'|'.join(INTERNAL)})\.", "", str(annotation))


# ------------------------------------------------------------------ types


def types() -> dict[str, dict[str, list[str]]]:
    """The aliases that signatures name, and those that these name.

    By name: what each stands for, and in which public modules it does.
    """
    root = package()
    found: dict[str, dict[str, list[str]]] = {}
    for module_name, module in modules():
        todo = [a for thing in objects(module).values() for a in _annotations(thing)]
        seen: set[str] = set()
        while todo:
            for path in _named(todo.pop()) - seen:
                seen.add(path)
                target = root[path.removeprefix("upconv.")]
                if isinstance(target, Attribute):
                    todo.append(target.value)
                    meant = found.setdefault(target.name, {})
                    meant.setdefault(_annotation(target.value), []).append(module_name)
    return dict(sorted(found.items()))


def _annotations(thing: Object) -> list[Any]:
    """Those that its signature, or that of a member, shows."""
    found = [p.annotation for p in parameters(thing)]
    if isinstance(thing, Function):
        return [*found, thing.returns]
    full = filter(described_arguments, _methods(thing).values())
    return [*found, *(a for member in full for a in _annotations(member))]


def _named(annotation: Any) -> set[str]:
    """Paths of the names in an annotation that modules of upconv define."""
    if not isinstance(annotation, griffe.Expr):
        return set()
    expressions = annotation.iterate(flat=True)
    found = {e.canonical_path for e in expressions if isinstance(e, griffe.ExprName)}
    return {path for path in found if path.count(".") >= 2 and path.startswith("upconv.")}


def _table_of_types() -> str:
    lines = ["| type | is | used in | means |", "|---|---|---|---|"]
    for name, meant in types().items():
        for value, where in meant.items():
            shown = value.replace("|", "\\|").replace("'", '"')
            used = ", ".join(f"`{module}`" for module in where)
            lines.append(f"| `{name}` | `{shown}` | {used} | {MEANINGS[name]} |")
    return "\n".join(lines)


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


def _methods(cls: Class) -> dict[str, Any]:
    """What an instance has and a docstring tells of, its inherited members included."""
    found: dict[str, Any] = {}
    for base in reversed([cls, *_bases(cls)]):
        for name, member in base.members.items():
            shown = name == "__call__" or not name.startswith("_")
            if shown and member.docstring is not None and not member.is_class:
                found[name] = member
    return found


def members(cls: Class) -> Iterator[str]:
    """What has arguments to describe like a function, of the rest a line for each."""
    rest = []
    for name, member in _methods(cls).items():
        instance = "layer" if cls.module.name in LAYERS else "instance"
        head = instance if name == "__call__" else f"{instance}.{name}"
        if described_arguments(member):
            yield f"**Called as**\n\n```python\n{signature(head, member)}\n```"
            yield from described(member)
            continue
        if isinstance(member, Function):
            head += f"({', '.join(p.name for p in parameters(member))})"
        parts = [member.docstring.value.split("\n\n")[0]]
        for raised in sections(member).get(DocstringSectionKind.raises, []):
            parts += [f"Raises `{entry.annotation}` {entry.description}" for entry in raised]
        rest.append((f"`{head}`", " ".join(parts)))
    if rest:
        yield "**Members**"
        yield _items(rest)


# ------------------------------------------------------------------ the page


def page() -> str:
    """The whole of it."""
    blocks = [HEADER.strip()]
    contents = []
    for module_name, module in modules():
        anchors = (f"[`{n}`](#{a})" for n, a in _anchors(module_name, module).items())
        contents.append(f"- [`{module_name}`](#{module_name}): {', '.join(anchors)}")
    blocks.append("\n".join([*contents, "- [Types](#types)"]))
    for module_name, module in modules():
        blocks.append(f'## <a id="{module_name}"></a>`{module_name}`')
        assert module.docstring is not None, module_name
        blocks.append(markdown(module.docstring.value))
        anchor = _anchors(module_name, module)
        for name, thing in objects(module).items():
            blocks.append(f'### <a id="{anchor[name]}"></a>`{module_name}.{name}`')
            blocks.append(f"```python\n{signature(name, thing)}\n```")
            blocks.extend(described(thing))
            if isinstance(thing, Class):
                blocks.extend(members(thing))
    blocks += ["## Types", _table_of_types()]
    return "\n\n".join(blocks) + "\n"


def _anchors(module_name: str, module: Module) -> dict[str, str]:
    """An id for each object, in lower case, as GitHub has them.

    Where a class and a function differ in case alone, as `ICNR` and `icnr` do, the class says
    that it is one.
    """
    found = objects(module)
    lower = [name.lower() for name in found]
    anchors = {}
    for name, thing in found.items():
        twin = isinstance(thing, Class) and lower.count(name.lower()) > 1
        anchors[name] = f"{module_name}.{name}".lower() + ("-class" if twin else "")
    return anchors


if __name__ == "__main__":
    PAGE.write_text(page())
