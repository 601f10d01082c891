"""A Kafka broker that asks who one is and what one may: SASL_SSL, mTLS, and an authorizer; for tests."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.certificates import Identity
from tests.servers import ROOT, STOP_TIMEOUT_S, KafkaServer, ServerFailed, free_port, java

__all__ = ["PASSWORDS", "SecureKafka", "redis_users"]

PASSWORDS = {"trainer": "kafka-Wx9-trainer", "stranger": "kafka-Wx9-stranger"}
"""By user, of SASL; the same for each mechanism."""


class SecureKafka(KafkaServer):
    """Three doors: `sasl_servers` and `mtls_servers` for the daemon; `bootstrap_servers`, plain, for the test alone, who may all.

    Args:
      identity: of the broker; its files are read at each start.
    """

    name = "secure-kafka"

    def __init__(self, identity: Identity, folder: Path | None = None) -> None:
        super().__init__(folder)
        self._identity = identity

    @property
    def sasl_servers(self) -> str:
        return f"127.0.0.1:{self._sasl_port}"

    @property
    def mtls_servers(self) -> str:
        return f"127.0.0.1:{self._mtls_port}"

    def grant(self, **settings: str) -> None:
        """Runs `deploy/kafka/acls.sh` with these in its environment, as an administrator does."""
        tools = self.folder / "bin"
        tools.mkdir(exist_ok=True)
        tool = tools / "kafka-acls.sh"
        words = " ".join(f"'{word}'" for word in java("-Xmx96m"))
        tool.write_text(f'#!/bin/sh\nexec {words} org.apache.kafka.tools.AclCommand "$@"\n')
        tool.chmod(0o755)
        done = subprocess.run(
            ["sh", ROOT / "deploy" / "kafka" / "acls.sh"],
            env=os.environ
            | {"PATH": f"{tools}:{os.environ['PATH']}", "BOOTSTRAP": self.bootstrap_servers}
            | settings,
            capture_output=True,
            text=True,
            timeout=2 * STOP_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise ServerFailed(f"acls.sh: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _prepare(self) -> None:
        self._sasl_port, self._mtls_port = free_port(), free_port()
        super()._prepare()

    def _format_options(self) -> list[str]:
        return [
            word
            for user, password in PASSWORDS.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
        ]

    def _properties(self, data: Path) -> dict[str, object]:
        plain, scram = (
            f"org.apache.kafka.common.security.{kind}LoginModule required"
            for kind in ("plain.Plain", "scram.Scram")
        )
        users = " ".join(f'user_{user}="{password}"' for user, password in PASSWORDS.items())
        sasl = "listener.name.sasl_ssl"
        more: dict[str, Any] = {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port},"
            f"SASL_SSL://127.0.0.1:{self._sasl_port},SSL://127.0.0.1:{self._mtls_port}",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The broker's own connections and the test's come through the plain door.
            "super.users": "User:ANONYMOUS",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._identity.both,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._identity.ca,
            "listener.name.ssl.ssl.client.auth": "required",
            f"{sasl}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            f"{sasl}.plain.sasl.jaas.config": f"{plain} {users};",
            f"{sasl}.scram-sha-256.sasl.jaas.config": f"{scram};",
            f"{sasl}.scram-sha-512.sasl.jaas.config": f"{scram};",
        }
        return super()._properties(data) | more


def redis_users(folder: Path, **passwords: str) -> Path:
    """`deploy/redis/users.acl` with these passwords filled in, as its documentation says: by their digests."""
    text = (ROOT / "deploy" / "redis" / "users.acl").read_text()
    for user, password in passwords.items():
        digest = hashlib.sha256(password.encode()).hexdigest()
        text = text.replace(f"SHA256_OF_{user.upper()}_PASSWORD", digest)
    path = folder / "users.acl"
    path.write_text(text)
    return path
