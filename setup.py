"""Maps every kernels/<op>/ folder to the package rto_fast.kernels.<op>, and compiles csrc/; the rest: pyproject.toml.

kernels/ itself must never hold an __init__.py: a package of that name would shadow Hugging Face's `kernels`,
which transformers imports.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

COMPILE = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
# no product and sum become one operation with one rounding, and nothing is linked with -ffast-math, which would flush
# denormal numbers to zero in the whole process
COMPILE += ["-ffp-contract=off"]
LEVELS = {"plain": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS["avx2"] = ["-mavx2"]
    LEVELS["avx512"] = [f"-mavx512{x}" for x in ("f", "dq", "vl", "bw")] + ["-mprefer-vector-width=512"]


def compile_library(sources: list[str], objects: Path, library: Path) -> None:
    """Every source at every level into one shared library; CXX, CXXFLAGS and LDFLAGS count.

    OSError without a compiler, CalledProcessError where it fails.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or "c++"]
    flags = shlex.split(os.environ.get("CXXFLAGS", ""))
    link = shlex.split(os.environ.get("LDFLAGS", ""))
    sources = [str(Path(s).resolve()) for s in sources]

    def compile_level(level: str, openmp: list[str]) -> list[Path]:
        folder = objects / level
        folder.mkdir(parents=True, exist_ok=True)
        # library.cpp asks which CPU this is and is there once
        own = [s for s in sources if level == "plain" or not s.endswith("library.cpp")]
        command = [*compiler, *COMPILE, *openmp, *LEVELS[level], f"-DLEVEL={level}", *flags, "-c", *own]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        return [folder / Path(s).with_suffix(".o").name for s in own]

    def build(openmp: list[str]) -> None:
        with ThreadPoolExecutor() as pool:
            built = [o for part in pool.map(lambda level: compile_level(level, openmp), LEVELS) for o in part]
        command = [*compiler, "-shared", *openmp, *flags, *link, "-o", str(library), *map(str, built)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    library.parent.mkdir(parents=True, exist_ok=True)
    try:
        build(["-fopenmp"])
    except subprocess.CalledProcessError:
        # a compiler without OpenMP: one thread
        build([])


class BuildNative(build_ext):
    """Builds the native library, or says in one line that it cannot: nothing needs it."""

    def get_ext_filename(self, fullname: str) -> str:
        # loaded with ctypes: it depends on no version of Python
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.unlink(missing_ok=True)
        try:
            compile_library(ext.sources, Path(self.build_temp).resolve(), library)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
            print(f"rto_fast: csrc/ is not built, CPUs will run the torch paths: {reason}", file=sys.stderr)


class Wheel(bdist_wheel):
    """One wheel for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


ops = find_packages("kernels")

setup(
    packages=[*find_packages(include=["rto_fast*"]), *(f"rto_fast.kernels.{op}" for op in ops)],
    package_dir={f"rto_fast.kernels.{op}": f"kernels/{op.replace('.', '/')}" for op in ops},
    ext_modules=[
        Extension(
            "rto_fast.librto_fast",
            sorted(map(str, Path("csrc").glob("*.cpp"))),
            depends=sorted(map(str, Path("csrc").glob("*.h"))),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
