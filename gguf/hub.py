"""Models by name: a file, a folder, or an id on the Hub, whose files huggingface_hub downloads into its cache."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.names import describe_missing, enumerate_names, near_names
from lltool.gguf.remote import Chunks, RemoteFile
from lltool.gguf.shards import named_place, shard_path

DEFAULT_TYPES = ("Q4_K_M", "Q8_0")
"""What is taken of a repository, in this order, if its id comes without a type; then its first model. As llama.cpp."""

# Beside a model lie files with its name that are no models: image encoders, importance statistics, draft heads.
_NOT_MODELS = re.compile(r"mmproj|imatrix|mtp-|eagle3-|dflash-|dspark-")
_PREFIX = re.compile(r"hf://|(?:https?://)?(?:hf\.co|huggingface\.co)/")
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+)|/(?:(?:resolve|blob)/main/)?(.+\.gguf))?")
_TYPE = re.compile(r"(?<![A-Za-z0-9])(?:UD-)?(?:[IT]?Q|B?F|MXFP|NVFP)\d\w*$", re.IGNORECASE)
_WANTED = "a GGUF file, a folder with one, or an id on the Hub, ORG/NAME:Q4_K_M"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubName:
    """`ORGANIZATION/NAME` on the Hub, with the type or the file that was named with it."""

    id: str
    type: str | None = None
    file: str | None = None


def parse_hub_name(name: str) -> HubName | None:
    """Reads `ORGANIZATION/NAME`, `ORGANIZATION/NAME:TYPE` and `ORGANIZATION/NAME/FILE.gguf`; None for other names.

    `hf://`, `hf.co/` and the address of the Hub may stand before it; then another name is an InputError.
    """
    prefix = _PREFIX.match(name)
    rest = name[prefix.end() :].split("?")[0].removesuffix("/").removesuffix("/tree/main") if prefix else name
    found = None if rest.startswith((".", "~")) else _HUB_NAME.fullmatch(rest)
    if prefix and not found:
        raise InputError(f"{name}: wanted {prefix[0]} and then ORG/NAME, ORG/NAME:TYPE or ORG/NAME/FILE.gguf")
    if not found or (rest.endswith(".gguf") and not (prefix or found[3])):
        return None
    return HubName(found[1], None if (found[2] or "").lower() == "latest" else found[2], found[3])


def find_model(name: str | os.PathLike[str], *, say: Callable[[str], None] = _log.warning) -> Path:
    """The GGUF file that a name means; of a split model, the first shard. It is downloaded if it has to be.

    A name is an existing file, or a folder with one model. Otherwise a string can be an id on the Hub:
    `ORGANIZATION/NAME:TYPE`, such as `ggml-org/gemma-3-270m-it-GGUF:Q8_0`, where case does not matter; without a type,
    one of `DEFAULT_TYPES` is taken, or else the first model; `ORGANIZATION/NAME/FILE.gguf` names one file. The Hub is
    asked first; where it does not answer or has its model no more, a copy in huggingface_hub's cache is used.
    huggingface_hub follows its own environment variables: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT.

    `say` gets what was chosen where the name left it open. Raises InputError if there is no such file, model or type,
    if a folder has several models, if the Hub cannot be reached, and if it gives no access to the model.

    >>> lltool.find_model("SmolLM2-135M-Instruct-Q4_1.gguf")
    PosixPath('SmolLM2-135M-Instruct-Q4_1.gguf')
    """
    path = Path(os.path.expanduser(name))
    hub = parse_hub_name(name) if isinstance(name, str) else None
    if path.exists():
        return _model_in(path) if path.is_dir() else path
    if hub is None or (hub.file and path.parent.is_dir()):
        raise InputError(describe_missing(path, _WANTED))
    return _find_on_hub(hub, say)


def download(id: str, patterns: Sequence[str], *, ignore: Sequence[str] = ()) -> Path:
    """The folder in huggingface_hub's cache with the files of a repository whose names match one of the patterns.

    They are downloaded if they are not there yet. Raises InputError if that is not possible.
    """
    hub = _huggingface_hub()
    try:
        return Path(hub.snapshot_download(id, allow_patterns=list(patterns), ignore_patterns=list(ignore)))
    except _hub_errors() as error:
        raise _not_there(id, _explain(id, error)) from None


def list_model(name: HubName, say: Callable[[str], None]) -> tuple[str, list[str]]:
    """The revision of a repository and the files, all shards, of the model that a name means; none if it has no GGUF.

    Raises InputError as `find_model` does, but a copy in the cache does not stand in for the Hub.
    """
    hub = _huggingface_hub()
    try:
        listing = hub.HfApi().model_info(name.id, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT)
    except _hub_errors() as error:
        raise _not_there(name.id, _explain(name.id, error)) from None
    names = sorted(sibling.rfilename for sibling in listing.siblings or [])
    if not name.file and not _models(names) and "config.json" in names:
        return listing.sha, []
    chosen = _named_file(names, name.file, name.id) if name.file else _choose(names, name, name.id, say)
    return listing.sha, _all_shards(chosen)


def open_remote(id: str, revision: str, file: str, chunks: Chunks) -> RemoteFile:
    """A file of a repository, to be read in ranges. Raises InputError if the Hub does not give it."""
    hub = _huggingface_hub()
    url = hub.hf_hub_url(id, file, revision=revision)
    try:
        found = hub.get_hf_file_metadata(url)
    except hub.errors.EntryNotFoundError:
        raise InputError(f"{id}: has no {file}; leave out --remote for a checkpoint in other files") from None
    except _hub_errors() as error:
        raise _not_there(id, _explain(id, error)) from None
    if not found.size:
        raise InputError(f"{id}/{file}: the server does not say how large it is; leave out --remote")
    return RemoteFile(f"{id}/{file}", url, hub.utils.build_hf_headers(), found.size, found.etag or "", chunks)


def _find_on_hub(name: HubName, say: Callable[[str], None]) -> Path:
    hub = _huggingface_hub()
    cached, place = None, name.id
    try:
        listing = hub.HfApi().model_info(name.id, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT)
        names = sorted(sibling.rfilename for sibling in listing.siblings or [])
    except _hub_errors() as error:
        reason = _explain(name.id, error)
        cached = _cached_folder(name.id)
        if cached is None:
            raise _not_there(name.id, reason) from None
        names = sorted(path.relative_to(cached).as_posix() for path in cached.rglob("*.gguf") if path.exists())
        place = f"{name.id} in the Hub's cache (as {reason})"
    chosen = _named_file(names, name.file, place) if name.file else _choose(names, name, place, say)
    files = _all_shards(chosen)
    if missing := set(files).difference(names):
        raise InputError(f"{place}: {chosen} has {len(files)} shards, but {len(missing)} are missing")
    if cached is None:
        folder = download(name.id, [escape(file) for file in files])
        if not (folder / chosen).exists():  # as huggingface_hub takes a folder in its cache for whole
            raise _not_there(name.id, "the download was interrupted; try again")
        return folder / chosen
    if not hub.constants.HF_HUB_OFFLINE:
        say(f"{name.id}: using {chosen} in the Hub's cache, as {reason}")
    return cached / chosen


def _choose(names: Sequence[str], name: HubName, place: str, say: Callable[[str], None]) -> str:
    """The model of the wanted type, or of the first default type that there is."""
    models = _models(names)
    if not models:
        raise InputError(
            f"{place}: holds no GGUF model; if it is a checkpoint, `lltool convert {name.id}` makes one of it"
        )
    for type in (name.type,) if name.type else DEFAULT_TYPES:
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(type)}[.-]", re.IGNORECASE)
        if found := next((model for model in models if pattern.search(model)), None):
            break
    else:
        types = list(dict.fromkeys(filter(None, map(_type_of, models))))
        if name.type:
            raise InputError(f"{place}: has no type {name.type}; {_suggest(name.type, types or models)}")
        found = models[0]
    if not name.type and len(models) > 1:
        say(f"{name.id}: took {found}; a type can be named, as in {name.id}:{_type_of(models[-1]) or 'Q8_0'}")
    return found


def _models(names: Sequence[str]) -> list[str]:
    """The models among the files of a folder or repository; those that are split by their first shard."""
    paths = [PurePosixPath(name) for name in names if name.endswith(".gguf")]
    return [str(path) for path in paths if not _NOT_MODELS.search(path.name) and named_place(path.name)[0] == 0]


def _type_of(model: str) -> str | None:
    index, count = named_place(model)
    stem = model.removesuffix(".gguf").removesuffix(f"-{index + 1:05d}-of-{count:05d}")
    found = _TYPE.search(stem)
    return found[0].upper() if found else None


def _all_shards(model: str) -> list[str]:
    index, count = named_place(model)
    if index:
        raise InputError(f"{model}: shard {index + 1} of {count}, wanted the first: {_shard(model, 0, count)}")
    return [model] if count == 1 else [_shard(model, number, count) for number in range(count)]


def _shard(model: str, index: int, count: int) -> str:
    return shard_path(Path(model), index, count).as_posix()


def _named_file(names: Sequence[str], file: str, place: str) -> str:
    if file not in names:
        raise InputError(f"{place}: has no file {file}; {_suggest(file, [n for n in names if n.endswith('.gguf')])}")
    return file


def _model_in(folder: Path) -> Path:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    models = _models(names)
    if len(models) == 1:
        return folder / models[0]
    if models:
        raise InputError(f"{folder}: a folder with {len(models)} models; name one of them: {enumerate_names(models)}")
    if "config.json" in names:
        raise InputError(f"{folder}: a checkpoint's folder, wanted a GGUF file; `lltool convert` makes one from it")
    files = [name for name in names if name.endswith(".gguf")]
    more = f"; its files {enumerate_names(files)} are parts of models" if files else ""
    raise InputError(f"{folder}: a folder without a model, wanted a GGUF file{more}")


def _suggest(wrong: str, known: Sequence[str]) -> str:
    close = near_names(wrong, known, 1)
    return f"it has {enumerate_names(known)}" + (f"; did you mean {close[0]}?" if close else "")


def _huggingface_hub() -> Any:
    import huggingface_hub
    import huggingface_hub.constants

    return huggingface_hub


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its own errors, and those of the library that its release uses for HTTP."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return (OSError, HTTPError, ValueError)  # a wrong id and an answer that is not JSON are ValueErrors


def _cached_folder(id: str) -> Path | None:
    """The folder of the newest revision that huggingface_hub has seen of a repository, if any of it is in its cache."""
    try:
        return Path(_huggingface_hub().snapshot_download(id, allow_patterns=[], local_files_only=True))
    except _hub_errors():
        return None


def _not_there(id: str, reason: str) -> InputError:
    return InputError(f"{id}: no such file or folder, not in the Hub's cache, and {reason}")


def _explain(id: str, error: Exception) -> str:
    """Why the Hub gave nothing. Raises the error again if it is one of this machine, such as a full disk."""
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case _ if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        case errors.GatedRepoError():
            return f"the Hub gives it to registered users only: ask for it at {constants.ENDPOINT}/{id}, then {login}"
        case errors.RepositoryNotFoundError():
            return f"the Hub has no such model; check its name, or if it is private, {login}"
        case errors.HfHubHTTPError() if getattr(error.response, "status_code", None) == 401:
            return f"the Hub does not accept this login; {login}"
        case errors.HfHubHTTPError() | errors.HFValidationError():
            return f"the Hub says: {str(error).splitlines()[0]}"
        case errors.LocalEntryNotFoundError():
            return f"the Hub ({constants.ENDPOINT}) could not be reached"
        case OSError(errno=int()) if not isinstance(error, ConnectionError | TimeoutError):
            raise error
        case ValueError():
            return f"the Hub ({constants.ENDPOINT}) answered with something else than JSON"
    return f"the Hub ({constants.ENDPOINT}) could not be reached"
