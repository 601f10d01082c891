"""Real servers for tests: Kafka 4 (KRaft, one node), Redis, and a Redis Cluster of three masters.

Each listens on free loopback ports, keeps its data in a folder of its own, and is ended by its own process id.
All are context managers; `stop` asks (SIGTERM), `kill` does not (SIGKILL), `start` brings the same data back on
the same port. Methods that talk to Kafka are coroutines; a synchronous test wraps them in `asyncio.run`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.errors import for_code
from aiokafka.structs import TopicPartition

from tests.certificates import Identity

__all__ = [
    "KafkaServer",
    "LmdbFolder",
    "RedisCluster",
    "RedisServer",
    "ServerFailed",
    "free_port",
    "missing_programs",
]

ROOT = Path(__file__).resolve().parent.parent
KAFKA_JARS = ROOT / "build" / "kafka-jars"
KAFKA_POM = ROOT / "tests" / "kafka" / "pom.xml"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
# A port may be taken between being found free and being bound, so a first start tries again with others.
START_ATTEMPTS = 4
CLUSTER_ID = "c3RyZWFtdHJhaW4tdGVzdA"


class ServerFailed(Exception):
    """A server did not come up; the text ends with the last lines of its output."""


def missing_programs(*names: str) -> list[str]:
    """Those of `names` that are not on PATH."""
    return [name for name in names if shutil.which(name) is None]


def free_port() -> int:
    """A loopback port that nothing is bound to now, below the range that outgoing connections take theirs from.

    Processes of one pytest-xdist have ranges of their own: a server that is stopped for a while finds its port free again.
    """
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    total = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.SystemRandom().randrange(15_000 // total, 32_000 // total) * total + own % total
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One process with a folder: the part that Kafka and Redis have in common."""

    name = "server"

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix=f"streamtrain-{self.name}-")
        self.folder = Path(folder or self._temporary.name)  # type: ignore[union-attr]
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> Path:
        """The file that holds what the process has printed since its last start."""
        return self.folder / f"output-{self._starts}.txt"

    def start(self) -> Self:
        """Starts, or starts again with the same port and data, and waits until it answers. Nothing when it runs.

        Raises:
          ServerFailed: it ended, or did not answer within START_TIMEOUT_S.
        """
        if self.running:
            return self
        first = self.port == 0
        for attempt in range(START_ATTEMPTS if first else 1):
            if first:
                self._prepare()
            try:
                self._start_once()
                return self
            except ServerFailed:
                self.kill()
                if not first or attempt == START_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Asks the process to end (SIGTERM), waits, and kills it when it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the process (SIGKILL): what it had not written is lost."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """`stop`, then `start`."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Kills the process and removes its folder, unless the caller gave the folder."""
        self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        """Chooses ports and writes what the process needs to find in the folder."""
        self.port = free_port()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _start_once(self) -> None:
        self._starts += 1
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
                # Ctrl-C in the terminal is for pytest; servers are ended by the fixtures.
                start_new_session=True,
            )
        wait_for(self._ready, f"{self.name} on port {self.port}", self.output, lambda: self.running)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)


class KafkaServer(Server):
    """A one-node Kafka 4 in KRaft mode: transactions, compaction and DeleteRecords all work on it."""

    name = "kafka"

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def create_topic(
        self, name: str, partitions: int = 1, config: dict[str, str] | None = None
    ) -> None:
        """Creates a topic; returns once its partitions have leaders.

        Raises:
          KafkaError: it exists already, or the broker refused it.
        """
        async with self.admin() as admin:
            reply = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config or {})])
            raise_for(reply.topic_errors)

    async def delete_topic(self, name: str) -> None:
        """Deletes a topic; its name can be taken again at once."""
        async with self.admin() as admin:
            reply = await admin.delete_topics([name])
            raise_for(reply.topic_error_codes)

    async def add_partitions(self, name: str, total: int) -> None:
        """Gives a topic more partitions, `total` in all."""
        async with self.admin() as admin:
            reply = await admin.create_partitions({name: NewPartitions(total)})
            raise_for(reply.topic_errors)

    async def delete_records(self, name: str, partition: int, before: int) -> None:
        """Removes the records of a partition that stand before an offset, as retention would."""
        async with self.admin() as admin:
            await admin.delete_records({TopicPartition(name, partition): RecordsToDelete(before)})

    async def produce(
        self,
        topic: str,
        values: Sequence[bytes | None],
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        compression: str | None = None,
        batch_bytes: int = 64 * 1024,
    ) -> None:
        """Appends records in order and waits until the broker has them. No `partition`: one after the other."""
        async with AIOKafkaProducer(
            bootstrap_servers=self.bootstrap_servers,
            compression_type=compression,
            max_batch_size=batch_bytes,
            linger_ms=5,
            enable_idempotence=True,
        ) as producer:
            count = len(await producer.partitions_for(topic))
            sent = [
                await producer.send(
                    topic,
                    value,
                    # A null record needs a key: that is what a tombstone is for.
                    key=b"k" if value is None else None,
                    partition=i % count if partition is None else partition,
                    timestamp_ms=timestamp_ms,
                )
                for i, value in enumerate(values)
            ]
            await producer.flush()
            for future in sent:
                await future

    async def transaction(
        self, topic: str, values: Sequence[bytes], *, partition: int = 0, commit: bool = True
    ) -> None:
        """Appends records in one transaction, then commits or aborts it; either leaves a control record behind."""
        async with AIOKafkaProducer(
            bootstrap_servers=self.bootstrap_servers, transactional_id=f"tests-{topic}-{partition}"
        ) as producer:
            await producer.begin_transaction()
            for value in values:
                await (await producer.send(topic, value, partition=partition))
            await (producer.commit_transaction() if commit else producer.abort_transaction())

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """An admin client."""
        client = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await client.start()
        try:
            yield client
        finally:
            await client.close()

    def _prepare(self) -> None:
        self.port, self._controller_port = free_port(), free_port()
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        self._config = self.folder / "server.properties"
        self._config.write_text(
            "\n".join(f"{key}={value}" for key, value in self._properties(data).items()) + "\n",
            encoding="utf-8",
        )
        command = [
            *java("-Xmx128m"),
            "kafka.tools.StorageTool",
            "format",
            "-t",
            CLUSTER_ID,
            "-c",
            str(self._config),
            *self._format_options(),
        ]
        done = subprocess.run(
            command, capture_output=True, timeout=START_TIMEOUT_S, check=False, cwd=self.folder
        )
        if done.returncode:
            raise ServerFailed(
                f"formatting Kafka's data folder failed:\n{(done.stdout + done.stderr).decode()[-3000:]}"
            )

    def _format_options(self) -> list[str]:
        """What the tool that makes the data folder is told besides."""
        return []

    def _properties(self, data: Path) -> dict[str, object]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "log.dirs": data,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # A missing topic must be an error that names it, not an empty topic that appears by being asked for.
            "auto.create.topics.enable": "false",
            "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
            "log.cleaner.backoff.ms": 200,
            # Old timestamps are what replayed data has; tests that want records gone delete them.
            "log.retention.ms": -1,
            "log.initial.task.delay.ms": 100,
            "file.delete.delay.ms": 100,
            "controlled.shutdown.enable": "false",
        }

    def _command(self) -> list[str]:
        return [*java("-Xms128m", "-Xmx512m"), "kafka.Kafka", str(self._config)]

    def _ready(self) -> bool:
        return b"Kafka Server started" in self.output.read_bytes() and accepts(self.port)


class RedisServer(Server):
    """A redis-server. It keeps nothing on disk unless `arguments` say so (`"--appendonly", "yes"`).

    With `identity` it speaks TLS alone and asks its clients for a certificate; `cli` shows the server's own. `login` is
    the user and password of `cli`, where the default user may nothing.
    """

    name = "redis"

    def __init__(
        self,
        *arguments: str,
        maxmemory_policy: str = "noeviction",
        folder: Path | None = None,
        identity: Identity | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self._arguments, self._policy, self._identity = arguments, maxmemory_policy, identity
        self._login = login

    @property
    def url(self) -> str:
        return f"{'redis' if self._identity is None else 'rediss'}://127.0.0.1:{self.port}/0"

    def cli(self, *arguments: str, login: tuple[str, str] | None = None) -> str:
        """What `redis-cli` answers to one command, by the server's own user and password or by these."""
        user, password = login or self._login or ("", "")
        who = ["--user", user] if user else []
        command = ["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *self.cli_tls, *who, *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=STOP_TIMEOUT_S,
            check=False,
            env=os.environ | ({"REDISCLI_AUTH": password} if user else {}),
        ).stdout.strip()

    @property
    def cli_tls(self) -> list[str]:
        """The options of `redis-cli` that make it speak TLS; none where the server does not."""
        if self._identity is None:
            return []
        files = {"cacert": self._identity.ca, "cert": self._identity.cert, "key": self._identity.key}
        return ["--tls", *(word for name, file in files.items() for word in (f"--{name}", str(file)))]

    def flush(self) -> None:
        """Removes all keys and scripts."""
        self.cli("FLUSHALL")
        self.cli("SCRIPT", "FLUSH")

    def _command(self) -> list[str]:
        port = ["--port", str(self.port)]
        if self._identity is not None:
            files = {"ca-cert": self._identity.ca, "cert": self._identity.cert, "key": self._identity.key}
            port = ["--port", "0", "--tls-port", str(self.port)]
            port += [word for name, file in files.items() for word in (f"--tls-{name}-file", str(file))]
        settings = [*port, "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        return ["redis-server", *settings, "--maxmemory-policy", self._policy, *self._arguments]

    def _ready(self) -> bool:
        # While it loads its file it answers LOADING.
        return accepts(self.port) and self.cli("PING") == "PONG"


class LmdbFolder:
    """Where an LMDB store is, beside the servers: a folder, which needs none."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"lmdb://{folder}"

    def flush(self) -> None:
        """Empties the files of all models, from another process, as another hand would."""
        script = (
            "import lmdb, sys\n"
            "env = lmdb.open(sys.argv[1], max_dbs=64, map_size=1 << 30)\n"
            "with env.begin(write=True) as txn: txn.drop(env.open_db(txn=txn), delete=False)\n"
        )
        for file in self.folder.glob("*/data.mdb"):
            subprocess.run([sys.executable, "-c", script, str(file.parent)], check=True)


class RedisCluster:
    """A Redis Cluster of `masters` nodes without replicas; `nodes` are `RedisServer`s that tests may stop and start."""

    def __init__(
        self,
        masters: int = 3,
        *arguments: str,
        identity: Identity | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        self._masters, self._arguments, self._identity, self._login = masters, arguments, identity, login
        self.nodes: list[RedisClusterNode] = []

    @property
    def url(self) -> str:
        """One node's address, enough for a client to find the others."""
        return self.nodes[0].url.removesuffix("/0")

    @property
    def running(self) -> bool:
        return bool(self.nodes) and all(node.running for node in self.nodes)

    def start(self) -> Self:
        """Starts all nodes (again) and waits until each calls the cluster ok."""
        if self.nodes:
            for node in self.nodes:
                node.start()
            self._wait()
            return self
        try:
            for _ in range(self._masters):
                node = RedisClusterNode(*self._arguments, identity=self._identity, login=self._login)
                self.nodes.append(node.start())
            addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
            command = ["redis-cli", *self.nodes[0].cli_tls]
            user, password = self._login or ("", "")
            command += [
                *(["--user", user] if user else []),
                "--cluster",
                "create",
                *addresses,
                "--cluster-yes",
            ]
            made = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT_S,
                check=False,
                env=os.environ | ({"REDISCLI_AUTH": password} if user else {}),
            )
            if made.returncode:
                raise ServerFailed(f"making a Redis Cluster failed:\n{made.stdout}{made.stderr}")
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Asks every node to end (SIGTERM)."""
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        """Kills every node (SIGKILL)."""
        for node in self.nodes:
            node.kill()

    def restart(self) -> Self:
        """`stop`, then `start`."""
        self.stop()
        return self.start()

    def flush(self) -> None:
        """Removes all keys and scripts of every node."""
        for node in self.nodes:
            node.flush()

    def close(self) -> None:
        """Kills every node and removes their folders."""
        for node in self.nodes:
            node.close()
        self.nodes = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        for node in self.nodes:
            wait_for(
                node.serves_cluster,
                f"the Redis Cluster's node on port {node.port}",
                node.output,
                lambda: self.running,
            )


class RedisClusterNode(RedisServer):
    name = "redis-node"

    def serves_cluster(self) -> bool:
        return "cluster_state:ok" in self.cli("CLUSTER", "INFO")

    def _prepare(self) -> None:
        self.port, self._bus_port = free_port(), free_port()

    def _command(self) -> list[str]:
        bus = [
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            str(self._bus_port),
            "--cluster-node-timeout",
            "2000",
            *(() if self._identity is None else ("--tls-cluster", "yes")),
        ]
        return [*super()._command(), *bus]


def kafka_jars() -> Path:
    """The folder with the broker's jars; Maven copies them there once, whatever runs in parallel.

    Raises:
      ServerFailed: Maven could not fetch them.
    """
    KAFKA_JARS.parent.mkdir(exist_ok=True)
    with (KAFKA_JARS.parent / "kafka-jars.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The stamp is the pom itself: another version of Kafka in it means other jars.
        stamp = KAFKA_JARS / "pom.xml"
        if stamp.is_file() and stamp.read_bytes() == KAFKA_POM.read_bytes():
            return KAFKA_JARS
        shutil.rmtree(KAFKA_JARS, ignore_errors=True)
        command = [
            "mvn",
            "-q",
            "-B",
            "-f",
            str(KAFKA_POM),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={KAFKA_JARS}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise ServerFailed(f"Maven could not fetch Kafka's jars:\n{(done.stdout + done.stderr)[-3000:]}")
        shutil.copyfile(KAFKA_POM, stamp)
    return KAFKA_JARS


def java(*heap: str) -> list[str]:
    """A JVM that starts fast and stays small, with Kafka's jars."""
    logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
    return [
        "java",
        *heap,
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        *logging,
        "-cp",
        f"{kafka_jars()}/*",
    ]


def accepts(port: int) -> bool:
    """Whether something on this machine accepts connections on `port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


_FAULT = re.compile(r"\b(ERROR|FATAL|[A-Za-z.]*(Exception|Error))\b")


def wait_for(condition: Callable[[], bool], what: str, output: Path, alive: Callable[[], bool]) -> None:
    """Polls until `condition` holds.

    Raises:
      ServerFailed: `alive` turned false first, or START_TIMEOUT_S passed.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if not alive() or time.monotonic() > deadline:
            text = output.read_text(errors="replace")
            # A server that ends by itself says why long before its last words, which are those of every shutdown.
            faults = [line[:500] for line in text.splitlines() if _FAULT.search(line)][:20]
            raise ServerFailed(
                f"{what} {'did not answer in time' if alive() else 'ended'}; its output ends with:\n{text[-3000:]}\n"
                + "\n".join(["its faults:", *faults] if faults else [])
            )
        time.sleep(0.05)


def raise_for(results: Sequence[Sequence[Any]]) -> None:
    """Raises the first error of an admin reply's (topic, error code, ...) rows."""
    for topic, code, *message in results:
        if code:
            raise for_code(code)(f"{topic}: {' '.join(str(part) for part in message)}")
