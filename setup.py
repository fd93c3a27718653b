"""Maps every kernels/<op>/ folder to the package rto_fast.kernels.<op>; all else is in pyproject.toml.

kernels/ itself must never hold an __init__.py: a package of that name would shadow Hugging Face's `kernels`,
which transformers imports.
"""

from setuptools import find_packages, setup

ops = find_packages("kernels")

setup(
    packages=[*find_packages(include=["rto_fast*"]), *(f"rto_fast.kernels.{op}" for op in ops)],
    package_dir={f"rto_fast.kernels.{op}": f"kernels/{op.replace('.', '/')}" for op in ops},
)
