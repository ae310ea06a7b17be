"""Names that are the same in every process, and None where there is no such name."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_qam.utils.names import name_of, plain


class Named:
    def method(self) -> None: ...


def named(*args: Any, **kwargs: Any) -> None: ...


def make() -> Any:
    return lambda: None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (named, "tests.utils.test_names.named"),
        (Named, "tests.utils.test_names.Named"),
        (Named.method, "tests.utils.test_names.Named.method"),
        (partial(named, 1, b=[2.5], a="x"), 'tests.utils.test_names.named [[1], {"a": "x", "b": [2.5]}]'),
        (
            partial(named, np.arange(2), Named),
            'tests.utils.test_names.named [[[0, 1], "tests.utils.test_names.Named"], {}]',
        ),
        (lambda: None, None),
        (make(), None),
        (partial(make()), None),
        (partial(named, make()), None),
        (partial(named, Named()), None),
        (Named(), None),
        # Another object would do something else
        (Named().method, None),
    ],
)
def test_what_can_be_imported_has_a_name(value: Any, name: str | None):
    assert name_of(value) == name


def test_plain_arguments_are_told_apart():
    assert plain({"b": 1, "a": None}) == plain({"a": None, "b": 1})
    assert plain({"a": 1}) != plain({"a": 2})
    assert plain({"a": object()}) is None
    endless: list[Any] = []
    endless.append(endless)
    assert plain(endless) is None


def test_scripts_are_told_apart(tmp_path: Path):
    """Each has a function of the same name."""
    names = set()
    for folder in ("first", "second"):
        script = tmp_path / folder / "script.py"
        script.parent.mkdir()
        script.write_text("from sb3_qam.utils.names import name_of\ndef reward(): pass\nprint(name_of(reward))")
        names.add(subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.strip())
    assert names == {f"{tmp_path}/{folder}/script.py.reward" for folder in ("first", "second")}
