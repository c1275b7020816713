"""Names that configs use for models, tasks, evaluators and operations."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vitvlm.core import config, limits

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Maps names to builders: `build(name, **fields)` checks the fields, and a misspelt name names the nearest."""

    def __init__(self, kind: str):
        self.kind = kind
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@MODELS.register("vit")`. Raises ValueError if the name is taken."""

        def add(builder: T) -> T:
            if name in self._builders:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._builders[name] = builder
            return builder

        return add

    def names(self) -> list[str]:
        return sorted(self._builders)

    def get(self, name: str) -> Callable[..., Any]:
        """The builder of that name. Raises ConfigError that names the nearest."""
        if not isinstance(name, str) or name not in self._builders:
            raise config.ConfigError(
                f"{self.kind} {limits.shown(name)}: no such {self.kind}; {config.suggest(name, self.names())}"
            )
        return self._builders[name]

    def build(self, name: str, fields: Mapping[str, Any], where: str | None = None, **given: Any) -> Any:
        """Calls the builder with `fields` (checked) and `given` (the caller's own); see `config.call`."""
        return config.call(self.get(name), fields, where or f"{self.kind} {name!r}", **given)
