"""Builds the native library with the system's C++ compiler: `python -m phloem.kernels.cpu.build`.

setup.py hands the same sources and flags to setuptools, so that an installed package has the library already. No
instruction set is asked for on the command line: kernel files ask for what they need, and the library refuses to run
where the processor lacks it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "_native.so"
# -ffp-contract=off: the same source line rounds the same way wherever the compiler places it.
COMPILE_FLAGS = ("-O3", "-std=c++17", "-pthread", "-fvisibility=default", "-ffp-contract=off", "-Wno-uninitialized")
LINK_FLAGS = ("-pthread",)


def sources() -> list[Path]:
    """The C++ files of the library, in a fixed order."""
    return sorted((HERE / "native").glob("*.cpp"))


def build(output: Path = LIBRARY, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile and link; subprocess.CalledProcessError with the compiler's words if it fails."""
    compiler = os.environ.get("CXX", "g++")
    flags = [*COMPILE_FLAGS, "-Wno-maybe-uninitialized", *extra_flags]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as threads:

        def compile_one(source: Path) -> str:
            target = str(Path(folder) / f"{source.stem}.o")
            subprocess.run([compiler, *flags, "-fPIC", "-c", str(source), "-o", target], check=True)
            return target

        objects = list(threads.map(compile_one, sources()))
        linking = output.with_name(f"{output.name}.{os.getpid()}")
        subprocess.run([compiler, "-shared", *objects, *LINK_FLAGS, *extra_flags, "-o", str(linking)], check=True)
        linking.replace(output)
    return output


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
