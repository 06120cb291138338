"""Large files written past the page cache."""

from pathlib import Path

import pytest

from apicost import bulk

PLACES = [None, Path("/dev/shm")]  # the second is no disk: direct writes are refused there


@pytest.mark.parametrize("place", PLACES, ids=["disk", "memory"])
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (bulk.BLOCK,), (bulk.BLOCK - 1, 2), (3 * bulk.BLOCK + 5, 7, 0, 1)])
def test_a_file_holds_what_was_appended(place, sizes, tmp_path):
    """Whatever the sizes of the parts, and whether or not the file system takes direct writes."""
    path = (place or tmp_path) / f"apicost-{tmp_path.name}"
    parts = [
        bytes((number + i) % 251 for i in range(min(size, 300))) * (size // 300 + 1)
        for number, size in enumerate(sizes)
    ]
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    try:
        with bulk.writer(path) as append:
            for part in parts:
                append(memoryview(part))
        assert path.read_bytes() == b"".join(parts)
    finally:
        path.unlink()


def test_a_file_that_can_not_be_made_is_an_error(tmp_path):
    """A folder that is not there raises OSError and leaves nothing."""
    with pytest.raises(OSError), bulk.writer(tmp_path / "none" / "file"):
        pass
    assert not list(tmp_path.iterdir())
