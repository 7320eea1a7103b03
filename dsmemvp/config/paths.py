"""The files and folders that a recipe names: that they are there, told in the same words by all who look."""

from pathlib import Path

from dsmemvp.errors import UserError


def model_config_file(folder: Path, key: str) -> Path:
    """The config.json of a model's folder. Raises UserError naming the key if it is not there."""
    path = folder / "config.json"
    if not path.is_file():
        missing = path if folder.is_dir() else f"folder {folder}"
        raise UserError(f"{key}: {missing} does not exist{'' if folder.is_absolute() else f' in {Path.cwd()}'}")
    return path


def check_tokenizer_file(path: Path) -> None:
    """Raises UserError if there is no such file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"model.tokenizer: {path} {what}; give a sentencepiece model or a tokenizer.json")
