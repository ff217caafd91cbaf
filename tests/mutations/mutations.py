"""Ways to damage a file: bytes of any format, and fields of the formats that documents, tensors and archives have.

Every change follows from a NumPy generator, so that a number names a damaged file for good.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

Mutation = Callable[[np.random.Generator, bytes], bytes]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 65536, 2**31, 2**63, 2**64, -(2**63), 10**12, 10**30, 0.5, -0.0, 1e30,
    float("nan"), float("inf"), "", "0", "float", "float32", "nan", "a\0b", "\u202e", "x" * 5000, "../..", "/dev/zero",
    [], {}, [[]], [0], [0, 0], [1, 0], [-1], [1.5], ["0"], [None], {"a": 1}, {"": []}, [[0, 1], [2]], "conv", "weight",
)  # fmt: skip
"""What a field is replaced by."""


def flip_bits(rng: np.random.Generator, content: bytes) -> bytes:
    """Flip one to eight bits."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def overwrite(rng: np.random.Generator, content: bytes) -> bytes:
    """Put an extreme number somewhere, most often near the beginning or the end, where formats keep their lengths."""
    data = bytearray(content)
    if len(data) < 8:
        return b"\xff" * 8
    places = (rng.integers(len(data) - 7), rng.integers(min(64, len(data) - 7)), len(data) - 8 - rng.integers(64))
    place = max(0, int(rng.choice(places)))
    number = rng.choice([0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1])
    size = int(rng.choice([1, 2, 4, 8]))
    order = "<" if rng.integers(2) else ">"
    data[place : place + size] = struct.pack(f"{order}Q", int(number))[:size]
    return bytes(data)


def truncate(rng: np.random.Generator, content: bytes) -> bytes:
    """Cut the end off, or the beginning."""
    place = int(rng.integers(len(content) + 1))
    return content[:place] if rng.integers(4) else content[place:]


def insert(rng: np.random.Generator, content: bytes) -> bytes:
    """Insert noise, a piece of the file itself, or a run of one byte."""
    place, length = int(rng.integers(len(content) + 1)), int(rng.integers(1, 64))
    start = int(rng.integers(len(content) + 1))
    pieces = (rng.bytes(length), content[start : start + length], bytes([int(rng.integers(256))]) * length)
    return content[:place] + pieces[int(rng.integers(3))] + content[place:]


def delete(rng: np.random.Generator, content: bytes) -> bytes:
    """Take a piece out."""
    start = int(rng.integers(len(content) + 1))
    return content[:start] + content[start + int(rng.integers(1, 64)) :]


BYTES: tuple[Mutation, ...] = (flip_bits, overwrite, truncate, insert, delete)


def change_tree(rng: np.random.Generator, tree: Any) -> Any:
    """Change one to three places of a tree of mappings and lists: replace, delete, rename, repeat, wrap."""
    for _ in range(int(rng.integers(1, 4))):
        tree = _change_once(rng, tree)
    return tree


def _change_once(rng: np.random.Generator, tree: Any) -> Any:
    places = list(_places(tree))
    if not places:
        return VALUES[int(rng.integers(len(VALUES)))]
    owner, key = places[int(rng.integers(len(places)))]
    value, choice = owner[key], int(rng.integers(8))
    if choice < 3:
        owner[key] = VALUES[int(rng.integers(len(VALUES)))]
    elif choice == 3:
        del owner[key]
    elif choice == 4 and isinstance(owner, dict):
        owner[str(key) + "x" if rng.integers(2) else "extra"] = owner.pop(key)
    elif choice == 4:
        owner.insert(key, value)
    elif choice == 5:
        owner[key] = [value] if rng.integers(2) else {"value": value}
    elif choice == 6 and isinstance(value, int | float) and not isinstance(value, bool):
        owner[key] = [value + 1, value - 1, -value, value * 1000, str(value), float(value)][int(rng.integers(6))]
    else:
        other, name = places[int(rng.integers(len(places)))]
        owner[key] = json.loads(json.dumps(other[name]))
    return tree


def _places(tree: Any) -> Any:
    keys: Any = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def json_fields(rng: np.random.Generator, content: bytes) -> bytes:
    """Change fields of a JSON document."""
    return json.dumps(change_tree(rng, json.loads(content))).encode(errors="replace")


def json_lines(rng: np.random.Generator, content: bytes) -> bytes:
    """Change fields of one line of a log."""
    lines = content.splitlines()
    place = int(rng.integers(len(lines)))
    lines[place] = json_fields(rng, lines[place])
    return b"\n".join(lines)


def yaml_fields(rng: np.random.Generator, content: bytes) -> bytes:
    """Change fields of a YAML document."""
    return yaml.safe_dump(change_tree(rng, yaml.safe_load(content)), sort_keys=False).encode(errors="replace")


def yaml_marks(rng: np.random.Generator, content: bytes) -> bytes:
    """Insert marks that mean something in YAML."""
    marks = ("&a ", "*a", "!!set ", "!!python/name:os.system ", "<<: ", "? ", "- ", "[", "{", "}", "|", ">", "---\n",
             "%", "\t", "!!int ", "!!binary ", "0x", "1_0:", "~", "'", '"', "\\ud800", "#", "@", "\x85")  # fmt: skip
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(content) + 1))
        content = content[:place] + marks[int(rng.integers(len(marks)))].encode() + content[place:]
    return content


def safetensors_header(rng: np.random.Generator, content: bytes) -> bytes:
    """Change fields of the header of a safetensors file, whose length stays true."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change_tree(rng, json.loads(content[8 : 8 + length]))).encode(errors="replace")
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def archive_entries(rng: np.random.Generator, content: bytes) -> bytes:
    """Change an archive entry by entry, with sizes and checksums that are true again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    place, choice = int(rng.integers(len(entries))), int(rng.integers(8))
    described = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    name, data = entries[place]
    if choice < 4:  # the pickle, byte by byte: the code that is never run
        name, data = entries[described]
        entries[described] = (name, BYTES[int(rng.integers(len(BYTES)))](rng, data))
    elif choice == 4:
        del entries[place]
    elif choice == 5:
        entries[place] = (name + "x", data)
    elif choice == 6:
        entries[place] = (name, BYTES[int(rng.integers(len(BYTES)))](rng, data))
    else:
        entries.append((name.replace("data", "data/../") + "y", data * int(rng.integers(1, 50))))
    target = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if rng.integers(2) else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return target.getvalue()


FIELDS: dict[str, tuple[Mutation, ...]] = {
    "json": (json_fields, json_fields),
    "jsonl": (json_lines, json_lines),
    "yaml": (yaml_fields, yaml_fields, yaml_marks),
    "safetensors": (safetensors_header,),
    "pt": (archive_entries, archive_entries),
}
"""By suffix, beside the changes of bytes."""


def mutate(rng: np.random.Generator, name: str, content: bytes, *, fields_only: bool = False) -> bytes:
    """Return a file with one change, which is of its bytes or of its fields."""
    own = FIELDS.get(name.rpartition(".")[2], ())
    ways = own if fields_only and own else (*own, *BYTES)
    return ways[int(rng.integers(len(ways)))](rng, content)
