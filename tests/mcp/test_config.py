"""What a server's configuration may say, and the files that hold several."""

import json

import pytest

from cvllm_jax import ConfigError
from cvllm_jax.mcp import McpServerConfig, load_mcp_config

URL = "https://example.com/mcp"


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "mcp.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(write):
    """Load a file with one server, s."""
    return lambda entry: load_mcp_config(write({"mcpServers": {"s": entry}}))["s"]


def test_servers_are_read(write, monkeypatch):
    monkeypatch.setenv("TOKEN", "t0k")
    monkeypatch.setenv("EMPTY", "")
    servers = load_mcp_config(
        write(
            {
                "mcpServers": {
                    "files": {
                        "command": "npx",
                        "args": ["-y", "${NONE:-server}"],
                        "env": {"KEY": "${TOKEN}"},
                        "cwd": "/",
                    },
                    "web": {"type": "http", "url": URL, "headers": {"X-Key": "a${TOKEN}b"}, "timeout_secs": 5},
                    "old": {"url": "https://example.com/sse", "transport": "sse", "auth": "${env:TOKEN}"},
                    "off": {"command": "x", "disabled": True, "alwaysAllow": ["a"]},
                    "more": {"url": URL, "type": "streamable-http", "auth": "Basic ${EMPTY:-e}${EMPTY}"},
                },
                "inputs": [],
            }
        )
    )
    assert list(servers) == ["files", "web", "old", "more"]
    files, web, old, more = servers.values()
    assert (files.command, files.args, files.env, files.cwd) == ("npx", ("-y", "server"), {"KEY": "t0k"}, "/")
    assert (web.url, web.transport, web.headers, web.timeout_secs) == (URL, "http", {"X-Key": "at0kb"}, 5)
    assert (old.transport, old.authorization) == ("sse", "Bearer t0k")
    assert (more.transport, more.authorization) == ("http", "Basic e")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, "must be an object"),
        ({}, "needs either a url or a command, and not both"),
        ({"url": URL, "command": "x"}, "needs either a url or a command, and not both"),
        ({"comand": "x"}, "unknown key 'comand'"),
        ({"command": "x", "timeout": 30}, "unknown key 'timeout'; write timeout_secs"),
        ({"command": 7}, "command must be a string"),
        ({"command": ""}, "command must not be empty, and hold no NUL like its arguments"),
        ({"command": "x", "args": "y"}, "args must be a list of strings"),
        ({"command": "x", "args": [1]}, "args must be a list of strings"),
        ({"command": "x", "env": {"A": 1}}, "env.A must be a string"),
        ({"command": "x", "headers": {"A": "b"}}, "headers belongs to a url, not to a command"),
        ({"command": "x", "type": "http"}, "the http transport takes a url, no command"),
        ({"command": None}, "command must not be null"),
        ({"url": URL, "args": ["x"]}, "args belongs to a command, not to a url"),
        ({"url": URL, "type": "stdio"}, "the stdio transport takes a command, no url"),
        ({"url": URL, "type": "carrier-pigeon"}, "type must be one of http, "),
        ({"url": URL, "type": "http", "transport": "sse"}, "type and transport name different transports"),
        ({"url": "ftp://example.com"}, "url must be an http or https URL"),
        ({"url": "http://[::1"}, "url must be an http or https URL"),
        ({"url": "https://u:p@example.com/"}, "url must not carry a user name or password; use auth"),
        ({"url": URL, "timeout_secs": 0}, "timeout_secs must be more than 0 and at most 86400"),
        ({"url": URL, "timeout_secs": True}, "timeout_secs must be a number"),
        ({"url": URL, "headers": {"Host": "other"}}, "'Host' cannot be set as a header"),
        ({"url": URL, "headers": {"a b": "c"}}, "'a b' cannot be set as a header"),
        ({"url": URL, "headers": {"X": "a\r\nY: b"}}, "headers must hold printable ASCII characters only"),
        ({"url": URL, "auth": "a", "headers": {"authorization": "b"}}, "auth and an Authorization header exclude each"),
        ({"url": URL, "disabled": "no"}, "disabled must be true or false"),
        ({"url": "https://${NO_SUCH_VARIABLE}/"}, "url: the environment variable NO_SUCH_VARIABLE is not set"),
        ({"command": "x", "env": {"A": "${input:key}"}}, "env.A: '${' begins neither ${NAME} nor ${NAME:-DEFAULT}"),
    ],
)
def test_mistakes_are_named(load, write, entry, message):
    with pytest.raises(ConfigError) as caught:
        load(entry)
    text = str(caught.value)
    assert f": server 's': {message}" in text and "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON: "),
        ("[]", "needs an object 'mcpServers'"),
        ('{"servers": {}}', "needs an object 'mcpServers'"),
        ('{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}}}', "the key 'a' is there twice"),
        ("[" * 200_000, "is no JSON: "),
        (" " * 2_000_000, "is larger than 1 MiB"),
    ],
)
def test_files_that_are_none(write, content, message):
    with pytest.raises(ConfigError, match=message):
        load_mcp_config(write(content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*mcp\.json: No such file"):
        load_mcp_config(tmp_path / "mcp.json")


def test_no_secret_is_shown():
    config = McpServerConfig(
        url="https://h.example/t0ps3cret/mcp?key=t0ps3cret", auth="t0ps3cret", headers={"X": "t0ps3cret"}
    )
    local = McpServerConfig(command="/opt/run", args=["--key", "t0ps3cret"], env={"KEY": "t0ps3cret"})
    assert repr(config) == "McpServerConfig('h.example', transport='auto', timeout_secs=30.0)"
    assert repr(local) == "McpServerConfig('run', transport='auto', timeout_secs=30.0)"
    assert config.redacted("no: Bearer t0ps3cret\n at line 2") == "no: Bearer *** at line 2"
