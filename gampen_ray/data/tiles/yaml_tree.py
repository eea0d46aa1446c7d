"""The YAML text of an untrusted ASDF file as mappings, lists and texts: taken from the parser's events, so that no tag makes an
object, and an alias is the very node that it names, never copied out."""

import math
import re
from typing import Any

import yaml

from gampen_ray.data.cutouts import CutoutError

__all__ = ["MAX_EVENTS", "Mapping", "mapping_of", "numbers_of", "read_tree", "shown"]

MAX_EVENTS = 250_000
"""Most keys, values and ends of a text."""
_MAX_DEPTH = 64
_MOST_SHOWN = 80
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Mapping(dict[str, Any]):
    """A mapping, and its tag with the handle spelt out."""

    tag: str = ""


def read_tree(data: bytes) -> Any:
    """Return what a text holds; a CutoutError if it is damaged, or nested too deep or too long."""
    try:
        return _tree(data.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CutoutError(f"damaged ASDF file: {' '.join(str(error).split())[:200]}") from None


def mapping_of(tree: Any, *names: str) -> Mapping:
    """Return the mapping at the end of some keys; a CutoutError if there is none."""
    for place, name in enumerate(names):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
        if not isinstance(tree, Mapping):
            raise CutoutError(f"the ASDF file has no {'.'.join(names[: place + 1])}: it is no mosaic of Roman's")
    return tree


def numbers_of(node: Any, name: str, count: int) -> list[float]:
    """Return the numbers of a list, or of one text; a CutoutError with their name if they are not finite, or not so many."""
    values = node if isinstance(node, list) else [node]
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise CutoutError(f"{name} is no {'number' if count == 1 else f'list of {count} numbers'}")
    return found


def shown(value: Any) -> str:
    """Return an untrusted value for a message: short, in one line."""
    return re.sub(r"[^ -~]", "?", str(value)[:_MOST_SHOWN])


def _tree(text: str) -> Any:
    anchors: dict[str, Any] = {}
    stack: list[tuple[Any, list[Any]]] = []
    root: Any = None
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if count == MAX_EVENTS:
            raise CutoutError(f"the YAML text of the ASDF file has more than {MAX_EVENTS:,} parts")
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if len(stack) == _MAX_DEPTH:
                raise CutoutError(f"the YAML text of the ASDF file is nested more than {_MAX_DEPTH} deep")
            node: Any = Mapping() if isinstance(event, yaml.MappingStartEvent) else []
            if isinstance(node, Mapping):
                node.tag = event.tag or ""
            stack.append((node, []))
            if event.anchor:
                anchors[event.anchor] = node
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            node, children = stack.pop()
            if isinstance(node, Mapping):
                pairs = zip(children[::2], children[1::2], strict=True)
                node.update((key, value) for key, value in pairs if isinstance(key, str))
            else:
                node.extend(children)
        elif isinstance(event, yaml.ScalarEvent):
            node = event.value
            if event.anchor:
                anchors[event.anchor] = node
        elif isinstance(event, yaml.AliasEvent):
            node = anchors.get(event.anchor)
        else:
            continue
        if stack:
            stack[-1][1].append(node)
        else:
            root = node
    return root
