"""How the laws are tried: 2,000 examples each (400 where pytest is called alone), the same ones on every machine."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.rest import examples

thorough = settings(
    max_examples=examples(2000),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SEEDS = st.integers(0, 2**32 - 1)
