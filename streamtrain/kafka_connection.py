"""How to reach a Kafka cluster: settings that the source and the dead letters share. It imports no Kafka client."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from streamtrain.credentials import VARIABLE_PATTERN, secret_of_environment, secret_of_file
from streamtrain.settings import Settings
from streamtrain.tls import ClientTls

__all__ = ["KafkaConnection"]

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


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
    sasl_password_env: str | None = Field(default=None, pattern=VARIABLE_PATTERN)
    """Environment variable that holds the password, in capitals."""
    sasl_password_file: str | None = None
    """File that holds the password; a line end at its end is dropped. Read again for each new session. Here and in the three
    below, a bare name is a file of `$CREDENTIALS_DIRECTORY` (systemd's `LoadCredential=`) where that has it."""
    ssl_cafile: str | None = None
    """Certificates of the authorities to trust (PEM). Default: the system's. Files that are replaced count from the next connection on."""
    ssl_certfile: str | None = None
    """Certificate of this client (PEM), where brokers ask for one."""
    ssl_keyfile: str | None = None
    """Private key of this client (PEM). Default: it is in `ssl_certfile`."""
    request_timeout_s: float = Field(default=10.0, gt=0, le=300)
    """How long one request to a broker may take."""

    @field_validator("bootstrap_servers")
    @classmethod
    def _without_credentials(cls, servers: str) -> str:
        if "@" in servers or "//" in servers:
            raise ValueError(
                "must be host:port joined by commas, without protocol, user or password: see security_protocol, "
                "sasl_username and sasl_password_file"
            )
        return servers

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

    def _ssl_context(self) -> ClientTls | None:
        if "SSL" not in self.security_protocol.replace("SASL", ""):
            return None
        settings = "ssl_cafile, ssl_certfile and ssl_keyfile of Kafka"
        return ClientTls(self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile, settings)

    def _password(self) -> str | None:
        if self.sasl_password_env is not None:
            return secret_of_environment(self.sasl_password_env, "sasl_password_env")
        if self.sasl_password_file is not None:
            return secret_of_file(self.sasl_password_file, "sasl_password_file")
        return None
