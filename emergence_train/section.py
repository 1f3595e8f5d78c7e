"""A section of the configuration, and sections whose keys depend on their `kind`."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of what names files and columns


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # NaN passes every bound


class ByKind:
    """Validates a section as the class that `kinds` has for its key `kind`; without one, as that of `default`.

    Looked up at each validation, so a kind may be added at any time. `section` returns the class of an entry of `kinds`.
    """

    def __init__(
        self, kinds: Mapping[str, Any], default: str, section: Callable[[Any], type[Section]] = lambda entry: entry
    ) -> None:
        self.kinds, self.default, self.section = kinds, default, section

    def section_of(self, value: Any) -> type[Section]:
        """The class for a section's raw value; ValueError where its kind is unknown."""
        kind = value.get("kind", self.default) if isinstance(value, dict) else self.default
        if not isinstance(kind, str) or kind not in self.kinds:
            raise ValueError(f"kind {kind!r} is unknown; known: {', '.join(self.kinds)}")
        return self.section(self.kinds[kind])

    def __call__(self, value: Any) -> Section:
        return value if isinstance(value, Section) else self.section_of(value).model_validate(value)
