"""Atomic file writes."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Write a file as a whole: whoever reads it meanwhile, and whenever the process is killed, it is complete or as it
    was before. Of several processes that write it at once, the last one wins.

    :param path: The file. A symbolic link stays one, and an existing file keeps its mode
    :return: Where to write: an empty file of another name in the same folder, with the same suffix (``.tmp`` if there
        is none), so that ``np.savez()`` and SB3's ``save()`` add none
    """
    path = Path(path).resolve()
    unfinished = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix or '.tmp'}")
    try:
        unfinished.touch(exist_ok=False)
        if path.exists():
            shutil.copymode(path, unfinished)
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """
    Wait until a file is on the disk: a power failure could leave an empty one under its final name.

    :param path: The file
    """
    # Windows syncs no file that is open for reading only
    with path.open("r+b") as file:
        os.fsync(file.fileno())
