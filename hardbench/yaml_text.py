"""YAML from outside: weighed before anything is built of it, then read as plain data."""

from collections import Counter
from typing import Any

from hardbench.errors import ConfigError

LARGEST, DEEPEST, MOST, DIGITS = 6_000_000, 30, 150_000, 400  # characters of a text, levels, nodes (aliases written out), of a number


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """YAML text as a mapping of setting names; `source` names it in errors."""
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses repeated keys instead of keeping the last, and numbers that no setting takes."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            if isinstance(node, yaml.MappingNode):
                keys = Counter(str(self.construct_object(key, deep=True)).replace("-", "_") for key, _ in node.value)
                for key in (key for key, count in keys.items() if count > 1):
                    raise ConfigError(f"{key}: twice in {source}; each key once")
            return super().construct_mapping(node, deep)

        def construct_number(self, node: Any) -> Any:
            if len(str(node.value)) > DIGITS:
                raise ValueError(f"a number of {len(node.value)} characters")
            return self.construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_number)
    try:
        _weigh(text)
        content = Loader(text).get_single_data()
    except ConfigError:
        raise
    except Exception as error:  # the constructors of its tags raise whatever int, datetime and tables raise for a word that is none
        said = str(error) if isinstance(error, yaml.YAMLError | ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"config: {source}; not YAML: {' '.join(said.split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config: {source}; a mapping of settings to values")
    return {str(key): value for key, value in content.items()}


def _weigh(text: str) -> None:
    """ValueError for more than settings can need: characters, levels, or nodes where each alias counts as what it stands for."""
    import yaml

    if len(text) > LARGEST:
        raise ValueError(f"{len(text)} characters; at most {LARGEST}")
    weights: dict[str, int] = {}
    begun: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in begun):
                raise ValueError(f"*{event.anchor} stands inside itself")
            total += weights.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            weights |= {anchor: total - before} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            weight = 1 + len(event.value) // 100
            total += weight
            weights |= {event.anchor: weight} if event.anchor else {}
        if total > MOST or len(begun) > DEEPEST:
            raise ValueError(f"more than {MOST} values (what an alias stands for counted in full), or more than {DEEPEST} levels")
