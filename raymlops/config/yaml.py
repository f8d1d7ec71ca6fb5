"""Read YAML text as plain data, with the place of every key and value.

Owns the reading of YAML 1.2 (``010`` is ten, ``off`` is text, ``1:30`` is text, ``1e-5`` is a number, whatever a
``%YAML`` line says). Works on ruamel's nodes, because they know their line and an alias shares the node
it refers to: a place is always where the value is written. (ruamel's ``.lc`` knows no place of a merged value or of an
alias, and its constructor stops at the first duplicate key.) Knows nothing of schemas or of which file extends which.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from raymlops.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

KeyPath = tuple[str | int, ...]

MAX_VALUES = 50_000
"""Values in one file, aliases and merge keys expanded: nested ones can stand for billions."""

NULL_BYTE = "holds a null byte, which no path, name or database takes"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something is written: a file with line and column (from 1), or a source without lines."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(slots=True)
class Document:
    """The content of a text. ``fatal`` says that it could not be parsed, so that ``data`` is meaningless."""

    data: Any = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    fatal: bool = False


def read(text: str, source: str) -> Document:
    """Read one YAML document; errors become problems, nothing is raised."""
    document = Document()
    try:
        node = _composed(text)
        if node is not None:
            document.data = _Reader(document, source).value(node, ())
    except RecursionError:
        _fatal(document, Place(source), "is nested too deeply")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source)
        _fatal(document, place, _syntax(error))
    except ReaderError as error:
        before = text[: error.position]
        place = Place(source, before.count("\n") + 1, len(before) - before.rfind("\n"))
        _fatal(document, place, f"the character U+{ord(text[error.position]):04X} is not allowed in YAML")
    except (YAMLError, _TooManyError) as error:
        _fatal(document, Place(source), str(error))
    return document


def read_value(text: str, source: str) -> Document:
    """Read the value of ``key=value``: a scalar or a flow collection; what looks like a block is text."""
    try:
        node = _composed(text)
    except (YAMLError, RecursionError):
        node = None
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style:
        return Document(data=text)
    return read(text, source)


def _composed(text: str) -> Any:
    """Return the root node of a text; None where it is empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML 1.2 allows it: the latest one counts
        return YAML(typ="safe", pure=True).compose(text)


class _TooManyError(Exception):
    pass


class _Reader:
    def __init__(self, document: Document, source: str) -> None:
        self.document = document
        self.source = source
        self.open: list[Node] = []
        self.left = MAX_VALUES

    def value(self, node: Node, path: KeyPath, *, key: Place | None = None) -> Any:
        """Return the node as plain data and record its place; ``key`` is the place of an empty value's key."""
        self.count(1)
        place = self.place(node)
        if key is not None and isinstance(node, ScalarNode) and node.value == "" and node.style is None:
            place = key
        self.document.values[path] = place
        if any(node is outer for outer in self.open):
            self.report(node, path, "an alias inside its own anchor never ends")
            return None
        self.open.append(node)
        try:
            return self.content(node, path)
        finally:
            self.open.pop()

    def count(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise _TooManyError(f"stands for more than {MAX_VALUES:,} values; too many for a configuration")

    def content(self, node: Node, path: KeyPath) -> Any:
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        if node.tag not in {_TAG + "map", _TAG + "seq"}:
            self.report(node, path, f"tag {node.tag} is not known; only plain YAML is read")
        if not isinstance(node, MappingNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        data = {}
        for name, (key_node, item) in self.pairs(node, path).items():
            self.document.keys[*path, name] = self.place(key_node)
            data[name] = self.value(item, (*path, name), key=self.place(key_node))
        return data

    def pairs(self, node: MappingNode, path: KeyPath) -> dict[str, tuple[Node, Node]]:
        """Return a mapping's pairs, merged ones where the merge key stands; keys are text as written, even ``on``."""
        own: dict[str, tuple[Node, Node]] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        order: dict[str, None] = {}
        self.open.append(node)
        for key_node, item in node.value:
            if not isinstance(key_node, ScalarNode):
                self.report(key_node, path, "a key must be text")
                continue
            name = key_node.value
            if name in own:
                first = self.place(own[name][0])
                self.report(key_node, path, f"duplicate key {name!r}; first written at {first}")
            own[name] = (key_node, item)
            if key_node.tag == _TAG + "merge":
                merged = self.merged(item, path)
                order |= dict.fromkeys(merged)
            else:
                order[name] = None
        self.open.pop()
        pairs = merged | own
        return {name: pairs[name] for name in order}

    def merged(self, node: Node, path: KeyPath) -> dict[str, tuple[Node, Node]]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        pairs: dict[str, tuple[Node, Node]] = {}
        for source in sources:
            if isinstance(source, MappingNode) and not any(source is outer for outer in self.open):
                self.count(len(source.value))  # nested merges can stand for billions, as nested aliases can
                pairs = self.pairs(source, path) | pairs  # of several, the first one that has a key counts
            else:
                self.report(node, path, "<< takes the alias of a mapping, or a list of them")
        return pairs

    def scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in _SCALARS:
            self.report(node, path, f"tag {node.tag} is not known; only plain YAML is read")
            return node.value
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            self.report(node, path, "holds half of a surrogate pair, which is no character")
            return ""
        if "\0" in node.value:
            self.report(node, path, NULL_BYTE)
            return node.value.replace("\0", "")  # so that nothing else is found wrong with it
        try:
            return _SCALARS[kind](node.value)
        except ValueError:
            return node.value  # looks like a number and is none, such as 1:30 under %YAML 1.1

    def place(self, node: Node) -> Place:
        return Place(self.source, node.start_mark.line + 1, node.start_mark.column + 1)

    def report(self, node: Node, path: KeyPath, message: str) -> None:
        place = self.place(node)
        # A problem inside an anchor is met again at each of its aliases.
        if not any(place == known and message == other.message for known, other in self.document.problems):
            self.document.problems.append((place, Problem(dotted(path), message, str(place))))


def dotted(path: KeyPath) -> str:
    """Return a path as people write it: ``train.lr``, ``recipe.config.sizes[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_TAG = "tag:yaml.org,2002:"


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    based = re.match(r"[-+]?0([box])", digits)
    return int(digits, 0 if based else 10)


def _number(text: str) -> float:
    return float(re.sub(r"(?i)\.(inf|nan)$", r"\1", text.replace("_", "")))


def _truth(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": _integer,
    "float": _number,
    "bool": _truth,
    "null": lambda _: None,
    "timestamp": str,
    "value": str,
}


def _fatal(document: Document, place: Place, message: str) -> None:
    document.problems.append((place, Problem("", message, str(place))))
    document.fatal = True


def _syntax(error: MarkedYAMLError) -> str:
    what = str(error.problem or error.context or "is not YAML")
    advice = next((words for start, words in _ADVICE.items() if what.startswith(start)), "")
    context = f" {error.context}" if error.context and "next token" not in error.context else ""
    return f"not YAML: {what}{context}{advice}"


_ADVICE = {
    r"found character '\t'": "; indent with spaces",
    "found character": "; put the text in quotes",
    "mapping values are not allowed": "; text with a colon and a space needs quotes, and every key its own line",
    "but found another document": "; one file holds one document",
    "found undefined alias": "; text that starts with * needs quotes",
}
