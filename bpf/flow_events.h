// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What the kernel side and user space agree on: the layout of a flow and of a loss slot.
//
// Rules of this file:
// - `apicost/ingest/wire.py` states the same layout as NumPy dtypes; tests/wire/test_layout.py compiles
//   this file and compares every offset. Change both, then WIRE_VERSION.
// - Addresses are in network order as two halves, IPv4 mapped into IPv6 (::ffff:a.b.c.d).
//   Ports are in host order. Times are CLOCK_MONOTONIC nanoseconds. 0 is "none so far".
// - All counters are cumulative since the flow began.
#ifndef APICOST_FLOW_EVENTS_H
#define APICOST_FLOW_EVENTS_H

#include <linux/types.h>

#define WIRE_VERSION 3

// Sizes that the loader may override with -D.
#ifndef FLOW_ENTRIES
#define FLOW_ENTRIES 49152 // 256 B + 56 B of the kernel's own each = 14.6 MiB
#endif
#ifndef SEATS
#define SEATS 16384 // power of two, 2 at least; 256 B each = 4 MiB
#endif
#ifndef HANDSHAKE_ENTRIES
#define HANDSHAKE_ENTRIES 16384
#endif
#ifndef BATCHES
#define BATCHES 256 // two for each CPU; 3,392 B each
#endif
#ifndef RING_PAGES
#define RING_PAGES 2048 // 4 KiB each = 8 MiB, 40,234 turns
#endif

enum flow_role { ROLE_UNKNOWN = 0, ROLE_DOWNSTREAM = 1, ROLE_UPSTREAM = 2 };

enum flow_kind {
    KIND_LIVE = 0, // a flow in the table
    KIND_TURN = 1, // a finished turn: the next one began
};

// One direction of a flow, as the gateway sees it: one cache line.
struct direction {
    __u64 wire_bytes;        // IP packet lengths as segmented on the wire
    __u64 packets;           // segments on the wire
    __u64 payload_bytes;     // how far the stream advanced: the highest sequence end, less sequence_base
    __u64 resent_bytes;      // payload that had been sent before
    __u64 turn_first_ns;     // first new payload of the turn that is open; 0 none
    __u64 turn_last_ns;      // last one
    __u32 resent_packets;    // segments with nothing but payload sent before
    __u32 sequence_base;     // sequence number of payload byte 0; meaningless until SIDE_SEQUENCED
    __u32 hole_bytes;        // passed over by payload_bytes and not seen yet: lost before the gateway
    __u8 state;              // SIDE_* bits
    __u8 tcp_flags;          // all flags seen, or-ed
    __u8 ttl_min;            // hop limit for IPv6; 0 none seen; inbound only
    __u8 ttl_max;
};

#define SIDE_SEQUENCED 1     // sequence_base is known
#define SIDE_REQUESTS 2      // requests go this way

// A connection (or a UDP peer of one socket), from its first packet on: four cache lines, the second and
// third of them one direction each.
struct flow_event {
    __u64 sock;              // in a seat: the kernel's socket, by which its packets find it; else 0
    // A finished turn's record begins here: the kernel's addresses stay with the table.
    __u64 last_ns;           // last packet; bare acknowledgements coming in aside
    __u64 flow;              // socket cookie; UDP: bit 63 set and a mix of cookie and peer
    __u64 seq;               // of a finished turn: its batch << BATCH_SHIFT | its number there, from 1; else 0
    __u64 local[2];
    __u64 peer[2];
    struct direction in;
    struct direction out;
    __u16 local_port;
    __u16 peer_port;
    __u8 protocol;           // IANA: 6 TCP, 17 UDP
    __u8 role;               // enum flow_role
    __u8 kind;               // enum flow_kind
    __u8 watched;            // 1: sock_ops will tell when this connection closes
    __u32 turn;              // index of the open turn, from 0
    __u32 srtt_us;           // smoothed round-trip time at the last look; 0 unknown
    __u64 born_ns;
    // A finished turn's record ends here.
    __u64 closed_ns;         // when the socket went to CLOSE; packets may still follow (a reset)
    __u8 close_state;        // TCP state it came from when it closed (kernel's numbering)
    __u8 reserved[31];
};

#define TURN_BYTES 208
#define TURNS_TOGETHER 16
#define BATCH_SHIFT 40

// Where a CPU gathers finished turns. Turn number n is at n % TURNS_TOGETHER; when that is the last place, all
// of them go to the ring as one record. User space reads here what has not gone yet.
struct turn_batch {
    __u64 busy;              // 1: a program is writing here
    __u64 next;              // turns gathered, ever; those below are complete
    __u64 sent;              // `next` when the ring last took them; what lies between was refused or is still here
    __u64 unused[5];
    __u64 turns[416];        // TURNS_TOGETHER times TURN_BYTES
};

// Who is shaking hands: the listener's packets are found by this and given to their connection.
struct handshake_key {
    __u64 local[2];
    __u64 peer[2];
    __u16 local_port;
    __u16 peer_port;
    __u32 zero;
};

// Bytes that belong to no flow, by reason, and what else was lost.
struct slot {
    __u64 in_wire_bytes;
    __u64 out_wire_bytes;
    __u64 in_payload_bytes;
    __u64 out_payload_bytes;
    __u64 in_packets;
    __u64 out_packets;
};

enum slot_index {
    SLOT_OVERFLOW = 0,       // the flow table is full
    SLOT_HANDSHAKE = 1,      // the handshake table is full
    SLOT_NO_SOCKET = 2,      // a packet without a socket cookie
    SLOT_OTHER = 3,          // neither TCP nor UDP, or headers that don't parse
    SLOT_RING = 4,           // out_packets: finished turns that found both batches of their CPU busy: lost
    SLOTS = 5,
};

#endif
