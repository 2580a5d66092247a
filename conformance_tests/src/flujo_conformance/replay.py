"""What do several backends and the oracle answer to the calls of a trace, side by side?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .answers import Call, brief, written
from .call_trace import Ask, Reopen, SetClock, Step, Trace
from .harness import Harness
from .panel import ORACLE, Answered, Panel

_WIDTH: Final = 240


@dataclass(frozen=True, slots=True)
class Replayed:
    """A call of a trace with all answers, or another step without any."""

    number: int
    """Of the step, from 0. Calls that were made together have one number."""
    step: Step
    call: Call | None = None
    answers: Mapping[str, Any] | None = None
    """By name, the oracle's first."""
    who: str = ""
    """The first harness whose answer isn't that of the reference."""
    why: str = ""
    """How the two differ, beginning with the path; "" if all agree."""
    first: bool = False
    """Whether it is the first difference of the trace."""

    @property
    def agree(self) -> bool:
        return not self.why


def replay(trace: Trace, harnesses: Mapping[str, Harness], *, reference: str = ORACLE) -> list[Replayed]:
    """Makes the calls on emptied namespaces of each harness and on the oracle; ``reference`` has the right answers."""
    found: list[Replayed] = []
    differed = False
    for number, step, answered in play(trace.steps, harnesses):
        if not answered:
            found.append(Replayed(number, step))
        for one in answered:
            who, why = one.first_difference(reference) or ("", "")
            found.append(Replayed(number, step, one.call, one.answers, who, why, bool(why) and not differed))
            differed = differed or bool(why)
    return found


def play(steps: Sequence[Step], harnesses: Mapping[str, Harness]) -> Iterator[tuple[int, Step, list[Answered]]]:
    """The steps, one by one, with the answers to the calls of each."""
    handles = 1 + max((step.handle for step in steps if not isinstance(step, SetClock)), default=0)
    panel = Panel(harnesses, handles)
    try:
        panel.start()
        for number, step in enumerate(steps):
            yield number, step, panel.take(step)
    finally:
        panel.close()


# --- rendering --------------------------------------------------------------------------------------------------------


def render(replayed: Sequence[Replayed]) -> str:
    """Each call with its answers below it, one line where all agree, as text of ASCII."""
    return "".join(f"{line}\n" for one in replayed for line in _lines(one))


def _lines(one: Replayed) -> Iterator[str]:
    step = one.step
    if isinstance(step, SetClock):
        yield f"{one.number:3}  the clock shows {step.now.isoformat()}"
    elif isinstance(step, Reopen):
        yield f"{one.number:3}  handle {step.handle} is shut down{' and replaced by a new one' if step.new else ''}"
    if one.call is None or one.answers is None:
        return
    together = isinstance(step, Ask) and len(step.calls) > 1
    yield f"{one.number:3}  handle {step.handle}{', together' if together else ''}: {written(one.call)}"  # type: ignore[union-attr]
    if one.agree:
        yield f"       all       {_answer(one.answers[ORACLE])}"
        return
    wide = max(len(name) for name in one.answers)
    for name, answer in one.answers.items():
        yield f"       {name:{max(wide, 8)}}  {_answer(answer)}"
    yield f"       {'THE FIRST DIFFERENCE' if one.first else 'a difference'} is that of {one.who}: {one.why}"


def _answer(answer: Any) -> str:
    if isinstance(answer, BaseException):
        return f"{type(answer).__name__}: {ascii(str(answer))[1:-1][:_WIDTH]}"
    return brief(answer, _WIDTH)
