"""How an MCP server is reached, and the ``mcpServers`` file that names servers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from cvllm_jax.errors import ConfigError, shown

__all__ = ["McpServerConfig", "McpTransport", "load_mcp_config"]

McpTransport = Literal["auto", "http", "sse", "stdio"]

#: Headers that the protocol itself sets, or that would make a request be read as another.
_RESERVED_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}
)
#: The names that other programs write for transports.
_TRANSPORT_NAMES: Mapping[str, McpTransport] = {
    "http": "http", "streamable-http": "http", "streamable_http": "http", "streamableHttp": "http",
    "sse": "sse", "stdio": "stdio", "auto": "auto",
}  # fmt: skip
#: What other programs write into their files about themselves, and nothing here depends on.
_IGNORED_KEYS = frozenset({"$schema", "alwaysAllow", "autoApprove", "description", "disabled", "name"})
_MAX_FILE_BYTES = 1 << 20
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class McpServerConfig:
    """One MCP server: either a ``url`` or a ``command`` that is started.

    Raises ConfigError, with ``param`` the field at fault. Nothing secret is in its ``repr``.
    """

    url: str | None = None
    """Of a streamable HTTP or SSE endpoint."""
    auth: str | None = None
    """The whole value of the Authorization header; "Bearer " is put before one without a scheme."""
    timeout_secs: float = 30.0
    """Connecting, listing and calling each take at most so long, whatever the server does."""
    command: str | None = None
    """A program that speaks MCP over its standard input and output."""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the few variables that the program inherits: PATH, HOME, USER and the like."""
    cwd: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every HTTP request."""
    transport: McpTransport = "auto"
    """"auto" takes SSE for a URL that ends in /sse and streamable HTTP for any other, and the other one where the
    server answers that it does not know the first."""

    def __post_init__(self) -> None:
        if (self.url is None) == (self.command is None):
            raise ConfigError("needs either a url or a command, and not both", param="url")
        if self.transport not in get_args(McpTransport):
            raise ConfigError(f"transport must be one of {', '.join(get_args(McpTransport))}", param="transport")
        if isinstance(self.timeout_secs, bool) or not isinstance(self.timeout_secs, int | float):
            raise ConfigError("timeout_secs must be a number", param="timeout_secs")
        if not 0 < self.timeout_secs <= 86_400:
            raise ConfigError("timeout_secs must be more than 0 and at most 86400", param="timeout_secs")
        object.__setattr__(self, "args", _texts("args", self.args))
        for name in ("env", "headers"):
            object.__setattr__(self, name, _text_mapping(name, getattr(self, name)))
        if self.url is not None:
            self._check_url(self.url)
        else:
            self._check_command()

    def _check_url(self, url: str) -> None:
        if self.transport == "stdio":
            raise ConfigError("the stdio transport takes a command, no url", param="transport")
        for name in ("args", "env", "cwd"):
            if getattr(self, name):
                raise ConfigError(f"{name} belongs to a command, not to a url", param=name)
        try:
            parts = urlsplit(_text("url", url))
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError("url must be an http or https URL", param="url")
        if "@" in parts.netloc:
            raise ConfigError("url must not carry a user name or password; use auth", param="url")
        for name, value in self.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or name.lower() in _RESERVED_HEADERS:
                raise ConfigError(f"{shown(name)} cannot be set as a header", param="headers")
            _check_header_value("headers", value)
        if self.auth is not None:
            _check_header_value("auth", _text("auth", self.auth).strip())
            if any(name.lower() == "authorization" for name in self.headers):
                raise ConfigError("auth and an Authorization header exclude each other", param="auth")

    def _check_command(self) -> None:
        if self.transport in ("http", "sse"):
            raise ConfigError(f"the {self.transport} transport takes a url, no command", param="transport")
        for name in ("auth", "headers"):
            if getattr(self, name):
                raise ConfigError(f"{name} belongs to a url, not to a command", param=name)
        texts = [_text("command", self.command), *self.args, *self.env, *self.env.values()]
        if self.cwd is not None:
            texts.append(_text("cwd", self.cwd))
        if not self.command or any("\0" in text for text in texts):
            raise ConfigError("command must not be empty, and hold no NUL like its arguments", param="command")

    @property
    def server(self) -> str:
        """The server as errors name it: its host, or its command. A URL's path and query may hold secrets."""
        return urlsplit(self.url).netloc if self.url is not None else Path(str(self.command)).name

    @property
    def authorization(self) -> str | None:
        """The Authorization header's value."""
        if not self.auth:
            return None
        value = self.auth.strip()
        return value if " " in value else f"Bearer {value}"

    def __repr__(self) -> str:
        return f"McpServerConfig({self.server!r}, transport={self.transport!r}, timeout_secs={self.timeout_secs})"

    def redacted(self, text: str) -> str:
        """``text``, which may come from the server, without what is secret here, as one short line."""
        secrets = [*self.headers.values(), *self.env.values()]
        if self.auth:
            secrets += [self.auth, self.auth.split()[-1]]
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) > 3:  # shorter ones are no secrets, and part of many words
                text = text.replace(secret, "***")
        line = " ".join(text.split())
        return line if len(line) <= 300 else f"{line[:297]}..."


def load_mcp_config(path: str | Path) -> dict[str, McpServerConfig]:
    """The servers, by label, of a file ``{"mcpServers": {LABEL: {...}}}`` as other MCP clients read it.

    A server has ``command``, ``args``, ``env`` and ``cwd``, or ``url``, ``headers`` and ``auth``; further ``type`` or
    ``transport``, and ``timeout_secs``. One that is ``disabled`` is left out. ``${NAME}``, ``${NAME:-DEFAULT}`` (as
    Claude Code has it) and ``${env:NAME}`` (as VS Code does) stand for environment variables in all texts.

    Raises ConfigError, which names the file, the label and the key at fault.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than 1 MiB, the most that is read")
    try:
        document = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        where = str(error) if isinstance(error, json.JSONDecodeError) else "not UTF-8, or nested too deeply"
        raise ConfigError(f"{path} is no JSON: {where}") from None
    servers = document.get("mcpServers") if isinstance(document, dict) else None
    if not isinstance(servers, dict):
        raise ConfigError(f"{path}: needs an object 'mcpServers'")
    configs = {}
    for label, entry in servers.items():
        try:
            if (config := _read_server(entry)) is not None:
                configs[label] = config
        except ConfigError as error:
            raise ConfigError(f"{path}: server {shown(label)}: {error}", param=error.param) from None
    return configs


def _read_server(entry: object) -> McpServerConfig | None:
    """One server, or None if it is disabled."""
    if not isinstance(entry, dict):
        raise ConfigError("must be an object")
    known = {field.name for field in fields(McpServerConfig)} | {"type"}
    for key in entry:
        if key == "timeout":  # some programs count it in seconds, others in milliseconds
            raise ConfigError("unknown key 'timeout'; write timeout_secs", param=key)
        if key not in known | _IGNORED_KEYS:
            raise ConfigError(f"unknown key {shown(key)}", param=key)
    if not isinstance(entry.get("disabled", False), bool):
        raise ConfigError("disabled must be true or false", param="disabled")
    if entry.get("disabled"):
        return None
    settings = {key: _expanded(key, value) for key, value in entry.items() if key in known}
    names = {key: settings.pop(key) for key in ("type", "transport") if key in settings}
    for key, name in names.items():
        if not isinstance(name, str) or name not in _TRANSPORT_NAMES:
            raise ConfigError(f"{key} must be one of {', '.join(_TRANSPORT_NAMES)}", param=key)
        if settings.setdefault("transport", _TRANSPORT_NAMES[name]) != _TRANSPORT_NAMES[name]:
            raise ConfigError("type and transport name different transports", param="type")
    for key, value in settings.items():
        if value is None:
            raise ConfigError(f"{key} must not be null", param=key)
    return McpServerConfig(**settings)


def _expanded(key: str, value: Any) -> Any:
    """``value`` with the environment's variables in its texts."""
    if isinstance(value, str):
        return _expanded_text(key, value)
    if isinstance(value, list):
        return [_expanded(key, item) for item in value]
    if isinstance(value, dict):
        return {name: _expanded(f"{key}.{name}", item) for name, item in value.items()}
    return value


def _expanded_text(key: str, text: str) -> str:
    def value_of(match: re.Match[str]) -> str:
        name, default = match.groups()
        value = os.environ.get(name) or default
        if value is None and name not in os.environ:
            raise ConfigError(f"{key}: the environment variable {name} is not set", param=key)
        return value or ""

    expanded = _VARIABLE.sub(value_of, text)
    if "${" in _VARIABLE.sub("", text):
        raise ConfigError(f"{key}: '${{' begins neither ${{NAME}} nor ${{NAME:-DEFAULT}}", param=key)
    return expanded


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"the key {shown(twice)} is there twice in one object")
    return document


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string", param=name)
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} must be a list of strings", param=name)
    return tuple(value)


def _text_mapping(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be an object of strings", param=name)
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise ConfigError(f"{name}.{key} must be a string", param=name)
    return dict(value)


def _check_header_value(name: str, value: str) -> None:
    """Headers are printable ASCII here: what is more is read differently by different servers."""
    if not re.fullmatch(r"[\x20-\x7e\t]*", value):
        raise ConfigError(f"{name} must hold printable ASCII characters only", param=name)
