"""Models that a recipe names on the Hugging Face hub: hf://org/name, with @REVISION or without; and for a tokenizer,
with /FILE or without. They lie in huggingface_hub's cache, which its own tools and environment variables know.

What a name without a revision means may change. So commands that train or answer first pin it (`pinned`): they look for
its commit, download what is missing, and record hf://org/name@COMMIT. All else looks in the cache only (`local`).
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError

PREFIX = "hf://"
NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w.-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
KEYS = ("language_model", "vision_tower", "tokenizer")
WANTED = ["*.json", "*.safetensors", "tokenizer.model"]
"""Of a repository's files; weights in other formats are left there."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def pinned(recipe: Recipe) -> Recipe:
    """The same, with the commit in every name on the hub; what is not in the cache is downloaded. Raises UserError
    naming the key."""
    names = {key: getattr(recipe.model, key) for key in KEYS}
    changed: dict[str, Any] = {
        key: _pinned(name, f"model.{key}") for key, name in names.items() if name.startswith(PREFIX)
    }
    return replace(recipe, model=replace(recipe.model, **changed)) if changed else recipe


def local(name: str, key: str) -> str:
    """The folder, or for model.tokenizer the file, that a name on the hub has in the cache; any other name is a path
    already. Raises UserError naming the key."""
    if not name.startswith(PREFIX):
        return name
    repository, revision, file = _parts(name, key)
    folder = _snapshot(repository, revision, key, name, online=False)
    if key != "model.tokenizer":
        return str(folder)
    found = [file] if file else [each for each in TOKENIZERS if (folder / each).is_file()]
    if not found:
        raise UserError(f"{key}: {name} has no {' and no '.join(TOKENIZERS)}")
    return str(folder / found[0])


def repository_of(name: str) -> str:
    """org/name of a name on the hub, any other as it is."""
    match = NAME.fullmatch(name)
    return match["repository"] if match else name


def _pinned(name: str, key: str) -> str:
    repository, revision, file = _parts(name, key)
    commit = _snapshot(repository, revision, key, name, online=True).name
    return f"{PREFIX}{repository}@{commit}" + (f"/{file}" if file else "")


def _parts(name: str, key: str) -> tuple[str, str | None, str | None]:
    match = NAME.fullmatch(name)
    if not match or (match["file"] and key != "model.tokenizer"):
        raise UserError(f"{key}: {name[:80]!r} is not of the form hf://org/name or hf://org/name@REVISION")
    return match["repository"], match["revision"], match["file"]


def _snapshot(repository: str, revision: str | None, key: str, name: str, online: bool) -> Path:
    """The folder in the cache, named by its commit. Raises UserError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    tries = [True, False] if online and revision and COMMIT.fullmatch(revision) else [not online]
    for only_cached in tries:
        try:
            found = snapshot_download(
                repository, revision=revision, allow_patterns=WANTED, local_files_only=only_cached
            )
            return Path(found)
        except HFValidationError as error:
            raise UserError(f"{key}: {name[:80]!r} cannot be a name on the hub: {error}") from None
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError):
                why = f"the hub refuses it ({str(error).splitlines()[0][:200]})"
            elif only_cached:
                why = f"it is not in the cache {HF_HUB_CACHE}"
            else:
                why = f"it is not in the cache {HF_HUB_CACHE}, and the hub cannot be reached"
    at = f" --revision {revision}" if revision else ""
    raise UserError(f"{key}: {name}: {why}; where there is a network, run: hf download {repository}{at}")
