"""Stable names for functions and classes, the same in every process and run."""

import json
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any

import numpy as np


def name_of(value: Any) -> str | None:
    """
    :param value: A function or a class, or a ``functools.partial`` of one
    :return: Its module and name, and the arguments of a partial; ``None`` if it has no name under which it could be
        imported (a lambda, a method of an object, or what was made within a function), or an argument is not plain.
        The module of a script is its file
    """
    if isinstance(value, partial):
        name, arguments = name_of(value.func), plain([value.args, value.keywords])
        return None if name is None or arguments is None else f"{name} {arguments}"
    if not isinstance(getattr(value, "__self__", sys), type | ModuleType):
        return None
    module = getattr(value, "__module__", None)
    if module == "__main__":
        module = getattr(sys.modules[module], "__file__", module)
    name = f"{module}.{getattr(value, '__qualname__', '<object>')}"
    return None if "<" in name else name


def plain(arguments: Any) -> str | None:
    """
    :param arguments: Numbers, strings, arrays, functions, classes, or lists and dicts of these
    :return: The arguments as JSON, functions and classes by their names; ``None`` if there is something else
    """

    def other(value: Any) -> Any:
        name = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else name_of(value)
        if name is None:
            raise TypeError(f"{value!r} has no name")
        return name

    try:
        return json.dumps(arguments, sort_keys=True, default=other)
    except (TypeError, ValueError):
        return None


def closest(name: str, known: Iterable[str]) -> str:
    """
    :param name: What somebody has mistyped
    :param known: What there is
    :return: The end of a sentence that says so: a full stop, or a question if there is something close
    """
    found = get_close_matches(name, list(known), n=1)
    return f": did you mean '{found[0]}'?" if found else "."


def arguments_of(cls: type) -> set[str]:
    """
    :param cls: A class
    :return: Names of what its constructor takes, also where it hands the rest to that of its base
    """
    names: set[str] = set()
    for base in cls.__mro__:
        parameters = signature(base).parameters
        names |= parameters.keys()
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break
    return names
