"""Runs the demo: python -m examples.demo [--seconds S] [--rate N]"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from examples.demo.report import line, screen, summarise, write_plot, write_summary
from examples.demo.servers import redis, trainer
from examples.demo.world import OnlineFollower, World
from streamtrain.log.reader import LogReader
from streamtrain.produce import SyntheticStream
from streamtrain.serving import Follower

FOLDER = Path("build/demo")
FROZEN_SHARE = 0.2
WINDOW = 5000
GAIN_MIN = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description="Watch a model learn, commit, export and serve."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the stream (default 60)")
    parser.add_argument("--rate", type=float, default=3000.0, help="samples a second (default 3000)")
    parser.add_argument("--seed", type=int, default=7, help="decides the stream (default 7)")
    arguments = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    exports, stream = FOLDER / "exports", FOLDER / "stream.jsonl"
    stream.touch()
    console = Console()
    with redis() as store:
        config = FOLDER / "job.toml"
        template = (Path(__file__).parent / "job.toml").read_text()
        config.write_text(template.replace("{folder}", str(FOLDER)).replace("{store}", store))
        console.print(
            f"the trainer starts: streamtrain run {config} (store: {store.split(':')[0]}); the first start compiles its kernels"
        )
        with trainer(config, FOLDER / "trainer.log", exports):
            summary = _play(arguments, console, exports, stream, store)
    write_summary(FOLDER / "summary.json", summary)
    return _tell(console, summary)


def _play(arguments: argparse.Namespace, console: Console, exports: Path, stream: Path, store: str) -> dict:  # type: ignore[type-arg]
    online = OnlineFollower(Follower(exports))
    online.follower.wait_for(0, 30.0)
    online.start()
    log = LogReader.open(FOLDER / "model")
    world = World(SyntheticStream(arguments.seed), stream, online.follower, WINDOW)
    total = int(arguments.seconds * arguments.rate)
    begin, told, frozen_epoch, frozen_at = time.monotonic(), 0.0, 0, 0
    with (
        Live(console=console, refresh_per_second=4, transient=False)
        if console.is_terminal
        else _Quiet() as live
    ):
        while world.sent < total:
            if world.frozen is None and world.sent >= total * FROZEN_SHARE:
                frozen_at, frozen_epoch = world.sent, world.freeze(exports)
            world.play(arguments.rate)
            if console.is_terminal:
                live.update(screen(world, online, log, exports, world.sent / total))
            elif time.monotonic() - told >= 5:
                told = time.monotonic()
                console.print(line(world, online, log))
    seconds = time.monotonic() - begin
    _wait_until_learned(log, world.sent)
    online.stop()
    write_plot(FOLDER / "auc.png", world.windows, frozen_at)
    return summarise(world, online, log, exports, frozen_epoch, frozen_at, seconds, store)


class _Quiet:
    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: object) -> None:
        pass


def _wait_until_learned(log: LogReader, samples: int) -> None:
    deadline = time.monotonic() + 30
    while log.describe(log.head() or 0).samples_total < samples:
        if time.monotonic() > deadline:
            raise SystemExit(
                "the trainer did not learn all that was sent within 30 s of its end: see build/demo/trainer.log"
            )
        time.sleep(0.1)


def _tell(console: Console, summary: dict) -> int:  # type: ignore[type-arg]
    console.print(
        f"\n{summary['samples_learned']:,} samples learned in {summary['epochs']} epochs\n"
        f"AUC of requests before they were learned, since the freeze at sample {summary['frozen_at_sample']:,}:\n"
        f"  online   {summary['auc_online']:.4f}   follows every delta\n"
        f"  frozen   {summary['auc_frozen']:.4f}   the same model at epoch {summary['frozen_at_epoch']}, no more deltas\n"
        f"  possible {summary['auc_possible']:.4f}   the stream's own probabilities\n"
        f"event to visible in the follower: p50 {summary['freshness_p50_s']} s, p99 {summary['freshness_p99_s']} s\n"
        f"deltas: median {summary['delta_bytes_median'] / 1e3:,.0f} kB, largest {summary['delta_bytes_max'] / 1e3:,.0f} kB; "
        f"a base {summary['base_bytes'] / 1e3:,.0f} kB\n"
        f"written: {FOLDER / 'summary.json'}, {FOLDER / 'auc.png'}",
        highlight=False,
    )
    if summary["samples_learned"] != summary["samples"]:
        sys.stderr.write(
            f"FAILED: {summary['samples']} samples were sent, {summary['samples_learned']} learned\n"
        )
        return 1
    if summary["auc_gain"] < GAIN_MIN:
        sys.stderr.write(
            f"FAILED: online is only {summary['auc_gain']:+.4f} AUC from frozen; at least {GAIN_MIN} is expected\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
