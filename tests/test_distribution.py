"""What is published: the contents and metadata of sdist and wheel, and the files that say who made what."""

import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import sb3_qam

ROOT = Path(__file__).parents[1]
STEM = f"sb3_qam-{sb3_qam.__version__}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an sdist, and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation nothing has to be downloaded: what builds is installed for the tests
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(folder: Path) -> zipfile.ZipFile:
    (path,) = folder.glob("*.whl")
    assert path.name == f"{STEM}-py3-none-any.whl"
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(wheel.read(f"{STEM}.dist-info/METADATA").decode())


def package_files() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "sb3_qam").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert "sb3_qam/py.typed" in names
    assert {"sb3_qam/results/page.html", "sb3_qam/results/published.csv"} <= names
    assert f"{STEM}.dist-info/licenses/LICENSE" in wheel.namelist()


def test_the_sdist_has_the_package_and_what_builds_it(folder: Path):
    with tarfile.open(folder / f"{STEM}.tar.gz") as sdist:
        names = {name.removeprefix(f"{STEM}/") for name in sdist.getnames()}
    described = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert names == package_files() | described


def test_the_metadata_are_complete(metadata: Message):
    assert metadata["Name"] == "sb3-qam"
    assert metadata["Version"] == sb3_qam.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Paper"} == set(urls)
    assert {"extra", "zoo", "robotics", "ogbench", "quickstart", "onnx"} <= set(metadata.get_all("Provides-Extra"))
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_links_of_the_readme_lead_somewhere_from_the_page_of_the_package(metadata: Message):
    readme = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = [part.split(")")[0] for part in readme.split("](")[1:]]
    assert len(links) > 5
    assert all(link.startswith("https://") for link in links)
    version = f"v{sb3_qam.__version__}"
    assert f"https://raw.githubusercontent.com/sb3-qam/sb3-qam/{version}/docs/images/quickstart.png" in links
    assert f"https://github.com/sb3-qam/sb3-qam/blob/{version}/CHANGELOG.md" in links


def test_the_version_is_the_one_of_the_changelog_and_the_citation():
    assert f"## Release {sb3_qam.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == sb3_qam.__version__
