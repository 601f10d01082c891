"""river's side of linear: logistic regression with FTRL-proximal, a sample at a time, over dicts made before.

    python -m benchmarks.peers.river_linear FOLDER SAMPLES ALPHA BETA

Each block is scored before it is learned, for the log-loss; the clock runs while it learns alone, and neither making
dicts nor hashing are in it: river has a weight for each feature. Prints one JSON object.
"""

from __future__ import annotations

import json
import math
import sys
import time
from importlib.metadata import version
from pathlib import Path

from river import linear_model, optim

from benchmarks.step_data import StepData

BLOCK = 1000


def main() -> None:
    folder, count, alpha, beta = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    data = StepData(folder)
    rows = data.rows.reshape(-1, data.work.slots)[:count]
    labels = data.labels.reshape(-1)[:count] > 0
    model = linear_model.LogisticRegression(
        optimizer=optim.FTRLProximal(alpha=alpha, beta=beta, l1=0.0, l2=0.0)
    )
    seconds = processor = loss = 0.0
    for first in range(0, len(rows), BLOCK):
        block = [dict.fromkeys(row, 1) for row in rows[first : first + BLOCK].tolist()]
        answers = labels[first : first + BLOCK].tolist()
        for features, answer in zip(block, answers):
            p = min(max(model.predict_proba_one(features)[True], 1e-15), 1 - 1e-15)
            loss -= math.log(p if answer else 1 - p)
        processor_begin, begin = time.process_time(), time.perf_counter()
        for features, answer in zip(block, answers):
            model.learn_one(features, answer)
        seconds += time.perf_counter() - begin
        processor += time.process_time() - processor_begin
    found = {"samples": len(rows), "log_loss": loss / len(rows), "version": version("river")}
    print(json.dumps(found | {"seconds": seconds, "processor_s": processor}))


if __name__ == "__main__":
    main()
