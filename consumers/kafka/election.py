"""Who of a group's members owns the model. Plain functions: no socket, no clock.

Each member brings a claim when the group forms anew; the member that Kafka calls the leader decides, and every member is
told the verdict. On the wire both are a consumer's subscription and assignment with JSON as user data, so that Kafka's own
tools show the owner as the member that has all partitions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

__all__ = [
    "PROTOCOL",
    "Claim",
    "Verdict",
    "decode_claim",
    "decode_verdict",
    "elect",
    "encode_claim",
    "encode_verdict",
]

PROTOCOL = "streamtrain-owner-1"
"""The name of the assignment protocol; a group forms only of members that share one."""

_Shape = TypeVar("_Shape", bound="Claim | Verdict")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a member says of itself.

    Attributes:
      model_id: of its log.
      name: host and process, for people.
      epoch: the newest epoch that it has; -1 for none.
      term: the generation of the group that made it owner; -1 where it is none.
    """

    model_id: str
    name: str
    epoch: int
    term: int = -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What every member is told.

    Attributes:
      member_id: the owner's.
      name: the owner's, for people.
      model_id: the owner's: a member of another model does not belong here.
    """

    member_id: str
    name: str
    model_id: str


def elect(claims: Mapping[str, Claim | None]) -> Verdict | None:
    """Decides who owns.

    An owner stays, whoever joins or leaves. Of two (one was paused, and has woken) it is the one that has the newer
    epoch: the other one cannot append any more. Else it is the standby with the newest epoch.

    Args:
      claims: by member id; None where a member's claim could not be read: it would not understand a verdict either.

    Returns:
      None where no claim could be read.
    """
    known = {member: claim for member, claim in claims.items() if claim is not None}
    if not known:
        return None
    owners = [member for member, claim in known.items() if claim.term >= 0]
    owner = max(owners or known, key=lambda member: (known[member].epoch, known[member].term, member))
    return Verdict(owner, known[owner].name, known[owner].model_id)


def encode_claim(claim: Claim, topic: str) -> bytes:
    """A claim as a member's metadata."""
    return bytes(ConsumerProtocolMemberMetadata(0, [topic], _pack(claim)).encode())


def decode_claim(metadata: bytes) -> Claim | None:
    """The claim in a member's metadata; None where there is none that can be read."""
    return _unpack(Claim, ConsumerProtocolMemberMetadata, metadata)


def encode_verdict(verdict: Verdict, topic: str, partitions: Iterable[int]) -> bytes:
    """A verdict as a member's assignment; `partitions` are what Kafka's tools show it to have."""
    assigned = [(topic, sorted(partitions))]
    return bytes(ConsumerProtocolMemberAssignment(0, assigned, _pack(verdict)).encode())


def decode_verdict(assignment: bytes) -> Verdict | None:
    """The verdict in a member's assignment; None where there is none that can be read."""
    return _unpack(Verdict, ConsumerProtocolMemberAssignment, assignment)


def _pack(value: Claim | Verdict) -> bytes:
    return json.dumps(asdict(value)).encode()


def _unpack(shape: type[_Shape], frame: Any, data: bytes) -> _Shape | None:
    # Whatever another program, or a later version of this one, put there must not end the member that reads it.
    try:
        content = json.loads(frame.decode(data).user_data)
        fields = {name: content[name] for name in shape.__dataclass_fields__}
    except Exception:
        return None
    right = all(type(value) is (int if name in ("epoch", "term") else str) for name, value in fields.items())
    return shape(**fields) if right else None
