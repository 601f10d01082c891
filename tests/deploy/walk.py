"""The operator's walk of docs/operations.md, gone through as a stranger would: each command as it is written there, on machines made anew.

    python -m tests.deploy.walk FOLDER     as root; FOLDER gets 3 GB, and what the machines have said

A machine is a Debian 12 of debootstrap under its own systemd (fresh_machine.sh). It reaches nothing but a broker, and the packages that its
pip would have from the index. Redis is that of Debian.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.installed import built
from tests.servers import ROOT, KafkaServer

HERE = Path(__file__).parent
TITLE = "A walk through a model's life"
# What makes it a machine, and what the page has installed from Debian: a machine has no network to get it from.
DEBIAN = ("systemd-sysv", "dbus", "procps", "curl", "python3-venv", "redis-server")
VERSION, NEWER = "0.1.0", "0.1.1"
PLACE = "/root/streamtrain"
TIMEOUT_S = 900.0
HOSTS = "127.0.0.1 localhost broker\n"


@dataclass
class Step:
    """A block of commands.

    Attributes:
      title: the heading above it.
      where: what its first line says after `# on `, if it says so.
      seen: what stands in code spans after "Look for", below it.
    """

    title: str
    commands: str = ""
    seen: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        first = self.commands.partition("\n")[0]
        return first.removeprefix("# on ") if first.startswith("# on ") else ""


def section(page: str, title: str) -> str:
    """What stands below a heading of the second level."""
    text = (ROOT / "docs" / page).read_text()
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def steps(text: str) -> list[Step]:
    """All blocks of commands, in order."""
    found: list[Step] = []
    title, inside = "", False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append(Step(title))
        elif inside:
            found[-1].commands += line + "\n"
        elif line.startswith("### "):
            title = line.removeprefix("### ")
        elif line.startswith("Look for"):
            found[-1].seen += re.findall("`([^`]+)`", line)
    return found


class Machine:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[bytes], init: int) -> None:
        self.process, self.init = process, init

    def run(self, commands: str) -> str:
        """Runs commands as root would on its terminal, and returns what they print; fails where one of them fails."""
        enter = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid", "--cgroup"]
        environment = ["env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"]
        shell = ["bash", "-euxo", "pipefail", "-c", f"cd {PLACE}\n{commands}"]
        process = subprocess.Popen(
            [*enter, "--root", "--wd", *environment, *shell],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        told = ""
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                told += "" if line.startswith("+") else line
        timer.cancel()
        if process.returncode:
            self._tell("systemctl --no-pager --failed; journalctl --no-pager --lines 60")
            raise SystemExit(f"ended with {process.returncode}:\n{commands}")
        return told

    def _tell(self, commands: str) -> None:
        subprocess.run(
            ["nsenter", "--target", str(self.init), "--all", "--root", "--wd", "bash", "-c", commands],
            timeout=60,
            check=False,
        )


@contextmanager
def booted(system: Path, shared: Path) -> Iterator[Machine]:
    """A machine, from the moment that its systemd has started everything; switched off at the end."""
    command = ["bash", str(HERE / "fresh_machine.sh"), str(system), str(shared)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            machine = Machine(process, init_of(process))
            machine.run("until [ -S /run/systemd/private ]; do sleep 0.1; done")
            machine.run("systemctl is-system-running --wait || systemctl --no-pager --failed")
            yield machine
            machine.run("systemctl poweroff --no-block")
            process.wait(90)
        finally:
            if process.poll() is None:
                # With its parent goes the init of the machine, and all that is below.
                os.kill(child_of(process.pid), signal.SIGKILL)
                process.wait(30)


def init_of(process: subprocess.Popen[bytes]) -> int:
    """systemd: the only child of the `unshare` that the script runs, once it is that."""
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"the machine was not booted: {process.returncode}")
        inner = child_of(child_of(process.pid))
        if inner and Path(f"/proc/{inner}/comm").read_text() == "systemd\n":
            return inner
        time.sleep(0.1)
    raise SystemExit("the machine has no systemd")


def child_of(pid: int) -> int:
    """The newest child; 0 where there is none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return 0
    return int(children[-1]) if children else 0


class Broker(KafkaServer):
    """`broker:9092`."""

    def _properties(self, data: Path) -> dict[str, object]:
        self.port = 9092
        return super()._properties(data) | {"advertised.listeners": "PLAINTEXT://broker:9092"}


def numbers(output: str, name: str) -> list[int]:
    """What a metric was, each time that it was shown."""
    return [int(float(value)) for value in re.findall(rf"^{name} (\S+)$", output, re.MULTILINE)]


def look(step: Step, output: str, before: str) -> None:
    """Fails where a step does not show what the page says.

    Args:
      output: of this step.
      before: of all steps before it.
    """
    missing = [text for text in step.seen if text not in output]
    if missing:
        raise SystemExit(f"{step.title}: not seen: {missing}")
    epochs, applied = (numbers(output, f"streamtrain_{name}") for name in ("epoch", "store_applied_epoch"))
    match step.title:
        case "Watch":
            fine = len(epochs) == 2 and epochs[0] < epochs[1] and applied[0] < applied[1]
        case "Break Redis":
            fine = epochs[0] < epochs[1] and applied[0] == applied[1] < epochs[1]
        case "Recover":
            fine = epochs[-1] - applied[-1] <= 2 and epochs[-1] > numbers(before, "streamtrain_epoch")[-1]
        case "Retire":
            fine = output.split()[-1] == "0"
        case _:
            fine = True
    if not fine:
        raise SystemExit(f"{step.title}: epochs {epochs}, in the store {applied}")


def prepare(folder: Path) -> None:
    """Everything that needs a network: a Debian, Python packages as an index has them, wheels of two versions."""
    folder.mkdir(parents=True, exist_ok=True)
    shared, place = folder / "shared", folder / "debian" / PLACE.lstrip("/")
    if not (folder / "debian.whole").exists():
        shutil.rmtree(folder / "debian", ignore_errors=True)
        include = f"--include={','.join(DEBIAN)}"
        call("debootstrap", "--variant=minbase", include, "bookworm", str(folder / "debian"))
        (folder / "debian.whole").touch()
    lock = ROOT / "deploy" / "container" / "requirements.lock"
    options = ("--quiet", "--require-hashes", "--only-binary", ":all:", "--python-version", "3.11")
    call(sys.executable, "-m", "pip", "download", *options, "-r", str(lock), "-d", str(shared / "packages"))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for part in ("deploy", "docs"):
        shutil.copytree(ROOT / part, place / part)
    newer = folder / "newer"
    shutil.rmtree(newer, ignore_errors=True)
    newer.mkdir()
    for part in ("streamtrain", "consumers", "exporters"):
        shutil.copytree(ROOT / part, newer / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, newer)
    for part in ("pyproject.toml", "streamtrain/__init__.py"):
        text = (newer / part).read_text()
        (newer / part).write_text(text.replace(f'= "{VERSION}"', f'= "{NEWER}"'))
    for project in (ROOT, newer):
        wheel = built(project, folder / "wheels" / project.name)
        shutil.copy(wheel, place)
    etc = folder / "debian" / "etc"
    (etc / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /mnt/packages\n")
    (etc / "hosts").write_text(HOSTS)


def system(folder: Path, name: str) -> Path:
    """Another machine with nothing but what the first one had."""
    made = folder / name
    shutil.rmtree(made, ignore_errors=True)
    call("cp", "-a", str(folder / "debian"), str(made))
    (made / "etc/hostname").write_text(f"{name}\n")
    (made / "etc/machine-id").write_text(os.urandom(16).hex() + "\n")
    return made


def call(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def walk(folder: Path) -> None:
    """Inside a network of its own."""
    call("ip", "link", "set", "lo", "up")
    (folder / "hosts").write_text(HOSTS)
    call("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    install = steps(section("deploy.md", "systemd"))[0]
    page = steps(section("operations.md", TITLE))
    move = next(number for number, step in enumerate(page) if step.where == "the new host")
    shared = folder / "shared"
    with Broker(folder / "kafka") as _, (folder / "stream.out").open("wb") as output:
        stream = subprocess.Popen(
            ["sh", "-c", f"exec {page[0].commands.strip()}"],
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=output,
            stderr=output,
        )
        try:
            for host, those in (("old", page[2:move]), ("new", page[move:])):
                with booted(system(folder, host), shared) as machine:
                    said = ""
                    for step in (install, page[1], *those):
                        sys.stdout.write(f"=== {step.title}, {host} host\n")
                        told = machine.run(step.commands)
                        look(step, told, said)
                        said += told
        finally:
            stream.terminate()
            stream.wait(30)
    sys.stdout.write("gone through\n")


def main(arguments: list[str]) -> int:
    *inside, where = arguments
    folder = Path(where).resolve()
    if inside:
        walk(folder)
        return 0
    (folder / "kafka").mkdir(parents=True, exist_ok=True)
    prepare(folder)
    own = ["unshare", "--net", "--mount", "--propagation", "private"]
    again = [sys.executable, "-m", "tests.deploy.walk", "--inside", str(folder)]
    return subprocess.run([*own, *again], check=False, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
