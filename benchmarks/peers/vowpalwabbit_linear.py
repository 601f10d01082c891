"""Vowpal Wabbit's side of linear: one pass over a text file, the way its command line does it, and the model saved.

    python -m benchmarks.peers.vowpalwabbit_linear TEXT MODEL BITS ALPHA BETA

The package has the program's own parser and driver, thread and all, but no `vw`: the arguments are the same. Prints one
JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

from vowpalwabbit import Workspace


def main() -> None:
    text, model, bits, alpha, beta = sys.argv[1:]
    processor, begin = time.process_time(), time.perf_counter()
    learner = Workspace(
        data=text,
        final_regressor=model,
        bit_precision=int(bits),
        loss_function="logistic",
        quiet=True,
        arg_str=f"--ftrl --ftrl_alpha {alpha} --ftrl_beta {beta}",
    )
    # Making it has read the file already; finishing writes the model.
    samples, loss = learner.get_weighted_examples(), learner.get_sum_loss()
    learner.finish()
    seconds = time.perf_counter() - begin
    found = {"samples": samples, "log_loss": loss / samples, "version": version("vowpalwabbit")}
    print(json.dumps(found | {"seconds": seconds, "processor_s": time.process_time() - processor}))


if __name__ == "__main__":
    main()
