"""A file is replaced as a whole, whoever else writes it and whatever goes wrong."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sb3_qam.utils.atomic import atomic_write


def test_a_file_appears_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "file.txt"
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
        assert unfinished.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_several_writers_of_one_path_do_not_mix(tmp_path: Path):
    """The file is at any time one writer's, and none of them fails."""
    path = tmp_path / "file.bin"

    def write(number: int) -> None:
        with atomic_write(str(path)) as unfinished, unfinished.open("wb") as file:
            for _ in range(50):
                file.write(bytes([number]) * 1000)
        assert len(set(path.read_bytes())) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    assert len(path.read_bytes()) == 50_000
    assert os.listdir(tmp_path) == ["file.bin"]


def test_an_error_leaves_the_file_as_it_was_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as unfinished, unfinished.open("w") as file:
        file.writelines(["half", 3])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path):
    usual = tmp_path / "usual"
    usual.touch()
    for mode in (0o600, 0o664):
        path = tmp_path / "file"
        path.touch()
        path.chmod(mode)
        with atomic_write(path) as unfinished:
            # Never readable by more than the file it replaces
            assert stat.S_IMODE(unfinished.stat().st_mode) == mode
            unfinished.write_text("new")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    with atomic_write(tmp_path / "new") as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "new").stat().st_mode == usual.stat().st_mode


def test_a_link_leads_to_the_new_file(tmp_path: Path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_what_adds_suffixes_adds_none(tmp_path: Path):
    with atomic_write(tmp_path / "arrays.npz") as unfinished:
        np.savez(unfinished, a=np.ones(2))
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert arrays["a"].tolist() == [1, 1]
    with atomic_write(tmp_path / "model") as unfinished:
        assert unfinished.suffix == ".tmp"
        unfinished.write_text("model")
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "model"]
