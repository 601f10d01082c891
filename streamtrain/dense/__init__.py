"""The dense half: models that see arrays, and the one jitted step that trains them. Alone in importing JAX.

`net.DenseNet` trains, `predictor.DensePredictor` scores, `model.Model` is the base of every model, `models` holds
those that come with streamtrain, `optimizers` their settings, `compiled` keeps programs on disk.
"""

import os

__all__ = ["buckets", "compiled", "model", "models", "net", "optimizers", "predictor", "state"]

# Minibatches of an online learner are too small for a GPU to pay off; whoever has large ones chooses by the variable.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA splits sums by the number of its threads, so the bits of a step would follow the machine's cores and a replay
# elsewhere would differ. One thread is also the fastest at 32 to 64 samples and leaves the other cores to the rest.
os.environ.setdefault("PJRT_NPROC", "1")
