"""The catalogue of faults. Each acts on processes, connections, files or the topic from outside."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aiokafka.errors import KafkaError

from tests.chaos.nursery import Child
from tests.chaos.watch import POINTS
from tests.chaos.world import TOPIC, World

__all__ = ["FAULTS", "Fault", "choose", "kinds"]

Recovery = Literal["learned", "stored", "followed", "nothing"]

_POINT_TIMEOUT_S = 4.0
_PARTITIONS_MAX = 6


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
      weight: how often it is chosen, relative to the others.
      act: does it, and undoes what must be undone for the world to go on. Returns where it hit, for the counts.
      recovers: what shows that the world has recovered.
      among: `lone`: needs a trainer without standbys; `takeover`, `standby`: needs some; `all`: any world.
    """

    weight: float
    act: Callable[[World, random.Random], str]
    recovers: Recovery
    among: Literal["lone", "takeover", "standby", "all"] = "all"


def kinds(standbys: int, only: str | None) -> list[str]:
    """The kinds that fit a world with so many standbys, of one group where `only` names it."""
    fitting = {"all", "takeover", "standby"} if standbys else {"all", "lone"}
    return sorted(
        name for name, fault in FAULTS.items() if fault.among in fitting and only in (None, fault.among)
    )


def choose(dice: random.Random, names: list[str]) -> str:
    """A kind of fault, by weight."""
    return dice.choices(names, [FAULTS[name].weight for name in names])[0]


def _at(world: World, dice: random.Random, points: list[str], act: Callable[[str], None]) -> str:
    """Acts at the next passing of a named point, or after a while at any instant."""
    point = dice.choice(points)
    if point.startswith("apply"):
        return point if _at_apply(world, point, act) else _late(act)
    return point if world.watch.at(point, act, _POINT_TIMEOUT_S) else _late(act)


def _late(act: Callable[[str], None]) -> str:
    act("")
    return "any instant"


def _at_apply(world: World, point: str, act: Callable[[str], None]) -> bool:
    """Acts when the proxy sees the store being asked to apply an epoch, or its answer come back."""
    done, proxy = threading.Event(), world.redis_proxy
    asked = threading.Event()

    def request(data: bytes) -> None:
        if (b"\r\napply\r\n" in data or b"\r\nload\r\n" in data) and not asked.is_set():
            asked.set()
            if point == "apply: asked":
                act("")
                done.set()

    def answer() -> None:
        if asked.is_set() and not done.is_set() and point == "apply: answered":
            act("")
            done.set()

    proxy.on_request, proxy.on_answer = request, answer
    try:
        return done.wait(_POINT_TIMEOUT_S)
    finally:
        proxy.on_request, proxy.on_answer = lambda _: None, lambda: None


APPLY_POINTS = ["apply: asked", "apply: answered"]
EXPORT_POINTS = [point for point in POINTS if point.startswith("export")]
FOLD_POINTS = [point for point in POINTS if point.startswith(("fold", "collection"))]
ALL_POINTS = [*POINTS, *APPLY_POINTS]


# The trainer


def _ready(world: World) -> None:
    world.until(lambda: world.learning, "the trainer to commit an epoch")


def trainer_kill(world: World, dice: random.Random) -> str:
    time.sleep(dice.uniform(0, 0.5))
    world.kill(world.trainer)
    world.start_trainer()
    return "any instant"


def trainer_kill_at_point(world: World, dice: random.Random) -> str:
    _ready(world)
    trainer = world.trainer
    where = _at(world, dice, ALL_POINTS, lambda _: trainer.signal(signal.SIGKILL))
    trainer.wait(30)
    world.start_trainer()
    return where


def trainer_kill_while_starting(world: World, dice: random.Random) -> str:
    """Kills it, and kills the one that recovers as well."""
    world.kill(world.trainer)
    world.start_trainer()
    time.sleep(dice.uniform(0, 2.0))
    world.kill(world.trainer)
    world.start_trainer()
    return "twice"


def trainer_term(world: World, dice: random.Random) -> str:
    time.sleep(dice.uniform(0, 0.5))
    trainer = world.trainer
    trainer.signal(signal.SIGTERM)
    code = trainer.wait(45)
    # A start that fails by itself in the same moment, as without its broker, ends with 1.
    if code not in (0, 1, -signal.SIGTERM):
        world.violations.append(f"SIGTERM ended the trainer with {code} ({trainer.output.name})")
    world.start_trainer()
    return "any instant"


def _paused(world: World, dice: random.Random, seconds: float) -> None:
    time.sleep(dice.uniform(0.02, seconds))


def trainer_stop(world: World, dice: random.Random) -> str:
    trainer = world.trainer
    trainer.signal(signal.SIGSTOP)
    _paused(world, dice, 1.0)
    trainer.signal(signal.SIGCONT)
    return "any instant"


def trainer_stop_at_point(world: World, dice: random.Random) -> str:
    trainer = world.trainer
    where = _at(world, dice, ALL_POINTS, lambda _: trainer.signal(signal.SIGSTOP))
    _paused(world, dice, 1.0)
    trainer.signal(signal.SIGCONT)
    return where


def fold_kill(world: World, dice: random.Random) -> str:
    """Kills the folding process alone; the file that it writes names it."""

    def kill(name: str) -> None:
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(int(name.split(".")[0]), signal.SIGKILL)

    return _at(world, dice, ["fold: file made", "fold: being written"], kill)


def two_trainers(world: World, dice: random.Random) -> str:
    """Pauses the owner, lets a successor take over without the courtesy of the locks, and wakes the owner."""
    _ready(world)
    owner = world.trainer
    where = _at(world, dice, ALL_POINTS, lambda _: owner.signal(signal.SIGSTOP))
    for lock in (world.log / "LOCK", world.exports / "LOCK"):
        lock.unlink(missing_ok=True)
    world.start_trainer()
    try:
        world.until(lambda: world.owned, "the successor to commit an epoch")
    finally:
        owner.signal(signal.SIGCONT)
    _ends_fenced(world, owner, where)
    return where


def _ends_fenced(world: World, owner: Child, where: str) -> None:
    """A former owner that wakes must end with 3."""
    try:
        code = owner.wait(90)
    except TimeoutError:
        world.kill(owner)
        world.violations.append(f"a fenced owner, paused at {where}, went on: {owner.output.name}")
        return
    if code != 3:
        last = owner.text.strip().splitlines()[-1][:300]
        world.violations.append(f"a fenced owner, paused at {where}, ended with {code}, not 3: {last}")


# The owner, and those who wait for its place


def _standing_by(world: World) -> None:
    _ready(world)
    world.until(lambda: world.standing_by, "the standbys to be warm")


def owner_kill(world: World, dice: random.Random) -> str:
    _standing_by(world)
    owner = world.trainer
    where = _at(world, dice, ALL_POINTS, lambda _: owner.signal(signal.SIGKILL))
    owner.wait(30)
    began = time.monotonic()
    world.start_standby()
    world.take_over("killed", began)
    return where


def owner_pause(world: World, dice: random.Random) -> str:
    """Pauses the owner until a standby has taken over, and wakes it."""
    _standing_by(world)
    owner = world.trainer
    where = _at(world, dice, ALL_POINTS, lambda _: owner.signal(signal.SIGSTOP))
    try:
        world.take_over("paused", time.monotonic())
    finally:
        owner.signal(signal.SIGCONT)
    _ends_fenced(world, owner, where)
    world.start_standby()
    return where


def owner_term(world: World, dice: random.Random) -> str:
    _standing_by(world)
    time.sleep(dice.uniform(0, 0.5))
    owner, began = world.trainer, time.monotonic()
    owner.signal(signal.SIGTERM)
    if code := owner.wait(45):
        world.violations.append(f"SIGTERM ended the owner with {code} ({owner.output.name})")
    world.start_standby()
    world.take_over("terminated", began)
    return "any instant"


def standby_kill(world: World, dice: random.Random) -> str:
    """Kills a standby; the owner must not notice."""
    owner, head = world.trainer, world.head
    standby = dice.choice(world.standbys)
    world.kill(standby)
    world.standbys.remove(standby)
    world.start_standby()
    world.until(lambda: world.head > head, "the owner to go on")
    if world.trainer is not owner:
        world.violations.append(f"the owner {owner.output.name} did not outlive a standby")
    return "any instant"


# The follower


def follower_kill(world: World, dice: random.Random) -> str:
    time.sleep(dice.uniform(0, 0.3))
    world.kill(world.follower)
    world.start_follower()
    return "any instant"


def follower_kill_at_point(world: World, dice: random.Random) -> str:
    follower = world.follower
    where = _at(world, dice, EXPORT_POINTS, lambda _: follower.signal(signal.SIGKILL))
    follower.wait(30)
    world.start_follower()
    return where


def follower_term(world: World, dice: random.Random) -> str:
    world.follower.signal(signal.SIGTERM)
    if (code := world.follower.wait(30)) not in (0, -signal.SIGTERM):
        world.violations.append(f"SIGTERM ended the follower with {code}")
    world.start_follower()
    return "any instant"


def follower_stop(world: World, dice: random.Random) -> str:
    follower = world.follower
    follower.signal(signal.SIGSTOP)
    _paused(world, dice, 1.0)
    follower.signal(signal.SIGCONT)
    return "any instant"


# The store


def redis_kill(world: World, dice: random.Random) -> str:
    """Kills it; it comes back empty, as without persistence."""
    (world.redis.folder / "dump.rdb").unlink(missing_ok=True)
    where = _at(
        world, dice, [*APPLY_POINTS, "append: linked"], lambda _: os.kill(world.redis.pid, signal.SIGKILL)
    )
    world.redis.kill()
    time.sleep(dice.uniform(0, 0.5))
    world.redis.start()
    return where


def redis_old_snapshot(world: World, dice: random.Random) -> str:
    """Brings it back with what it held some time ago."""
    kept, dump = world.folder / "kept.rdb", world.redis.folder / "dump.rdb"
    if not kept.exists():
        world.client.save()
        shutil.copyfile(dump, kept)
        time.sleep(dice.uniform(0, 0.5))
    world.redis.kill()
    shutil.copyfile(kept, dump)
    world.redis.start()
    if dice.random() < 0.5:
        world.client.save()
        shutil.copyfile(dump, kept)
    return "any instant"


def redis_term(world: World, dice: random.Random) -> str:
    world.client.save()
    world.redis.stop()
    time.sleep(dice.uniform(0, 0.5))
    world.redis.start()
    return "with what it held"


def redis_flush(world: World, dice: random.Random) -> str:
    return _at(world, dice, [*APPLY_POINTS, "append: done"], lambda _: world.redis.flush())


def redis_stop(world: World, dice: random.Random) -> str:
    os.kill(world.redis.pid, signal.SIGSTOP)
    _paused(world, dice, 1.5)
    os.kill(world.redis.pid, signal.SIGCONT)
    return "any instant"


# The broker


def broker_kill(world: World, dice: random.Random) -> str:
    world.broker.kill()
    time.sleep(dice.uniform(0, 0.5))
    world.broker.start()
    return "any instant"


def broker_term(world: World, dice: random.Random) -> str:
    world.broker.restart()
    return "any instant"


def broker_stop(world: World, dice: random.Random) -> str:
    os.kill(world.broker.pid, signal.SIGSTOP)
    _paused(world, dice, 1.5)
    os.kill(world.broker.pid, signal.SIGCONT)
    return "any instant"


# Connections


def _cut(world: World, name: str) -> None:
    """Cuts, and ends a silence: in one turn of the loop, because a stream with a hole in it is no connection."""
    proxy = world.kafka_proxy if name == "kafka" else world.redis_proxy

    async def cut() -> None:
        proxy.cut()
        proxy.mute = False

    world.on_loop(cut())


def kafka_cut(world: World, dice: random.Random) -> str:
    _cut(world, "kafka")
    return "any instant"


def redis_cut(world: World, dice: random.Random) -> str:
    return _at(world, dice, APPLY_POINTS, lambda _: world.redis_proxy.cut())


def kafka_slow(world: World, dice: random.Random) -> str:
    world.kafka_proxy.delay_s = dice.uniform(0.02, 0.5)
    _paused(world, dice, 1.5)
    world.kafka_proxy.delay_s = 0.0
    return "any instant"


def redis_slow(world: World, dice: random.Random) -> str:
    world.redis_proxy.delay_s = dice.uniform(0.02, 0.7)
    _paused(world, dice, 1.5)
    world.redis_proxy.delay_s = 0.0
    return "any instant"


def kafka_mute(world: World, dice: random.Random) -> str:
    world.kafka_proxy.mute = True
    _paused(world, dice, 1.0)
    _cut(world, "kafka")
    return "any instant"


def redis_mute(world: World, dice: random.Random) -> str:
    world.redis_proxy.mute = True
    _paused(world, dice, 1.5)
    _cut(world, "redis")
    return "any instant"


# The topic


def _transaction(world: World, dice: random.Random, commit: bool) -> str:
    try:
        world.on_loop(world.stream.transaction(dice.randrange(1, 60), commit))
    except (KafkaError, TimeoutError):
        # The broker just came back. What became of it is for the broker to say, at the end.
        return "given up"
    return "in the stream"


def transaction_aborted(world: World, dice: random.Random) -> str:
    return _transaction(world, dice, False)


def transaction_committed(world: World, dice: random.Random) -> str:
    return _transaction(world, dice, True)


def partition_added(world: World, dice: random.Random) -> str:
    if world.stream.partitions >= _PARTITIONS_MAX:
        return transaction_committed(world, dice)
    total = world.stream.partitions + 1
    world.on_loop(world.broker.add_partitions(TOPIC, total))
    world.stream.partitions = total
    return "in the stream"


FAULTS: dict[str, Fault] = {
    "trainer killed": Fault(6, trainer_kill, "learned", "lone"),
    "trainer killed at a point": Fault(16, trainer_kill_at_point, "learned", "lone"),
    "trainer killed while it starts": Fault(2, trainer_kill_while_starting, "learned", "lone"),
    "trainer terminated": Fault(4, trainer_term, "learned", "lone"),
    "trainer paused": Fault(6, trainer_stop, "learned"),
    "trainer paused at a point": Fault(4, trainer_stop_at_point, "learned"),
    "fold killed": Fault(4, fold_kill, "learned"),
    "two trainers": Fault(3, two_trainers, "learned", "lone"),
    "owner killed": Fault(5, owner_kill, "learned", "takeover"),
    "owner paused": Fault(3, owner_pause, "learned", "takeover"),
    "owner terminated": Fault(3, owner_term, "learned", "takeover"),
    "standby killed": Fault(2, standby_kill, "learned", "standby"),
    "follower killed": Fault(3, follower_kill, "followed"),
    "follower killed at a point": Fault(3, follower_kill_at_point, "followed"),
    "follower terminated": Fault(2, follower_term, "followed"),
    "follower paused": Fault(4, follower_stop, "followed"),
    "redis killed": Fault(5, redis_kill, "stored"),
    "redis back with an old snapshot": Fault(5, redis_old_snapshot, "stored"),
    "redis terminated": Fault(2, redis_term, "stored"),
    "redis flushed": Fault(7, redis_flush, "stored"),
    "redis paused": Fault(4, redis_stop, "stored"),
    "broker killed": Fault(1.5, broker_kill, "learned"),
    "broker terminated": Fault(1, broker_term, "learned"),
    "broker paused": Fault(4, broker_stop, "learned"),
    "kafka connections cut": Fault(5, kafka_cut, "learned"),
    "kafka slow": Fault(3, kafka_slow, "learned"),
    "kafka mute": Fault(2, kafka_mute, "learned"),
    "redis connections cut": Fault(5, redis_cut, "stored"),
    "redis slow": Fault(3, redis_slow, "stored"),
    "redis mute": Fault(2, redis_mute, "stored"),
    "transaction aborted": Fault(5, transaction_aborted, "learned"),
    "transaction committed": Fault(5, transaction_committed, "learned"),
    "partition added": Fault(1, partition_added, "learned"),
}
