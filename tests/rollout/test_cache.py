"""The bytes of the rollout's cache: in the dtype of the arithmetic, and no longer than a row can get."""

import pytest
import torch

from rto_fast.model import attention
from rto_fast.rollout import Sampling, beam_search, lane, rollout
from rto_fast.rollout.cache import RowCache
from tests.rollout.test_rollout import CONFIGS, build, ragged


@pytest.fixture
def caches(monkeypatch) -> list[RowCache]:
    made: list[RowCache] = []

    class Kept(RowCache):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(lane, "RowCache", Kept)
    return made


def numbers(name: str) -> int:
    """Of each token: a key and a value in every layer."""
    shape = CONFIGS[name]
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return 2 * shape.num_hidden_layers * heads * width


def held(cache: RowCache) -> int:
    return sum(store.untyped_storage().nbytes() for layer in cache.storage.values() for store in layer)


@pytest.mark.parametrize("name", ["neox", "llama", "qwen3"])
@pytest.mark.parametrize("max_new_tokens", [5, 66])
def test_under_autocast_a_number_takes_two_bytes_and_no_position_is_spare(name, max_new_tokens, caches):
    model, prompts = build(name), ragged(5, 1, 20)
    with torch.autocast("cpu", torch.bfloat16):
        rollout(model, prompts, Sampling(max_new_tokens=max_new_tokens), (), seed=0, max_batch=4)
    (cache,) = caches
    assert {store.dtype for layer in cache.storage.values() for store in layer} == {torch.bfloat16}
    # the last token of an answer is never written
    length = max(map(len, prompts)) + max_new_tokens - 1
    assert cache.capacity <= length
    assert held(cache) == 2 * 4 * cache.capacity * numbers(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_autocast_it_is_the_models_own(dtype, caches):
    model, prompts = build("llama").to(dtype), ragged(5, 1, 20)
    rollout(model, prompts, Sampling(max_new_tokens=66), (), seed=0, max_batch=4)
    assert held(caches[0]) == dtype.itemsize * 4 * caches[0].capacity * numbers("llama")


def test_it_grows_by_half_up_to_the_longest_that_a_row_can_get(caches, monkeypatch):
    sizes = []
    grow = RowCache._grow
    monkeypatch.setattr(RowCache, "_grow", lambda self, capacity: (sizes.append(capacity), grow(self, capacity)))
    rollout(build("llama"), [[3, 4], [5]], Sampling(max_new_tokens=120), (), seed=0)
    assert sizes == [65 * 3 // 2, 121] and caches[0].capacity == caches[0].limit == 121
    beam_search(build("llama"), [[3, 4], [5]], (), num_beams=2, max_new_tokens=120)
    assert sizes[2:] == sizes[:2] and caches[1].capacity == 121


def test_a_short_answer_takes_no_more_than_it_can(caches):
    rollout(build("llama"), [[3] * 9], Sampling(max_new_tokens=1), (), seed=0)
    assert caches[0].capacity == 9


def test_without_masks_it_is_there_at_once(caches, monkeypatch):
    """As on a GPU, where recorded steps want it to stay where it is."""
    attention.register()
    monkeypatch.setattr(lane, "_FUSED", {"cpu"})
    monkeypatch.setattr(RowCache, "_grow", None)
    rollout(build("llama", attention.NAME), [[3, 4], [5]], Sampling(max_new_tokens=120), (), seed=0)
    assert caches[0].capacity == 121 and held(caches[0]) == 4 * 2 * 121 * numbers("llama")
