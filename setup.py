"""Builds the one optional native extension; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path(__file__).parent / "src" / "phloem" / "kernels" / "cpu"


class BuildNative(build_ext):
    """Leaves compiler and flags to kernels/cpu/build.py. Without a working compiler the package falls back to torch."""

    def get_ext_filename(self, ext_name: str) -> str:
        """One name for every Python: the library has a plain C interface and is loaded with ctypes."""
        return ext_name.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile, or say why not and go on."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.editable_mode:  # setuptools copies over it, under the feet of engines that run: let them keep theirs
            (CPU / "_native.so").unlink(missing_ok=True)
        try:
            _build_script().build(target)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            self.warn(f"native CPU kernels were not built, torch is used instead: {error}")


def _build_script() -> ModuleType:
    """kernels/cpu/build.py by path: the package itself cannot be imported while it is being installed."""
    spec = importlib.util.spec_from_file_location("phloem_native_build", CPU / "build.py")
    if spec is None or spec.loader is None:
        raise OSError(f"{CPU / 'build.py'} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sources = sorted(str(path.relative_to(Path(__file__).parent)) for path in (CPU / "native").glob("*.cpp"))
setup(
    ext_modules=[Extension("phloem.kernels.cpu._native", sources=sources, optional=True)],
    cmdclass={"build_ext": BuildNative},
)
