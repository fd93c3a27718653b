"""The real material beside a checkout; tests that need it are skipped where it is not there."""

from pathlib import Path

import pytest

FOLDERS = [p / "shared/data" for p in Path(__file__).resolve().parents[2:5]]
DATA = next((p for p in FOLDERS if p.is_dir()), None)
needs_data = pytest.mark.skipif(DATA is None, reason="the real data (../shared/data) is not beside this checkout")
