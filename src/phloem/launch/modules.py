"""Python code of the operator's or the author's own, from a file or by its module's name. Never of a client's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from phloem.core.errors import ConfigError


def load_module(where: str, *, field: str) -> ModuleType:
    """Run a `.py` file, or import a module; the current folder counts. ConfigError, naming `field`, says what is wrong
    with it."""
    try:
        if where.endswith(".py"):
            return _from_file(Path(where))
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    except OSError as error:
        raise ConfigError(f"cannot read {where}: {error.strerror}", field=field) from error
    except Exception as error:
        raise ConfigError(f"{where} cannot be imported: {type(error).__name__}: {error}", field=field) from error


def _from_file(path: Path) -> ModuleType:
    path.read_bytes()  # OSError, if it is one
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
