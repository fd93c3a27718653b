"""The fused operators, imported as rto_fast.kernels.<op>; their sources are the repository's kernels/<op>/ folders.

A wheel holds the operators inside this package. A checkout keeps them beside it, in the top-level kernels/ folder,
which this door adds to the package's path so that a checkout works uninstalled as well.
"""

from pathlib import Path

_root = Path(__file__).parents[2]
# pyproject.toml tells a checkout from site-packages, where a folder named kernels would be Hugging Face's package
if (_root / "pyproject.toml").is_file() and (_root / "kernels").is_dir():
    __path__.append(str(_root / "kernels"))
