"""SIGHUP on a daemon that runs: it takes over what it can, says what waits, and survives settings that are wrong."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.daemon import Daemon, until
from tests.integration.test_daemon import config, samples, write
from tests.systemd import Systemd


def test_a_running_daemon_reloads_what_it_can_and_says_what_waits(tmp_path: Path) -> None:
    write(tmp_path / "samples-1.jsonl", samples(500))
    job = config(tmp_path, follow=True)
    text = job.read_text()
    with Systemd(tmp_path / "notify") as systemd, Daemon(job, NOTIFY_SOCKET=systemd.address) as daemon:
        until(lambda: any("READY" in told for told in systemd.all_told()), "the daemon to be ready")

        job.write_text(text.replace("window_samples", "nonsense = 1\nwindow_samples"))
        daemon.signal(signal.SIGHUP)
        daemon.until_says("the settings are not reloaded, those from before hold: ")
        assert "training.nonsense = 1: is not a setting" in daemon.text

        job.write_text(
            text.replace("seed = 7", "seed = 8")
            .replace("window_samples = 500", "window_samples = 400")
            .replace("epoch_interval_s = 0.1", "epoch_interval_s = 0.1\nkeep_epochs = 33")
            + '[logging]\nlevel = "debug"\n'
        )
        daemon.signal(signal.SIGHUP)
        daemon.until_says("make another model of it: seed")
        assert "settings reloaded: log.keep_epochs, logging.level" in daemon.text
        assert "changed, and wait for the next start: training.window_samples" in daemon.text
        shown = json.loads(daemon.get("/status.json")[1])["configuration"]
        assert (shown["log"]["keep_epochs"], shown["seed"]) == (33, 7)
        told = systemd.all_told()
        assert sum("RELOADING" in t for t in told) == 2

        write(tmp_path / "samples-2.jsonl", samples(500, 500))
        assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.text.splitlines() if line.startswith("{")]
    reloaded = next(line for line in lines if line["message"].startswith("settings reloaded"))
    assert reloaded["model"] == "e2e" and reloaded["epoch"] >= 0 and reloaded["step"] >= 0
