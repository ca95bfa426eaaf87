"""Questions, what was expected, what was found: as lines for a terminal, and as Markdown to paste into an issue."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from em_assets.errors import EmAssetsError

T = TypeVar("T")
Verdict = Literal["ok", "known", "warn", "FAIL"]
"""`known`: a contradiction that the spec itself names."""
MAX_CELL_CHARACTERS = 300
MAX_LEARNED_CHARACTERS = 2000


class BudgetSpent(EmAssetsError):
    """The bytes that the doctor may receive are used up: what is left is not asked."""


@dataclass(frozen=True, slots=True)
class Line:
    """One question and its answer."""

    question: str
    expected: str
    found: str
    verdict: Verdict


@dataclass
class Section:
    """What was asked about one thing."""

    title: str
    lines: list[Line] = field(default_factory=list)
    learned: list[tuple[str, str]] = field(default_factory=list)
    """Facts that no spec pins."""

    def add(self, verdict: Verdict, question: str, found: object, expected: object = "") -> None:
        self.lines.append(Line(question, str(expected), str(found), verdict))

    def compare(
        self, question: str, expected: object, found: object, *, agrees: bool, otherwise: Verdict = "FAIL"
    ) -> None:
        self.add("ok" if agrees else otherwise, question, found, expected)

    def learn(self, what: str, value: object) -> None:
        if value not in (None, "", (), []):
            self.learned.append((what, str(value)))

    def attempt(self, question: str, expected: object, work: Callable[[], T]) -> T | None:
        """The answer; None, and a line that says why, where there is none."""
        try:
            return work()
        except BudgetSpent as spent:
            self.add("warn", question, spent, expected)
        except EmAssetsError as error:
            self.add("FAIL", question, error, expected)
        except Exception as error:  # noqa: BLE001  # a bug in one question must not cost the answers to the others
            self.add("FAIL", question, f"a bug, please report it: {type(error).__name__}: {error}", expected)
        return None


@dataclass
class Report:
    sections: list[Section] = field(default_factory=list)
    closing: list[str] = field(default_factory=list)
    """What holds for all of it: bytes, time."""

    @property
    def failures(self) -> list[tuple[str, Line]]:
        return [(section.title, line) for section in self.sections for line in section.lines if line.verdict == "FAIL"]

    def text(self) -> str:
        """For a terminal: one line each."""
        lines = []
        for section in self.sections:
            lines.append(section.title)
            width = max((len(line.question) for line in section.lines), default=0)
            lines += [f"  {line.verdict:<5} {line.question:<{width}}  {_answer(line)}" for line in section.lines]
        return _without_home("\n".join([*lines, *self.closing, self._summary()])) + "\n"

    def markdown(self) -> str:
        """For an issue: a table each, and what was learned."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
        lines = ["# em-assets doctor", "", f"{now}, {system}.", "", self._summary(), ""]
        for section in self.sections:
            lines += [f"## {section.title}", "", "| question | expected | found | verdict |", "|---|---|---|---|"]
            lines += [
                f"| {_cell(line.question)} | {_cell(line.expected)} | {_cell(line.found)} | {line.verdict} |"
                for line in section.lines
            ]
            lines.append("")
            if section.learned:
                lines += [
                    "Learned:",
                    "",
                    *(f"- {_cell(what)}: {_cell(value, MAX_LEARNED_CHARACTERS)}" for what, value in section.learned),
                    "",
                ]
        return _without_home("\n".join([*lines, *self.closing])) + "\n"

    def _summary(self) -> str:
        verdicts = [line.verdict for section in self.sections for line in section.lines]
        counted: Sequence[Verdict] = ("ok", "known", "warn", "FAIL")
        return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in counted if verdict in verdicts) + "."


def _answer(line: Line) -> str:
    is_telling = line.expected and line.verdict != "ok"
    return _short(line.found) + (f" (expected {_short(line.expected)})" if is_telling else "")


def _short(text: str, most: int = MAX_CELL_CHARACTERS) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else f"{plain[:most]}..."


def _cell(text: str, most: int = MAX_CELL_CHARACTERS) -> str:
    """Nothing that a publisher sends may break out of the table, or become a link or a tag."""
    escaped = re.sub(r"([\\|`<>\[\]*])", r"\\\1", _short(text, most))
    return "".join(c if c.isprintable() else "?" for c in escaped)


def _without_home(text: str) -> str:
    """A report is public, and home folders have names of people."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return text
    return text.replace(home, "~") if len(home) > 1 else text
