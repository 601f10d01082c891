"""From settings to a store: the one place that knows which implementations there are."""

from __future__ import annotations

from streamtrain.store.settings import StoreSettings
from streamtrain.store.store import Store

__all__ = ["open_store"]


def open_store(settings: StoreSettings) -> Store | None:
    """The store that the settings name, not yet connected (`Store.open` does that); None for `memory://`.

    Raises:
      ConfigError: the password cannot be read.
    """
    # Their libraries are imported by those who use them alone.
    if settings.endpoint.path:
        from streamtrain.store.lmdb_store import LmdbStore

        return LmdbStore(settings)
    if not settings.endpoint.addresses:
        return None
    from streamtrain.store.redis_store import RedisStore

    return RedisStore(settings)
