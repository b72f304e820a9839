"""Which addresses a policy lets connections go to."""

import asyncio
import datetime
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from served import FakeServer, respond

from cvllm_jax import ConfigError, McpConnectionError
from cvllm_jax.mcp import McpClient, McpServerConfig, McpToolCall, UrlPolicy

pytestmark = pytest.mark.anyio

PUBLIC = "93.184.216.34"


@pytest.fixture
def names(monkeypatch):
    """What the names of these tests lead to; each may be changed by a test."""
    names = {"example.com": [PUBLIC], "api.example.com": [PUBLIC], "evil.test": ["127.0.0.1"]}
    real = socket.getaddrinfo

    def look_up(host, port, *args, **kwargs):
        if (host.decode() if isinstance(host, bytes) else host) not in names:
            return real(host, port, *args, **kwargs)
        answer = names[host].pop(0) if isinstance(names[host][0], list) else names[host]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in answer
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


async def allowed(patterns, url):
    try:
        await UrlPolicy(patterns).check(url)
    except McpConnectionError:
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("example.com", ["http://example.com/mcp", "https://EXAMPLE.com.:8443/"], ["http://api.example.com/"]),
        ("*.example.com", ["http://api.example.com/"], ["http://example.com/", "http://api.example.com.evil.test/"]),
        ("example.com:8443", ["https://example.com:8443/"], ["https://example.com/"]),
        ("example.com:443", ["https://example.com/"], ["http://example.com/"]),
        ("*", ["http://example.com/", f"http://{PUBLIC}/"], ["http://evil.test/", "http://127.0.0.1/"]),
        (PUBLIC, [f"http://{PUBLIC}:99/", f"http://[::ffff:{PUBLIC}]/"], ["http://example.com/"]),
        ("127.0.0.1:3001", ["http://127.0.0.1:3001/"], ["http://127.0.0.1/", "http://localhost:3001/"]),
        ("localhost", ["http://localhost:3001/"], ["http://127.0.0.1/"]),
        ("[::1]:3001", ["http://[::1]:3001/"], ["http://[::1]/"]),
        ("::1", ["http://[::1]/", "http://[0:0:0:0:0:0:0:1]/"], ["http://127.0.0.1/"]),
        ("10.0.0.5", ["http://10.0.0.5/", "http://[::ffff:10.0.0.5]/"], ["http://10.0.0.6/"]),
        ("evil.test", [], ["http://evil.test/"]),
    ],
)
async def test_patterns(names, pattern, yes, no):
    assert [await allowed([pattern], url) for url in yes] == [True] * len(yes)
    assert [await allowed([pattern], url) for url in no] == [False] * len(no)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b:1::1",
    ],
)  # fmt: skip
async def test_addresses_that_are_not_public_must_be_named(names, address):
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    names["name.test"] = [PUBLIC, address]
    assert not await allowed(["*"], url)
    assert not await allowed(["*", "name.test"], "http://name.test/")
    assert await allowed([address], url)
    assert await allowed([address, "name.test"], "http://name.test/")


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/",
        "http://127.0.0.1./", "http://127.0.0.01/", "http://[fe80::1%25eth0]/", "http://[::1%lo]/",
        "http://①②⑦.0.0.1/", "http://127。0。0。1/",
        "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "example.com", "//example.com/", "",
        "http://user@example.com/", "http://user:password@example.com/", "http://example.com@evil.test/", "http://@example.com/",
        "http://example.com\\@evil.test/", "http://exa mple.com/", "http://example.com:99999/", "http://example.com:x/",
        "http:///mcp", "http://[::1/", "http://-example.com/", "http://example..com/", "http://exam\nple.com/",
        "http://no-such-name.invalid/", f"http://{'a' * 64}.com/", f"http://{'a.' * 200}com/",
    ],
)  # fmt: skip
async def test_urls_that_are_refused_whatever_is_allowed(names, url):
    assert not await allowed(["*", "127.0.0.1", "localhost", "example.com"], url)


@pytest.mark.parametrize(
    "pattern",
    ["", "http://example.com", "example.com/", "*.127.0.0.1", "a*b.com", "*.*", "**", "127.1", "0x7f000001", "a:b",
     "example.com:0", "example.com:65536", "user@example.com", "[::1", "10.0.0.0/8", " "],
)  # fmt: skip
def test_patterns_that_are_none(pattern):
    with pytest.raises(ConfigError, match="is no pattern HOST"):
        UrlPolicy([pattern])


@given(st.ip_addresses())
def test_every_address_is_judged_as_the_registries_do(address):
    """Never more lenient than the standard library, whose list of special networks is another one's work."""
    url = f"http://[{address}]/" if address.version == 6 else f"http://{address}/"
    if asyncio.run(allowed(["*"], url)):
        assert address.is_global and not address.is_multicast
    assert asyncio.run(allowed([str(address)], url))


async def test_connections_go_to_an_address_that_was_checked(names):
    """The name led to a public address when the URL was checked, and to this machine when it was connected to."""
    fake = FakeServer()
    async with fake.served() as url:
        port = url.split(":")[2].split("/")[0]
        config = McpServerConfig(url=f"http://rebind.test:{port}/mcp", transport="http", timeout_secs=5)
        names["rebind.test"] = [[PUBLIC], *[["127.0.0.1"]] * 10]
        with pytest.raises(McpConnectionError, match=r"rebind\.test leads to 127\.0\.0\.1, which is no public address"):
            await McpClient.connect(config, policy=UrlPolicy(["rebind.test"]))
        assert fake.requests == []

        names["rebind.test"] = ["127.0.0.1"]
        async with await McpClient.connect(config, policy=UrlPolicy(["rebind.test", "127.0.0.1"])) as client:
            assert (await client.call_tool(McpToolCall(name="act"))).text == "done"
        assert {request["headers"]["host"] for request in fake.requests} == {f"rebind.test:{port}"}


async def test_redirects_and_endpoints_are_checked_again(names):
    """What a server names is connected to no more than what a client names."""
    target = FakeServer()
    async with target.served() as inside:

        async def redirect(server, writer, request):
            await respond(writer, b"", status=307, headers={"Location": inside})

        async def endpoint(server, writer, request):
            body = f"event: endpoint\ndata: {inside}\n\n".encode()
            await respond(writer, body, headers={"Content-Type": "text/event-stream"})

        for odd, transport in (({"initialize": redirect}, "http"), ({"GET": endpoint}, "sse")):
            async with FakeServer(**odd).served() as url:
                port = url.split(":")[2].split("/")[0]
                config = McpServerConfig(url=url, auth="letmein-secret", transport=transport, timeout_secs=2)
                with pytest.raises(McpConnectionError):
                    await McpClient.connect(config, policy=UrlPolicy([f"127.0.0.1:{port}"]))
    assert target.requests == []


async def test_certificates_are_for_names_not_for_addresses(names, tmp_path, monkeypatch):
    """The connection goes to an address, and the server must still prove that it has the name."""
    certificate, key = make_certificate(tmp_path, "secure.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    names["secure.test"] = names["other.test"] = ["127.0.0.1"]
    policy = UrlPolicy(["secure.test", "other.test", "127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with FakeServer().served(ssl=context) as url:
        port = url.split(":")[2].split("/")[0]

        def config(host):
            return McpServerConfig(url=f"https://{host}:{port}/mcp", transport="http", timeout_secs=5)

        async with await McpClient.connect(config("secure.test"), policy=policy) as client:
            assert (await client.call_tool(McpToolCall(name="act"))).text == "done"
        for host in ("other.test", "127.0.0.1"):
            with pytest.raises(McpConnectionError, match="certificate verify failed"):
                await McpClient.connect(config(host), policy=policy)


def make_certificate(folder, name):
    """Files of a certificate for ``name`` that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "certificate.pem", folder / "key.pem"
