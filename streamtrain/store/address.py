"""Reads `store.url`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["Address", "StoreUrl"]

_PORT = 6379
_FORMS = (
    "memory://, lmdb:///PATH, redis://HOST:PORT/DATABASE, rediss://HOST:PORT (TLS), unix:///PATH?db=DATABASE, "
    "or redis://HOST:PORT,HOST:PORT,... (some nodes of a Redis Cluster)"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where one server listens: host and port, or the path of a socket (then port is 0)."""

    host: str
    port: int = _PORT

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """What a URL says.

    Attributes:
      addresses: the servers to ask first; empty for `memory://` and `lmdb://`.
      tls: whether they speak TLS.
      username: the ACL user, or None for the default one.
      database: the number of the database; 0 in a Cluster.
      path: of `lmdb://`, the directory, absolute; else "".
    """

    addresses: tuple[Address, ...]
    tls: bool = False
    username: str | None = None
    database: int = 0
    path: str = ""

    @staticmethod
    def parse(url: str) -> StoreUrl:
        """Reads a URL.

        Raises:
          ValueError: it has another form, or holds a password. The text never repeats the URL's credentials.
        """
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        # A password with a slash, a question mark or a hash in it ends up behind the host.
        if ":" in credentials or ("@" in url and not credentials) or "password" in parts.query:
            raise ValueError(
                "holds a password, which ends up in logs and repositories; "
                "remove it and name password_env or password_file"
            )
        username = unquote(credentials) or None
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        if parts.scheme == "memory" and url == "memory://":
            return StoreUrl(())
        if parts.scheme == "lmdb" and parts.path.strip("/") and not parts.netloc and not options:
            return StoreUrl((), path=unquote(parts.path))
        if parts.scheme == "unix" and parts.path and not hosts and set(options) <= {"db"}:
            return StoreUrl(
                (Address(unquote(parts.path), 0),), False, username, _database(options.get("db", ""))
            )
        if parts.scheme in ("redis", "rediss") and hosts and not options:
            addresses = tuple(_address(host) for host in hosts.split(","))
            return StoreUrl(addresses, parts.scheme == "rediss", username, _database(parts.path.strip("/")))
        raise ValueError(f"must be one of {_FORMS}")


def _address(text: str) -> Address:
    parts = urlsplit(f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not HOST:PORT ({error})") from None
    if not host or port == 0:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return Address(host, port or _PORT)


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not the number of a database")
    return int(text or 0)
