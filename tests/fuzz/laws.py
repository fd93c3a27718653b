"""How the laws are tried: 2,000 examples each, the same ones on every machine and in every run."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

thorough = settings(
    max_examples=2000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SEEDS = st.integers(0, 2**32 - 1)
