"""Where webhooks may go: the allow-list, addresses, redirects, TLS; with real servers on this machine."""

import asyncio
import ssl
import subprocess
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest

from service.errors import InvalidSettings
from service.settings import Settings
from service.webhooks import sender
from service.webhooks.allowed import AllowedHosts, WebhookRefused
from service.webhooks.sender import WebhookSender
from tests.support.webhook_receiver import receiving


def allowed(hosts: str, networks: str | None = None) -> AllowedHosts:
    return AllowedHosts.of(Settings(webhook_hosts=hosts, webhook_networks=networks))


def post(hosts: AllowedHosts, url: str, *answers: Sequence[str]) -> tuple[int, int]:
    """Send a message; the resolver gives one of these answers after the other, or is the system's without any.

    Returns:
        The status code, and how often the resolver was asked.
    """
    asked = 0

    async def resolve(host: str, port: int) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return answers[min(asked, len(answers)) - 1]

    async def send() -> int:
        async with WebhookSender(hosts, resolve if answers else None) as opened:
            return await opened.post(url, "{}", {})

    return asyncio.run(send()), asked


@pytest.mark.parametrize(
    ("hosts", "url", "why"),
    [
        ("", "https://hooks.example.org/x", "switched off here, not to https://hooks.example.org"),
        ("hooks.example.org", "https://example.org/", "may be sent to https://hooks.example.org alone"),
        ("hooks.example.org", "http://hooks.example.org/", "not to http://hooks.example.org"),
        ("hooks.example.org", "https://hooks.example.org:8443/", "not to https://hooks.example.org:8443"),
        ("hooks.example.org", "https://hooks.example.org.evil.example/", "evil"),
        ("hooks.example.org", "https://evil.example\\@hooks.example.org/", "not to https://evil.example"),
        ("hooks.example.org", "https://me:secret@hooks.example.org/", "password"),
        ("hooks.example.org", "file:///etc/passwd", "no URL of http or https"),
        ("hooks.example.org", "http://2130706433/", "not to http://127.0.0.1:"),
    ],
)
def test_allowed_hosts_refuse_urls_of_other_origins(hosts: str, url: str, why: str) -> None:
    with pytest.raises(WebhookRefused) as refused:
        allowed(hosts).check_url(url)
    assert why.rstrip(":") in str(refused.value)
    assert "secret" not in str(refused.value)


def test_allowed_hosts_let_named_origins_pass() -> None:
    hosts = allowed("Hooks.example.org http://10.0.0.5:8000")
    for url in ("https://hooks.example.org/a?b=c", "https://hooks.example.org:443/", "http://10.0.0.5:8000/"):
        hosts.check_url(url)


@pytest.mark.parametrize(
    ("hosts", "networks", "why"),
    [
        ("ftp://a", None, "RETORT_WEBHOOK_HOSTS: 'ftp://a'"),
        ("a/path", None, "more than a scheme, a host and a port"),
        ("a", "10.0.0.0/33", "RETORT_WEBHOOK_NETWORKS: '10.0.0.0/33'"),
    ],
)
def test_allowed_hosts_refuse_settings_that_mean_nothing(hosts: str, networks: str | None, why: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        allowed(hosts, networks)
    assert why in str(refused.value)


NOT_PUBLIC = (
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "fec0::1", "ff02::1", "::ffff:10.0.0.1"),
    *("::127.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"),
)


def test_allowed_hosts_refuse_addresses_that_are_not_public_unless_their_network_is_allowed() -> None:
    name = "hooks.example.org"
    for address in NOT_PUBLIC:
        for network in (None, "10.1.2.4/32 fd00::2/128"):
            with pytest.raises(WebhookRefused, match="not public"):
                allowed(name, network).allowed_addresses(name, [address])
        assert allowed(name, address).allowed_addresses(name, ["192.168.9.9", address]) == [address]
    public = ["8.8.8.8", "2606:4700::1"]
    assert allowed(name).allowed_addresses(name, [*NOT_PUBLIC, *public]) == public


def test_sender_refuses_this_machine_by_its_real_name() -> None:
    with receiving() as receiver, pytest.raises(WebhookRefused, match=r"localhost has the address .*not public"):
        post(allowed(f"http://localhost:{receiver.port}"), f"http://localhost:{receiver.port}/")
    assert receiver.messages.empty()


def test_sender_connects_to_the_address_that_was_checked_and_to_no_later_answer() -> None:
    """DNS rebinding: the second look-up would name this machine's other address, which is not allowed."""
    with receiving() as allowed_one, receiving(host="127.0.0.2", port=allowed_one.port) as other:
        url = f"http://hooks.example.org:{allowed_one.port}/x"
        hosts = allowed(url.removesuffix("/x"), "127.0.0.1/32")
        assert post(hosts, url, ["127.0.0.1"], ["127.0.0.2"]) == (204, 1)
        message = allowed_one.next()
        assert (message.path, message.headers["host"]) == ("/x", f"hooks.example.org:{allowed_one.port}")
        # Of several addresses, too, and where the allowed one does not answer.
        with pytest.raises(httpx2.ConnectError):
            post(
                allowed(f"http://hooks.example.org:{allowed_one.port}", "127.0.0.3/32"), url, ["127.0.0.3", "127.0.0.2"]
            )
        assert other.messages.empty()


def test_sender_tries_the_next_address_where_one_does_not_listen() -> None:
    with receiving() as receiver:
        url = f"http://hooks.example.org:{receiver.port}/"
        assert post(allowed(url, "127.0.0.0/8"), url, ["127.0.0.9", "127.0.0.1"]) == (204, 1)


def test_sender_follows_no_redirect() -> None:
    with receiving() as receiver:
        receiver.answers = [307]
        assert post(allowed(receiver.origin), f"{receiver.origin}/x")[0] == 307
        assert receiver.next().path == "/x"
        assert receiver.messages.empty()


def test_sender_gives_up_on_a_head_that_comes_in_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline for the whole attempt: every read of such an answer is quick."""
    monkeypatch.setattr(sender, "ATTEMPT_S", 0.5)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        with closing(writer), suppress(OSError):
            while True:
                writer.write(b"x: y\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)

    async def send() -> None:
        async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with WebhookSender(allowed(url)) as opened:
                with pytest.raises(TimeoutError):
                    await opened.post(url, "{}", {})

    asyncio.run(send())


def test_sender_checks_the_certificate_for_the_name_though_it_connects_to_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    name = ["-subj", "/CN=hooks.example.org", "-addext", "subjectAltName=DNS:hooks.example.org"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *name]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiving(context) as receiver:
        url = f"https://hooks.example.org:{receiver.port}/"
        assert post(allowed(url, "127.0.0.1/32"), url, ["127.0.0.1"])[0] == 204
        other = f"https://other.example.org:{receiver.port}/"
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            post(allowed(other, "127.0.0.1/32"), other, ["127.0.0.1"])
