"""How long the join waits, and which ports are whose."""

from __future__ import annotations

from dataclasses import dataclass

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Waits and ports of `correlate`.

    line_wait_ns: how long a request that can't be proved waits for what would prove it, and a closed
      flow's bytes for a usage line, from their last packet.
    flow_wait_ns: how long a usage line waits for its flow, from when it was logged.
    idle_wait_ns: an open client flow that has been silent this long is not running a request (nginx closes
      idle connections after 75 s); bytes that no line claims are released as unattributed.
    stream_wait_ns: an open client flow whose bytes no line has claimed for this long is released even
      while it moves: it carries no requests, or one that runs for longer than this.
    grace_ns: a closed and settled flow is remembered this long, so that late snapshots of it are known. The
      probe says CLOSED last, so none is late but by a step; where every request has a connection of its own
      towards the backend, 5,000/s, each second of it is 1.4 MB.
    most_lines, most_turns: so many rows wait in each leg at most, whatever the waits say. Beyond that the oldest
      lines are given out as they stand, and the oldest turns without a line are no cuts of their own any more
      (downstream) or unattributed (upstream); a few turns stay of each open flow. With nothing late 20,000
      lines wait at 5,000 requests/s.
    gateway_ports: local ports that clients connect to; decide the role of a flow that is older than the probe.
    control_ports: peers on these ports are the gateway's own traffic.
    """

    line_wait_ns: int = 10 * _SECOND
    flow_wait_ns: int = 5 * _SECOND
    idle_wait_ns: int = 600 * _SECOND
    stream_wait_ns: int = 24 * 3600 * _SECOND
    grace_ns: int = 20 * _SECOND
    most_lines: int = 60_000
    most_turns: int = 100_000
    gateway_ports: tuple[int, ...] = (9080, 9443)
    control_ports: tuple[int, ...] = (2379,)
