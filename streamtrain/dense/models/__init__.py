"""The models that come with streamtrain. `docs/models.md` says what each is for and how to write another."""

from streamtrain.dense.models.deepfm import DeepFM
from streamtrain.dense.models.din import Din
from streamtrain.dense.models.linear import Linear
from streamtrain.dense.models.mlp import Mlp

__all__ = ["DeepFM", "Din", "Linear", "Mlp"]
