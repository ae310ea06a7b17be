"""Everything public has a docstring, which names each parameter as SB3's do, and a place in the reference."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

import sb3_qam
from tests.pages import PAGES, ROOT

# Where users import from: each says by __all__ what is public
PUBLIC_MODULES = [
    "sb3_qam",
    "sb3_qam.callbacks",
    "sb3_qam.datasets",
    "sb3_qam.environments",
    "sb3_qam.networks",
    "sb3_qam.recording",
    "sb3_qam.results",
    "sb3_qam.suite",
    "sb3_qam.zoo",
]


def public_members() -> Iterator[tuple[str, Any]]:
    """Classes and functions of this package, by the names that users import them by."""
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", []):
            member = getattr(module, name)
            if isinstance(member, type | FunctionType) and member.__module__.startswith("sb3_qam"):
                yield f"{module_name}.{name}", member


MEMBERS = dict(public_members())


def own_methods(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """Public methods and properties of a class, as functions."""
    for name, member in vars(cls).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        # What a NamedTuple or a dataclass adds has no line of ours
        if isinstance(function, FunctionType) and not name.startswith("_") and function.__module__ == cls.__module__:
            yield name, function


def inherited_docstring(cls: type, name: str) -> str | None:
    """That of the method which a method overrides, in SB3, PyTorch or here."""
    docstrings = (inspect.getdoc(vars(base)[name]) for base in cls.__mro__[1:] if name in vars(base))
    return next((text for text in docstrings if text), None)


def overrides(cls: type, name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__[1:])


def missing_parameters(function: FunctionType, docstring: str) -> list[str]:
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "ctx")]
    named = re.findall(r":param (\w+):", docstring)
    return [name for name in parameters if name not in named and not name.startswith("_") and name.rstrip("_") == name]


def problems_of_class(cls: type) -> Iterator[str]:
    # Of a class, the docstring says what the constructor takes
    constructor = vars(cls).get("__init__")
    if isinstance(constructor, FunctionType) and "kwargs" not in inspect.signature(constructor).parameters:
        yield from missing_parameters(constructor, cls.__doc__ or "")
    for name, method in own_methods(cls):
        docstring = inspect.getdoc(method)
        if not docstring:
            if not inherited_docstring(cls, name) and not overrides(cls, name):
                yield f"{name}: no docstring"
        elif not overrides(cls, name):
            yield from (f"{name}: {parameter}" for parameter in missing_parameters(method, docstring))


@pytest.mark.parametrize("module_name", PUBLIC_MODULES)
def test_a_module_that_users_import_from_says_what_is_public(module_name: str):
    module = importlib.import_module(module_name)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("name", MEMBERS)
def test_everything_public_is_documented(name: str):
    member = MEMBERS[name]
    assert member.__doc__
    if isinstance(member, type):
        assert list(problems_of_class(member)) == []
    else:
        assert missing_parameters(member, member.__doc__) == []


def test_everything_public_is_in_the_reference():
    pages = "".join(page.read_text() for page in PAGES)
    documented = set()
    for kind, name in re.findall(r"^\.\. auto(\w+):: ([\w.]+)", pages, re.MULTILINE):
        # An automodule documents what its __all__ names
        documented |= {each for each in MEMBERS if each.rpartition(".")[0] == name} if kind == "module" else {name}
    assert set(MEMBERS) - documented == set(), "add it to a page of docs/api"


def drawn_modules(tree: str) -> tuple[set[str], set[str]]:
    """
    :param tree: Lines such as ``    qam.py    what it is``, below and further right than the folder they are in
    :return: The modules that it names, and the folders that it speaks of as a whole
    """
    modules, folders, path = set(), {}, []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 4
        path = [*path[:depth], name.rstrip("/").removesuffix(".py")]
        whole = ".".join(path)
        folders |= {".".join(path[:-1]): False}
        if name.endswith("/"):
            folders[whole] = True
        else:
            modules.add(whole)
    return modules, {folder for folder, has_no_lines in folders.items() if has_no_lines}


def test_every_module_is_in_the_structure():
    page = (ROOT / "docs" / "guide" / "how_it_works.md").read_text()
    modules, folders = drawn_modules(page.split("```text\n")[1].split("\n```")[0])
    files = {name for _, name, is_package in pkgutil.walk_packages(sb3_qam.__path__, "sb3_qam.") if not is_package}
    absent = {name for name in files - modules if name.rpartition(".")[0] not in folders}
    assert absent == set(), "add a line to docs/guide/how_it_works.md"
    gone = {name for name in modules - files if not name.endswith("__init__")}
    assert gone == set(), "docs/guide/how_it_works.md names files that do not exist"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "benchmarks"], ids=lambda page: page.stem
)
def test_code_on_pages_is_not_cut_at_the_right_edge(page):
    """A line of the rendered page holds 88 characters. The README's commands are copied as they are."""
    for block in re.findall(r"^```(?:python|sh|yaml|text)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        long = [line for line in block.splitlines() if len(line) > 88 and not line.startswith("python3 -m venv")]
        assert long == []
