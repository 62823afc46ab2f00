"""
A directory is a layer, and imports go down only.

Imports that only type checkers see count as well, but for L{interfaces
<twsessions.interfaces>}, which has to name what it promises things about, and
for the package itself, which re-exports.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import twsessions

PACKAGE = Path(twsessions.__file__).parent
ROOT = PACKAGE.parent

#: Every layer, and every module beside them. Imports go to the same rank or a lower one.
RANKS = {
    "errors": -2,
    "interfaces": -1,
    "core": 0,
    "stores": 1,
    "web": 2,
    "sockjs": 3,
    "ops": 4,
    "testing": 5,
    "__main__": 5,
}

#: What L{core <twsessions.core>} must not import: clocks, I/O, chance, threads.
IMPURE = set(
    "_thread asyncio concurrent glob http io logging multiprocessing os pathlib queue random "
    "sched secrets select selectors shutil signal socket socketserver sqlite3 ssl subprocess "
    "tempfile threading time twisted".split()
)

#: Calls that would read the clock or the disk without any import.
IMPURE_CALLS = {
    "open",
    "input",
    "print",
    "date.today",
    "datetime.now",
    "datetime.today",
    "datetime.utcnow",
}


class Import(NamedTuple):
    """
    One name that a module imports.
    """

    line: int
    target: str
    onlyTyping: bool


def dotted(node: ast.AST) -> str:
    """
    C{"a.b.c"} of such an expression; nothing of any other.
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def importsOf(tree: ast.Module, package: str) -> list[Import]:
    """
    Everything that a module of the given package imports, wherever in it,
    names and all: C{from a.b import c} is C{a.b.c}.
    """
    found: list[Import] = []

    def visit(node: ast.AST, typing: bool) -> None:
        if isinstance(node, ast.If) and dotted(node.test).split(".")[-1] == "TYPE_CHECKING":
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, typing)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, alias.name, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                source = ".".join([*above, source] if source else above)
            found.extend(
                Import(node.lineno, f"{source}.{alias.name}", typing) for alias in node.names
            )
        elif isinstance(node, ast.Call) and node.args:
            called = dotted(node.func).split(".")[-1]
            first = node.args[0]
            if (
                called in {"import_module", "__import__", "namedAny", "namedModule"}
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                found.append(Import(node.lineno, first.value, typing))
        for child in ast.iter_child_nodes(node):
            visit(child, typing)

    visit(tree, False)
    return found


class Module(NamedTuple):
    """
    One module of the package, read but not imported.
    """

    name: str
    layer: str
    tree: ast.Module
    imports: list[Import]


def read(path: Path) -> Module:
    """
    Parse a file of the package.
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = ".".join(parts[:-1])
    name = package if parts[-1] == "__init__" else ".".join(parts)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return Module(name, (*name.split("."), "")[1], tree, importsOf(tree, package))


MODULES = [
    read(path)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] != "test"
]

everyModule = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def ours(module: Module) -> Iterator[tuple[Import, str]]:
    """
    What a module imports of this package, and each one's layer. The public
    names of the package count as the modules they come from.
    """
    for found in module.imports:
        target = found.target
        if target.split(".")[0] != "twsessions":
            continue
        rest = target.split(".")[1:]
        home = twsessions._HOMES.get(rest[0]) if rest else None
        yield found, home.split(".")[1] if home else rest[0] if rest else ""


@everyModule
def test_hasARank(module: Module) -> None:
    """
    A new directory or module beside the layers says here what it may import.
    """
    assert module.layer == "" or module.layer in RANKS


@everyModule
def test_downOnly(module: Module) -> None:
    """
    Imports go down.
    """
    wrong = []
    for found, layer in ours(module):
        if found.target == "twsessions.__version__":
            continue
        if found.onlyTyping and module.layer in ("", "interfaces"):
            continue
        if layer not in RANKS or module.layer == "" or RANKS[layer] > RANKS[module.layer]:
            wrong.append(f"line {found.line}: {found.target}")
    assert not wrong


@everyModule
def test_testingIsForTests(module: Module) -> None:
    """
    Neither L{twsessions.testing} nor the tests are imported by what they
    test.
    """
    forbidden = {"test"} if module.layer == "testing" else {"test", "testing"}
    assert not [found for found, layer in ours(module) if layer in forbidden]


@everyModule
def test_noReactor(module: Module) -> None:
    """
    No module imports the reactor, not even in a function: it comes as an
    argument.
    """
    reactor = "twisted.internet.reactor"
    lines = [found.line for found in module.imports if f"{found.target}.".startswith(f"{reactor}.")]
    lines += [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and dotted(node) in (reactor, "internet.reactor")
    ]
    assert not lines


@pytest.mark.parametrize(
    "module",
    [module for module in MODULES if module.layer in ("core", "errors", "interfaces")],
    ids=lambda module: module.name,
)
def test_pure(module: Module) -> None:
    """
    At the bottom there is no Twisted, no clock and no I/O: C{now} and random
    bytes come in as arguments.
    """
    wrong = [
        f"line {found.line}: {found.target}"
        for found in module.imports
        if found.target.split(".")[0] in IMPURE
        and not (found.onlyTyping and module.layer == "interfaces")
    ]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in IMPURE_CALLS or called.removeprefix("datetime.") in IMPURE_CALLS:
                wrong.append(f"line {node.lineno}: {called}()")
    assert not wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b as c", [("a.b", False)]),
        ("def f():\n from a.b import c, d", [("a.b.c", False), ("a.b.d", False)]),
        ("from . import x", [("twsessions.web.x", False)]),
        ("from ..core.ids import x", [("twsessions.core.ids.x", False)]),
        ("import_module('twsessions.web')", [("twsessions.web", False)]),
        ("if TYPE_CHECKING:\n import a\nelse:\n import b", [("a", True), ("b", False)]),
        ("if typing.TYPE_CHECKING:\n from a import b", [("a.b", True)]),
    ],
)
def test_importsOf(source: str, expected: list[tuple[str, bool]]) -> None:
    """
    This test sees imports in all their forms.
    """
    found = importsOf(ast.parse(source), "twsessions.web")
    assert [(one.target, one.onlyTyping) for one in found] == expected


def run(program: str) -> None:
    """
    Run a program in a fresh interpreter; it has to succeed.
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_importIsLight() -> None:
    """
    C{import twsessions} loads neither the web server nor a reactor.
    """
    run(
        "import sys, twsessions\n"
        "for name in 'twisted.web.server', 'twisted.internet.reactor':\n"
        "    assert name not in sys.modules, name\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        module.name
        for module in MODULES
        # Klein itself imports a reactor: nothing else may import that module.
        if module.layer in ("core", "stores", "web") and not module.name.endswith(".klein")
    ],
)
def test_importInstallsNoReactor(name: str) -> None:
    """
    Importing a module of the inner layers installs no reactor.
    """
    run(f"import sys, {name}\nassert 'twisted.internet.reactor' not in sys.modules\n")


@everyModule
def test_kleinIsALeaf(module: Module) -> None:
    """
    Nothing imports a module named C{klein}: that would bring a reactor along.
    """
    assert not [found for found, _ in ours(module) if "klein" in found.target.split(".")]


def test_whatIsMissingIsNamed() -> None:
    """
    Without wsproto there is no SockJS, and it says what to install.
    """
    run(
        "import sys\n"
        "sys.modules['wsproto'] = None\n"
        "try:\n"
        "    import twsessions.sockjs\n"
        "except ImportError as error:\n"
        "    assert \"pip install 'twsessions[sockjs]'\" in str(error), error\n"
        "else:\n"
        "    raise AssertionError('it was imported')\n"
    )
