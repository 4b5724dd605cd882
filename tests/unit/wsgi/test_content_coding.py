"""Compressed bodies: supported codings, refused ones, and the memory of a decompression bomb."""

import gzip
import io
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_wsgi.errors import BadRequest, ContentTooLarge, Problem, UnsupportedMediaType
from iris_wsgi.wsgi.body import MIN_BYTES, compress, decompress, negotiate

TEXT = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}' * 50
LIMIT = 1_048_576


def raw_deflate(content: bytes, level: int = 6) -> bytes:
    return zlib.compress(content, level, -15)


def with_name_and_time(content: bytes) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile("rows.json", "wb", fileobj=file, mtime=1e9) as stream:
        stream.write(content)
    return file.getvalue()


TAKEN = {
    "no coding": (TEXT, None),
    "identity": (TEXT, "identity"),
    "identity in capitals": (TEXT, " Identity "),
    "gzip": (gzip.compress(TEXT), "gzip"),
    "gzip in capitals": (gzip.compress(TEXT), "GZip"),
    "gzip with blanks around": (gzip.compress(TEXT), " gzip\t"),
    "x-gzip": (gzip.compress(TEXT), "x-gzip"),
    "gzip with a name and a time": (with_name_and_time(TEXT), "gzip"),
    "gzip without compression": (gzip.compress(TEXT, 0), "gzip"),
    "deflate in zlib's format": (zlib.compress(TEXT), "deflate"),
    "deflate in zlib's format, small window": (zlib.compress(TEXT, wbits=9), "deflate"),
    "deflate as a bare stream": (raw_deflate(TEXT), "deflate"),
    "deflate as a bare stream, stored": (raw_deflate(TEXT, 0), "deflate"),
    "deflate as a bare stream, fast": (raw_deflate(TEXT, 1), "deflate"),
}

GZIPPED, DEFLATED, BARE = gzip.compress(TEXT), zlib.compress(TEXT), raw_deflate(TEXT)
BAD_SUM = GZIPPED[:-8] + b"\0\0\0\0" + GZIPPED[-4:]

DAMAGED = {
    "gzip of nothing": (b"", "gzip", "ends before"),
    "deflate of nothing": (b"", "deflate", "ends before"),
    "gzip that is JSON": (TEXT, "gzip", "damaged"),
    "deflate that is JSON": (TEXT, "deflate", "damaged"),
    "gzip that is deflate": (DEFLATED, "gzip", "damaged"),
    "deflate that is gzip": (GZIPPED, "deflate", "damaged"),
    "gzip, a head alone": (GZIPPED[:10], "gzip", "ends before"),
    "gzip, half": (GZIPPED[: len(GZIPPED) // 2], "gzip", "ends before"),
    "gzip without its checksum": (GZIPPED[:-8], "gzip", "ends before"),
    "gzip without its last byte": (GZIPPED[:-1], "gzip", "ends before"),
    "gzip of another checksum": (BAD_SUM, "gzip", "damaged"),
    "gzip of another length": (GZIPPED[:-1] + b"\1", "gzip", "damaged"),
    "gzip and a byte": (GZIPPED + b"\0", "gzip", "more bytes"),
    "gzip and another member": (GZIPPED * 2, "gzip", "more bytes"),
    "gzip 50,000 times": (gzip.compress(b"") * 50_000, "gzip", "more bytes"),
    "zlib without its last byte": (DEFLATED[:-1], "deflate", "ends before"),
    "zlib and a byte": (DEFLATED + b"x", "deflate", "more bytes"),
    "zlib of another checksum": (DEFLATED[:-1] + bytes([DEFLATED[-1] ^ 1]), "deflate", "damaged"),
    "zlib with a preset dictionary": (b"\x78\xbb\0\0\0\1" + BARE, "deflate", "damaged"),
    "bare stream without its last byte": (BARE[:-1], "deflate", "ends before"),
    "bare stream and a byte": (BARE + b"x", "deflate", "more bytes"),
    "reserved block type": (b"\x07", "deflate", "damaged"),
}

ACCEPTED = {
    None: None,
    "": None,
    " ": None,
    "gzip": "gzip",
    "GZIP": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
    "gzip, deflate": "gzip",
    "deflate, gzip": "gzip",
    "gzip, deflate, br": "gzip",
    "gzip,deflate,br,zstd": "gzip",
    "br": None,
    "zstd": None,
    "br, zstd;q=0.9": None,
    "identity": None,
    "*": "gzip",
    "*;q=0": None,
    "*;q=0.1": "gzip",
    "gzip;q=0, *": "deflate",
    "gzip;q=0, deflate;q=0, *": None,
    "gzip;q=0": None,
    "gzip;q=0.0": None,
    "gzip;q=0.000": None,
    "gzip;q=0.001": "gzip",
    "gzip;q=0.5, deflate;q=0.8": "deflate",
    "gzip;q=0.8, deflate;q=0.5": "gzip",
    "gzip ; q=0.2 ,\tdeflate ; Q=0.3": "deflate",
    "gzip;q=1.000, deflate": "gzip",
    "gzip;q=0.5, identity": None,
    "gzip;q=0.5, identity;q=0.4": "gzip",
    "gzip;q=0.5, identity;q=0.5": "gzip",
    "identity;q=0": None,
    "identity;q=0, gzip;q=0.1": "gzip",
    "identity;q=0, *;q=0": None,
    "br;q=1, gzip;q=0.1": "gzip",
    "deflate, *;q=0": "deflate",
    ",,gzip,,": "gzip",
    "gzip;q=2": None,
    "gzip;q=1.001": None,
    "gzip;q=0.1234": None,
    "gzip;q=-1": None,
    "gzip;q=x": None,
    "gzip;q=": None,
    "gzip;level=9": None,
    "gzip;q=1;x=y": None,
    "gzip deflate": None,
    "gz\xefp": None,
    "gzip;q=\u0661": None,
    "," * 8000: None,
    "gzip" + " " * 8000 + "x": None,
}


@pytest.mark.parametrize(("body", "coding"), TAKEN.values(), ids=TAKEN.keys())
def test_gzip_and_both_kinds_of_deflate_are_decompressed(body, coding):
    assert decompress(body, coding, LIMIT) == TEXT


@pytest.mark.parametrize(("body", "coding", "word"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_truncated_and_trailing_data_gets_400(body, coding, word):
    with pytest.raises(BadRequest, match=word):
        decompress(body, coding, LIMIT)


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, identity", "deflate, gzip", "gzip;q=1", "", "x-x-gzip"]
)
def test_any_other_coding_and_several_get_415_with_the_supported_codings(coding):
    with pytest.raises(UnsupportedMediaType) as refused:
        decompress(GZIPPED, coding, LIMIT)
    assert refused.value.headers == (("Accept-Encoding", "gzip, deflate"),)
    assert refused.value.status == 415


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate], ids=["gzip", "zlib", "bare"])
def test_the_limit_applies_to_decompressed_bytes_and_is_exact(pack):
    coding = "gzip" if pack is gzip.compress else "deflate"
    assert decompress(pack(b"x" * 1000), coding, 1000) == b"x" * 1000
    with pytest.raises(ContentTooLarge, match="1000 bytes"):
        decompress(pack(b"x" * 1001), coding, 1000)


@pytest.mark.parametrize(("pack", "coding"), [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (raw_deflate, "deflate")])
def test_a_bomb_gets_no_more_memory_than_the_limit(pack, coding):
    bomb = pack(bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ContentTooLarge):
            decompress(bomb, coding, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 3 * LIMIT + len(bomb)
    finally:
        tracemalloc.stop()


def status_of(body: bytes, coding: str) -> int:
    try:
        decompress(body, coding, 1000)
    except Problem as problem:
        return problem.status
    return 200


@given(body=st.binary(max_size=300), coding=st.sampled_from(["gzip", "deflate"]), at=st.integers(0, 200), bit=st.integers(0, 7))
def test_no_bytes_cause_anything_except_a_client_error(body, coding, at, bit):
    damaged = bytearray(gzip.compress(body) if coding == "gzip" else zlib.compress(body))
    damaged[at % len(damaged)] ^= 1 << bit
    assert status_of(body, coding) in (200, 400, 413)
    assert status_of(bytes(damaged), coding) in (200, 400, 413)


@pytest.mark.parametrize(("accept", "coding"), ACCEPTED.items(), ids=[str(accept)[:40] for accept in ACCEPTED])
def test_the_response_has_the_coding_with_the_highest_weight(accept, coding):
    assert negotiate(accept) == coding


@pytest.mark.parametrize(("accept", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_a_response_is_compressed_as_requested_and_equal_ones_alike(accept, unpack):
    body, coding = compress(TEXT, accept)
    assert coding == accept
    assert unpack(body) == TEXT and len(body) < len(TEXT) / 5
    assert compress(TEXT, accept)[0] == body
    if accept == "gzip":
        assert body[4:8] == b"\0\0\0\0"


def test_short_responses_and_those_without_a_requested_coding_stay_as_they_are():
    short, long = bytes(MIN_BYTES - 1), bytes(MIN_BYTES)
    assert compress(short, "gzip") == (short, None)
    assert compress(long, "gzip")[1] == "gzip"
    assert compress(long, "br") == (long, None)
    assert compress(long, None) == (long, None)
