"""streamtrain as its users have it: built wheels in an environment of their own, which does not see the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.daemon import TIMEOUT_S, Daemon

__all__ = ["ROOT", "Environment", "InstalledDaemon", "built"]

ROOT = Path(__file__).resolve().parent.parent


def built(project: Path, folder: Path) -> Path:
    """Builds the wheel of a project, without a network, and returns it."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir")
    _run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(project))
    (wheel,) = folder.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment with wheels in it, and the packages that they depend on taken from ours.

    Ours are seen by a path alone, so that what is installed there in editable form, which is the repository, is not.
    """

    def __init__(self, folder: Path, *wheels: Path) -> None:
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        self.python = folder / "bin" / "python"
        self.command = folder / "bin" / "streamtrain"
        options = ("--quiet", "--no-deps", "--no-index")
        _run(
            sys.executable, "-m", "pip", "--python", str(self.python), "install", *options, *map(str, wheels)
        )
        (self.packages,) = folder.glob("lib/python*/site-packages")
        (self.packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self._lend_kernels()

    def run(
        self, *arguments: str | Path, cwd: Path, command: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `streamtrain` with arguments, or another command of the environment, to its end."""
        return subprocess.run(
            [str(command or self.command), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=cwd,
            env=outside(),
            check=False,
        )

    def _lend_kernels(self) -> None:
        """Takes over the compiled kernels of sources that are byte for byte the repository's: half a minute less."""
        for source in (ROOT / "streamtrain").rglob("*.py"):
            installed = self.packages / source.relative_to(ROOT)
            if not installed.exists() or installed.read_bytes() != source.read_bytes():
                continue
            stat = source.stat()
            os.utime(installed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            for kernel in (source.parent / "__pycache__").glob(f"{source.stem}.*.nb?"):
                target = installed.parent / "__pycache__" / kernel.name
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(kernel, target)


class InstalledDaemon(Daemon):
    """`streamtrain run CONFIG` of an environment."""

    def __init__(self, environment: Environment, config: Path, *arguments: str, **variables: str) -> None:
        super().__init__(config, *arguments, **{"PYTHONSAFEPATH": "1"} | variables)
        self._command[0] = str(environment.python)


def outside() -> dict[str, str]:
    """Our environment variables, without those that lead to the repository's modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONSAFEPATH": "1"
    }


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=outside()
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
