"""Everything public has a docstring, which names each parameter as SB3's do, and a place in the reference."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest

import sb3_qam
from tests.pages import PAGES, ROOT

# What users see of the command line is --help, which Typer makes of it
COMMANDS = "sb3_qam.cli"


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


MODULES = sorted(name for _, name, _ in pkgutil.walk_packages(sb3_qam.__path__, "sb3_qam.") if is_public(name))


def own_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public classes and functions that are defined in a module."""
    for name, member in vars(module).items():
        is_own = getattr(member, "__module__", None) == module.__name__
        if is_public(name) and is_own and isinstance(member, type | FunctionType):
            yield name, member


def own_methods(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """Public methods and properties of a class, as functions."""
    for name, member in vars(cls).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        # What a NamedTuple or a dataclass adds has no line of ours
        if isinstance(function, FunctionType) and is_public(name) and function.__module__ == cls.__module__:
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


@pytest.mark.parametrize("module_name", MODULES)
def test_everything_public_in_a_module_is_documented(module_name: str):
    module = importlib.import_module(module_name)
    problems = [] if module.__doc__ or module.__file__.endswith("__init__.py") else ["the module"]
    for name, member in own_members(module):
        if not member.__doc__:
            problems.append(f"{name}: no docstring")
            continue
        if isinstance(member, FunctionType):
            if not module_name.startswith(COMMANDS):
                problems += [
                    f"{name}: :param {each}: is missing" for each in missing_parameters(member, member.__doc__)
                ]
            continue
        # Of a class, the docstring says what the constructor takes
        constructor = vars(member).get("__init__")
        if isinstance(constructor, FunctionType) and "kwargs" not in inspect.signature(constructor).parameters:
            problems += [
                f"{name}: :param {each}: is missing" for each in missing_parameters(constructor, member.__doc__)
            ]
        for method_name, method in own_methods(member):
            docstring = inspect.getdoc(method)
            if not docstring:
                if not inherited_docstring(member, method_name) and not overrides(member, method_name):
                    problems.append(f"{name}.{method_name}: no docstring")
                continue
            if not overrides(member, method_name):
                problems += [
                    f"{name}.{method_name}: :param {each}: is missing" for each in missing_parameters(method, docstring)
                ]
    assert problems == []


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


def test_every_module_is_in_the_reference():
    pages = "".join(page.read_text() for page in PAGES)
    documented = set()
    for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", pages, re.MULTILINE):
        thing = pkgutil.resolve_name(name)
        documented.add(thing.__name__ if isinstance(thing, ModuleType) else thing.__module__)
    with_members = {name for name in MODULES if any(own_members(importlib.import_module(name)))}
    absent = {name for name in with_members - documented if not name.startswith(COMMANDS)}
    assert absent == set(), "add an automodule to a page of docs/api"
