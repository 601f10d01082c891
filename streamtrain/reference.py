"""Writes the pages of docs/ that are made from the code, so that the two cannot disagree.

configuration.md is made from the settings models, metrics.md from the registries (`streamtrain.metrics_page`).

python -m streamtrain.reference docs
python -m streamtrain.reference --check docs
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import orjson
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from streamtrain import plugins
from streamtrain.config import ENVIRONMENT_PREFIX, _Fixed
from streamtrain.dead_letters.settings import AnyDeadLetters
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.metrics_page import write_metrics
from streamtrain.samples.schema import AnySlot, Level
from streamtrain.settings import Settings
from streamtrain.sparse.lifecycle_settings import OwnAdmission
from streamtrain.sparse.settings import RowSettings, TableSettings

__all__ = ["write_reference"]

_HEAD = f"""\
# Configuration reference

*Generated from the settings by `make docs`; CI fails when it is out of date.*

A job is one TOML file. Unknown keys, wrong types and values out of range are refused, with file, key, value and what
is allowed. An environment variable overrides a key: `{ENVIRONMENT_PREFIX}TRAINING__BATCH_SIZE=128` sets
`training.batch_size`, `{ENVIRONMENT_PREFIX}EXPORTS__0__PATH=...` the first export's `path`. Its value is read as TOML
where it is TOML, else as text. Secrets never stand in the file: keys ending in `_env` name an environment variable,
keys ending in `_file` a file that holds the secret.

`streamtrain init SAMPLE` writes a commented job for a Parquet or JSON-lines file of your own.
"""


def write_reference() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, *_section("Top level", _Fixed, skip_nested=True)]
    parts += ["## [source]\n", "`kind` names a consumer; each has settings of its own.\n"]
    for name in plugins.names("consumers"):
        parts += _section(f'[source] kind = "{name}"', plugins.load("consumers", name).Settings, level=3)
    parts += _section("[schema]", _Fixed.model_fields["sample_schema"].annotation)
    for slot in _members(AnySlot):
        kind = get_args(slot.model_fields["kind"].annotation)[0]
        parts += _section(f'[schema.slots.NAME] kind = "{kind}"', slot, level=3)
    parts += _section("[[schema.levels]]", Level, level=3)
    kinds = _members(get_args(_Fixed.model_fields["tables"].annotation)[1])
    parts += ["## [tables.NAME]\n", "The kind is `dynamic` where none is named.\n"]
    for kind in kinds:
        parts += _section(f'[tables.NAME] kind = "{_kind(kind)}"', kind, level=3)
    for key in ("optimizer", "init"):
        for member in _members(RowSettings.model_fields[key].annotation):
            parts += _section(f'[tables.NAME.{key}] kind = "{_kind(member)}"', member, level=3)
    for member in _members(TableSettings.model_fields["admission"].annotation):
        kind = "module:Class" if member is OwnAdmission else _kind(member)
        parts += _section(f'[tables.NAME.admission] kind = "{kind}"', member, level=3)
    for key in ("expiry", "decay"):
        parts += _section(
            f"[tables.NAME.{key}]", _members(TableSettings.model_fields[key].annotation)[0], level=3
        )
    parts += [
        "## [model]\n",
        "`kind` names a built-in model or `module:Class`; see [models.md](models.md).\n",
    ]
    for name in plugins.names("models"):
        parts += _section(f'[model] kind = "{name}"', plugins.load("models", name).Settings, level=3)
    parts += ["## [optimizer]\n", "Of the dense parameters.\n"]
    for member in _members(_Fixed.model_fields["optimizer"].annotation):
        parts += _section(f'[optimizer] kind = "{_kind(member)}"', member, level=3)
    for key in ("training", "log", "store", "http", "logging"):
        parts += _section(f"[{key}]", _Fixed.model_fields[key].annotation)
        if key == "training":
            for member in _members(AnyDeadLetters):
                title = f'[training.bad_samples.dead_letters] kind = "{_kind(member)}"'
                parts += _section(title, member, level=3)
            parts += _section("[training.bad_samples.dead_letters.connection]", KafkaConnection, level=3)
    dictionary = _members(_Fixed.model_fields["reverse_dictionary"].annotation)[0]
    parts += _section("[reverse_dictionary.SLOT]", dictionary)
    parts += _section("[failover]", _members(_Fixed.model_fields["failover"].annotation)[0])
    parts += ["## [[exports]]\n", "Any number of them; `kind` names an exporter.\n"]
    for name in plugins.names("exporters"):
        parts += _section(f'[[exports]] kind = "{name}"', plugins.load("exporters", name).Settings, level=3)
    return "\n".join(parts).rstrip() + "\n"


def _section(title: str, model: Any, level: int = 2, skip_nested: bool = False) -> Iterator[str]:
    yield f"{'#' * level} {title}\n"
    yield f"{inspect.cleandoc(model.__doc__ or '')}\n"
    rows = [row for row in _rows(model, "", skip_nested) if row]
    if rows:
        yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
        yield "\n".join(rows) + "\n"


def _rows(model: type[Settings], prefix: str, skip_nested: bool) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        nested = field.annotation
        if inspect.isclass(nested) and issubclass(nested, Settings):
            if not skip_nested:
                yield from _rows(nested, key + ".", False)
            continue
        if _settings_inside(field):
            continue
        text = (field.description or "").replace("\n", " ").replace("|", "\\|")
        yield f"| `{key}` | {_type(field)} | {_default(field)} | {text} |"


def _settings_inside(field: FieldInfo) -> bool:
    return any(inspect.isclass(m) and issubclass(m, Settings) for m in _members(field.annotation))


def _members(annotation: Any) -> list[Any]:
    """The settings classes inside unions, dicts and annotations, in order."""
    if inspect.isclass(annotation) and not get_args(annotation):
        return [annotation]
    found: list[Any] = []
    for part in get_args(annotation):
        found += [m for m in _members(part) if inspect.isclass(m) and issubclass(m, Settings)]
    return found


def _kind(model: type[Settings]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _type(field: FieldInfo) -> str:
    text = (
        getattr(field.annotation, "__name__", "") if not get_args(field.annotation) else str(field.annotation)
    )
    for old, new in (("typing.", ""), ("NoneType", "nothing"), (" | None", "")):
        text = text.replace(old, new)
    if text.startswith("Literal["):
        text = " or ".join(f'"{v}"' for v in get_args(field.annotation))
    elif get_origin(field.annotation) in (Union, UnionType) and "Annotated" in text:
        text = " or ".join(_member_type(member) for member in get_args(field.annotation))
    elif "Annotated" in text:
        text = "list" if text.startswith("list") else "str"
    bounds = [
        f"{sign} {getattr(m, attribute)}"
        for m in field.metadata
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(m, attribute, None) is not None
    ]
    return f"{text.replace('|', 'or')}{' ' if bounds else ''}{', '.join(bounds)}"


def _member_type(annotation: Any) -> str:
    """A member of a union as a person would write it, without its bounds."""
    if get_origin(annotation) is Annotated:
        return _member_type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(f'"{v}"' for v in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list[{_member_type(get_args(annotation)[0])}]"
    return "nothing" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{orjson.dumps(value).decode()}`"


_PAGES = {"configuration.md": write_reference, "metrics.md": write_metrics}


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes or checks the pages that are made from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    parser.add_argument("docs", type=Path)
    arguments = parser.parse_args()
    stale = []
    for name, write in _PAGES.items():
        path, text = arguments.docs / name, write()
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path))
    if stale:
        sys.stderr.write(f"{' and '.join(stale)}: out of date; run `make docs` and commit the result\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
