"""What keeps the sidecar's resident set small."""

import subprocess
import sys

PROGRAM = """
import sys
from apicost import memory
memory.tame()
import pyarrow as pa
import pyarrow.parquet as pq

def work():
    sink = pa.BufferOutputStream()
    table = pa.table({"a": pa.array([3, 1, None]), "b": pa.array(["x", "y", "x"]).dictionary_encode()})
    pq.write_table(table, sink, compression="zstd")
    return pq.read_table(pa.BufferReader(sink.getvalue())).sort_by("a").to_pydict()

once = work()
before = memory.resident_bytes()
memory.give_back_library_pages()
after = memory.resident_bytes()
assert work() == once == {"a": [1, 3, None], "b": ["y", "x", "x"]}
print(before - after, memory.resident_bytes() - after, int("pandas" in sys.modules))
"""


def measured() -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    return [int(word) for word in done.stdout.split()]


def test_pages_of_libraries_are_given_back_and_come_back_where_they_are_used():
    """What only loading touched leaves the resident set for good; the libraries work on as before."""
    given_back, came_back, _ = measured()
    assert given_back > 20_000_000
    assert came_back < given_back * 3 // 4


def test_pandas_stays_out():
    """Arrow's tables are made, written and read without loading pandas."""
    *_, pandas = measured()
    assert pandas == 0
