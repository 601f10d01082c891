"""Settings of the row store."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from streamtrain.credentials import VARIABLE_PATTERN, secret_of_environment, secret_of_file
from streamtrain.settings import Settings
from streamtrain.store.address import StoreUrl

__all__ = ["StoreSettings"]


class StoreSettings(Settings):
    """Where rows are kept besides the process's own memory."""

    url: str = "memory://"
    """`memory://` (the process alone holds the rows; the log recovers them), `lmdb:///PATH` (a directory on a local disk, for
    this daemon alone), `redis://HOST:PORT/DATABASE`, `rediss://` for TLS, or `unix:///PATH?db=DATABASE`. A Redis Cluster is recognised by itself; name some of its nodes, `redis://A:6379,B:6379`."""
    password_env: str | None = Field(default=None, pattern=VARIABLE_PATTERN)
    """Name of the environment variable that holds the password, in capitals."""
    password_file: str | None = None
    """File that holds the password; a line end at its end is dropped. Read again for each new connection. Here and in the three
    below, a bare name is a file of `$CREDENTIALS_DIRECTORY` (systemd's `LoadCredential=`) where that has it."""
    tls_ca_file: str | None = None
    """Certificates (PEM) that vouch for a `rediss://` server; the system's where not named. Files that are
    replaced count from the next connection on."""
    tls_cert_file: str | None = None
    """This client's certificate (PEM), where the server asks for one."""
    tls_key_file: str | None = None
    """The private key (PEM) of `tls_cert_file`."""
    shards: int = Field(default=16, ge=1, le=1024)
    """Slices that every table is cut into; fixed when a model first fills the store. In a Redis Cluster, several a node."""
    timeout_s: float = Field(default=5.0, gt=0, le=300)
    """Longest wait for one answer, connecting included. After it the connection is closed."""
    retries: int = Field(default=3, ge=0, le=20)
    """How often a call is tried again, with pauses of 0.05 s doubling to 1 s, before the store counts as unavailable."""
    connections_max: int = Field(default=4, ge=1, le=64)
    """Bound on connections, and so on calls in flight, to each server."""
    disk_bytes_max: int = Field(default=1 << 36, ge=1 << 24, le=1 << 44)
    """Bound on the file of `lmdb://`, in bytes. It takes disk only as it grows; when it is full the store falls behind the log."""

    @field_validator("url")
    @classmethod
    def _readable(cls, url: str) -> str:
        StoreUrl.parse(url)
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        url = StoreUrl.parse(self.url)
        if self.password_env and self.password_file:
            raise ValueError("password_env and password_file exclude each other; remove one")
        if url.path and (self.password_env or self.password_file):
            raise ValueError(
                "an lmdb:// store is a directory and has no password; remove password_env, password_file"
            )
        if (self.tls_ca_file or self.tls_cert_file) and not url.tls:
            raise ValueError("tls_ca_file and tls_cert_file need a rediss:// url")
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file come together")
        return self

    @property
    def endpoint(self) -> StoreUrl:
        """`url`, parsed."""
        return StoreUrl.parse(self.url)

    def password(self) -> str | None:
        """Reads the password from where the settings say.

        Raises:
          ConfigError: the variable is not set or the file cannot be read.
        """
        if self.password_env:
            return secret_of_environment(self.password_env, "store.password_env")
        if self.password_file:
            return secret_of_file(self.password_file, "store.password_file")
        return None
