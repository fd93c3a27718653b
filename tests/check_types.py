"""The types of rto_fast/ and kernels/, checked by mypy: `python -m tests.check_types`. Settings: pyproject.toml.

mypy looks for rto_fast.kernels.<op> in the folder rto_fast/kernels/ and cannot follow the door that adds kernels/ to
the package's path. So it reads a copy that is laid out like a wheel, and its messages name the files they come from.
Exit status 1 when there are errors.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "rto_fast"
        for source, target in ((ROOT / "rto_fast", package), (ROOT / "kernels", package / "kernels")):
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"), dirs_exist_ok=True)
        words = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
        words = [sys.executable, "-m", "mypy", *words, "-p", "rto_fast"]
        done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True)
    print(re.sub("^rto_fast/kernels/(?=[a-z_]+/)", "kernels/", done.stdout, flags=re.M), end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
