"""Jobs: what is accepted, and that every refusal names file, key, value and what is allowed."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from streamtrain.config import Job, load_job, parse_job
from streamtrain.errors import ConfigError
from streamtrain.identity import check_same_model

MINIMAL = """
name = "m"
[source]
kind = "files"
paths = ["samples.jsonl"]
[schema]
labels = ["click"]
[schema.slots]
user_id = {}
[tables.main]
dim = 8
[model]
kind = "mlp"
[log]
path = "model"
"""


def job(text: str = MINIMAL, environment: dict[str, str] | None = None, tmp: Path | None = None) -> Job:
    assert tmp is not None
    path = tmp / "job.toml"
    path.write_text(text)
    return load_job(path, environment or {})


def fault(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        job(text, environment, tmp_path)
    return str(caught.value).replace(str(tmp_path), "")


def test_a_minimal_job_has_sane_defaults(tmp_path: Path) -> None:
    made = job(tmp=tmp_path)
    assert made.training.batch_size == 64
    assert made.store.url == "memory://"
    assert made.layout.pooled_width == 8
    assert made.http.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "m"', "", "/job.toml: name: is required"),
        ("dim = 8", "dim = 0", "/job.toml: tables.main.dim = 0: Input should be greater than or equal to 1"),
        ("dim = 8", 'dim = "8"', "/job.toml: tables.main.dim = '8': Input should be a valid integer"),
        (
            "dim = 8",
            "dimm = 8",
            "/job.toml: tables.main.dimm = 8: is not a setting; allowed: dim, optimizer, init",
        ),
        (
            'path = "model"',
            'path = "model"\nspeed = 1',
            "/job.toml: log.speed = 1: is not a setting; allowed: path,",
        ),
        (
            "user_id = {}",
            'user_id = { kind = "sprase" }',
            "schema.slots.user_id.kind = 'sprase': must be one of 'sparse', 'sequence', 'dense', 'bucket', 'cross'",
        ),
        (
            "user_id = {}",
            "sparse = { pool = 1 }",
            "schema.slots.sparse.pool = 1: is not a setting; allowed: kind,",
        ),
        (
            "dim = 8",
            "dim = 8\noptimizer = { kind = 'adam', learning_rate = 0 }",
            "main.optimizer.learning_rate = 0:",
        ),
        (
            'kind = "files"\npaths = ["samples.jsonl"]',
            'kind = "kafka"\ntopic = "t"\nstart = "newest"',
            "source.start = 'newest': Input should be 'earliest' or 'latest'",
        ),
        ("user_id = {}", 'user_id = "int"', "schema.slots.user_id = 'int': must be a section"),
        ("dim = 8", "dim = 8\ninit = { std = -1 }", "tables.main.init.std = -1"),
        ('name = "m"', 'name = "m"\nspeed = 1', "logging, source, model, exports"),
        (
            'kind = "mlp"',
            'kind = "json:loads"',
            "is not a models plug-in: it needs a class attribute Settings",
        ),
        ('kind = "mlp"', 'kind = ":Mine"', "':Mine' is not 'module:Object'"),
        (
            'kind = "mlp"',
            'kind = "mpl"',
            "model.kind = 'mpl': no models plug-in is called 'mpl'; there are: deepfm, din",
        ),
        (
            'kind = "files"',
            'kind = "file"',
            "source.kind = 'file': no consumers plug-in is called 'file'; there are: files, kafka",
        ),
        ('paths = ["samples.jsonl"]', "", "source.paths: is required"),
        (
            "user_id = {}",
            'x = { kind = "cross", of = ["user_id", "y"] }',
            "'user_id' is not a sparse, bucket or cross slot",
        ),
        (
            "dim = 8",
            "dim = 8\n[tables.other]\ndim = 4",
            "schema.slots.user_id: there are several tables (main, other)",
        ),
        ('labels = ["click"]', "labels = []", "schema.labels = []"),
        (
            "user_id = {}",
            'user_id = { table = "mian" }',
            "schema.slots.user_id.table: there is no [tables.mian]",
        ),
        ("dim = 8", "dim = 8 9", "is not valid TOML"),
    ],
)
def test_a_fault_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in MINIMAL
    assert message in fault(tmp_path, MINIMAL.replace(old, new))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = (
        MINIMAL.replace("dim = 8", "dim = 0").replace('kind = "mlp"', 'kind = "x"').replace('name = "m"', "")
    )
    assert len(fault(tmp_path, text).splitlines()) == 3


def test_a_file_that_is_not_there_is_told_with_the_way_to_a_first_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.toml: No such file.*streamtrain init"):
        load_job(tmp_path / "none.toml", {})


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    environment = {
        "STREAMTRAIN__TRAINING__BATCH_SIZE": "128",
        "STREAMTRAIN__LOG__PATH": "elsewhere",
        "STREAMTRAIN__SOURCE__PATHS": '["a.jsonl", "b.jsonl"]',
        "STREAMTRAIN__STORE__URL": "redis://127.0.0.1:1/0",
        "OTHER": "1",
    }
    made = job(MINIMAL, environment, tmp_path)
    assert (made.training.batch_size, made.log.path) == (128, "elsewhere")
    assert made.source.paths == ["a.jsonl", "b.jsonl"]
    assert made.store.url == "redis://127.0.0.1:1/0"


def test_a_fault_from_the_environment_blames_the_variable(tmp_path: Path) -> None:
    message = fault(tmp_path, MINIMAL, {"STREAMTRAIN__TRAINING__BATCH_SIZE": "0"})
    assert message.startswith("environment STREAMTRAIN__TRAINING__BATCH_SIZE: training.batch_size = 0")


def test_a_fault_from_the_environment_blames_the_variable_whatever_the_case_of_the_key(
    tmp_path: Path,
) -> None:
    text = MINIMAL.replace("user_id", "User_Id")
    message = fault(tmp_path, text, {"STREAMTRAIN__SCHEMA__SLOTS__USER_ID__POOLING": "none"})
    assert message.startswith(
        "environment STREAMTRAIN__SCHEMA__SLOTS__USER_ID__POOLING: schema.slots.User_Id"
    )


def test_the_environment_reaches_entries_of_lists(tmp_path: Path) -> None:
    assert job(MINIMAL, {"STREAMTRAIN__SOURCE__PATHS__0": "b.jsonl"}, tmp_path).source.paths == ["b.jsonl"]
    for entry in ("1", "x"):
        with pytest.raises(
            ConfigError, match=f"STREAMTRAIN__SOURCE__PATHS__{entry.upper()}: '{entry}' is not an"
        ):
            job(MINIMAL, {f"STREAMTRAIN__SOURCE__PATHS__{entry.upper()}": "b.jsonl"}, tmp_path)


def test_a_kind_that_is_not_named_is_the_default_of_the_reference(tmp_path: Path) -> None:
    text = MINIMAL.replace("dim = 8", "dim = 8\noptimizer = { learning_rate = 0.02 }\ninit = { std = 0.5 }")
    made = job(text + "[optimizer]\nclip_norm = 1.0\n", tmp=tmp_path)
    table = made.tables["main"]
    assert (table.optimizer.kind, table.init.kind, made.optimizer.kind) == ("adagrad", "normal", "adam")
    assert parse_job(made.describe(), "model.json").describe() == made.describe()


@pytest.mark.parametrize("line", ['url = "redis://:hunter2@h:6379/0"', 'password = "hunter2"'])
def test_a_refused_secret_is_not_repeated(tmp_path: Path, line: str) -> None:
    message = fault(tmp_path, f"{MINIMAL}[store]\n{line}\n")
    assert "password_env" in message and "hunter2" not in message


@pytest.mark.parametrize(
    ("code", "message"), [("1 +", "SyntaxError"), ("raise RuntimeError('boom')", "RuntimeError: boom")]
)
def test_a_module_that_cannot_be_imported_is_a_fault_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "mine_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = fault(tmp_path, MINIMAL.replace('kind = "mlp"', 'kind = "mine_broken:Model"'))
    assert f"model.kind = 'mine_broken:Model': cannot load 'mine_broken:Model': {message}" in found
    assert "mine_broken.py" in found


def test_a_described_job_is_read_back_as_the_same(tmp_path: Path) -> None:
    made = job(MINIMAL + '[[exports]]\nkind = "deltas"\npath = "exports"\n', tmp=tmp_path)
    assert parse_job(made.describe(), "model.json").describe() == made.describe()


def changed(old: str, new: str) -> dict[str, Any]:
    return parse_job(tomllib.loads(MINIMAL.replace(old, new)), "x").describe()


def test_a_job_that_changes_what_decides_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tables.main.dim: the log has 16, the job says 8"):
        check_same_model(job(tmp=tmp_path), changed("dim = 8", "dim = 16"), "model")
    with pytest.raises(ConfigError, match=r"schema.slots.user_id"):
        check_same_model(job(tmp=tmp_path), changed("user_id = {}", "user = {}"), "model")


def test_a_job_may_change_what_decides_nothing(tmp_path: Path) -> None:
    check_same_model(job(tmp=tmp_path), changed('path = "model"', 'path = "moved"'), "model")
    check_same_model(job(tmp=tmp_path), changed("dim = 8", "dim = 8\nrows_max = 10"), "model")


def test_a_setting_that_is_newer_than_the_log_is_what_its_default_says(tmp_path: Path) -> None:
    """An upgrade that brings a setting must not refuse every model that was made before it."""
    recorded = job(tmp=tmp_path).describe()
    del recorded["schema"]["event_time_ahead_max_s"]
    check_same_model(job(tmp=tmp_path), recorded, "model")
    narrower = job(
        MINIMAL.replace("[schema.slots]", "event_time_ahead_max_s = 5\n[schema.slots]"), tmp=tmp_path
    )
    with pytest.raises(ConfigError, match=r"event_time_ahead_max_s: the log has 3600, the job says 5"):
        check_same_model(narrower, recorded, "model")


def test_the_slot_order_is_part_of_the_model_because_it_decides_bits(tmp_path: Path) -> None:
    two = job(MINIMAL.replace("user_id = {}", "user_id = {}\nitem_id = {}"), tmp=tmp_path)
    with pytest.raises(ConfigError, match="order"):
        check_same_model(two, changed("user_id = {}", "item_id = {}\nuser_id = {}"), "model")
