"""The checkpoints that came with ladi (`assets/`): a first run needs no training and no network."""

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("ladi"))) / "assets"
PREFIX = "assets/"


def resolve(path: Path) -> Path:
    """The path itself, or, if it starts with assets/ and does not exist, the bundled folder of that name.

    Raises:
        ValueError: if neither exists.
    """
    if path.exists():
        return path
    bundled = ASSETS / path.as_posix().removeprefix(PREFIX)
    if path.as_posix().startswith(PREFIX) and bundled.exists():
        return bundled
    raise ValueError(f"no folder {path}; bundled models: {', '.join(bundled_models()) or 'none'}")


def located(name_or_path: str | Path) -> str:
    """A hub name or folder as it is; the bundled folder for `assets/...`.

    Raises:
        ValueError: if no bundled model has that name, or it is a run's folder and not its model's.
    """
    name = str(name_or_path)
    if (Path(name) / "final" / "config.json").is_file():
        raise ValueError(f"{name} is the folder of a run; its model is {Path(name) / 'final'}")
    return str(resolve(Path(name))) if name.startswith(PREFIX) else name


def bundled_models() -> list[str]:
    """Names of the bundled models, as `resolve` takes them."""
    return sorted(PREFIX + p.parent.relative_to(ASSETS).as_posix() for p in ASSETS.glob("*/*/config.json"))
