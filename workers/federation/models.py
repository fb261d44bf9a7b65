"""What a federation answers: what a service does, and which members have no part in it."""

from collections.abc import Iterable

from pydantic import BaseModel, Field

from audiofuse.workers.federation.members import Missing
from audiofuse.workers.service.catalogue import FacetsAnswer, ItemsAnswer
from audiofuse.workers.service.models import FoundAnswer, SelectionAnswer


class MissingMember(BaseModel):
    """A member whose items are not in the answer, and why."""

    member: str = Field(examples=["field"])
    reason: str = Field(examples=["did not answer within 5 s"])


class Partial(BaseModel):
    """An answer that may lack members."""

    partial: list[MissingMember] = Field(description="Who has no part in it; empty: it is whole.")


class FoundByAll(FoundAnswer, Partial):
    """Hits of all members, best first."""


class ItemsOfAll(ItemsAnswer, Partial):
    """How many items all members have, and a page of them."""


class SelectionOfAll(SelectionAnswer, Partial):
    """Those of the items that any member has, in the order in which they were asked for."""


class FacetsOfAll(FacetsAnswer, Partial):
    """What the items of all members have in common.

    Of each member its 200 commonest values are counted.
    """


class MemberHealth(BaseModel):
    """Whether each member answers; ready is who has one that does."""

    members: dict[str, str] = Field(examples=[{"field": "answers"}])


class Alive(BaseModel):
    """That the process is alive, and whom it asks."""

    status: str = "alive"
    members: list[str]


def named(missing: Iterable[Missing]) -> list[MissingMember]:
    """Return members that are missing as they are told."""
    return [MissingMember(member=each.member, reason=each.reason) for each in missing]
