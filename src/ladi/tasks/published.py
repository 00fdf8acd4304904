"""Rows of published data sets, from a local JSONL file or from the hub."""

import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = tuple[str, dict[str, Any]]
"""Where a row stands, for errors, and its fields."""


def published_rows(source: str, split: str, configs: Sequence[str] = ()) -> list[Row]:
    """All rows of the JSONL file `source` (also .jsonl.gz), or else of a split of the hub data set of that name.

    `configs` names the parts of the hub data set; empty takes all of them, one after the other.

    Raises:
        ValueError: if a file is missing or malformed, or the data set cannot be had from the hub.
    """
    path = Path(source)
    if not path.is_file() and not path.name.endswith((".jsonl", ".jsonl.gz")):
        return [(f"{source}, row {i}", row) for i, row in enumerate(hub_rows(source, split, configs), 1)]
    if not path.is_file():
        raise ValueError(f"no file {path}; name a JSONL file or a data set of the hub")
    lines = [(f"{path}, line {i}", line) for i, line in enumerate(file_bytes(path).split(b"\n"), 1)]
    rows = [(where, json_object(line, where)) for where, line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def file_bytes(path: Path) -> bytes:
    """What a file holds, unpacked if it is compressed.

    Raises:
        ValueError: if it ends in .gz and is no whole gzip file.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); fetch it again") from error


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object that a line spells in UTF-8.

    Raises:
        ValueError: if it spells none; says where.
    """
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: need a JSON object, got {type(row).__name__}")
    return row


def is_text(value: Any) -> bool:
    r"""Whether it is a text, not empty, that UTF-8 can hold: JSON can spell half a character, such as "\ud800"."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def check_texts(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raise unless the fields `names` of a row are texts.

    Raises:
        ValueError: with the field and its value; says where.
    """
    for name in names:
        if not is_text(row.get(name)):
            raise ValueError(f"{where}: {name!r} must be a text that is not empty, got {row.get(name)!r}")


def hub_rows(name: str, split: str, configs: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of a split of a hub data set.

    Raises:
        ValueError: if the package `datasets` is missing, or the hub gives no such data set.
    """
    remedy = "give the path of a local JSONL file instead"
    try:
        import datasets  # here, because it costs a second and is needed for the hub alone
    except ImportError as error:
        raise ValueError(f"reading {name!r} from the hub needs `pip install datasets`; or {remedy}") from error
    try:
        parts: list[Any] = [
            datasets.load_dataset(name, config, split=split)
            for config in configs or datasets.get_dataset_config_names(name)
        ]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read split {split!r} of {name!r} from the hub ({error}); check name and connection, or {remedy}"
        ) from error
    return [dict(row) for part in parts for row in part]
