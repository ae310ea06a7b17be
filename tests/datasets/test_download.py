"""An id that is not in the cache is fetched through Minari, here from a local server with the Hub's protocol."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import minari
import pytest

from tests.conftest import record, write_dataset

PROGRAM = """
import sys
from sb3_qam import QAM
model = QAM("FlowPolicy", offline_dataset=sys.argv[1], batch_size=8)
model.pretrain(gradient_steps=1)
print(model.offline_buffer.size(), "transitions")
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Of each organization's dataset repositories: listing, description, and files."""

    root: Path
    log: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.log.append(f"{self.command} {self.path}")
        url = urllib.parse.urlparse(self.path)
        parts = urllib.parse.unquote(url.path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and len(parts) == 2:
            self.answer([{"id": f"farama-minari/{path.name}"} for path in sorted(self.root.iterdir())])
        elif parts[:2] == ["api", "datasets"]:
            repository = self.root / parts[3]
            files = [str(path.relative_to(repository)) for path in sorted(repository.rglob("*")) if path.is_file()]
            if "tree" in parts:
                entries = [{"type": "file", "path": file, "size": 1, "oid": "0" * 40} for file in files]
                self.answer(entries)
            else:
                self.answer(
                    {
                        "id": "/".join(parts[2:4]),
                        "sha": "0" * 40,
                        "private": False,
                        "downloads": 0,
                        "tags": [],
                        "siblings": [{"rfilename": file} for file in files],
                    }
                )
        elif self.command == "HEAD" and parts == [""]:
            self.answer([])
        else:
            file = self.root.joinpath(parts[2], *parts[5:])
            if file.is_file():
                content = file.read_bytes()
                self.answer(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
            else:
                self.answer(b"", {"X-Error-Code": "EntryNotFound"}, status=404)

    def answer(self, content, headers: dict[str, str] | None = None, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"X-Repo-Commit": "0" * 40, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path: Path):
    class ThisHub(Hub):
        root, log = tmp_path / "hub", []

    ThisHub.root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ThisHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def publish(root: Path, monkeypatch: pytest.MonkeyPatch, n_episodes: int = 2) -> minari.MinariDataset:
    import gymnasium as gym

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    env = gym.make("Pendulum-v1", max_episode_steps=10)
    dataset = write_dataset(record(env, n_episodes), env.observation_space, env.action_space, "swings/short-v0")
    (root / "swings" / "namespace_metadata.json").write_text(json.dumps({"datasets": ["swings/short-v0"]}))
    return dataset


def train(dataset_id: str, cache: Path, port: int | None) -> subprocess.CompletedProcess[str]:
    """In another process, because the Hub's client reads its settings once."""
    settings = {
        "MINARI_DATASETS_PATH": str(cache / "minari"),
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_OFFLINE": "1" if port is None else "0",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    if port is not None:
        settings["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", PROGRAM, dataset_id]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300)


def test_an_id_that_is_not_in_the_cache_is_downloaded_once(hub, tmp_path, monkeypatch):
    publish(hub.RequestHandlerClass.root, monkeypatch)
    result = train("swings/short-v0", tmp_path, hub.server_port)
    assert "20 transitions" in result.stdout, result.stderr
    assert any("main_data.hdf5" in line for line in hub.RequestHandlerClass.log)
    n_requests = len(hub.RequestHandlerClass.log)
    result = train("swings/short-v0", tmp_path, hub.server_port)
    assert "20 transitions" in result.stdout, result.stderr
    assert len(hub.RequestHandlerClass.log) == n_requests


def test_an_unknown_id(hub, tmp_path, monkeypatch):
    publish(hub.RequestHandlerClass.root, monkeypatch)
    result = train("swings/long-v0", tmp_path, hub.server_port)
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert "FileNotFoundError: No Minari dataset 'swings/long-v0' in the local cache (there: none)" in last_line
    assert "Couldn't find any version" in last_line


@pytest.mark.parametrize("port", [None, 1])
def test_without_a_network_it_says_so_at_once(tmp_path, port: int | None):
    """Where the Hub's client is told that it is offline, and where nothing answers."""
    result = train("swings/short-v0", tmp_path, port)
    assert result.returncode != 0
    assert "Retrying" not in result.stderr
    # A single error, and not what the client raised before it
    assert result.stderr.count("Traceback") == 1
    last_line = result.stderr.strip().splitlines()[-1]
    assert "No Minari dataset 'swings/short-v0' in the local cache (there: none), and it cannot be" in last_line
    assert last_line.endswith("To record one: `sb3-qam data collect ENV swings/short-v0`.")
