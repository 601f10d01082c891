"""Where secrets come from: a file, a systemd credential or the environment; never settings, never the command line."""

from __future__ import annotations

import os
from pathlib import Path

from streamtrain.errors import ConfigError

__all__ = ["SECRET_BYTES_MAX", "VARIABLE_PATTERN", "located", "secret_of_environment", "secret_of_file"]

SECRET_BYTES_MAX = 64 << 10
"""A password or token is shorter; a larger file is something else, named by mistake."""
# A password that is put where the name of its variable belongs is seldom one of these, so an error may repeat the name.
VARIABLE_PATTERN = r"^[A-Z_][A-Z0-9_]*$"
"""How a setting must look that names an environment variable: as POSIX writes them."""


def located(path: str) -> Path:
    """The file that a setting names: a bare name is a systemd credential (`LoadCredential=`) where there is one.

    Source: https://systemd.io/CREDENTIALS/, `$CREDENTIALS_DIRECTORY`.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and "/" not in path and (credential := Path(folder, path)).is_file():
        return credential
    return Path(path)


def secret_of_file(path: str, setting: str) -> str:
    """Reads a secret: all of the file but a line end at its end.

    Args:
      path: see `located`.
      setting: names the file in errors.

    Raises:
      ConfigError: it cannot be read, is empty, or is too large. The text never holds what the file does.
    """
    try:
        with located(path).open("rb") as file:
            data = file.read(SECRET_BYTES_MAX + 1)
        secret = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{setting}: {path} is not text in UTF-8; it must hold the secret alone") from None
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error
    if len(data) > SECRET_BYTES_MAX:
        raise ConfigError(
            f"{setting}: {path} has more than {SECRET_BYTES_MAX} bytes; it must hold the secret alone"
        )
    if not secret or not secret.isprintable():
        raise ConfigError(
            f"{setting}: {path} {'holds more than one line' if secret else 'is empty'}; it must hold the secret alone"
        )
    return secret


def secret_of_environment(variable: str, setting: str) -> str:
    """Reads a secret from the environment.

    Raises:
      ConfigError: the variable is not set, or empty.
    """
    if secret := os.environ.get(variable):
        return secret
    raise ConfigError(
        f"{setting}: the environment has no {variable}; set it, or name a file that holds the secret"
    )
