"""The house: who may import whom, what a layer must leave to the core, what stands at the top."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "upconv"
# A module, by its name: one file, or a package of several.
FILES = {
    path.stem: sorted(path.glob("*.py")) if path.is_dir() else [path]
    for path in SOURCE.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
}
MODULES = sorted(FILES)

ADAPTERS = {"layer", "linen", "nnx", "lax", "flax_layer", "interop", "serialization"}
# What a layer is told to do with its parameters and its outputs: each is written down by name.
DECLARED = {"activations", "constraints", "initializers", "regularizers"}

# What each module imports of upconv. A module that is not here has no place yet: give it one.
MAY_IMPORT: dict[str, set[str]] = {
    "geometry": set(),
    "auto": {"geometry"},
    "lowering": {"geometry", "auto"},
    "bilinear": {"geometry", "auto", "lowering"},
    "functional": {"geometry", "lowering", "bilinear"},
    "rules": set(),
    "errors": set(),
    "records": set(),
    "initializers": {"geometry", "records"},
    "activations": {"records"},
    "regularizers": {"records"},
    "constraints": {"geometry", "records"},
    "transforms": {"rules", "records", "errors"},
    "layer": {"geometry", "functional", "initializers", "rules", "errors"},
    "linen": {"geometry", "initializers", "rules", "errors", "layer", "flax_layer"},
    "nnx": {"geometry", "initializers", "rules", "errors", "layer", "flax_layer"},
    "lax": {"geometry", "functional"},
    "flax_layer": {"geometry", "functional", "lax"},
    "interop": {"geometry", "errors", *DECLARED, "layer", "linen", "nnx", "lax", "flax_layer"},
    "serialization": {*DECLARED, "layer", "linen", "nnx"},
    "bench": {"geometry", "auto", "lowering", "functional", "linen"},
    "__init__": {
        *DECLARED, "functional", "interop", "lax", "linen", "nnx", "rules", "serialization",
        "transforms",
    },
}  # fmt: skip

# What each module imports of others, the standard library apart. Optional packages are only
# for the bench, which compares with them.
OTHERS: dict[str, set[str]] = {
    "geometry": set(),
    "errors": set(),
    "auto": {"jax", "jaxlib"},
    "lowering": {"jax", "numpy"},
    "transforms": {"jax", "optax"},
    "linen": {"jax", "flax"},
    "nnx": {"jax", "flax"},
    "interop": {"jax", "numpy", "flax", "torch"},
    "serialization": {"jax", "flax"},
    "initializers": {"jax", "numpy"},
    "lax": {"jax", "numpy"},
    "bench": {"jax", "numpy", "flax", "equinox", "keras", "tensorflow", "torch", "rich"},
    "__init__": set(),
}
OTHERS_BY_DEFAULT = {"jax"}

# What an adapter may call of array libraries: names of types and shapes, and arrays put in order.
# All that computes belongs to the core.
NO_NUMERICS = {
    "asarray", "array", "dtype", "shape", "result_type", "issubdtype", "canonicalize_dtype",
    "zeros", "transpose", "roll", "eval_shape", "make_user_context", "key",
    "conv_dimension_numbers", "padtype_to_pads",
    # sizes that are not known yet
    "max_dim",
}  # fmt: skip


def parse(name: str) -> ast.Module:
    """All that a module says, be it in one file or in several."""
    trees = [ast.parse(path.read_text()) for path in FILES[name]]
    return ast.Module([node for tree in trees for node in tree.body], type_ignores=[])


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all that is imported, at the top or within functions."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = ".".join(part for part in ("upconv" if level else "", module or "") if part)
                yield from (f"{base}.{alias.name}" for alias in names)


def of_upconv(tree: ast.Module) -> set[str]:
    """The modules of upconv among them."""
    dotted = [name.split(".") for name in imported(tree)]
    return {parts[1] if len(parts) > 1 else "__init__" for parts in dotted if parts[0] == "upconv"}


def of_package(name: str, tree: ast.Module) -> set[str]:
    """What is imported of a package, by its own name there."""
    dotted = [path.split(".") for path in imported(tree)]
    return {parts[2] for parts in dotted if parts[:2] == ["upconv", name] and len(parts) > 2}


def of_others(tree: ast.Module) -> set[str]:
    roots = {name.split(".")[0] for name in imported(tree)}
    return roots - {"upconv"} - sys.stdlib_module_names


def numerics(tree: ast.Module) -> set[str]:
    """What is called of jax, jax.numpy, jax.lax and numpy, and matrix products."""
    # A name bound by `import jax.numpy as jnp` or `from jax import lax`, and what it stands for.
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {a.asname or a.name.split(".")[0]: a.name for a in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            bound |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.MatMult):
            found.add("@")
        if isinstance(node, ast.Call):
            name, _, rest = ast.unparse(node.func).partition(".")
            package, *path = f"{bound.get(name, name)}.{rest}".rstrip(".").split(".")
            # Functions of trees take containers apart; they do not compute.
            if package in ("jax", "numpy") and path[0] not in ("tree", "tree_util"):
                found.add(path[-1])
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_it_may(name: str) -> None:
    assert name in MAY_IMPORT, f"give {name} a place in MAY_IMPORT"
    tree = parse(name)
    modules = of_upconv(tree) - {name}  # files of one package may import each other
    allowed_others = OTHERS.get(name, OTHERS_BY_DEFAULT)
    for imports, allowed in ((modules, MAY_IMPORT[name]), (of_others(tree), allowed_others)):
        assert imports <= allowed, f"{name} may not import {imports - allowed}"
        assert imports == allowed, f"{name} does not import {allowed - imports}: strike it off"


def test_the_order_of_the_core_has_no_cycle() -> None:
    in_order({name: of_upconv(parse(name)) & set(MODULES) - {name} for name in MODULES})


def in_order(needs_of: dict[str, set[str]]) -> None:
    """Each has only those before it, in some order."""
    left = dict(needs_of)
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"these import each other: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


@pytest.mark.parametrize("name", [name for name in MODULES if len(FILES[name]) > 1])
def test_the_files_of_a_package_have_an_order(name: str) -> None:
    """As the modules of the core do."""
    files = {path.stem: ast.parse(path.read_text()) for path in FILES[name]}
    in_order({stem: of_package(name, tree) & files.keys() for stem, tree in files.items()})


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_an_adapter_has_no_numerics_of_its_own(name: str) -> None:
    computed = numerics(parse(name)) - NO_NUMERICS
    assert not computed, f"{name} computes with {sorted(computed)}; that belongs to the core"


def test_nothing_is_allowed_that_nobody_does() -> None:
    assert MAY_IMPORT.keys() == {*MODULES}
    assert OTHERS.keys() <= {*MODULES}
    called = set().union(*(numerics(parse(name)) for name in ADAPTERS))
    assert called >= NO_NUMERICS


def test_the_rules_of_the_house_are_seen_to_be_broken() -> None:
    """The checks themselves: each kind of import and call is found."""
    tree = ast.parse(
        "import os, torch.nn\n"
        "from upconv import nnx\n"
        "from upconv.linen import rules\n"
        "from . import lowering\n"
        "from .bilinear import conv\n"
        "def late():\n"
        "    import upconv.bench.layers\n"
        "    from upconv.bench import chart\n"
        "    from upconv.bench.peers import PEERS\n"
        "    from jax import lax\n"
        "    import numpy as np\n"
        "    import jax\n"
        "    return lax.dot(np.linalg.inv(x), jax.numpy.exp(x)) @ os.path.join(x)\n"
    )
    assert of_upconv(tree) == {"nnx", "linen", "lowering", "bilinear", "bench"}
    assert of_package("bench", tree) == {"layers", "chart", "peers"}
    assert of_others(tree) == {"torch", "jax", "numpy"}
    assert numerics(tree) == {"dot", "inv", "exp", "@"}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_applies(mutation: Mutation) -> None:
    """`make mutations` takes long and is not run with the tests; it must not be left behind."""
    mutation.applied((ROOT / mutation.path).read_text())


def test_only_modules_stand_in_the_package() -> None:
    entries = {path for path in SOURCE.iterdir() if path.name != "__pycache__"}
    files = {path for paths in FILES.values() for path in paths}
    modules = {file if file.parent == SOURCE else file.parent for file in files}
    assert entries == {*modules, SOURCE / "py.typed"}


def test_only_what_is_designed_stands_at_the_top() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    top = {path.split("/")[0] for path in listed}
    required = {
        ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "configs",
        "examples", "pyproject.toml", "src", "tests",
    }  # fmt: skip
    optional = {"benchmarks", "docs", ".github", "CONTRIBUTING.md", "CITATION.cff"}
    assert required <= top
    assert top <= required | optional


def test_only_jax_with_its_numpy_flax_and_optax_are_needed_to_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [requirement.split(">=")[0] for requirement in project["dependencies"]]
    assert sorted(names) == ["flax", "jax", "jaxlib", "numpy", "optax"]
