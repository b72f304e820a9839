"""Which servers may be reached by a URL that a client names."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from cvllm_jax.errors import ConfigError, McpConnectionError, shown

__all__ = ["UrlPolicy"]

type _Address = IPv4Address | IPv6Address

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = IPv6Network("::/96")
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class _Pattern:
    host: str
    """A name in lower case, "*.NAME", "*", or an address in its usual form."""
    port: int | None
    address: _Address | None

    def admits(self, host: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and _literal(host) is None
        return self.host in ("*", host)

    def names(self, address: _Address, host: str, port: int) -> bool:
        """Whether it says that this very address may be reached, even if it is not a public one."""
        if self.port not in (None, port):
            return False
        if self.host == "localhost":
            return host == "localhost" and address.is_loopback
        return self.address is not None and address == self.address


class UrlPolicy:
    """Hosts that may be connected to: ``HOST[:PORT]``, where HOST is a name, ``*.NAME``, an address or ``*``.

    ``*.NAME`` stands for everything below NAME, ``*`` for every host; without a port, any port will do. An address
    that is not public (loopback, private, link-local, a cloud's metadata service) may be reached only if a pattern is
    that address, or "localhost" for loopback: a name that leads there is not enough. Raises ConfigError for a pattern
    that is none.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, str):
            raise ConfigError("UrlPolicy takes a list of patterns, not one string", param="patterns")
        self._patterns = tuple(map(_parse_pattern, patterns))

    async def check(self, url: str) -> None:
        """Raise McpConnectionError unless ``url``, and every address that its host has now, may be reached.

        Connections are checked again when they are made, and go to an address that was checked.
        """
        host, port = self.check_form(url)
        await self.addresses(host, port)

    def check_form(self, url: str) -> tuple[str, int]:
        """The host and port of ``url``, if they may be reached as far as can be told without asking for addresses."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise McpConnectionError("the URL of an MCP server is not valid") from None
        if parts.scheme not in ("http", "https") or re.search(r"[\x00-\x20\x7f\\]", url):
            raise McpConnectionError("the URL of an MCP server must be an http or https URL")
        if "@" in parts.netloc:
            raise McpConnectionError("the URL of an MCP server must not carry a user name or password")
        host = _canonical(host)
        port = port if port is not None else {"http": 80, "https": 443}[parts.scheme]
        self._check_host(host, port)
        return host, port

    def _check_host(self, host: str, port: int) -> None:
        if not any(pattern.admits(host, port) for pattern in self._patterns):
            raise McpConnectionError(f"MCP servers at {_shown_host(host)}:{port} are not allowed here")

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses to connect to for ``host``, each of them checked; raises McpConnectionError."""
        host = _canonical(host)
        self._check_host(host, port)
        literal = _literal(host)
        if literal is not None:
            found = [literal]
        else:
            try:
                answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                raise McpConnectionError(f"the host {shown(host)} has no address") from None
            found = list(dict.fromkeys(ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers))
        for address in found:
            self._check_address(address, host, port)
        return [str(address) for address in found]

    def _check_address(self, address: _Address, host: str, port: int) -> None:
        inner = _innermost(address)
        if _is_public(address) and _is_public(inner):
            return
        if any(pattern.names(inner, host, port) for pattern in self._patterns):
            return
        leads = "" if str(address) == host else f"{host} leads to "
        raise McpConnectionError(f"{leads}{address}, which is no public address, and not allowed by itself")


def _parse_pattern(text: str) -> _Pattern:
    problem = ConfigError(f"{shown(text)} is no pattern HOST[:PORT]", param="patterns")
    if not isinstance(text, str):
        raise problem
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(?::(\d{1,5}))?", text.strip())
    try:
        host = text.strip() if match is None else match[1].strip("[]")
        port = int(match[2]) if match and match[2] else None
        wild = host.startswith("*.")
        canonical = host if host == "*" else _canonical(host.removeprefix("*."))
        address = None if host == "*" else _literal(canonical)
    except McpConnectionError:
        raise problem from None
    if (match is None and address is None) or (wild and address is not None) or port == 0 or (port or 0) > 65535:
        raise problem
    return _Pattern(f"*.{canonical}" if wild else canonical, port, None if address is None else _innermost(address))


def _canonical(host: str) -> str:
    """A host's usual form: an address as Python writes it, or a name in lower case without a final dot.

    Other spellings of IPv4 addresses (``127.1``, ``0x7f000001``, ``2130706433``, ``0177.0.0.1``) are refused, since
    what connects might read them as addresses.
    """
    host = host.lower()
    literal = _literal(host)
    if literal is not None:
        return str(_innermost(literal)) if isinstance(literal, IPv6Address) and literal.ipv4_mapped else str(literal)
    name = host[:-1] if host.endswith(".") else host
    try:
        name = name.encode("idna").decode().lower() if not name.isascii() else name
    except UnicodeError:
        name = ""
    last = name.rpartition(".")[2]
    if len(name) > 253 or not _NAME.fullmatch(name) or re.fullmatch(r"\d+|0x[0-9a-f]*", last):
        raise McpConnectionError(f"{shown(host)} is neither a host's name nor an address in its usual form")
    return name


def _literal(host: str) -> _Address | None:
    try:
        return None if "%" in host else ip_address(host)
    except ValueError:
        return None


def _innermost(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: _Address) -> bool:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None and address not in _NAT64:
        return address in _GLOBAL_UNICAST and address.is_global
    inner = _innermost(address)
    return inner.is_global and not inner.is_multicast and not inner.is_reserved


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
