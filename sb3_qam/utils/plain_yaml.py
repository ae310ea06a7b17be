"""The one loader of YAML files: whatever a file has in it, what comes out is data."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

# In characters: far more than any settings have, and far less than aliases of aliases of aliases make
MAX_SIZE = 1_000_000


class PlainLoader(yaml.SafeLoader):
    """
    PyYAML's safe loader, which makes plain values of Python objects (those that RL Zoo writes), reads ``3e-4`` as the
    number that it is, and refuses files that would become huge, or in which a name is there twice.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                raise yaml.YAMLError(f"'{name}' is there {count} times, where each name is expected once")
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        _check_size(node, {})
        return super().construct_document(node)


def _check_size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """
    :param sizes: Takes the number of values and their characters below each node, aliases written out
    :return: That of this node
    :raises yaml.YAMLError: if there are too many
    """
    if id(node) not in sizes:
        # Until it is known: a node below itself never ends
        sizes[id(node)] = math.inf
        if isinstance(node, yaml.ScalarNode):
            size = float(len(node.value))
        else:
            parts = (part for child in node.value for part in (child if isinstance(child, tuple) else [child]))
            size = sum((_check_size(part, sizes) for part in parts), 0.0)
        sizes[id(node)] = 1 + size
    if sizes[id(node)] > MAX_SIZE:
        raise yaml.YAMLError(f"it has more than {MAX_SIZE:,} characters, its aliases written out")
    return sizes[id(node)]


def _plain(loader: yaml.SafeLoader, kind: str, node: yaml.Node) -> Any:
    """
    :param kind: Of the Python object
    :return: What it was made from
    """
    if isinstance(node, yaml.SequenceNode):
        arguments = loader.construct_sequence(node, deep=True)
        return dict(arguments[0]) if kind == "object/apply:collections.OrderedDict" else arguments
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)  # for mypy
    return f"{kind} {loader.construct_scalar(node)}".strip()


PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
# YAML 1.1 asks for a dot and a sign in the exponent
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """
    :param path: A file with a dict in it
    :return: The dict. Nothing of the file is run, and no Python object made of it
    :raises ValueError: if it cannot be read, or is something else
    """
    try:
        # Bytes, so that PyYAML finds out the encoding
        content = yaml.load(path.read_bytes(), Loader=PlainLoader)
    except Exception as error:
        # Besides its own errors PyYAML raises whatever its constructors trip over
        raise ValueError(f"{path.name} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must have names with values in it, such as 'name: value'.")
    return content
