"""Objects whose settings may be assigned anew, as those of averages and scalers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fastopt.option_names import similar


class CheckedSettings:
    """Checks what is assigned to a setting, in the constructor and later, and refuses to set any other attribute.

    settings: for each setting a function of its name and a value that returns the value in its plain form, or raises
        TypeError or ValueError. fixed: attributes that the constructor sets and nothing else does.
    """

    settings: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {}
    fixed: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.settings:
            value = self.settings[name](name, value)
        elif not name.startswith("_") and (name not in self.fixed or name in self.__dict__):
            found = similar(name, list(self.settings))
            known = ", ".join(self.settings) or "nothing"
            meant = f"did you mean {found[0]}?" if found else f"what can be set: {known}"
            raise AttributeError(f"{type(self).__name__}: {name!r} cannot be set; {meant}")
        object.__setattr__(self, name, value)
