"""Finding the gateway's cgroup, on a made-up /proc."""

import pytest

from apicost.ingest import cgroups
from apicost.ingest.cgroups import ProbeError

MOUNTS = """tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0
"""


@pytest.fixture
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "PROC", tmp_path)
    (tmp_path / "mounts").write_text(MOUNTS)

    def process(pid: int, text: str) -> None:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(text)

    return process


def test_the_mount_is_found_on_a_hybrid_system(proc):
    """The second hierarchy beside version 1 is found, its name unescaped."""
    assert str(cgroups.mount()) == "/sys/fs/cgroup/uni fied"


def test_a_machine_without_cgroup2_is_said(proc, tmp_path):
    """The fix says how to mount it."""
    (tmp_path / "mounts").write_text(MOUNTS.replace("cgroup2 rw", "other rw"))
    with pytest.raises(ProbeError, match="no cgroup2") as caught:
        cgroups.mount()
    assert "mount -t cgroup2" in caught.value.fix


def test_a_process_is_in_its_version_2_cgroup(proc):
    """The line that begins with 0:: counts, not those of version 1."""
    proc(10, "4:memory:/elsewhere\n0::/system.slice/apisix.service\n")
    assert str(cgroups.of_process(10)).endswith("/uni fied/system.slice/apisix.service")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("0::/\n", "root cgroup"), ("1:cpu:/x\n", "root cgroup"), ("0::/gone (deleted)\n", "was removed")],
)
def test_a_process_that_cannot_be_told_apart_is_said(proc, text, reason):
    """In the root cgroup, probing would count the machine; the fix is a start inside a cgroup, not a move."""
    proc(11, text)
    with pytest.raises(ProbeError, match=reason) as caught:
        cgroups.of_process(11)
    assert caught.value.fix


def test_a_process_that_is_not_there_is_said(proc):
    """Gateway not running yet."""
    with pytest.raises(ProbeError, match="no process 12"):
        cgroups.of_process(12)
    with pytest.raises(ProbeError, match="no process number"):
        cgroups.find_gateway_cgroup(pid_file="/nowhere/pid")
