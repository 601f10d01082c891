"""Real servers that ask who one is: Kafka by SASL_SSL, mTLS and ACLs, Redis and Redis Cluster by TLS and ACL users."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from consumers.kafka.diagnosis import diagnose, diagnose_dead_letters
from consumers.kafka.settings import KafkaSettings
from consumers.kafka.source import KafkaSource
from streamtrain.errors import SourceError, SourceUnavailable, StoreRefused, StoreUnavailable
from streamtrain.findings import Finding, Level, Resumption
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.log.epoch_log import EpochLog
from streamtrain.sources import Chunk
from streamtrain.store.redis_store import RedisStore
from streamtrain.store.settings import StoreSettings
from streamtrain.store.store import StoreDescription
from tests.certificates import Authority, Identity
from tests.conftest import _refuse, require
from tests.daemon import Daemon, inspected, streamtrain, until
from tests.integration.test_daemon import JOB, samples, write
from tests.secure_servers import PASSWORDS, SecureKafka, redis_users
from tests.servers import RedisCluster, RedisServer, ServerFailed

ADMIN, STORE = "redis-Wx9-admin", "redis-Wx9-trainer"
# Not the daemon's: they would stop other models, or read them.
FORBIDDEN = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("SHUTDOWN",),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "ID", "1"),
    ("MONITOR",),
    ("SCRIPT", "FLUSH"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("MODULE", "LIST"),
    ("SUBSCRIBE", "x"),
    ("GET", "streamtrain:x"),
    ("HGET", "other", "x"),
    ("DEL", "other"),
    ("EVAL", "return redis.call('HGET', 'other', 'x')", "0"),
    ("EVAL", "return redis.call('FLUSHALL')", "0"),
]


class Party:
    """Who takes part: an authority, and by name what it has signed. `mine` are the daemon's files, which tests replace."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authorities = [Authority(folder / "first"), Authority(folder / "second")]
        self.servers = [authority.sign("server") for authority in self.authorities]
        self.trainers = [authority.sign("trainer") for authority in self.authorities]

    def copy(self, name: str, identity: Identity) -> Identity:
        """Files of their own, to be replaced later."""
        made = Identity(self._folder / name)
        made.folder.mkdir()
        made.become(identity)
        return made


@pytest.fixture(scope="module")
def party(tmp_path_factory: pytest.TempPathFactory) -> Party:
    require("openssl", "openssl")
    return Party(tmp_path_factory.mktemp("party") / "keys")


@pytest.fixture(scope="module")
def broker_files(party: Party) -> Identity:
    return party.copy("broker", party.servers[0])


@pytest.fixture(scope="module")
def secure_kafka(broker_files: Identity) -> Iterator[SecureKafka]:
    """One broker for all; the topic `clicks` may be read by the user `trainer` and the bearer of its certificate."""
    require("Kafka", "java", "mvn")
    try:
        with SecureKafka(broker_files) as server:
            asyncio.run(server.create_topic("clicks"))
            asyncio.run(server.create_topic("clicks-dead"))
            server.grant(
                PRINCIPAL="User:trainer", TOPIC="clicks", GROUPS_READ="clicks-lag", DEAD_LETTERS="clicks-dead"
            )
            server.grant(PRINCIPAL="User:CN=trainer", TOPIC="clicks")
            yield server
    except ServerFailed as error:
        _refuse("Kafka", str(error))


def source(**settings: Any) -> KafkaSource:
    return KafkaSource(
        KafkaSettings(**{"kind": "kafka", "topic": "clicks", "unavailable_after_s": 2.0} | settings)
    )


def sasl(
    server: SecureKafka, ca: Path, folder: Path, user: str = "trainer", **settings: Any
) -> dict[str, Any]:
    password = folder / f"{user}-password"
    if not password.exists():
        password.write_text(PASSWORDS[user] + "\n")
    return {
        "bootstrap_servers": server.sasl_servers,
        "security_protocol": "SASL_SSL",
        "sasl_username": user,
        "sasl_password_file": str(password),
        "ssl_cafile": str(ca),
    } | settings


def mtls(server: SecureKafka, identity: Identity) -> dict[str, Any]:
    return {
        "bootstrap_servers": server.mtls_servers,
        "security_protocol": "SSL",
        "ssl_cafile": str(identity.ca),
        "ssl_certfile": str(identity.cert),
        "ssl_keyfile": str(identity.key),
    }


async def first_value(made: KafkaSource) -> bytes | None:
    try:
        await made.start(None)
        chunk = await asyncio.wait_for(made.read(), 30)
        assert isinstance(chunk, Chunk)
        return chunk.records[0]
    finally:
        await made.close()


@pytest.mark.kafka
async def test_the_doctor_names_the_right_that_lacks_and_who_has_the_shipped_ones_is_well(
    secure_kafka: SecureKafka, party: Party, tmp_path: Path
) -> None:
    async def seen(user: str, **settings: Any) -> list[Finding]:
        options = sasl(secure_kafka, party.trainers[0].ca, tmp_path, user=user)
        asked = KafkaSettings(**{"kind": "kafka", "topic": "clicks"} | options | settings)
        return await diagnose(asked, Resumption())

    assert [f for f in await seen("trainer", group_id="clicks-lag") if f.level is not Level.OK] == []
    *_, group = await seen("trainer", group_id="of-others")
    assert group.level is Level.FAULT and "GROUPS_READ=of-others sh deploy/kafka/acls.sh" in group.remedy
    (stranger,) = await seen("stranger")
    assert stranger.level is Level.FAULT and "PRINCIPAL=User:stranger TOPIC=clicks" in stranger.remedy
    connection = KafkaConnection(**sasl(secure_kafka, party.trainers[0].ca, tmp_path))
    (kept,), (refused,) = [await diagnose_dead_letters(connection, t) for t in ("clicks-dead", "clicks")]
    assert kept.level is Level.OK
    assert refused.level is Level.FAULT and "DEAD_LETTERS=clicks sh" in refused.remedy


@pytest.mark.kafka
@pytest.mark.parametrize("how", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "certificate"])
async def test_kafka_is_read_by_password_and_by_certificate(
    secure_kafka: SecureKafka, party: Party, tmp_path: Path, how: str
) -> None:
    await secure_kafka.produce("clicks", [b"{}"])
    mine = party.trainers[0]
    if how == "certificate":
        settings = mtls(secure_kafka, mine)
    else:
        settings = sasl(secure_kafka, mine.ca, tmp_path, sasl_mechanism=how)
    assert await first_value(source(**settings)) is not None


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sasl_username": "stranger"}, SourceError, "grant READ and DESCRIBE on it to stranger"),
        ({"password": "wrong-Wx9"}, SourceUnavailable, "Authentication failed"),
        ({"ca": 1}, SourceUnavailable, "CERTIFICATE_VERIFY_FAILED"),
        ({"security_protocol": "SASL_PLAINTEXT", "ssl_cafile": None}, SourceUnavailable, "Kafka"),
    ],
    ids=["no ACL", "wrong password", "unknown authority", "no TLS"],
)
async def test_kafka_says_why_it_refuses(
    secure_kafka: SecureKafka,
    party: Party,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    user = changes.pop("sasl_username", "trainer")
    if "password" in changes:
        (tmp_path / "trainer-password").write_text(changes.pop("password"))
    ca = party.trainers[changes.pop("ca", 0)].ca
    with pytest.raises(error) as caught:
        await first_value(source(**sasl(secure_kafka, ca, tmp_path, user, **changes)))
    assert message in str(caught.value)
    assert "Wx9" not in str(caught.value)


@pytest.fixture(params=["redis", "cluster"])
def secure_redis(
    request: pytest.FixtureRequest, party: Party, tmp_path: Path
) -> Iterator[RedisServer | RedisCluster]:
    """TLS with client certificates and the users of `deploy/redis/users.acl`; one server, or a Cluster of three."""
    require("Redis", "redis-server", "redis-cli")
    users = redis_users(tmp_path, admin=ADMIN, streamtrain=STORE)
    options: dict[str, Any] = {"identity": party.servers[0], "login": ("admin", ADMIN)}
    if request.param == "redis":
        with RedisServer("--aclfile", str(users), **options) as server:
            yield server
    else:
        with RedisCluster(3, "--aclfile", str(users), **options) as cluster:
            yield cluster


def nodes_of(server: RedisServer | RedisCluster) -> list[RedisServer]:
    return [server] if isinstance(server, RedisServer) else [*server.nodes]


def store_section(url: str, identity: Identity, password: Path) -> str:
    return f"""
[store]
url = "{url.replace("rediss://", "rediss://streamtrain@")}"
password_file = "{password}"
tls_ca_file = "{identity.ca}"
tls_cert_file = "{identity.cert}"
tls_key_file = "{identity.key}"
"""


def store_epoch(daemon: Daemon) -> int:
    name, (status, text) = "streamtrain_store_applied_epoch ", daemon.get("/metrics", SECRETS["http"])
    assert status == 200
    return int(float(next(line for line in text.splitlines() if line.startswith(name)).split()[1]))


def learned(folder: Path) -> int:
    opened = EpochLog.open(folder / "model") if (folder / "model" / "model.json").exists() else None
    head = None if opened is None else opened.head()
    return 0 if opened is None or head is None else opened.describe(head).samples_total


@pytest.mark.redis
def test_a_user_with_the_shipped_rights_alone_runs_everything_and_may_nothing_else(
    secure_redis: RedisServer | RedisCluster, party: Party, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(STORE)
    # Bounds, expiry and cold rows: between them they call every script there is.
    bounded = "dim = 4\nmemory_bytes_max = 262144\nexpiry = { after_steps = 40, sweep_steps = 25 }\n"
    text = JOB.split("[[exports]]")[0].replace("dim = 4\n", bounded.replace("{", "{{").replace("}", "}}"))
    text = text.format(folder=tmp_path, follow="true")
    (tmp_path / "job.toml").write_text(
        text + store_section(secure_redis.url, party.trainers[0], tmp_path / "password")
    )
    write(tmp_path / "samples.jsonl", samples(500))
    with Daemon(tmp_path / "job.toml", STREAMTRAIN__LOG__EPOCH_INTERVAL_S="0.05") as daemon:
        until(lambda: learned(tmp_path) == 500, "500 samples")
        for node in nodes_of(secure_redis):
            assert node.cli("FLUSHALL") == "OK"
        write(tmp_path / "samples.jsonl", samples(500, 500, seed=1), "a")
        until(lambda: learned(tmp_path) == 1000, "500 more")
        daemon.until_says("was repaired from the log")
        assert daemon.stop() == 0, daemon.text
    refused = [node.cli("ACL", "LOG") for node in nodes_of(secure_redis)]
    assert not any(refused), refused
    node = nodes_of(secure_redis)[0]
    for command in FORBIDDEN:
        answer = node.cli(*command, login=("streamtrain", STORE))
        assert "NOPERM" in answer or "user executing the script can't" in answer, (command, answer)
    assert "NOAUTH" in node.cli("PING", login=("nobody", "x"))


@pytest.mark.redis
async def test_redis_says_why_it_refuses(
    start_redis: Callable[..., RedisServer], party: Party, tmp_path: Path
) -> None:
    users = redis_users(tmp_path, admin=ADMIN, streamtrain=STORE)
    server = start_redis("--aclfile", str(users), identity=party.servers[0], login=("admin", ADMIN))
    (tmp_path / "right").write_text(STORE)
    (tmp_path / "wrong").write_text("wrong-Wx9")
    url = server.url.replace("rediss://", "rediss://streamtrain@")
    first, second = party.trainers
    files = {"tls_ca_file": str(first.ca), "tls_cert_file": str(first.cert), "tls_key_file": str(first.key)}
    right = {"url": url, "password_file": str(tmp_path / "right"), "retries": 0} | files
    for changes, error, message in [
        ({"password_file": str(tmp_path / "wrong")}, StoreRefused, "refused the password or user"),
        ({"tls_ca_file": str(second.ca)}, StoreUnavailable, "check store.tls_ca_file"),
        (
            {"tls_cert_file": str(second.cert), "tls_key_file": str(second.key)},
            StoreUnavailable,
            "cannot be reached",
        ),
        ({"tls_cert_file": None, "tls_key_file": None}, StoreUnavailable, "cannot be reached"),
        (
            dict.fromkeys(files) | {"url": url.replace("rediss:", "redis:")},
            StoreUnavailable,
            "cannot be reached",
        ),
    ]:
        store = RedisStore(StoreSettings(**(right | changes)))
        with pytest.raises(error) as caught:
            await store.open(StoreDescription("m", {"t": (4, 4)}, 4))
        assert message in str(caught.value), str(caught.value)
        assert "Wx9" not in str(caught.value)
        await store.close()


SECRETS = {"http": "http-Wx9-token", "store": STORE, "kafka": PASSWORDS["trainer"]}


def leaks(texts: dict[str, str], folder: Path, *secrets: str) -> list[str]:
    """Where one of the secrets is found: in what was said, and in all files below a folder but those that hold them."""
    told = {name: text.encode() for name, text in texts.items()}
    files = {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "secrets" not in path.relative_to(folder).parts
    }
    assert files, "there is something to look at"
    encoded = [form for s in secrets for form in (s.encode(), base64.b64encode(s.encode()).rstrip(b"="))]
    return [name for name, data in (told | files).items() if any(form in data for form in encoded)]


def kafka_job(folder: Path, kafka: dict[str, Any], store: str, **more: str) -> Path:
    """A job that reads Kafka, and keeps all of its own below `folder / "daemon"`."""
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in kafka.items())
    lines += 'topic = "clicks"\ngroup_id = "clicks-lag"\nstart = "latest"\nunavailable_after_s = 3.0\n'
    text = JOB.format(folder=folder / "daemon", follow="true")
    head, rest = text.split("[source]")
    text = f'{head}[source]\nkind = "kafka"\n{lines}[schema]{rest.split("[schema]", 1)[1]}{store}'
    text = text.replace("window_samples = 500\n", "window_samples = 500\n" + more.get("training", ""))
    path = folder / "daemon" / "job.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + more.get("sections", ""))
    return path


@pytest.mark.kafka
@pytest.mark.redis
def test_certificates_are_replaced_under_a_running_daemon_that_never_says_a_secret(
    secure_kafka: SecureKafka,
    broker_files: Identity,
    start_redis: Callable[..., RedisServer],
    party: Party,
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, secret in SECRETS.items():
        (secrets / name).write_text(secret + "\n")
    redis_files, mine = party.copy("redis", party.servers[0]), party.copy("mine", party.trainers[0])
    users = redis_users(secrets, admin=ADMIN, streamtrain=STORE)
    redis = start_redis("--aclfile", str(users), identity=redis_files, login=("admin", ADMIN))
    kafka = sasl(secure_kafka, mine.ca, secrets) | {"sasl_password_file": str(secrets / "kafka")}
    job = kafka_job(
        tmp_path,
        kafka,
        store_section(redis.url, mine, secrets / "store"),
        training='bad_samples.dead_letters = { kind = "kafka", topic = "clicks-dead" }\n',
        sections=f'[http]\ntoken_file = "{secrets / "http"}"\n',
    )

    def produce(count: int, start: int) -> None:
        made = [json.dumps(row).encode() for row in samples(count, start)]
        asyncio.run(secure_kafka.produce("clicks", [*made, b"not json"]))

    def says(daemon: Daemon) -> dict[str, str]:
        assert daemon.process is not None
        return {
            "output": daemon.text,
            "arguments": Path(f"/proc/{daemon.process.pid}/cmdline").read_text(),
            "inspect": json.dumps(inspected(tmp_path / "daemon" / "model")),
            **{
                path: daemon.get(path, SECRETS["http"])[1]
                for path in ("/", "/status.json", "/metrics", "/readyz", "/nothing")
            },
        }

    with Daemon(job, STREAMTRAIN__LOGGING__LEVEL="debug") as daemon:
        daemon.until_says("learning: epoch")
        produce(200, 0)
        until(lambda: learned(tmp_path / "daemon") == 200, "200 samples")
        assert daemon.get("/metrics")[0] == 401

        # All parties change their authority: no old certificate is worth anything any more.
        old = party.copy("old", party.trainers[0])
        for files, new in (
            (broker_files, party.servers[1]),
            (redis_files, party.servers[1]),
            (mine, party.trainers[1]),
        ):
            files.become(new)
        secure_kafka.restart()
        redis.restart()
        produce(200, 200)
        until(lambda: learned(tmp_path / "daemon") == 400, "200 more, by the new certificates")
        daemon.until_says("certificates were replaced: new connections use them")
        until(lambda: store_epoch(daemon) > 0, "the store to follow")
        found = leaks(
            says(daemon), tmp_path / "daemon", *SECRETS.values(), mine.key.read_text().splitlines()[1]
        )
        assert not found
        assert daemon.stop() == 0, daemon.text
    with pytest.raises(SourceUnavailable):
        asyncio.run(first_value(source(**mtls(secure_kafka, old))))
    assert asyncio.run(first_value(source(**mtls(secure_kafka, mine)))) is not None


@pytest.mark.kafka
@pytest.mark.redis
def test_a_daemon_that_fails_does_not_say_a_secret_either(
    secure_kafka: SecureKafka,
    broker_files: Identity,
    start_redis: Callable[..., RedisServer],
    party: Party,
    tmp_path: Path,
) -> None:
    mine = (
        party.trainers[0]
        if broker_files.ca.read_bytes() == party.trainers[0].ca.read_bytes()
        else party.trainers[1]
    )
    other = next(trainer for trainer in party.trainers if trainer is not mine)
    users = redis_users(tmp_path, admin=ADMIN, streamtrain=STORE)
    server = next(s for s in party.servers if s.ca.read_bytes() == mine.ca.read_bytes())
    redis = start_redis("--aclfile", str(users), identity=server, login=("admin", ADMIN))
    # By name: what is wrong, and what the daemon says of it.
    cases: dict[str, tuple[dict[str, Any], Identity, str, str]] = {
        "wrong Kafka password": ({"sasl_mechanism": "PLAIN"}, mine, redis.url, "Authentication failed"),
        "Kafka is not there": ({"bootstrap_servers": "127.0.0.1:1"}, mine, redis.url, "127.0.0.1:1"),
        "wrong Redis password": ({}, mine, redis.url, "refused the password or user"),
        "Redis is not there": ({}, mine, "rediss://127.0.0.1:1/0", "cannot be reached"),
        "another authority": (
            {"ssl_cafile": str(mine.ca)},
            other,
            redis.url,
            "certificate that is not trusted",
        ),
    }
    with ExitStack() as daemons:
        running = []
        for number, (name, (changes, identity, url, said)) in enumerate(cases.items()):
            folder = tmp_path / f"case-{number}"
            (secrets := folder / "secrets").mkdir(parents=True)
            passwords = {"kafka": PASSWORDS["trainer"], "store": STORE}
            for party_name in passwords:
                if name.lower() == f"wrong {'redis' if party_name == 'store' else 'kafka'} password":
                    passwords[party_name] = f"wrong-Wx9-{number}"
            for party_name, password in passwords.items():
                (secrets / party_name).write_text(password)
            kafka = (
                sasl(secure_kafka, mine.ca, secrets)
                | {"sasl_password_file": str(secrets / "kafka")}
                | changes
            )
            job = kafka_job(folder, kafka, store_section(url, identity, secrets / "store"))
            daemon = daemons.enter_context(Daemon(job, STREAMTRAIN__LOGGING__LEVEL="debug"))
            running.append((name, daemon, said, folder / "daemon", passwords.values()))
        for name, daemon, said, _, _ in running:
            until(lambda d=daemon, s=said: s in d.text or not d.running, name)  # type: ignore[misc]
            assert said in daemon.text, (name, daemon.text)
        for name, daemon, _, folder, secret in running:
            daemon.signal(signal.SIGTERM)
            daemon.wait()
            assert "Traceback" not in daemon.text, (name, daemon.text)
            texts = {"output": daemon.text}
            if "password" in name:
                doctor = streamtrain("doctor", folder / "job.toml")
                assert doctor.returncode == 1, doctor.stdout
                texts["doctor"] = doctor.stdout + doctor.stderr
            assert not leaks(texts, folder, *secret), name
