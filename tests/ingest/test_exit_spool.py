"""Files that stopped gateway workers left: taken once, removed when durable, set aside when bad."""

import contextlib
import os

import pytest

from apicost.ingest.exit_spool import pick_up
from apicost.ingest.spool import Spool, SpoolError
from bench import receiver_workload as sample


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "exit"
    path.mkdir()
    return path


@pytest.fixture
def spool(tmp_path):
    with contextlib.closing(Spool.open(tmp_path / "spool")) as opened:
        yield opened


def lines_of(spool):
    return sorted(spool.read(spool.sealed())[1]["line_no"].to_pylist())


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_are_taken_and_removed(folder, spool):
    """One batch or several in a file; a file still being written (.tmp) waits."""
    (folder / "a.usage").write_bytes(sample.realistic(3, first=1) + sample.realistic(3, first=4))
    (folder / "b.usage").write_bytes(sample.realistic(3, first=7))
    (folder / "c.usage.tmp").write_bytes(sample.realistic(3, first=10))
    found = pick_up(folder, spool)
    assert (found.files, found.accepted, found.duplicates, found.refused_files) == (2, 9, 0, 0)
    assert lines_of(spool) == list(range(1, 10))
    assert names(folder) == ["c.usage.tmp"]


def test_a_batch_that_was_also_posted_counts_once(folder, spool):
    """The worker could not know whether its last post had arrived."""
    body = sample.realistic(3)
    (folder / "a.usage").write_bytes(body)
    pick_up(folder, spool)
    (folder / "a.usage").write_bytes(body)
    found = pick_up(folder, spool)
    assert (found.accepted, found.duplicates) == (0, 3)
    assert lines_of(spool) == [1, 2, 3] and names(folder) == []


def test_a_torn_file_keeps_its_good_lines(folder, spool):
    """The disk filled up while the worker wrote."""
    (folder / "a.usage").write_bytes(sample.realistic(3)[:-40])
    found = pick_up(folder, spool)
    assert (found.accepted, found.refused_lines, found.refused_files) == (2, 1, 0)
    assert names(folder) == []


def test_a_bad_file_is_set_aside_and_stops_nothing(folder, spool, caplog):
    """Moved to refused/ with the reason in the log; the next file is taken."""
    (folder / "a\nb.usage").write_bytes(b"\x00\xffnonsense")
    (folder / "c.usage").write_bytes(b"")
    (folder.parent / "elsewhere").write_bytes(sample.realistic(3, first=100))
    os.symlink(folder.parent / "elsewhere", folder / "d.usage")
    (folder / "e.usage").mkdir()
    os.mkfifo(folder / "f.usage")
    (folder / "z.usage").write_bytes(sample.realistic(3))
    found = pick_up(folder, spool)
    assert (found.files, found.accepted, found.refused_files) == (1, 3, 5)
    assert sorted(os.listdir(folder / "refused")) == ["a\nb.usage", "c.usage", "d.usage", "e.usage", "f.usage"]
    assert all("\n" not in record.getMessage() for record in caplog.records) and len(caplog.records) >= 5


def test_a_full_disk_leaves_the_files_where_they_are(folder, spool, monkeypatch):
    """They are taken when there is room."""
    (folder / "a.usage").write_bytes(sample.realistic(3))

    def full(batches):
        raise SpoolError(28, "No space left on device")

    monkeypatch.setattr(spool, "add_lines", full)
    assert pick_up(folder, spool).files == 0 and names(folder) == ["a.usage"]
    monkeypatch.undo()
    assert pick_up(folder, spool).accepted == 3


def test_a_missing_folder_is_an_empty_one(folder, spool):
    """Most gateways never left a file."""
    assert pick_up(folder / "none", spool).files == 0
