"""Reads deploy/container/Containerfile: the instructions that it has, no more."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Stage", "stages"]


@dataclass
class Stage:
    """What one FROM begins.

    Attributes:
      base: the image it builds on.
      steps: (instruction, arguments as written), in order.
      environment: of all ENV.
      user, entrypoint, command, healthcheck: the last ones.
    """

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def stages(file: Path) -> list[Stage]:
    """All stages, in order."""
    found: list[Stage] = []
    for line in file.read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not line or line.startswith("#") or name == "ARG":
            continue
        if name == "FROM":
            found.append(Stage(rest.split()[0]))
            continue
        stage = found[-1]
        stage.steps.append((name, rest))
        if name == "ENV":
            stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif name == "USER":
            stage.user = rest
        elif name == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        elif name == "CMD":
            stage.command = json.loads(rest)
        elif name == "HEALTHCHECK":
            stage.healthcheck = json.loads(rest.partition("CMD ")[2])
    return found
