"""What a YAML file has in it comes out as data, whatever it is."""

import math
import re
from pathlib import Path

import pytest

import sb3_qam
from sb3_qam.utils.plain_yaml import read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def read(path: Path, text: str) -> dict:
    (path / "file.yml").write_text(text)
    return read_yaml(path / "file.yml")


def test_numbers_are_read_as_they_are_written(tmp_path: Path):
    assert read(tmp_path, "{a: 3e-4, b: 1e6, c: .inf, d: -2E+3, e: 1.5, f: 3e, g: '3e-4', h: 7}") == {
        **{"a": 3e-4, "b": 1e6, "c": math.inf, "d": -2000.0, "e": 1.5, "f": "3e", "g": "3e-4", "h": 7}
    }
    assert read(tmp_path, "x: &x {a: 1}\ny: {<<: *x, b: *x}")["y"] == {"a": 1, "b": {"a": 1}}


def test_python_objects_are_not_made(tmp_path: Path):
    made = tmp_path / "made"
    for tag in ("object/apply:os.mkdir", "object/new:os.mkdir", "object/apply:subprocess.call"):
        assert read(tmp_path, f"a: !!python/{tag} [{made}]") == {"a": [str(made)]}
    assert read(tmp_path, "a: !!python/name:os.system ''") == {"a": "name:os.system"}
    assert not made.exists()


@pytest.mark.parametrize(
    "text",
    [
        *(BOMB, "a: &a [*a]", "a: " + "[" * 5000, f"a: &a {'x' * 1000}\nb: [{', '.join(['*a'] * 2000)}]"),
        *("- a", "", "a: [", "{[a]: 1}", "a: !!int x", "a: !!timestamp x", "a: \x01", "a: !!unknown 3", "a: {<<: 3}"),
    ],
    ids=lambda text: text[:12],
)
def test_what_cannot_be_read_is_said_on_one_line(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=r"^file.yml (cannot be read as YAML: |must have names with values)") as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_the_package_loads_no_code_that_the_user_has_not_named():
    """Every place that reads YAML or pickles. What is new here needs a word in SECURITY.md."""
    unsafe = re.compile(
        r"yaml\.(load|unsafe_load|full_load)|UnsafeLoader|FullLoader|[^.\w](c?loud)?pickle\.loads?\(|load_from_pkl"
        r"|VecNormalize\.load\(|create_test_env\(|torch\.load\(|\bth\.load\(|allow_pickle|recover_environment\(\)\."
    )
    root = Path(sb3_qam.__file__).parent
    found = {
        (path.relative_to(root).as_posix(), match[0].strip(" =("))
        for path in root.rglob("*.py")
        for match in unsafe.finditer(path.read_text())
    }
    assert found <= {
        # By PlainLoader
        ("utils/plain_yaml.py", "yaml.load"),
        # What its own parent process sends
        ("recording/workers.py", "pickle.loads"),
        # Its own episodes in the Minari cache
        ("recording/staging.py", "pickle.loads"),
        # Named, or of the run whose model is named
        ("cli/models.py", "VecNormalize.load"),
        ("cli/evaluate.py", "create_test_env"),
        # In what it says, not in what it does
        ("common/export.py", "VecNormalize.load"),
        # Named by path, as replay_buffer=
        ("datasets/replay_buffer.py", "load_from_pkl"),
    }
