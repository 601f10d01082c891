"""Makes the kept files of the version that is checked out: `python -m tests.golden VERSION`."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path

from streamtrain.log.fold import fold
from streamtrain.serving import Follower
from tests.golden.world import FOLDER, KEPT, LATER, REQUEST, learn, rows, samples, write_job
from tests.servers import RedisServer

_PARTS = 5  # Epochs: one for each run of the daemon.


def main(version: str) -> None:
    target = FOLDER / version
    if target.exists():
        sys.exit(f"{target} exists: what a version wrote is never changed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "golden"
        folder.mkdir()
        _make(folder)
        shutil.copytree(folder, target)


def _make(folder: Path) -> None:
    write_job(folder)
    store = f"lmdb://{folder}/lmdb"
    size = KEPT // _PARTS
    for part in range(_PARTS):
        learn(folder, samples(part * size, (part + 1) * size), store)
        if part == _PARTS // 2:
            fold(folder / "model")
    with RedisServer() as server:
        learn(folder, [], server.url)
        server.cli("SAVE")
        (folder / "redis.rdb.gz").write_bytes(_packed(server.folder / "dump.rdb"))
    with Follower(folder / "exports") as follower:
        follower.wait_for(epoch=0, timeout_s=60)
        scores = follower.predict(REQUEST).tolist()
    kept = rows(folder / "model")
    with tempfile.TemporaryDirectory() as temporary:
        later = Path(temporary) / "later"
        shutil.copytree(folder, later)
        learn(later, samples(KEPT, KEPT + LATER), f"lmdb://{later}/lmdb")
        after = rows(later / "model")
    (folder / "expected.json").write_text(
        json.dumps({"rows": kept, "scores": scores, "rows_later": after}) + "\n"
    )
    for data in [*folder.glob("lmdb/*/data.mdb"), *folder.rglob("*.safetensors"), folder / "expected.json"]:
        data.with_name(f"{data.name}.gz").write_bytes(_packed(data))
        data.unlink()
    for leftover in ("LOCK", "lock.mdb", "owner.lock"):
        for path in folder.rglob(leftover):
            path.unlink()


def _packed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), mtime=0)


if __name__ == "__main__":
    main(sys.argv[1])
