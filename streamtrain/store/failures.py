"""What redis-py raises, in this project's terms."""

from __future__ import annotations

from redis import exceptions as redis_errors

from streamtrain.errors import StoreError, StoreRefused, StoreUnavailable

__all__ = ["failure"]

# Answers that pass by themselves, or once the server has what it lacks: memory, disk, a primary, a slot.
_PASSING = (
    (("OOM",), "is full: raise its maxmemory or add nodes"),
    (("MISCONF",), "refuses writes because it cannot save to its disk: look at its log and disk"),
    (("BUSY",), "is held by a long script of another client"),
    (("LOADING",), "is loading its data"),
    (("READONLY",), "is a replica: a failover is under way, or store.url names a replica"),
    (("NOREPLICAS", "MASTERDOWN"), "misses its replicas or primary"),
    (("CLUSTERDOWN", "TRYAGAIN"), "belongs to a cluster that is changing or lacks nodes; see CLUSTER INFO"),
)
_PASSING_TYPES = {
    redis_errors.OutOfMemoryError: "OOM",
    redis_errors.BusyLoadingError: "LOADING",
    redis_errors.ReadOnlyError: "READONLY",
    redis_errors.MasterDownError: "MASTERDOWN",
    redis_errors.ClusterDownError: "CLUSTERDOWN",
    redis_errors.TryAgainError: "TRYAGAIN",
}


def failure(error: Exception, server: str, timeout_s: float) -> StoreError:
    """The error to raise in place of `error`, which `server` answered or which came in place of an answer."""
    where = f"the store's Redis at {server}"
    if code := _passing_code(error):
        why = next(text for codes, text in _PASSING if code in codes)
        return StoreUnavailable(f"{where} {why} ({error})")
    if isinstance(error, (redis_errors.AuthenticationError, redis_errors.AuthorizationError)):
        return StoreRefused(
            f"{where} refused the password or user ({error}); check store.password_env, store.password_file and the user in store.url"
        )
    if isinstance(error, redis_errors.NoPermissionError):
        return StoreRefused(
            f"{where} forbids its user a command or key ({error}); allow ~streamtrain:* and the commands named in docs/store.md"
        )
    if isinstance(error, (TimeoutError, redis_errors.TimeoutError)):
        return StoreUnavailable(
            f"{where} did not answer within {timeout_s:g} s; check that it runs and is not overloaded, or raise store.timeout_s"
        )
    if isinstance(error, redis_errors.ResponseError):
        return StoreRefused(f"{where} refused a command: {error}; docs/store.md says what the store needs")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreUnavailable(
            f"{where} shows a certificate that is not trusted ({error}); check store.tls_ca_file, and that the server's "
            "certificate is valid for this host name"
        )
    return StoreUnavailable(
        f"{where} cannot be reached ({error}); check that it runs and that store.url names it"
    )


def _passing_code(error: Exception) -> str | None:
    for kind, code in _PASSING_TYPES.items():
        if isinstance(error, kind):
            return code
    if not isinstance(error, redis_errors.ResponseError):
        return None
    # Redis 6.2 wraps what a command inside a script answers: "Error running script ...: -OOM command not allowed".
    words = str(error).replace("-", " ").split()
    return next((code for codes, _ in _PASSING for code in codes if code in words), None)
