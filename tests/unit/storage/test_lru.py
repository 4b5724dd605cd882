"""The LRU cache: a maximum size in bytes, the least recently used entry first, and a time to live for each entry."""

import gc
import os
import tracemalloc

import pytest

from iris_wsgi.storage.lru import ENTRY_BYTES, LRUCache, entry_bytes

ONE = entry_bytes(b"a", b"1")


def test_an_entry_can_be_read_until_it_expires():
    cache = LRUCache(10 * ONE)
    assert cache.put(b"a", b"1", 5.0)
    assert cache.get(b"a", 4.9) == (b"1", 5.0)
    assert cache.get(b"b", 0.0) is None
    assert cache.get(b"a", 5.0) is None
    assert (cache.bytes, len(cache.entries), cache.expired, cache.evicted) == (0, 0, 1, 0)


def test_the_least_recently_used_entry_is_evicted():
    cache = LRUCache(3 * ONE)
    for key in (b"a", b"b", b"c"):
        cache.put(key, b"1", 9.0)
    cache.get(b"a", 0.0)
    cache.put(b"d", b"1", 9.0)
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.get(key, 0.0)] == [b"a", b"c", b"d"]
    assert (cache.evicted, cache.bytes) == (1, 3 * ONE)


def test_a_replaced_entry_is_stored_once():
    cache = LRUCache(3 * ONE)
    for value in (b"1", b"2", b"3333"):
        cache.put(b"a", value, 9.0)
    assert cache.get(b"a", 0.0) == (b"3333", 9.0)
    assert (cache.bytes, cache.evicted) == (entry_bytes(b"a", b"3333"), 0)


def test_an_entry_larger_than_the_cache_is_not_stored_and_evicts_nothing():
    cache = LRUCache(3 * ONE)
    cache.put(b"a", b"1", 9.0)
    assert not cache.put(b"b", bytes(3 * ONE), 9.0)
    assert cache.get(b"a", 0.0) and cache.get(b"b", 0.0) is None
    assert not cache.put(b"a", bytes(3 * ONE), 9.0)
    assert cache.get(b"a", 0.0) is None and cache.bytes == 0


def test_the_cache_never_exceeds_its_size_and_counts_its_bytes_exactly():
    cache = LRUCache(20 * ONE)
    for i in range(2000):
        cache.put(b"%d" % (i * 7919 % 97), bytes(i % 50), 9.0)
        assert cache.bytes <= cache.max_bytes
        assert cache.bytes == sum(entry_bytes(key, entry[0]) for key, entry in cache.entries.items())


def test_a_cleared_cache_is_empty():
    cache = LRUCache(3 * ONE)
    cache.put(b"a", b"1", 9.0)
    cache.clear()
    assert (cache.bytes, len(cache.entries), cache.get(b"a", 0.0)) == (0, 0, None)


@pytest.mark.parametrize(
    "count", [1000, 11_000, *(pytest.param(count, marks=pytest.mark.long) for count in (21_000, 22_000, 43_000, 44_000))]
)
def test_an_entry_needs_about_its_estimated_memory_and_no_more(count):
    pairs = [(os.urandom(16), os.urandom(12)) for _ in range(count)]
    gc.collect()
    tracemalloc.start()
    try:
        cache = LRUCache(1 << 40)
        before = tracemalloc.get_traced_memory()[0]
        for key, value in pairs:
            cache.put(bytes(bytearray(key)), bytes(bytearray(value)), 9.0 + len(cache.entries))
        bytes_per_entry = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert 0.7 * ENTRY_BYTES < bytes_per_entry - 28 <= ENTRY_BYTES
