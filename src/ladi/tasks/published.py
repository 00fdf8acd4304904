"""Rows of published data sets, from a local JSONL file or from the hub."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def published_rows(source: str, split: str, configs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of the JSONL file `source` (also .jsonl.gz), or else of a split of the hub data set of that name.

    `configs` names the parts of the hub data set; empty takes all of them, one after the other.

    Raises:
        ValueError: if a file is missing or malformed, or the data set cannot be had from the hub.
    """
    path = Path(source)
    if not path.is_file() and not path.name.endswith((".jsonl", ".jsonl.gz")):
        return hub_rows(source, split, configs)
    if not path.is_file():
        raise ValueError(f"no file {path}; name a JSONL file or a data set of the hub")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = []
    for i, line in enumerate(data.decode().split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {i}: not JSON ({error})") from error
    return rows


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
