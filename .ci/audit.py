"""Looks up known vulnerabilities of everything that requirements.lock pins, with pip-audit in an environment of its own.

    python .ci/audit.py [requirements.lock]

Exit code 0: all were looked up, and nothing is known. 1: something is, or pip-audit failed. 3: nothing was audited, because the
network does not lead to the public database: it, or the index that has pip-audit, does not answer, or knows none of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

TOOL = "pip-audit==2.10.0"
OPTIONS = ("--format", "json", "--progress-spinner", "off", "--require-hashes", "--disable-pip")
NOBODY_TO_ASK = 3
UNREACHABLE = re.compile(
    r"ConnectionError|ConnectTimeout|ServiceError|Could not connect|Max retries|[Ff]ailed to fetch|timed out|Name or service|name resolution"
)


def judged(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code, and what to say, of pip-audit's report."""
    packages = report["dependencies"]
    skipped = [p for p in packages if "skip_reason" in p]
    if len(skipped) == len(packages):
        return NOBODY_TO_ASK, [
            f"NOT AUDITED: the public database of vulnerabilities cannot be reached from here ({skipped[0]['skip_reason']}): "
            "run `make audit` where it can"
            if skipped
            else "NOT AUDITED: nothing is locked"
        ]
    lines = [f"{p['name']}: not looked up: {p['skip_reason']}" for p in skipped]
    for package in packages:
        for known in package.get("vulns", ()):
            fixed = ", ".join(known["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {known['id']}, mended in {fixed}")
    return int(bool(lines)), lines or [f"{len(packages)} packages: no known vulnerability"]


def failed(code: int, errors: str) -> tuple[int, list[str]]:
    """The same of a pip-audit that left no report."""
    said = errors.strip()[-1000:]
    if UNREACHABLE.search(errors):
        return NOBODY_TO_ASK, [f"NOT AUDITED: nobody to ask: {said}"]
    return 1, [f"pip-audit ended with {code}: {said}"]


def main() -> int:
    lock = sys.argv[1] if len(sys.argv) > 1 else "requirements.lock"
    command = [sys.executable, "-m", "uv", "tool", "run", "--from", TOOL, "pip-audit", *OPTIONS, "-r", lock]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        code, lines = judged(json.loads(done.stdout))
    except (ValueError, KeyError):
        code, lines = failed(done.returncode, done.stderr)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return code


if __name__ == "__main__":
    sys.exit(main())
