"""The job that is disturbed: a ledger of samples, and beside it a table for every rule about the life of a row."""

from __future__ import annotations

from streamtrain.config import Job

__all__ = ["FAILOVER", "JOB", "unbounded"]

# `ledger` has one row a sample, which stays, and `users` 200 rows that every sample moves; their counts are compared with
# the topic. The other tables read `seen`: ids that come once in a while and ids that come all the time. What they decide
# depends on every minibatch before, so that one step lost, doubled or restored otherwise shows in the bits. The bound on
# memory holds some 2,000 rows, and a chunk that is read behind a backlog names several times as many ids.
JOB = """
name = "ledger"
seed = {seed}
[source]
kind = "kafka"
bootstrap_servers = "127.0.0.1:{kafka}"
topic = "{topic}"
group_id = "ledger"
metadata_refresh_s = 1
request_timeout_s = 2
fetch_wait_ms = 20
[schema]
labels = ["y"]
[schema.slots]
id = {{ table = "ledger" }}
user = {{ table = "users" }}
counted = {{ field = "seen", many = true, table = "counted" }}
recent = {{ kind = "sequence", field = "seen", shares = "counted", length_max = 4, pooling = "mean" }}
bloom = {{ field = "seen", many = true, table = "bloom" }}
chance = {{ field = "seen", many = true, table = "chance" }}
own = {{ field = "seen", many = true, table = "own" }}
tiered = {{ field = "seen", many = true, table = "tiered" }}
waiting = {{ field = "seen", many = true, table = "waiting" }}
hashed = {{ field = "seen", many = true, table = "hashed" }}
multi = {{ field = "seen", many = true, table = "multi" }}
[tables.ledger]
dim = 1
[tables.users]
dim = 1
decay = {{ every_steps = 30, weights = 0.99, slots = 0.9 }}
[tables.counted]
dim = 1
admission = {{ kind = "count", threshold = 3, ids_max = 600, halve_every_steps = 200 }}
expiry = {{ after_steps = 60, sweep_steps = 7 }}
[tables.bloom]
dim = 1
unadmitted = "zero"
admission = {{ kind = "counting_bloom", threshold = 2, expected_ids = 800, error = 0.1, halve_every_steps = 50 }}
expiry = {{ norm_min = 0.02, norm_after_count = 2, sweep_steps = 11 }}
decay = {{ every_steps = 20, weights = 0.9, slots = 0.8 }}
optimizer = {{ kind = "rowwise_adagrad" }}
[tables.chance]
dim = 1
admission = {{ kind = "probability", p = 0.2 }}
expiry = {{ rule = "tests.rules:weak_and_rare", sweep_steps = 5 }}
[tables.own]
dim = 1
admission = {{ kind = "tests.rules:EveryOther", first = true }}
expiry = {{ after_steps = 90, rule = "tests.rules:weak_and_rare", sweep_steps = 13 }}
[tables.tiered]
dim = 1
memory_bytes_max = 262144
expiry = {{ after_steps = 200, sweep_steps = 17 }}
decay = {{ every_steps = 25, weights = 0.95 }}
[tables.waiting]
dim = 1
memory_bytes_max = 262144
admission = {{ kind = "count", threshold = 2 }}
expiry = {{ after_steps = 500, norm_min = 0.002, norm_after_count = 3, sweep_steps = 9 }}
optimizer = {{ kind = "adam" }}
[tables.hashed]
kind = "hash"
dim = 1
rows = 400
optimizer = {{ kind = "ftrl", l1 = 0.01 }}
[tables.multi]
kind = "multi_hash"
dim = 1
rows = [50, 40]
combine = "multiply"
[reverse_dictionary.counted]
[model]
kind = "linear"
[training]
batch_size = 16
linger_ms = 20
stop_timeout_s = 10
[log]
path = "{folder}/model"
epoch_interval_s = 0.07
base_every_epochs = 25
keep_epochs = 50
[store]
url = "redis://127.0.0.1:{redis}/0"
shards = {shards}
timeout_s = 1
retries = 1
[[exports]]
kind = "deltas"
path = "{folder}/exports"
base_every_epochs = 20
[http]
enabled = false
"""

# The shortest session that a broker allows unless told otherwise.
FAILOVER = """
[failover]
group_id = "ledger-owners"
session_timeout_s = 6
heartbeat_interval_s = 0.5
"""


def unbounded(job: Job) -> Job:
    """The same job with all rows in memory: what it learns must be the same bits."""
    tables = {
        name: table.model_copy(update={"memory_bytes_max": None}) if table.kind == "dynamic" else table
        for name, table in job.tables.items()
    }
    return job.model_copy(update={"tables": tables})
