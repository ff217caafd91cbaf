"""Reading files that anybody may have written: regular files only, and bounds on size, depth and number of values.

Every reader of the package goes through this module, so that no file can make it wait for ever, fill the memory or
end in an exception that is not the package's own. What a file says is checked by whoever asked for it.
"""

import hashlib
import json
import os
import stat
from collections.abc import Hashable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_DOCUMENT_BYTES = 1 << 25
"""Largest JSON document or log, in bytes: the plan of a million channels is smaller."""

MAX_YAML_BYTES = 1 << 20
"""Largest YAML document, in bytes. Settings and recipes take a few thousand."""

MAX_DEPTH = 64
"""How deep lists and mappings may lie in each other in a document; ours need six levels."""

MAX_YAML_VALUES = 10_000
"""Most values in a YAML document, each alias counting for all that it stands for."""

MAX_PIXELS = 89_478_485
"""Most pixels of one image. Pillow warns of a decompression bomb above the same number."""

_LONGEST_NUMBER = 1000
"""Most digits of a whole number in YAML, where Python's own limit does not hold for every base."""


class ReadError(Exception):
    """A file or a text cannot be read. Never leaves the package: the caller says which argument named it.

    Attributes
    ----------
    missing
        Whether there is nothing at the path.
    """

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading; a pipe or a device is refused without waiting for it.

    Raises
    ------
    ReadError
        If it is missing, may not be read, or is no regular file.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise ReadError("does not exist", missing=True) from error
    except IsADirectoryError as error:
        raise ReadError("is a folder, not a file") from error
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name
        raise ReadError("is no name that a file can have", missing=True) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise ReadError(f"is {_kind(mode)}, not a regular file")


def is_folder(path: str | Path) -> bool:
    """Tell whether a path is a folder; one that no file can have, or that may not be looked at, is none."""
    return os.path.isdir(path)  # noqa: PTH112  (pathlib raises for names that are too long)


def exists(path: str | Path) -> bool:
    """Tell whether there is something at a path; :func:`is_folder` says about which paths it does not fail."""
    return os.path.exists(path)  # noqa: PTH110


def read_bytes(path: str | Path, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises
    ------
    ReadError
        If it is larger, or cannot be read.
    """
    with open_regular(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise ReadError(f"cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise ReadError(f"holds more than {limit:,} bytes, which no file of its kind does")
    return content


def read_text(path: str | Path, limit: int = MAX_DOCUMENT_BYTES) -> str:
    """Return the text of a UTF-8 file of at most `limit` bytes.

    Raises
    ------
    ReadError
        If it is larger, is no text, or cannot be read.
    """
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise ReadError(f"is not text in UTF-8 (byte {error.start:,})") from error


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal.

    Raises
    ------
    ReadError
        If it cannot be read.
    """
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ReadError(f"cannot be read: {error.strerror or error}") from error


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    ReadError
        If it is no JSON, goes beyond the bounds of this module, or cannot be read.
    """
    return parse_json(read_text(path))


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object per line, such as a log.

    Raises
    ------
    ReadError
        If a line is no JSON object, or the file cannot be read.
    """
    found = []
    # Only a line feed ends a line of JSON; other separators may stand in its strings.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ReadError as error:
            raise ReadError(f"is damaged in line {number} ({error})") from error
        if not isinstance(value, dict):
            raise ReadError(f"is damaged in line {number} (it is no JSON object)")
        found.append(value)
    return found


def parse_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises
    ------
    ReadError
        If it is no JSON, names a field twice, is nested too deeply, or holds a number or text that cannot be used.
    """
    try:
        found = json.loads(text, object_pairs_hook=_fields)
    except RecursionError as error:
        raise ReadError(f"is nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise ReadError(f"is not JSON ({error})") from error
    _check_values(found)
    return found


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ReadError(f"names the field {twice[:100]!r} twice")
    return found


def _check_values(value: Any) -> None:
    """Walk through lists and mappings without recursion."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ReadError(f"is nested more than {MAX_DEPTH} levels deep")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                deeper.extend(item)
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        level, depth = deeper, depth + 1


def _check_text(text: str) -> None:
    """Refuse half a surrogate pair, which can neither be printed nor name a file."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ReadError(f"holds text that is not Unicode ({text[:40]!a})") from error


def read_yaml(path: str | Path) -> Any:
    """Return what a YAML file holds: text, numbers, truth values, nothing, and lists and mappings of them.

    Raises
    ------
    ReadError
        If it is no YAML, goes beyond the bounds of this module, or cannot be read.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES))


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says, as :func:`read_yaml`.

    Raises
    ------
    ReadError
        If it is no YAML, or goes beyond the bounds of this module.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ReadError(f"holds more than {MAX_YAML_BYTES:,} characters, which no YAML of ours does")
    try:
        found = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader that knows fewer types)
    except yaml.YAMLError as error:
        raise ReadError(f"is not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, ArithmeticError, LookupError) as error:  # numbers such as 0x, or of too many digits
        raise ReadError(f"is not YAML: {' '.join(str(error).split())}") from error
    _check_values(found)
    return found


_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """Reads plain data, with bounds on depth and on what aliases multiply."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._composed = 0
        self._weights: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Compose one node, and count the values that it stands for."""
        is_alias = self.check_event(yaml.AliasEvent)
        if is_alias:
            mark = self.peek_event().start_mark
            node = super().compose_node(parent, index)
            # A node that is not finished holds itself.
            if id(node) not in self._weights:
                raise ConstructorError(None, None, "an alias lies inside what it stands for", mark)
            return node
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ReadError(f"is nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._composed += 1
        weight = 1 + sum(self._weights[id(part)] for part in _parts(node))
        if max(weight, self._composed) > MAX_YAML_VALUES:
            raise ReadError(f"holds more than {MAX_YAML_VALUES:,} values, aliases counted for what they stand for")
        self._weights[id(node)] = weight
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose a mapping whose keys occur once."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} occurs twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make a dictionary, whose keys are text."""
        for key, _ in node.value:
            if key.tag not in (_TEXT, _MERGE):
                name = key.value if isinstance(key, ScalarNode) else "(a list or a mapping)"
                raise ConstructorError(None, None, f"the key {name} is not text; put it in quotes", key.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Make a whole number of bounded length."""
        if len(node.value) > _LONGEST_NUMBER:
            raise ConstructorError(None, None, "a number has too many digits", node.start_mark)
        return super().construct_yaml_int(node)


def _parts(node: Node | None) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _refuse(_loader: _Loader, node: Node) -> Any:
    raise ConstructorError(None, None, f"{node.tag!r} is no type of a setting", node.start_mark)


_Loader.yaml_constructors = {
    f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"] for kind in _PLAIN
} | {"tag:yaml.org,2002:int": _Loader.construct_yaml_int, None: _refuse}
# A date stays the text that it is.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as JSON has it, with the digest of everything else in it as `sha256`.

    Raises
    ------
    TypeError, ValueError
        If it holds what JSON cannot.
    """
    plain = json.loads(json.dumps(document))
    return {**plain, "sha256": _digest(plain)}


def is_sealed(document: Mapping[str, Any]) -> bool:
    """Tell whether a document read back is the one that :func:`seal` returned."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return document.get("sha256") == _digest(rest)


def explain(error: ValidationError) -> str:
    """Say where a document is wrong, and what is wrong there."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place[:200] or 'document'}: {first['msg'][:300]}"


def _digest(document: Mapping[str, Any]) -> str:
    # The order of fields means nothing.
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "something else")
