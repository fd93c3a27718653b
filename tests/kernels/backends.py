"""The native backend as a parameter of tests: skipped, with the reason, where the library is not built."""

import pytest

from rto_fast.kernels.common import native

needs_native = pytest.mark.skipif(not native.available(), reason=native.missing() or "")
NATIVE = pytest.param("native", marks=needs_native)
