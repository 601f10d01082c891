"""The base of every settings model: frozen, strict, and with no unknown keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator

__all__ = ["Settings", "kind_or"]


def kind_or(default: str) -> Discriminator:
    """Chooses a member of a union by its `kind`, and the member called `default` where the user names none."""

    def kind_of(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", None)

    return Discriminator(kind_of)


class Settings(BaseModel):
    """One component's settings. Subclasses live beside the component that they configure."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
