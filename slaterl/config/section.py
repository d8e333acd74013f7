"""What all sections of the configuration have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from slaterl.bounds import Text

Strings = Annotated[list[str], Field(min_length=1)]


class Section:
    """A node whose settings are the fields of its class."""


@dataclass
class Part(Section):
    """A node whose settings are the arguments of its `_target_`."""


@dataclass
class NamedPart(Part):
    """A part with a name, which appears in the names of runs and in messages."""

    name: Text
