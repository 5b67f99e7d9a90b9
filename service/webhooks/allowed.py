"""Allow-list of webhooks: the origins that a URL may have, and the addresses that may be connected to.

A service that sends requests to URLs of its clients can be used to reach what only it can reach (server-side request
forgery). So an operator names the origins, and an address that is not public is refused unless a literal one was named
or it lies in a network that was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from pydantic import HttpUrl, TypeAdapter, ValidationError

from service.errors import InvalidSettings, ServiceError
from service.settings import Settings

_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)
# RFC 4291, section 2.5.4: all that is handed out lies here; mapped, translated and site-local addresses do not.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Addresses of IPv4, private ones too, in disguise (RFC 3056).
_SIX_TO_FOUR = IPv6Network("2002::/16")
# Scheme, host and port.
Origin = tuple[str, str, int]


class WebhookRefused(ServiceError, ValueError):
    """A URL, or the address of its host, that webhooks may not be sent to."""


@dataclass(frozen=True)
class AllowedHosts:
    """Origins and networks of the settings.

    Attributes:
        origins: scheme, host and port of each; none refuses every URL.
        networks: of addresses that are not public, which these hosts may have even so.
    """

    origins: tuple[Origin, ...]
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read ``webhook_hosts`` and ``webhook_networks``. Raises InvalidSettings."""
        try:
            networks = tuple(map(ip_network, (settings.webhook_networks or "").split()))
        except ValueError as error:
            raise InvalidSettings(
                f"RETORT_WEBHOOK_NETWORKS: {error}: write networks such as 10.0.0.0/8, separated by spaces"
            ) from error
        return cls(tuple(map(_read_origin, (settings.webhook_hosts or "").split())), networks)

    def check_url(self, url: str) -> None:
        """Check the URL of a webhook before anything is looked up.

        Raises:
            WebhookRefused: its origin was not named, or it holds a password.
        """
        parsed, fault = _parse(url)
        if parsed is None:
            raise WebhookRefused(f"{url!r:.200} is no URL of http or https: {fault}")
        if parsed.username is not None or parsed.password is not None:
            raise WebhookRefused("the URL holds a user or password, which everybody could read: leave it out")
        if (origin := _origin_of(parsed)) in self.origins:
            return
        named = ", ".join(map(_text, self.origins))
        allowed = f"webhooks may be sent to {named} alone" if named else "webhooks are switched off here"
        raise WebhookRefused(
            f"{allowed}, not to {_text(origin)}: the service's operator allows it by naming it in RETORT_WEBHOOK_HOSTS"
        )

    def allowed_addresses(self, host: str, found: Iterable[str]) -> Sequence[str]:
        """Those of a host's addresses that may be connected to.

        Args:
            host: of a URL that ``check_url`` has let pass; a literal address was named as such.
            found: its addresses, as they were resolved.

        Raises:
            WebhookRefused: none of them.
        """
        addresses = list(dict.fromkeys(found))
        if _is_address(host):
            return addresses
        allowed = [text for text in addresses if self._is_allowed(ip_address(text))]
        if not allowed:
            raise WebhookRefused(
                f"{host} has the address {', '.join(addresses) or 'of nobody'}, which is not public: the service's "
                "operator allows a network of such addresses by RETORT_WEBHOOK_NETWORKS"
            )
        return allowed

    def _is_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        return _is_public(address) or any(address in network for network in self.networks)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is unicast on the Internet: not private, shared, loopback, link-local or multicast."""
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_UNICAST or address in _SIX_TO_FOUR):
        return False
    return address.is_global and not address.is_multicast


def _read_origin(text: str) -> Origin:
    """Read an entry of RETORT_WEBHOOK_HOSTS. Raises InvalidSettings."""
    advice = "write hosts such as hooks.example.org or http://10.0.0.5:8000, separated by spaces"
    parsed, fault = _parse(text if "://" in text else f"https://{text}")
    if parsed is None:
        raise InvalidSettings(f"RETORT_WEBHOOK_HOSTS: {text!r}: {fault}: {advice}")
    if (parsed.path or "/") != "/" or parsed.query or parsed.fragment or parsed.username or parsed.password:
        raise InvalidSettings(f"RETORT_WEBHOOK_HOSTS: {text!r} is more than a scheme, a host and a port: {advice}")
    return _origin_of(parsed)


def _parse(text: str) -> tuple[HttpUrl | None, str]:
    """A URL as browsers read it (0x7f.1 is 127.0.0.1, and a name with umlauts is in Punycode), or what is wrong."""
    try:
        return _URL.validate_python(text), ""
    except ValidationError as error:
        return None, error.errors()[0]["msg"]


def _origin_of(url: HttpUrl) -> Origin:
    assert url.host is not None
    assert url.port is not None
    return url.scheme, url.host, url.port


def _text(origin: Origin) -> str:
    scheme, host, port = origin
    return f"{scheme}://{host}" + ("" if port == {"http": 80, "https": 443}[scheme] else f":{port}")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
