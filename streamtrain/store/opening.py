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
    if not settings.endpoint.addresses:
        return None
    # redis is imported by those who use it alone.
    from streamtrain.store.redis_store import RedisStore

    return RedisStore(settings)
