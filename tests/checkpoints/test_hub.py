"""Downloads from a hub that speaks the protocol over a real socket."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_llama import CONFIG, llama_tensors, write_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One public model ``org/tiny``, a gated and a missing one; remembers what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cuts: list[int] = []
        """Bytes after which the connection breaks, one for each time."""
        self.broken = False
        """Large files cannot be had."""
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        return

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        if "org/absent" in path:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "org/gated" in path:
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/org/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": self.etag(content)}
                for name, content in self.server.files.items()
            ]
            self.send(200, json.dumps(entries).encode())
        elif path.startswith("/api/models/org/tiny"):
            if "/revision/" in path and path.rpartition("/")[2] not in ("main", "v1", COMMIT):
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": name} for name in self.server.files]
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self.send(200, json.dumps(info).encode())
        else:
            content = self.server.files.get(path.rpartition("/")[2])
            if content is None:
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            else:
                self.send_file(content)

    def etag(self, content):
        return hashlib.sha1(content).hexdigest()

    def send_file(self, content):
        headers = {"ETag": f'"{self.etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, part = 200, content
        if ranged := self.headers.get("Range"):
            start = int(ranged.removeprefix("bytes=").partition("-")[0])
            status, part = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and self.server.broken and len(part) > 1_000_000:
            self.send(500, b"{}")
        elif self.command == "GET" and self.server.cuts and len(part) > self.server.cuts[0]:
            self.send(status, part, headers, sent=self.server.cuts.pop(0))
            self.close_connection = True
        else:
            self.send(status, part, headers)

    def send(self, status, content, headers=None, sent=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])
            self.wfile.flush()


@pytest.fixture
def hub(tmp_path):
    config = CONFIG | {"vocab_size": 200_000}
    folder = write_folder(tmp_path / "repository", llama_tensors(config), config)
    for name in ("generation_config.json", "tekken.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"transformers_version": name}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for name in ("pytorch_model.bin", "tiny.gguf", "README.md", "consolidated.safetensors", "model.onnx"):
        (folder / name).write_bytes(bytes(1000))
    server = Hub(folder)
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.errors import Error
seen = []
try:
    checkpoint = open_checkpoint(sys.argv[1], revision=sys.argv[2] or None, progress=lambda *args: seen.append(args))
    result = {"name": checkpoint.name, "path": str(checkpoint.path), "tensors": len(checkpoint.tensors)}
except Error as error:
    result = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(result | {"progress": seen}))
"""


def start(tmp_path, url, model="org/tiny", revision="", **environment):
    """Open a model in a process of its own: the hub library reads its settings when it is imported."""
    variables = {
        **os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5", **environment,
    }  # fmt: skip
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        variables.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, model, revision],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def open_model(*args, **options):
    """What the process reports, and what it printed besides."""
    process = start(*args, **options)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return json.loads(output), errors


def test_a_model_is_downloaded_once_and_nothing_else_is(hub, tmp_path):
    result, printed = open_model(tmp_path, hub.url)
    assert (result["name"], result["tensors"]) == ("org/tiny", len(llama_tensors()))
    assert sorted(hub.downloads()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tekken.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    stages, done, totals = zip(*result["progress"], strict=True)
    assert set(stages) == {"downloading org/tiny"}
    assert list(done) == sorted(done)
    assert done[-1] == totals[-1] > 25_600_000
    assert "%" not in printed  # no progress bar of the hub library's own

    hub.requests.clear()
    again, _ = open_model(tmp_path, hub.url)
    assert again["path"] == result["path"]
    assert hub.downloads() == []

    offline, _ = open_model(tmp_path, "http://127.0.0.1:9")
    assert offline["path"] == result["path"]


def test_a_revision_is_passed_on(hub, tmp_path):
    assert open_model(tmp_path, hub.url, revision="v1")[0]["name"] == "org/tiny"
    assert any("/revision/v1" in path for _, path, _ in hub.requests)
    result, _ = open_model(tmp_path, hub.url, revision="v9")
    assert result["error"] == "ModelLoadError: the hub model org/tiny has no revision v9"


def test_a_broken_connection_goes_on_where_it_stopped(hub, tmp_path):
    hub.cuts = [21 << 20]  # the hub library takes steps of 10 MB
    result, _ = open_model(tmp_path, hub.url)
    assert result["tensors"] == len(llama_tensors())
    asked = [ranged for method, path, ranged in hub.requests if method == "GET" and "model.safetensors" in path]
    assert asked == [None, f"bytes={20 << 20}-"]
    assert result["progress"][-1][1] == result["progress"][-1][2]


def test_an_interrupted_download_keeps_the_files_it_has(hub, tmp_path):
    hub.broken = True
    result, _ = open_model(tmp_path, hub.url)
    assert result["error"].startswith("ModelLoadError: downloading org/tiny failed: ")
    assert "\n" not in result["error"]
    hub.broken = False
    hub.requests.clear()
    assert open_model(tmp_path, hub.url)[0]["tensors"] == len(llama_tensors())
    assert hub.downloads() == ["model.safetensors"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("org/absent", "org/absent is no file, no folder and no public hub model"),
        ("org/gated", "org/gated is a gated model"),
    ],
)
def test_models_that_cannot_be_had_are_refused(hub, tmp_path, model, reason):
    result, _ = open_model(tmp_path, hub.url, model)
    assert result["error"].startswith("ModelLoadError: ")
    assert reason in result["error"]
    assert "\n" not in result["error"]


@pytest.mark.parametrize(
    ("left", "reason"), [("config.json", "has no safetensors"), ("tiny.gguf", "of a model of GGUF files")]
)
def test_models_in_other_formats_are_refused(hub, tmp_path, left, reason):
    hub.files = {name: content for name, content in hub.files.items() if name in (left, "pytorch_model.bin")}
    result, _ = open_model(tmp_path, hub.url)
    assert reason in result["error"]


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network_the_answer_is_one_sentence(tmp_path, environment):
    result, _ = open_model(tmp_path, "http://127.0.0.1:9", **environment)
    assert result["error"] == (
        "ModelLoadError: org/tiny is neither a local path nor completely downloaded, and the hub cannot be reached"
    )
