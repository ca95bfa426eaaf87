"""Which channel and point in time of an array are a volume: said when it is opened, or in its location.

Blocks are (z, y, x), so of several one is chosen. `address#channel=1&time=2` is the location of what was chosen, and
opens it again; `_readers.py` asks here for the reader of it.
"""

from __future__ import annotations

import operator
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex
from urllib.parse import unquote

from em_assets.errors import Mismatch

if TYPE_CHECKING:
    from em_assets.formats._chunked import ChunkedReader

_CHOSEN = re.compile(r"#((?:channel|time)=[^#]*)\Z")
_DIGITS = re.compile("[0-9]{1,15}")
MOST_LISTED = 16
"""Channels that an error names."""


class Unchosen(Mismatch):
    """There are several channels or points in time, and none was chosen."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of an array with channels and points in time a volume is."""

    channel: int
    channels: tuple[str, ...]
    """What each channel of the array is called; "" without a name."""
    time: int
    times: int
    """Points in time that the array has."""

    @property
    def suffix(self) -> str:
        """What a location says of it; "" where there is nothing to choose."""
        chosen = [f"channel={self.channel}"] * (len(self.channels) > 1) + [f"time={self.time}"] * (self.times > 1)
        return f"#{'&'.join(chosen)}" if chosen else ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for, not yet compared with what there is."""

    channel: int | str | None = None
    """Its number, or its name."""
    time: int | None = None

    @classmethod
    def of(cls, location: str, channel: int | str | None, time: int | None) -> tuple[str, Choice]:
        """(the address, the choice). Raises Mismatch for what is no number or name, or is said in both places."""
        found = _CHOSEN.search(location)
        if found is not None and ("://" in location or not os.path.exists(location)):  # noqa: PTH110  # never raises
            if channel is not None or time is not None:
                raise Mismatch(f"{location} names a channel or time itself; leave out channel= and time=.")
            channel, time = _stated(found[1], location)
            location = location[: found.start()]
        if not isinstance(channel, str) and channel is not None:
            channel = _number(location, "channel", channel, "a number or a name")
        if time is not None:
            time = _number(location, "time", time, "a number")
        return location, cls(channel, time)

    def require_first(self, name: str) -> None:
        """Of a dataset, which has one channel and one point in time. Raises Mismatch for another."""
        for what, asked in (("channel", self.channel), ("time", self.time)):
            if asked not in (None, 0, "0"):
                raise Mismatch(f"{name} is a dataset of one channel and one point in time; leave out {what}={asked!r}.")

    def of_reader(self, reader: ChunkedReader, location: str) -> ChunkedReader:
        """The part that is chosen. Raises Unchosen if there are several and none is, Mismatch if there is no such."""
        channels, open_ones = len(reader.channels), {}
        if self.channel is None and channels > 1:
            open_ones["channel=0"] = f"{channels} channels: {_listed(reader)}"
        if self.time is None and reader.times > 1:
            open_ones["time=0"] = f"{reader.times} points in time: 0 to {reader.times - 1}"
        if open_ones:
            has, such_as = " and ".join(open_ones.values()), ", ".join(open_ones)
            raise Unchosen(f"{location} has {has}; a volume is one of them: say which, such as {such_as}.")
        reader = reader.select_channel(self._channel_number(reader, location))
        return reader.select_time(self.time or 0)

    def _channel_number(self, reader: ChunkedReader, location: str) -> int:
        """A name comes before a number."""
        if self.channel is None or isinstance(self.channel, int):
            return self.channel or 0
        found = [number for number, label in enumerate(reader.channel_labels) if label == self.channel]
        if len(found) == 1:
            return found[0]
        if not found and _DIGITS.fullmatch(self.channel):
            return int(self.channel)
        problem = f"{len(found)} channels are" if found else "no channel is"
        raise Mismatch(f"{location}: {problem} called {self.channel!r}; there are {_listed(reader)}: give a number.")


UNSAID = Choice()
"""Nothing was asked for."""


def part_of(reader: ChunkedReader) -> Part:
    """Of a reader of one channel and point in time."""
    return Part(reader.channels.start, reader.channel_labels, reader.time, reader.times)


def channel_text(number: int, label: str) -> str:
    return f"{number} ({label})" if label else str(number)


def _listed(reader: ChunkedReader) -> str:
    named = [channel_text(number, label) for number, label in enumerate(reader.channel_labels)]
    return ", ".join(named if len(named) <= MOST_LISTED else [*named[: MOST_LISTED - 1], f"... {named[-1]}"])


def _stated(chosen: str, location: str) -> tuple[int | str | None, int | None]:
    """(channel, time) that a location ends in. A number counts there even if another channel is called so: what
    `Part.suffix` says must be found again.
    """
    fields = [part.partition("=")[::2] for part in chosen.split("&")]
    said = dict(fields)
    time = said.get("time", "0")
    if not all(said.values()) or not {"channel", "time"}.issuperset(said) or len(said) < len(fields):
        raise Mismatch(f"{location} ends in {chosen!r}, expected such as channel=1&time=2.")
    if not _DIGITS.fullmatch(time):
        raise Mismatch(f"{location}: time is {time!r}, expected a number.")
    channel = unquote(said["channel"]) if "channel" in said else None
    number = int(channel) if channel and _DIGITS.fullmatch(channel) else channel
    return number, int(time) if "time" in said else None


def _number(location: str, what: str, value: object, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):  # also of numpy
        raise Mismatch(f"{location}: {what} is {value!r}, expected {expected}.")
    return operator.index(value)
