"""Findings as people and programs read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import orjson

from streamtrain.findings import Finding, Level

__all__ = ["as_json", "as_text", "exit_code"]

_MARKS = {Level.OK: "ok     ", Level.WARNING: "WARNING", Level.FAULT: "FAULT  "}


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each, what to do below it, and a verdict."""
    lines = []
    for finding in findings:
        first, *rest = finding.text.splitlines()
        lines.append(f"{_MARKS[finding.level]}  {finding.area}: {first}")
        lines += [f"         {line}" for line in rest]
        lines += [f"         -> {line}" for line in finding.remedy.splitlines()]
    faults, warnings = (sum(f.level is level for f in findings) for level in (Level.FAULT, Level.WARNING))
    lines.append(f"{faults} faults, {warnings} warnings" if faults or warnings else "all is well")
    return "".join(f"{line}\n" for line in lines)


def as_json(findings: Sequence[Finding]) -> str:
    """One object: `ok`, and `findings` with `area`, `level`, `text` and `remedy`."""
    found = {"ok": not exit_code(findings), "findings": [dataclasses.asdict(f) for f in findings]}
    return orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n"


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where there is a fault; warnings are none."""
    return int(any(finding.level is Level.FAULT for finding in findings))
