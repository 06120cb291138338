"""Folders for passing files: gone at the end, and after a kill gone at the next start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apicost import scratch
from apicost.store import duck

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, tempfile
sys.path.insert(0, {root!r})
tempfile.tempdir = {place!r}
{code}
"""


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def killed_in(place: Path, code: str) -> list[str]:
    """Runs code that prints a line and waits, kills it there; what it left in `place`."""
    script = HOLD.format(root=str(ROOT), place=str(place), code=code)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        before = names(place)
        assert scratch.sweep("spill", place) == [] == scratch.sweep("duckdb", place)  # it lives
        assert names(place) == before
        child.send_signal(signal.SIGKILL)
    return names(place)


def test_it_is_gone_at_the_end(tmp_path):
    """With what is in it, also where its user failed."""
    with pytest.raises(KeyError), scratch.folder("spill", tmp_path) as path:
        (path / "inner").mkdir()
        (path / "inner" / "file").touch()
        assert names(tmp_path) == [path.name]
        raise KeyError
    assert names(tmp_path) == []


def test_the_next_one_removes_what_a_killed_process_left(tmp_path):
    """And nothing that is in use, of another purpose, a link, or merely named alike."""
    other, target = tmp_path / "apicost-other-1", tmp_path / "target"
    link, file = tmp_path / "apicost-spill-link", tmp_path / "apicost-spill-file"
    other.mkdir()
    target.mkdir()
    link.symlink_to(target)
    file.touch()
    kept = names(tmp_path)
    code = "from apicost import scratch\nwith scratch.folder('spill'):\n    print('held', flush=True); input()"
    assert len(killed_in(tmp_path, code)) == len(kept) + 1
    with scratch.folder("spill", tmp_path) as mine, scratch.folder("spill", tmp_path) as second:
        assert names(tmp_path) == sorted([*kept, mine.name, second.name])
    assert names(tmp_path) == kept


def test_another_users_folder_stays(tmp_path):
    """In a folder that all may write to, only one's own is removed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder to another user")
    theirs = tmp_path / "apicost-spill-theirs"
    theirs.mkdir()
    os.chown(theirs, 65_534, 65_534)
    assert scratch.sweep("spill", tmp_path) == []
    assert theirs.exists()


def test_what_duckdb_spilled_before_a_kill_goes_with_the_next_session(tmp_path):
    """A compaction spills beside the ledger's files; the next one clears up after a killed one."""
    code = (
        "from apicost.store import duck\n"
        f"with duck.session(memory_mb=64, spill_in={str(tmp_path)!r}) as connection:\n"
        "    relation = connection.sql('select range as a, hash(range) as b from range(6000000) order by b')\n"
        "    rows = relation.to_arrow_reader(1000)\n"
        "    next(rows)\n"
        "    print('held', flush=True); input()"
    )
    (left,) = killed_in(tmp_path, code)
    assert names(tmp_path / left), "nothing was spilled: this test shows nothing"
    with duck.session(spill_in=tmp_path) as connection:
        assert connection.execute("select 1").fetchall() == [(1,)]
        assert left not in names(tmp_path)
    assert names(tmp_path) == []


def test_nothing_makes_a_temporary_folder_of_its_own():
    """Every passing folder of the program is one that the next start clears up."""
    found = [path.name for path in (ROOT / "apicost").rglob("*.py") if "mkdtemp" in path.read_text()]
    found += [path.name for path in (ROOT / "apicost").rglob("*.py") if "TemporaryDirectory" in path.read_text()]
    assert found == ["scratch.py"]
