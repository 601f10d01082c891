"""Who owns, whatever the members say: laws of the election, and metadata that somebody else wrote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumers.kafka.election import (
    Claim,
    Verdict,
    decode_claim,
    decode_verdict,
    elect,
    encode_claim,
    encode_verdict,
)

CLAIMS = st.builds(
    Claim,
    model_id=st.text(max_size=8),
    name=st.text(max_size=8),
    epoch=st.integers(-1, 5),
    term=st.integers(-1, 3),
)
GROUPS = st.dictionaries(st.text(max_size=4), st.none() | CLAIMS, max_size=6)


def claim(epoch: int, term: int = -1) -> Claim:
    return Claim("model", f"host/{epoch}", epoch, term)


@given(GROUPS)
def test_exactly_one_member_owns_and_it_is_one_whose_claim_is_known(
    claims: dict[str, Claim | None],
) -> None:
    verdict = elect(claims)
    if verdict is None:
        assert not any(claims.values())
    else:
        owner = claims[verdict.member_id]
        assert owner is not None and (owner.name, owner.model_id) == (verdict.name, verdict.model_id)


@given(GROUPS, GROUPS, CLAIMS)
def test_an_owner_stays_whoever_joins_or_leaves(
    before: dict[str, Claim | None], after: dict[str, Claim | None], own: Claim
) -> None:
    """As long as nobody else claims to own."""
    owner = Claim(own.model_id, own.name, own.epoch, term=0)
    for others in (before, after):
        strangers = {
            f"{member}+": None if other is None else Claim(other.model_id, other.name, other.epoch)
            for member, other in others.items()
        }
        verdict = elect(strangers | {"owner": owner})
        assert verdict is not None and verdict.member_id == "owner"


@given(GROUPS)
def test_every_member_that_leads_decides_the_same(claims: dict[str, Claim | None]) -> None:
    assert elect(dict(reversed(claims.items()))) == elect(claims)


def test_the_standby_with_the_newest_epoch_succeeds_and_ties_have_an_order() -> None:
    verdict = elect({"a": claim(4), "b": claim(7), "c": claim(7), "d": None})
    assert verdict == Verdict("c", "host/7", "model")


def test_of_two_owners_the_one_stays_that_can_still_append() -> None:
    woken, present = claim(100, term=5), claim(101, term=7)
    verdict = elect({"woken": woken, "present": present, "standby": claim(101)})
    assert verdict is not None and verdict.member_id == "present"
    # Neither has appended since: Kafka's group has the say.
    verdict = elect({"woken": woken, "present": claim(100, term=7)})
    assert verdict is not None and verdict.member_id == "present"


@given(CLAIMS)
def test_a_claim_comes_back_from_the_wire(made: Claim) -> None:
    assert decode_claim(encode_claim(made, "topic")) == made


@given(st.builds(Verdict, st.text(), st.text(), st.text()), st.sets(st.integers(0, 9)))
def test_a_verdict_comes_back_from_the_wire(made: Verdict, partitions: set[int]) -> None:
    assert decode_verdict(encode_verdict(made, "topic", partitions)) == made


@given(st.binary() | st.builds(lambda made, cut: encode_claim(made, "t")[:cut], CLAIMS, st.integers(0, 60)))
def test_garbage_is_no_claim_and_no_verdict(data: bytes) -> None:
    assert decode_claim(data) is None or data == encode_claim(decode_claim(data), "t")  # type: ignore[arg-type]
    assert decode_verdict(data) is None


def test_another_versions_user_data_is_no_claim() -> None:
    whole = encode_claim(claim(3), "t")
    assert decode_claim(whole.replace(b'"epoch": 3', b'"epoch":"3"')) is None
    assert decode_claim(whole.replace(b'"epoch"', b'"epoxy"')) is None
    assert decode_claim(whole.replace(b'"term": -1', b'"term":nul')) is None
