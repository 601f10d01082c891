"""Makes the virtual environments of the peers: what `make bench-peers` does.

    python -m benchmarks.peers [NAME ...]

A peer that is there already in the pinned versions is left alone. One that cannot be installed is told of, keeps none of
the others from being installed, and stands in the benchmarks' results as missing, with the reason. torch is large: its
only wheel in the package index brings libraries for graphics cards along, 6 GB on disk, which are never used here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys

from benchmarks.peers import PEERS, STATE, Peer

_TIMEOUT_S = 1800.0
_TOLD_CHARACTERS = 600


def interpreter_for(peer: Peer) -> str:
    """A Python that can run the peer.

    Raises:
      RuntimeError: there is none on this machine.
    """
    if peer.python is None or peer.python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    if found := shutil.which(f"python{peer.python}"):
        return found
    raise RuntimeError(f"it needs Python {peer.python}: no python{peer.python} on PATH")


def install(peer: Peer) -> None:
    """Makes the environment anew.

    Raises:
      RuntimeError: with what the failing command said last.
    """
    shutil.rmtree(peer.home, ignore_errors=True)
    _run(interpreter_for(peer), "-m", "venv", str(peer.home))
    for file in peer.requirements:
        alone = ["--no-deps"] if file.endswith(".alone.txt") else []
        path = f"benchmarks/peers/{file}"
        _run(
            str(peer.interpreter),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            *alone,
            "--requirement",
            path,
        )


def _run(*command: str) -> None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command[1:4])} took more than {_TIMEOUT_S:.0f} s") from error
    if run.returncode:
        raise RuntimeError(f"{' '.join(command[1:4])}: {run.stderr.strip()[-_TOLD_CHARACTERS:]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", choices=[*PEERS, []], help=f"of {', '.join(PEERS)} (default: all)")
    failed = 0
    for name in parser.parse_args().name or PEERS:
        peer = PEERS[name]
        if peer.missing() is None:
            sys.stderr.write(f"{name}: is there\n")
            continue
        sys.stderr.write(f"{name}: installing ...\n")
        state: dict[str, object] = {"requirements": peer.requirements}
        try:
            install(peer)
        except RuntimeError as error:
            failed += 1
            state["failed"] = str(error)
            sys.stderr.write(f"{name}: failed: {error}\n")
        peer.home.mkdir(parents=True, exist_ok=True)
        (peer.home / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
