"""One question put to all members at once, or to whoever has what it is about."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from audiofuse.core.errors import NotFound
from audiofuse.workers.federation.members import Asked, Line, Missing, Refused
from audiofuse.workers.service.admission.problems import RETRY_AFTER_S, Refusal
from audiofuse.workers.service.admission.questions import LARGE_HITS, busy

Answer = TypeVar("Answer", bound=BaseModel)

# Questions that are put to members at once. Higher: bursts are answered late instead of refused.
AT_ONCE = 120
# Of these, such as want many hits of each: some 2 MB of a thousand, and of each member.
LARGE_AT_ONCE = 8
# What a member says of the question, and would say again.
AT_FAULT = {400, 408, 413, 416, 422}
NOT_UNDERSTOOD = "answers what this release does not understand"


def anything(_: BaseModel) -> None:
    """Take an answer as it is."""


@dataclass(frozen=True)
class Gathered:
    """The bodies of good answers by member, in the members' order, and who is missing."""

    bodies: dict[str, bytes]
    missing: list[Missing]

    def told(
        self, model: type[Answer], check: Callable[[Answer], object] = anything
    ) -> tuple[dict[str, Answer], list[Missing]]:
        """Return the answers that are what they should be; who sends others is missing, too.

        ``check`` raises ``ValueError`` for what is none. Raises ``Refusal`` if no answer is left.
        """
        answers, missing = dict[str, Answer](), list(self.missing)
        for name, body in self.bodies.items():
            try:
                answer = model.model_validate_json(body)
                check(answer)
            except ValueError:  # ValidationError is one
                missing.append(Missing(name, NOT_UNDERSTOOD))
            else:
                answers[name] = answer
        if not answers:
            raise nobody(missing)
        return answers, missing


class Federation:
    """All members."""

    def __init__(self, lines: Sequence[Line]) -> None:
        """Ask these, the first named first."""
        self.lines = {line.name: line for line in lines}
        self._open = 0  # changed on the event loop only, as the next
        self._large = 0

    @contextmanager
    def place(self, hits: int = 1) -> Iterator[None]:
        """Hold a place for a question for so many hits; ``Refusal`` if there is none."""
        large = int(hits > LARGE_HITS)
        if self._open >= AT_ONCE or (large and self._large >= LARGE_AT_ONCE):
            raise busy("as many questions as it can")
        self._open += 1
        self._large += large
        try:
            yield
        finally:
            self._open -= 1
            self._large -= large

    async def all(self, asked: Asked) -> Gathered:
        """Ask every member."""
        said = await asyncio.gather(*(_asked(line, asked) for line in self.lines.values()))
        told = zip(self.lines, said, strict=True)
        return Gathered(
            {name: each for name, each in told if isinstance(each, bytes)},
            [each for each in said if isinstance(each, Missing)],
        )

    async def first(self, asked: Asked, model: type[Answer]) -> tuple[str, Answer]:
        """Return who has it, and the answer, as soon as somebody does.

        Raises ``NotFound`` if nobody has it, and ``Refusal`` if somebody who may have it is away.
        """
        with self.place():
            return await self._first(asked, model)

    async def _first(self, asked: Asked, model: type[Answer]) -> tuple[str, Answer]:
        tasks = [asyncio.create_task(_read(line, asked, model)) for line in self.lines.values()]
        missing = []
        try:
            for each in asyncio.as_completed(tasks):
                try:
                    return await each
                except Missing as error:
                    missing.append(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise _nobody_has_it(missing)

    async def health(self) -> dict[str, str]:
        """Return whether each member is ready, in words."""
        said = await asyncio.gather(*(line.health() for line in self.lines.values()))
        return dict(zip(self.lines, said, strict=True))

    async def close(self) -> None:
        """Close all connections."""
        for line in self.lines.values():
            await line.close()


async def _asked(line: Line, asked: Asked) -> bytes | Missing:
    try:
        return await line.ask(asked)
    except Missing as missing:
        return missing


async def _read(line: Line, asked: Asked, model: type[Answer]) -> tuple[str, Answer]:
    try:
        return line.name, model.model_validate_json(await line.ask(asked))
    except ValidationError as error:
        raise Missing(line.name, NOT_UNDERSTOOD) from error


def nobody(missing: Sequence[Missing]) -> Refusal:
    """Return how it is told that no member answers, or that the question is at fault."""
    for each in missing:
        if isinstance(each, Refused) and each.status in AT_FAULT:
            return refusal(each)
    said = "; ".join(map(str, missing))
    detail = f"no member answers: {said}"
    return Refusal(503, "unavailable", detail, Retry_After=str(RETRY_AFTER_S))


def refusal(refused: Refused) -> Refusal:
    """Return what a member says, as our own answer."""
    kind = HTTPStatus(refused.status).phrase.lower().replace(" ", "-")
    kind = "bad-question" if refused.status == HTTPStatus.UNPROCESSABLE_ENTITY else kind
    return Refusal(refused.status, kind, refused.detail)


def _nobody_has_it(missing: Sequence[Missing]) -> Exception:
    refused = [each for each in missing if isinstance(each, Refused)]
    without = [each for each in refused if each.status == HTTPStatus.NOT_FOUND]
    if len(without) == len(missing):
        return NotFound(without[0].detail)
    at_fault = [each for each in refused if each.status in AT_FAULT]
    if at_fault:
        return refusal(at_fault[0])
    return nobody([each for each in missing if each not in without])
