"""Certificate authorities and what they sign, made by openssl: EC keys, so that one takes milliseconds."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Authority", "Identity"]


@dataclass(frozen=True)
class Identity:
    """The files of one party, PEM: the authority that it trusts, its certificate, its private key (PKCS #8).

    `both` is the key and the certificate in one file, as Kafka wants it.
    """

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def cert(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def both(self) -> Path:
        return self.folder / "both.pem"

    def become(self, other: Identity) -> None:
        """Replaces each file by the other's, as a rotation does: whole, under the same name."""
        for name in ("ca.pem", "cert.pem", "key.pem", "both.pem"):
            shutil.copyfile(other.folder / name, self.folder / f"{name}.new")
            (self.folder / f"{name}.new").rename(self.folder / name)


class Authority:
    """Signs for 127.0.0.1 and localhost, for servers and clients.

    Args:
      folder: made for it; one folder an authority.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._request(folder, "authority", "-x509", "-days", "2", "-addext", "keyUsage=critical,keyCertSign")

    def sign(self, name: str) -> Identity:
        """A key and a certificate with the common name `name`."""
        folder = self._folder / name
        folder.mkdir()
        signer = ("-x509", "-days", "2", "-CA", self._folder / "cert.pem", "-CAkey", self._folder / "key.pem")
        self._request(
            folder,
            name,
            *signer,
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        identity = Identity(folder)
        shutil.copyfile(self._folder / "cert.pem", identity.ca)
        identity.both.write_bytes(identity.key.read_bytes() + identity.cert.read_bytes())
        return identity

    @staticmethod
    def _request(folder: Path, name: str, *options: str | Path) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        files = ("-keyout", folder / "key.pem", "-out", folder / "cert.pem")
        command = ["openssl", "req", *key, *files, "-subj", f"/CN={name}", *options]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
