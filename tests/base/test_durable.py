"""Files appear whole or not at all."""

import pytest

from apicost import durable


def test_a_failed_write_leaves_nothing(tmp_path):
    """The old file stays as it was and no temporary name remains."""
    target = tmp_path / "f"
    durable.write_bytes(target, b"old")

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        durable.write_file(target, fail)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_sweep_removes_only_what_was_being_written(tmp_path):
    """A start after a kill clears temporary files and names them."""
    (tmp_path / "a.parquet").write_bytes(b"x")
    (tmp_path / "b.parquet.tmp").write_bytes(b"x")
    assert [p.name for p in durable.sweep(tmp_path)] == ["b.parquet.tmp"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
