"""The dense half: models that see arrays, and the one jitted step that trains them. Alone in importing JAX.

`net.DenseNet` trains, `predictor.DensePredictor` scores, `model.Model` is the base of every model, `models` holds
those that come with streamtrain, `optimizers` their settings, `threads` how many compute, `compiled` keeps programs on disk.
"""

import os

__all__ = ["buckets", "compiled", "model", "models", "net", "optimizers", "predictor", "state", "threads"]

# Minibatches of an online learner are too small for a GPU to pay off; whoever has large ones chooses by the variable.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
