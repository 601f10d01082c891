"""Secrets and certificates: where they come from, and that no error repeats one."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from streamtrain.config import load_job
from streamtrain.credentials import SECRET_BYTES_MAX, secret_of_file
from streamtrain.errors import ConfigError
from streamtrain.tls import ClientTls
from tests.certificates import Authority, Identity

SECRET = "Tr0ub4dor/3@x?y#z"
JOB = """
name = "m"
[source]
kind = "kafka"
topic = "clicks"
{source}
[schema]
labels = ["click"]
[schema.slots]
user = {{}}
[tables.main]
dim = 4
[model]
kind = "mlp"
[log]
path = "model"
[store]
{store}
[training.bad_samples]
{bad}
"""


@pytest.fixture
def identities(tmp_path: Path) -> tuple[Identity, Identity]:
    return tuple(Authority(tmp_path / name).sign("trainer") for name in ("first", "second"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (SECRET.encode() + b"\nmore\n", "holds more than one line"),
        (b"\xff" + SECRET.encode(), "is not text in UTF-8"),
        (b"x" * (SECRET_BYTES_MAX + 1), "has more than 65536 bytes"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused_without_repeating_it(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "password").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        secret_of_file(str(tmp_path / "password"), "store.password_file")
    assert message in str(caught.value) and SECRET not in str(caught.value)
    assert str(caught.value).startswith("store.password_file: ")


def test_a_bare_name_is_a_credential_of_systemd_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "credentials").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("redis-password").write_text("of the folder")
    assert secret_of_file("redis-password", "s") == "of the folder"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert secret_of_file("redis-password", "s") == "of the folder"
    (tmp_path / "credentials" / "redis-password").write_text("of systemd\n")
    assert secret_of_file("redis-password", "s") == "of systemd"
    assert secret_of_file("./redis-password", "s") == "of the folder"


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("store", 'url = "redis://:{}@h:6379/0"'),
        ("store", 'url = "rediss://user:{}@h:6379/0"'),
        ("store", 'url = "redis://h:6379/0?password={}"'),
        ("store", 'url = "unix:///run/redis?password={}"'),
        ("store", 'url = "postgres://user:{}@h"'),
        ("store", 'password = "{}"'),
        ("store", 'pwd = "{}"'),
        ("store", 'password_env = "{}"'),
        ("store", 'shards = "{}@"'),
        ("source", 'bootstrap_servers = "user:{}@broker:9092"'),
        ("source", 'bootstrap_servers = "SASL_SSL://user:{}@broker:9092"'),
        ("source", 'sasl_password = "{}"'),
        ("source", 'sasl_plain_pw = "{}"'),
        ("source", 'sasl_password_env = "{}"\nsasl_username = "u"\nsecurity_protocol = "SASL_SSL"'),
        ("bad", 'dead_letters = {{ kind = "kafka", topic = "t", connection = {{ sasl_pass = "{}" }} }}'),
    ],
)
@pytest.mark.parametrize("secret", [SECRET, "hunter2", "p/w", "p#w", "p?w@x"])
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(
    tmp_path: Path, place: str, line: str, secret: str
) -> None:
    lines = {"store": "", "source": "", "bad": ""} | {place: line.format(secret)}
    (tmp_path / "job.toml").write_text(JOB.format(**lines))
    with pytest.raises(ConfigError) as caught:
        load_job(tmp_path / "job.toml", {})
    assert secret not in str(caught.value).replace(str(tmp_path), "")


def test_a_secret_in_the_environment_s_settings_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB.format(store="", source="", bad=""))
    for variable, value in {
        "STREAMTRAIN__STORE__URL": f"redis://:{SECRET}@h",
        "STREAMTRAIN__STORE__PASSWORD": SECRET,
        "STREAMTRAIN__SOURCE__SASL_PASSWORD": SECRET,
    }.items():
        with pytest.raises(ConfigError, match=f"environment {variable}") as caught:
            load_job(tmp_path / "job.toml", {variable: value})
        assert SECRET not in str(caught.value)


def test_certificates_that_do_not_fit_are_told_at_the_start(
    tmp_path: Path, identities: tuple[Identity, Identity]
) -> None:
    first, second = identities
    with pytest.raises(ConfigError, match=r"the certificates cannot be used: .*; check the files"):
        ClientTls(str(first.ca), str(first.cert), str(second.key), "the files")
    with pytest.raises(ConfigError, match="No such file"):
        ClientTls(str(tmp_path / "absent.pem"), None, None, "the files")


def handshake(client: ssl.SSLContext, server: Identity) -> bool:
    """Whether a client and a server that asks for a certificate trust each other; in memory, as asyncio does it."""
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(server.cert, server.key)
    listening.load_verify_locations(server.ca)
    listening.verify_mode = ssl.CERT_REQUIRED
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(back, there, server_hostname="localhost"),
        listening.wrap_bio(there, back, server_side=True),
    ]
    done: set[int] = set()
    for _ in range(8):
        for number, side in enumerate(sides):
            try:
                side.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
    return len(done) == 2


def test_new_connections_use_replaced_files_and_forget_the_authority_before(
    identities: tuple[Identity, Identity], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = identities
    mine = Identity(tmp_path / "mine")
    mine.folder.mkdir()
    mine.become(first)
    client = ClientTls(str(mine.ca), str(mine.cert), str(mine.key), "the files")
    assert handshake(client, first) and not handshake(client, second)

    # A rotation comes file by file: while they do not fit, the pair from before stays.
    mine.cert.write_bytes(second.cert.read_bytes())
    assert handshake(client, first)
    assert "cannot be used yet" in caplog.text
    mine.become(second)
    assert handshake(client, second) and not handshake(client, first)
    mine.ca.unlink()
    assert handshake(client, second)
