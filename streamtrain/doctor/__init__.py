"""What `streamtrain check` and `streamtrain doctor` look at before a daemon is trusted to a machine and its servers."""

from streamtrain.doctor.examination import examine
from streamtrain.doctor.job import check

__all__ = ["check", "examine"]
