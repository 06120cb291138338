"""Bad days: full tables, a full ring, a killed daemon, lack of privileges, others in the way."""

import contextlib
import ctypes
import gc
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from apicost.commands import probe as command
from apicost.core.records import SnapshotKind
from apicost.ingest import bpfsys, cgroups
from apicost.ingest import probe as probing
from apicost.ingest.probe import Options, Probe, ProbeError
from tests.kernel import lab

pytestmark = pytest.mark.kernel


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def attached(folder) -> list[int]:
    """Programs on the cgroup, all three hooks."""
    place = os.open(folder, os.O_RDONLY)
    try:
        hooks = (bpfsys.CGROUP_INET_INGRESS, bpfsys.CGROUP_INET_EGRESS, bpfsys.CGROUP_SOCK_OPS)
        return [number for hook in hooks for number in bpfsys.attached(place, hook)[1]]
    finally:
        os.close(place)


def test_a_full_table_loses_no_byte(folder):
    """With room for 4 connections of 12, flows and overflow together are what a probe with room counts."""
    with (
        lab.server(folder) as port,
        Probe.open(Options(cgroup=folder)) as roomy,
        Probe.open(Options(cgroup=folder, map_entries=4)) as tiny,
    ):
        with contextlib.ExitStack() as stack:
            for sock in [stack.enter_context(connect(port)) for _ in range(12)]:
                lab.ask(sock, 1_000, 20_000)
        time.sleep(0.4)
        seen, whole = tiny.read(final=True), roomy.read(final=True)
        losses = tiny.losses()
        assert roomy.losses()["overflow_in_bytes"] == 0
    kept = seen.filter(_not_turn(seen))
    everything = whole.filter(_not_turn(whole))
    assert everything.num_rows == 12
    assert kept.num_rows < 12
    for way in ("in", "out"):
        assert losses[f"overflow_{way}_bytes"] > 0
        for unit, name in (("bytes", "wire_bytes"), ("packets", "packets")):
            counted = lab.totals(kept, f"{way}_{name}") + losses[f"overflow_{way}_{unit}"]
            assert counted == lab.totals(everything, f"{way}_{name}")


def _not_turn(table):
    return [kind != SnapshotKind.TURN for kind in table.column("kind").to_pylist()]


def test_a_full_ring_merges_turns_and_loses_no_byte(folder):
    """500 turns through a ring of one page that nobody reads: fewer turns, the same sums, and the loss counted."""
    page = os.sysconf("SC_PAGESIZE")
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder, ring_bytes=page)) as probe:
        with connect(port) as sock:
            sent = [lab.ask(sock, number, 100) for number in range(500)]
        time.sleep(0.4)
        printer = command.Printer(0)
        items = list(printer.feed(probe.read(final=True)))
        losses = probe.losses()
    turns = [item for item in items if item["type"] == "turn"]
    (flow,) = [item for item in items if item["type"] == "flow"]
    # 499 turns were ended by the next request; the last one needs no ring.
    assert losses["ring_records"] == 499
    assert losses["ring_lost"] > 400
    assert len(turns) == 500 - losses["ring_lost"]
    assert flow["in_payload_bytes"] == sum(up for up, _ in sent)
    for name in command.COUNTERS:
        assert sum(turn[name] for turn in turns) == flow[name]


def test_a_small_ring_read_often_loses_nothing(folder):
    """500 turns through the same ring, read in between: every turn, in order, across the ring's end."""
    page = os.sysconf("SC_PAGESIZE")
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder, ring_bytes=page)) as probe:
        rows = []
        with connect(port) as sock:
            for number in range(500):
                lab.ask(sock, number, 100)
                if number % 5 == 0:
                    rows += probe.read().to_pylist()
        time.sleep(0.4)
        rows += probe.read(final=True).to_pylist()
        assert probe.losses()["ring_lost"] == 0
    turns = [row for row in rows if row["kind"] == SnapshotKind.TURN]
    assert [row["turn"] for row in turns] == list(range(499))
    assert len({row["seq"] for row in turns}) == 499


def test_turns_of_connections_on_all_cpus_come_once(folder):
    """8 clients at once on whichever CPU there is, read meanwhile: each turn of each connection, none twice."""
    rows = []
    with lab.server(folder) as port, Probe.open(Options(cgroup=folder)) as probe:

        def client(number: int) -> None:
            os.sched_setaffinity(0, {number % os.cpu_count()})  # of this thread
            with connect(port) as sock:
                for _ in range(150):
                    lab.ask(sock, 50, 100)

        talk = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in talk:
            thread.start()
        while any(thread.is_alive() for thread in talk):
            rows += probe.read().to_pylist()
            time.sleep(0.002)
        rows += probe.read(final=True).to_pylist()
        losses = probe.losses()
    turns: dict[int, list[int]] = {}
    for row in rows:
        if row["kind"] == SnapshotKind.TURN:
            turns.setdefault(row["flow"], []).append(row["turn"])
    assert len(turns) == 8
    assert all(found == list(range(149)) for found in turns.values())
    assert (losses["ring_records"], losses["ring_lost"]) == (8 * 149, 0)


def test_nothing_stays_attached_after_a_kill(folder):
    """kill -9 of the process that holds the probe: the kernel detaches all three programs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "apicost.cli", "probe", "--cgroup", str(folder), "--json"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=lab.ROOT,
    )  # fmt: skip
    assert "attached" in process.stderr.readline()
    assert len(attached(folder)) == 3
    process.kill()
    process.wait()
    process.stderr.close()
    assert lab.until(lambda: not attached(folder)), attached(folder)


def test_close_detaches(folder):
    """An orderly end leaves nothing behind either, and no descriptor."""
    gc.collect()  # memory maps of a ring keep a descriptor each until they are collected
    before = len(os.listdir("/proc/self/fd"))
    with Probe.open(Options(cgroup=folder)):
        assert len(attached(folder)) == 3
    assert lab.until(lambda: not attached(folder))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


NOBODY = """
import json, sys, time, socket, resource
from pathlib import Path
from apicost.ingest import probe
p = probe.Probe.open(probe.Options(cgroup=Path(sys.argv[1]), sweep_s=0.05))
probe.drop_privileges("nobody")
try: probe.Probe.open(probe.Options(cgroup=Path(sys.argv[1])))
except probe.ProbeError as error: print(json.dumps(error.reason), flush=True)
sys.stdin.readline()
rows = p.read(final=True).to_pylist()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"uid": status["Uid"].split(), "caps": [status[n].strip() for n in ("CapEff", "CapPrm")],
    "kinds": [r["kind"] for r in rows], "out": rows[-1]["out_payload_bytes"], "losses": p.losses(),
    "libraries": "LLVM" in Path("/proc/self/maps").read_text()}), flush=True)
"""


def test_after_the_hand_over_no_privilege_is_needed(folder):
    """As nobody, without any capability and without LLVM: reads turns, sweeps, deletes closed flows, reads losses;
    and attaching anew says which capabilities that would need."""
    with lab.server(folder) as port:
        process = subprocess.Popen(
            [sys.executable, "-c", NOBODY, str(folder)], cwd=lab.ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(lab.ROOT)},
        )  # fmt: skip
        refused = json.loads(process.stdout.readline())
        with connect(port) as sock:
            lab.ask(sock, 5, 70_000)
            lab.ask(sock, 5, 5)
        time.sleep(0.4)
        out, _ = process.communicate("\n", timeout=30)
    assert "lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON" in refused
    said = json.loads(out)
    assert "0" not in said["uid"]
    assert said["caps"] == ["0000000000000000"] * 2
    assert said["kinds"] == [SnapshotKind.TURN, SnapshotKind.CLOSED]
    assert said["out"] == 70_005
    assert not said["libraries"]
    assert said["losses"]["ring_lost"] == 0


def test_no_kernel_headers_are_needed(folder, tools):
    """With every place that holds kernel or C headers hidden, the probe compiles and attaches."""
    tools("unshare")
    hidden = [p for p in ("/usr/include", "/lib/modules", "/usr/src", "/usr/local/include") if os.path.isdir(p)]
    script = "".join(f"mount -t tmpfs none {path} && " for path in hidden)
    script += f"{sys.executable} -m apicost.cli probe --cgroup {folder} --seconds 0.1 --json"
    done = lab.run("unshare", "-m", "sh", "-c", script, cwd=lab.ROOT)
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "totals"


@contextlib.contextmanager
def holder(folder):
    """A program that lets no other in, attached to a cgroup as bcc's attach_func does it."""
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0))
    terms = ctypes.create_string_buffer(b"GPL")
    attr = bpfsys.attributes(
        "IIQQIIQII16s".replace("16s", "QQ"), 8, 2, ctypes.addressof(code), ctypes.addressof(terms), 0, 0, 0, 0, 0,
        *struct.unpack("=QQ", b"the_other_one\0\0\0"),
    )  # fmt: skip
    program = bpfsys.bpf(bpfsys.PROG_LOAD, attr)
    place = os.open(folder, os.O_RDONLY)
    try:
        bpfsys.bpf(bpfsys.PROG_ATTACH, bpfsys.attributes("IIII", place, program, 0, 0))
        yield
        bpfsys.bpf(bpfsys.PROG_DETACH, bpfsys.attributes("IIII", place, program, 0, 0))
    finally:
        os.close(program)
        os.close(place)


@pytest.mark.parametrize("where", ["same", "parent"])
def test_who_keeps_the_probe_out_is_named(folder, where):
    """A program without the multi flag on the cgroup or above it: its name, its place and its process are said."""
    with lab.cgroup(folder) as inner:
        held = inner if where == "same" else folder
        with holder(held), pytest.raises(ProbeError) as caught:
            Probe.open(Options(cgroup=inner))
        assert "the_other_one" in caught.value.reason
        assert str(held) in caught.value.reason
        assert f"process {os.getpid()}" in caught.value.reason
        assert "multi" in caught.value.fix
        with Probe.open(Options(cgroup=inner)):
            assert attached(inner)


def test_a_cgroup_that_is_not_there_is_said(folder):
    """Gateway not running: the reason names the folder, the fix says to start it."""
    with pytest.raises(ProbeError, match="nowhere") as caught:
        Probe.open(Options(cgroup=folder / "nowhere"))
    assert "start the gateway" in caught.value.fix


def test_a_folder_that_is_no_cgroup_is_said(tmp_path):
    """A plain folder is refused with a word on what to name instead."""
    with pytest.raises(ProbeError, match="not a folder of a cgroup2") as caught:
        Probe.open(Options(cgroup=tmp_path))
    assert "cgroup2 mount" in caught.value.fix


def test_an_interpreter_without_bcc_is_said(folder):
    """The reason names the interpreter, the fix Debian's package and the trap of PyPI's."""
    with pytest.raises(ProbeError, match="bcc is not there") as caught:
        Probe.open(Options(cgroup=folder, loader_python=sys.executable))
    assert "python3-bpfcc" in caught.value.fix and "PyPI" in caught.value.fix
    with pytest.raises(ProbeError, match="/nowhere/python") as caught:
        Probe.open(Options(cgroup=folder, loader_python="/nowhere/python"))
    assert "loader_python" in caught.value.fix


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("int flow_in(struct __sk_buff *skb) { return *(int *)(long)skb->len; }", "refused the program flow_in"),
        ("int flow_in(struct __sk_buff *skb) { return syntax }", "could not compile"),
    ],
    ids=["verifier", "compiler"],
)
def test_a_refusal_is_said_with_its_last_words(folder, tmp_path, monkeypatch, bad, reason):
    """What the verifier or the compiler says stands in the reason."""
    for name in ("flow_events.h", "flow_probe.c"):
        shutil.copy(probing.probe_sources() / name, tmp_path)
    source = tmp_path / "flow_probe.c"
    good = "int flow_in(struct __sk_buff *skb) { return count(skb, 0); }"
    assert good in source.read_text()
    source.write_text(source.read_text().replace(good, bad))
    monkeypatch.setattr(probing, "probe_sources", lambda: tmp_path)
    with pytest.raises(ProbeError, match=reason) as caught:
        Probe.open(Options(cgroup=folder))
    assert len(caught.value.reason.splitlines()) > 2
    assert not attached(folder)


def test_ring_sizes_that_cannot_be_are_refused(folder):
    """A ring is a power of two of whole pages; anything else is said before anything is loaded."""
    for size in (0, 1_000, 3 * 4_096):
        with pytest.raises(ProbeError, match=f"ring_bytes {size}"):
            Probe.open(Options(cgroup=folder, ring_bytes=size))


def test_a_restarted_gateway_is_noticed():
    """When the cgroup is removed or made anew, the probe says that it sees nothing any more."""
    with lab.cgroup() as folder, Probe.open(Options(cgroup=folder)) as probe:
        assert probe.stale() == ""
        folder.rmdir()
        assert "gone" in probe.stale()
        folder.mkdir()
        assert "made anew" in probe.stale()


def test_the_gateway_is_found_by_its_port_and_its_pid_file(folder, tmp_path):
    """By who listens on its port, or by its master's pid file, the cgroup is the one it was started in."""
    with lab.server(folder) as port:
        assert cgroups.find_gateway_cgroup([port]) == folder
        (pid,) = cgroups.processes(folder)
        file = tmp_path / "pid"
        file.write_text(f"{pid}\n")
        assert cgroups.find_gateway_cgroup(pid_file=str(file)) == folder
        assert port in cgroups.listening_ports(pid)
    with pytest.raises(ProbeError, match=str(port)):
        cgroups.find_gateway_cgroup([port])


def test_the_doctor_tries_it(folder):
    """All checks are good on a machine where this test runs; a wrong cgroup is the one bad line."""
    with lab.server(folder):
        checks = probing.diagnose(Options(cgroup=folder))
        assert [name for name, *_ in checks] == [
            "kernel", "btf", "cgroup2", "capabilities", "bcc", "probe source", "gateway cgroup", "attach",
        ]  # fmt: skip
        assert all(good for _, good, *_ in checks), checks
    bad = [check for check in probing.diagnose(Options(cgroup=folder / "nowhere")) if not check[1]]
    assert [name for name, *_ in bad] == ["gateway cgroup"] and bad[0][3]


@pytest.mark.parametrize(
    ("held", "lacking"),
    [
        ("bpf net_admin perfmon", ""),
        ("sys_admin net_admin", ""),
        ("bpf net_admin", "CAP_PERFMON"),
        ("net_admin perfmon", "CAP_BPF"),
        ("bpf perfmon", "CAP_NET_ADMIN"),
    ],
)
def test_each_capability_that_is_needed_is_named(folder, tools, held, lacking):
    """The probe attaches with exactly these; where one is lacking, that one is named, by the doctor too."""
    tools("setpriv")
    script = (
        "import sys; from pathlib import Path; from apicost.ingest.probe import *\n"
        "options = Options(cgroup=Path(sys.argv[1]))\n"
        "print([found for name, _, found, _ in diagnose() if name == 'capabilities'][0])\n"
        "try: Probe.open(options).close(); print('attached')\n"
        "except ProbeError as error: print(error)"
    )
    bound = ",".join(["-all", *(f"+{name}" for name in held.split()), "+dac_override", "+sys_resource"])
    done = subprocess.run(
        ["setpriv", f"--bounding-set={bound}", sys.executable, "-c", script, str(folder)],
        cwd=lab.ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(lab.ROOT)},
    )  # fmt: skip
    doctor, *said = done.stdout.splitlines()
    if lacking:
        assert f"lacks {lacking}" in said[0] and f"lacking: {lacking} " in doctor
    else:
        assert said == ["attached"], done.stdout + done.stderr


def test_the_command_says_why_it_cannot(folder):
    """Exit 2 with reason and fix on standard error, nothing on standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "apicost.cli", "probe", "--cgroup", str(folder / "nowhere"), "--json"],
        capture_output=True, text=True, cwd=lab.ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "fix:" in done.stderr


def test_the_command_ends_with_its_totals_when_interrupted(folder):
    """Ctrl-C is an orderly end: exit 0, totals last."""
    process = subprocess.Popen(
        [sys.executable, "-m", "apicost.cli", "probe", "--cgroup", str(folder), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=lab.ROOT,
    )  # fmt: skip
    assert "attached" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and json.loads(out)["type"] == "totals"
