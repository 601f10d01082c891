"""TLS to the servers that the daemon connects to, with certificates that may be replaced while it runs."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from streamtrain.credentials import located
from streamtrain.errors import ConfigError

__all__ = ["ClientTls"]

logger = logging.getLogger(__name__)


class ClientTls(ssl.SSLContext):
    """A client's context that reads its files again, at the next connection, when one of them was replaced.

    Clients keep the context that they were made with, and connections come and go: so this one is only the place
    where each connection asks for a context, made from the files as they are then. Adding to a context in place
    would not do: it cannot unlearn an authority. While a certificate is new and its key still old, the pair from
    before is used.

    Args:
      ca_file: certificates (PEM) of the authorities to trust; None: the system's.
      cert_file: the client's certificate (PEM), or None.
      key_file: its private key (PEM); None: it is in `cert_file`.
      settings: names the files in errors.

    Raises:
      ConfigError: a file cannot be read or used.
    """

    def __new__(cls, *_: object) -> ClientTls:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(
        self, ca_file: str | None, cert_file: str | None, key_file: str | None, settings: str
    ) -> None:
        self._files, self._settings = (ca_file, cert_file, key_file), settings
        self._seen: object = None
        try:
            self._seen = self._look()
            self._current = self._load()
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"the certificates cannot be used: {error}; check {settings}") from error

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What asyncio and uvloop call for each connection."""
        return self._fresh().wrap_bio(*arguments, **options)

    def _fresh(self) -> ssl.SSLContext:
        try:
            if (seen := self._look()) != self._seen:
                self._current = self._load()
                self._seen = seen
                logger.info("certificates were replaced: new connections use them (%s)", self._settings)
        except OSError as error:
            logger.warning(
                "certificates were replaced and cannot be used yet, those from before are: %s; check %s",
                error,
                self._settings,
            )
        return self._current

    def _look(self) -> object:
        """What changes when a file is replaced or written to; links are followed, which Kubernetes swaps."""
        found = [located(path).stat() for path in self._files if path is not None]
        return [(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size) for status in found]

    def _load(self) -> ssl.SSLContext:
        ca, cert, key = (None if path is None else located(path) for path in self._files)
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            # An empty password: OpenSSL must not ask for one on a terminal.
            context.load_cert_chain(cert, key, password="")
        return context
