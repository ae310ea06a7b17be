"""Every block of code on every page of the documentation, and of the README, is executed or, as said below, parsed.

Sybil (no dependencies, made for documentation) finds the blocks and executes them with the line numbers of the page;
the rest is here. Each page is one test, in an empty folder, with an empty Minari cache and one namespace.

- ``python``: executed. What a page needs and a reader has already stands before it, invisibly, such as
  ``record_maze()`` for the dataset that a page speaks of. Imports and values of names are shown::

      <!-- invisible-code: python
      from tests.pages import record_maze
      record_maze("D4RL/pointmaze/umaze-v2")
      -->

  What a page shows is what a reader would run. ``<!-- smaller: 100_000=20, 50_000=10 -->`` on the line before a block
  has it executed with other numbers of steps: the text on the left of each ``=`` is replaced by that on the right.

- ``sh``: ``sb3-qam`` commands are run. ``<!-- parse: REASON -->`` on the line before a block that takes too long has
  its commands read by the program's own parser (``sb3-qam``, RL Zoo's, those of ``benchmarks/``), and the extras of
  ``pip install`` looked up.
- ``yaml``: read. ``<!-- file: NAME -->`` on the line before writes it for the commands that follow.
- ``text`` and directives of MyST: shown, not executed.

``<!-- skip: next "REASON" -->`` (Sybil's own) leaves out one ``sh`` block. Python is never left out.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
import yaml
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from tests.conftest import needs_ogbench, needs_uncompressed_images
from tests.pages import PAGES, ROOT, command_lines, parse_command, run_command

# By what the code of a page has in it
NEEDED_FOR = {
    "import_ogbench": needs_ogbench,
    "CnnPolicy": needs_uncompressed_images,
    "import_lerobot": needs_uncompressed_images,
}
SHOWN = {"text"}
EXECUTED = {"python", "sh", "yaml"}
SKIP = re.compile(r'^<!-- skip: next "(?P<reason>[^"]*)" -->\n```(?P<language>\w*)', re.MULTILINE)
PARSE = re.compile(r"^<!-- parse:(?P<reason>.*)-->\n```(?P<language>\w*)", re.MULTILINE)
SMALLER = re.compile(
    r"(?P<start>^<!-- smaller: (?P<sizes>[^\n]*) -->\n)(?P<block>```python\n.*?^```$)", re.MULTILINE | re.DOTALL
)
FENCES = re.compile(r"^[ \t]*```(?P<info>[^`\n]*)\n(?:.*\n)*?[ \t]*```[ \t]*$", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def note(example: Example, kind: str) -> str | None:
    """What the comment on the line before a block says: ``<!-- KIND: this -->``."""
    before = example.document.text[: example.start]
    found = re.search(rf"<!-- {kind}: (.*?) -->\n\Z", before)
    return found and found[1]


def evaluate_shell(example: Example) -> None:
    evaluate = run_command if note(example, "parse") is None else parse_command
    for words in command_lines(example.parsed):
        evaluate(words)


def evaluate_yaml(example: Example) -> None:
    assert yaml.safe_load(example.parsed) is not None
    if file := note(example, "file"):
        Path(file).write_text(example.parsed)


def make_smaller(found: re.Match[str]) -> str:
    """A block with the sizes that the comment before it gives, on the same lines."""
    block = found["block"]
    for size in found["sizes"].split(", "):
        shown, executed = size.split("=")
        assert re.search(rf"\b{shown}\b", block), f"There is no {shown} in {block}"
        block = re.sub(rf"\b{shown}\b", executed, block)
    return found["start"] + block


def examples(page: Path) -> list[Example]:
    parsers = (
        PythonCodeBlockParser(),
        CodeBlockParser("sh", evaluate_shell),
        CodeBlockParser("yaml", evaluate_yaml),
        SkipParser(),
    )
    text = page.read_text()
    # Comments that belong to no block would change nothing
    assert len(SMALLER.findall(text)) == text.count("<!-- smaller:"), name_of(page)
    document = Document(SMALLER.sub(make_smaller, text), str(page))
    for parser in parsers:
        for region in parser(document):
            document.add(region)
    document.namespace["__name__"] = "page"
    return list(document)


def params() -> Iterator[Any]:
    """The pages with code, and what they need."""
    for page in PAGES:
        if code := examples(page):
            marks = [mark for word, mark in NEEDED_FOR.items() if any(word in str(example.parsed) for example in code)]
            yield pytest.param(page, id=name_of(page), marks=marks)


@pytest.mark.parametrize("page", params())
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SB3_QAM_CACHE", str(tmp_path / "cache"))
    for example in examples(page):
        try:
            example.evaluate()
        except SkipTest:
            # Which blocks may is tested below
            continue
        except (Exception, SystemExit) as error:
            # Of commands there is no traceback into the page
            raise AssertionError(f"{name_of(page)}, line {example.line}: {error!r}") from error


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_executed_or_only_shown(page: Path):
    text = page.read_text()
    kinds = [fence["info"] for fence in FENCES.finditer(text)]
    assert not [kind for kind in kinds if kind not in EXECUTED | SHOWN and not kind.startswith("{")]
    executed = [example for example in examples(page) if "invisible-code" not in page_part(example)]
    skips = [example for example in executed if page_part(example).startswith("<!-- skip")]
    assert len(executed) - len(skips) == sum(kind in EXECUTED for kind in kinds)


def bound_names(node: ast.AST) -> Iterator[str]:
    """What one node of a program gives a value to."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in aliases)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_readers_see_where_every_name_comes_from(page: Path):
    known = set(dir(builtins))
    for fence in FENCES.finditer(page.read_text()):
        if fence["info"] != "python":
            continue
        nodes = list(ast.walk(ast.parse("\n".join(fence[0].splitlines()[1:-1]))))
        known |= {name for node in nodes for name in bound_names(node)}
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        assert used <= known, f"{name_of(page)} shows no import or value of {used - known}"


def page_part(example: Example) -> str:
    return example.document.text[example.start : example.end]


def test_blocks_that_are_not_executed_say_why_and_are_never_python():
    for page in PAGES:
        text = page.read_text()
        for found in [*SKIP.finditer(text), *PARSE.finditer(text)]:
            print(f"{name_of(page)}: {found['language']} not executed: {found['reason'].strip()}")
            assert found["language"] == "sh", f"{name_of(page)}: {found[0]}"
            assert len(found["reason"].split()) >= 2, f"{name_of(page)} gives no reason: {found[0]}"
        assert len(re.findall(r"^<!-- (?:skip|parse)", text, re.MULTILINE)) == len(
            [*SKIP.finditer(text), *PARSE.finditer(text)]
        ), f"{name_of(page)} has a comment that belongs to no block."
