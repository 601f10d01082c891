"""Settings of the Kafka source, and how they reach the client."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, Literal

from aiokafka.helpers import create_ssl_context
from pydantic import Field, model_validator

from streamtrain.errors import ConfigError
from streamtrain.settings import Settings
from streamtrain.sources import SourceSettings

__all__ = ["KafkaConnection", "KafkaSettings", "StartAt"]

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


class StartAt(Settings):
    """A new model begins with the first record of this time or later."""

    timestamp_ms: int = Field(ge=0)
    """Record time in milliseconds since 1970."""


class KafkaConnection(Settings):
    """How to reach a Kafka cluster. Passwords come from the environment or a file, never from settings."""

    bootstrap_servers: str = Field(default="localhost:9092", min_length=1)
    """Brokers to ask first, `host:port` joined by commas; they name the others."""
    security_protocol: SecurityProtocol = "PLAINTEXT"
    """Whether the connection is encrypted (`SSL`) and authenticated by password (`SASL`)."""
    sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    """How the password is proved, with a `SASL_` protocol."""
    sasl_username: str | None = None
    """User, with a `SASL_` protocol."""
    sasl_password_env: str | None = None
    """Environment variable that holds the password."""
    sasl_password_file: str | None = None
    """File that holds the password; white space around it is ignored."""
    ssl_cafile: str | None = None
    """Certificates of the authorities to trust (PEM). Default: the system's."""
    ssl_certfile: str | None = None
    """Certificate of this client (PEM), where brokers ask for one."""
    ssl_keyfile: str | None = None
    """Private key of this client (PEM). Default: it is in `ssl_certfile`."""
    request_timeout_s: float = Field(default=10.0, gt=0, le=300)
    """How long one request to a broker may take."""

    @model_validator(mode="after")
    def _consistent(self) -> KafkaConnection:
        if self.security_protocol.startswith("SASL") and self.sasl_username is None:
            raise ValueError(f'security_protocol = "{self.security_protocol}" needs sasl_username')
        if self.sasl_username is not None:
            if not self.security_protocol.startswith("SASL"):
                raise ValueError('sasl_username needs security_protocol = "SASL_SSL" (or "SASL_PLAINTEXT")')
            if (self.sasl_password_env is None) == (self.sasl_password_file is None):
                raise ValueError("give exactly one of sasl_password_env and sasl_password_file")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes.

        Raises:
          ConfigError: a password, certificate or key cannot be read.
        """
        return {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "request_timeout_ms": int(self.request_timeout_s * 1000),
            "retry_backoff_ms": 250,
            "security_protocol": self.security_protocol,
            "ssl_context": self._ssl_context(),
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self._password(),
        }

    def _ssl_context(self) -> ssl.SSLContext | None:
        if "SSL" not in self.security_protocol.replace("SASL", ""):
            return None
        try:
            return create_ssl_context(
                cafile=self.ssl_cafile, certfile=self.ssl_certfile, keyfile=self.ssl_keyfile
            )
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"the certificates for Kafka cannot be used: {error}; check source.ssl_cafile, ssl_certfile, ssl_keyfile"
            ) from error

    def _password(self) -> str | None:
        if self.sasl_password_env is not None:
            if password := os.environ.get(self.sasl_password_env):
                return password
            raise ConfigError(
                f"the environment has no {self.sasl_password_env}, which source.sasl_password_env names for Kafka's password"
            )
        if self.sasl_password_file is not None:
            try:
                return Path(self.sasl_password_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(
                    f"cannot read {self.sasl_password_file} (source.sasl_password_file): {error.strerror}"
                ) from error
        return None


class KafkaSettings(SourceSettings, KafkaConnection):
    """A Kafka topic, all of its partitions."""

    kind: Literal["kafka"]
    """Reads a Kafka topic."""
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    """The topic. It must exist; it is never created by reading."""
    group_id: str | None = None
    """Consumer group to mirror positions to, for lag tools. The epoch log alone decides where reading resumes."""
    start: Literal["earliest", "latest"] | StartAt = "earliest"
    """Where a new model begins: `earliest`, `latest`, or `{ timestamp_ms = ... }`."""
    skip_lost: bool = False
    """Go on at the topic's beginning when retention has deleted records that were never learned. Default: stop."""
    chunk_records_max: int = Field(default=4096, ge=1, le=1_000_000)
    """Records that are decoded together at most."""
    buffer_records_max: int = Field(default=65_536, ge=1, le=100_000_000)
    """Records read ahead; beyond it no more are fetched."""
    buffer_bytes_max: int = Field(default=64 << 20, ge=1024, le=1 << 40)
    """Bytes of records read ahead; beyond it no more are fetched."""
    fetch_bytes_max: int = Field(default=16 << 20, ge=1024, le=1 << 30)
    """Bytes of one broker's answer."""
    partition_fetch_bytes_max: int = Field(default=1 << 20, ge=1024, le=1 << 30)
    """Bytes of one partition in an answer. A larger batch comes whole nevertheless."""
    fetch_wait_ms: int = Field(default=100, ge=0, le=60_000)
    """How long a broker may wait for more records before it answers."""
    metadata_refresh_s: float = Field(default=10.0, gt=0, le=3600)
    """How often to look for new partitions, end offsets and a recreated topic."""
    unavailable_after_s: float = Field(default=30.0, gt=0, le=3600)
    """How long Kafka may be silent before it is reported. Trying goes on all the same."""
    mirror_interval_s: float = Field(default=1.0, gt=0, le=3600)
    """Least time between two mirrored commits of `group_id`."""
