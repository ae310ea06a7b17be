"""Files that are there as a whole, or as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """
    Whoever reads the file meanwhile, and whenever the process is killed, it is complete or as it was before.

    :param path: The file; of a link, what it leads to
    :return: Where to write: beside the file, as only there it can be moved in one step
    """
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
