"""The row store: a sharded view of the epoch log that rows are pulled from on demand. `docs/store.md` specifies it."""

from streamtrain.store.opening import open_store
from streamtrain.store.settings import StoreSettings
from streamtrain.store.store import Store, StoreDescription, StoreInfo

__all__ = ["Store", "StoreDescription", "StoreInfo", "StoreSettings", "open_store"]
