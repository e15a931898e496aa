"""The rows that a search measures with: those of the models that we train, or a user's own from safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from services.worker import library

if TYPE_CHECKING:
    from common.supernet.explore import Data

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FILES = ("train.safetensors", "held_out.safetensors", "test.safetensors")


def find_data(model: Path, folder: Path | None, *, test: bool) -> Data:
    """The rows of a model folder; `folder` as `--data` names it, `test`: whether test rows are asked for.

    ConfigError says what is missing.
    """
    from common.supernet import fashion, rated_text
    from common.supernet.data import DataError, read_rows
    from common.supernet.explore import Data

    name = library.model_name(model)
    try:
        if folder is not None and (folder / FILES[0]).is_file():
            return Data(*(read_rows(folder / file) for file in FILES[: 3 if test else 2]))
        if name == fashion.NAME:
            return fashion.data(folder or FASHION, test=test)
        if name.startswith("rated-text") and folder is not None:
            return rated_text.data(folder, model, test=test)
    except DataError as error:
        raise ConfigError(str(error)) from error
    files = f"{FILES[0]} and {FILES[1]}, each with `inputs` and `labels`"
    raise ConfigError(f"--data={str(folder or '')!r}: model {name!r} needs a folder with {files}")
