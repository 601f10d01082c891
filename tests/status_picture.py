"""Takes the pictures of the status page that docs/ shows: a daemon on real servers that learns the synthetic stream.

python -m tests.status_picture docs
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.browser import Chromium
from tests.daemon import Daemon, until
from tests.servers import KafkaServer, RedisServer

JOB = """
name = "demo"
seed = 1
[source]
kind = "kafka"
bootstrap_servers = "{servers}"
topic = "clicks"
group_id = "streamtrain-demo"
start = "earliest"
[schema]
labels = ["click"]
event_time = "event_time_ms"
[schema.slots]
user_id = {{}}
item_id = {{}}
category = {{ type = "string" }}
hour = {{}}
user_category = {{ kind = "cross", of = ["user_id", "category"] }}
recent_items = {{ kind = "sequence", shares = "item_id", length_max = 10, pooling = "mean" }}
price = {{ kind = "dense" }}
[tables.main]
dim = 16
admission = {{ kind = "count", threshold = 2, ids_max = 100000 }}
[model]
kind = "mlp"
hidden = [64, 32]
[training]
window_samples = 4000
[log]
path = "{folder}/model"
[store]
url = "{store}"
[[exports]]
kind = "deltas"
path = "{folder}/exports"
"""
SIZES = {"status.png": (1280, 900, False), "status-phone.png": (390, 844, True)}


@contextmanager
def learning(folder: Path, rate: float) -> Iterator[Daemon]:
    """A daemon, its servers, and a producer, which lets a record slip that does not fit the schema."""
    with ExitStack() as stack:
        kafka, redis = stack.enter_context(KafkaServer()), stack.enter_context(RedisServer())
        job = folder / "job.toml"
        job.write_text(JOB.format(servers=kafka.bootstrap_servers, folder=folder, store=redis.url))
        arguments = ["--synthetic", "--live", "--rate", str(rate), "--partitions", "4", "--config", str(job)]
        producer = subprocess.Popen([sys.executable, "-m", "streamtrain", "produce", *arguments])
        stack.callback(producer.wait)
        stack.callback(producer.terminate)
        daemon = stack.enter_context(Daemon(job))
        daemon.until_says("learning: epoch")
        asyncio.run(kafka.produce("clicks", [b'{"user_id": "seven"}']))
        yield daemon


async def take(address: str, folder: Path) -> None:
    """Writes the pictures of the page at `address`."""
    with Chromium() as browser:
        for name, (width, height, phone) in SIZES.items():
            async with browser.tab() as tab:
                await tab.resize(width, height, phone=phone)
                await tab.open(address)
                await tab.until("!document.getElementById('content').hidden && !asking")
                await asyncio.to_thread((folder / name).write_bytes, await tab.picture())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=60_000, help="learned before the pictures are taken")
    parser.add_argument("--rate", type=float, default=600.0, help="samples a second")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="streamtrain-picture-") as folder,
        learning(Path(folder), arguments.rate) as daemon,
    ):
        until(lambda: learned(daemon) >= arguments.samples, "the samples to be learned", 600.0)
        address = daemon.text.split("metrics and probes at ", 1)[1].split("metrics", 1)[0]
        asyncio.run(take(address, arguments.folder))


def learned(daemon: Daemon) -> float:
    """Samples so far."""
    lines = daemon.get("/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("streamtrain_samples_total"))


if __name__ == "__main__":
    main()
