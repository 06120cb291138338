// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Counts what each connection of a cgroup puts on the wire. Three programs: every packet in, every
// packet out, and what TCP says about its connections. Reads headers only, changes nothing, always
// lets the packet pass.
//
// Rules of this file:
// - A packet costs one table look-up. What is rare (birth, turn, close) is out of the way in
//   functions of its own.
// - Counters are added to atomically: the same flow is counted on several CPUs at once, and a
//   softirq can interrupt a send on the same CPU. Plain increments lost 346 to 2,076 B per 400 MB.
// - A byte that has no flow goes to a slot. Nothing is dropped silently.
// - Only UAPI types and `__sk_buff`: it compiles without kernel headers.
#include "flow_events.h"

#define IPPROTO_HOPOPTS_ 0
#define IPPROTO_TCP_ 6
#define IPPROTO_UDP_ 17
#define AF_INET_ 2
#define TCP_LISTEN_ 10
#define TCP_CLOSE_ 7

#define SYN 0x02
#define ACK 0x10

#define LET_PASS 1

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

// A sequence end further ahead than this is no lost segment but nonsense: 64 MiB is ten times
// Linux's largest default receive window.
#define MAX_JUMP (64 << 20)

// Connections now open, with their totals so far.
// Key: socket cookie. Value: the next event to send. Born at the handshake or the first packet, fed
// by both packet hooks, marked closed by sock_ops, removed by user space after close plus grace.
// Never LRU: an evicted flow would take its bytes along. When full, bytes go to SLOT_OVERFLOW.
BPF_HASH(flows, __u64, struct flow_event, FLOW_ENTRIES);

// Connections whose handshake the listener still answers for: SYN, SYN-ACK and the ACK that ends it
// carry the listener's cookie. Moved into `flows` when TCP calls the connection established;
// those that never get there are taken by user space after the kernel gave up on them.
BPF_HASH(handshakes, struct handshake_key, struct flow_event, HANDSHAKE_ENTRIES);

// Finished turns on their way to user space, each a whole flow_event. Written without a wakeup,
// which would cost 20 times the record. A record lost here merges two turns and loses no byte.
BPF_RINGBUF_OUTPUT(ring, RING_PAGES);

// Losses, by enum slot_index. Never reset.
BPF_ARRAY(slots, struct slot, SLOTS);

// One bit per TCP/UDP port that the gateway listens on; set by user space before attaching. Tells
// the side of connections older than the probe, which sock_ops never announced.
BPF_ARRAY(listening, __u64, 1024);

// What one packet's headers say.
struct packet {
    __u64 wire_bytes;
    __u32 segments;
    __u32 payload;           // in all segments together
    __u32 segment_payload;   // in one; payload where it is one segment
    __u32 sequence;          // of the first payload byte
    __u32 transport;         // offset of the TCP or UDP header
    __u8 protocol;
    __u8 tcp_flags;
    __u8 ttl;
    __u8 ipv6;
};

// Walks what is not plain IPv4 or IPv6: options, or up to four extension headers. Returns the offset of the TCP
// or UDP header and sets `protocol`, or 0. `unsent` gets the length of a jumbo header that segmentation
// takes out again (BIG TCP).
static __always_inline __u32 skip_extensions(struct __sk_buff *skb, struct packet *p, __u32 first, __u32 *unsent)
{
    __u32 offset = 40;
    __u8 next = p->protocol;
    if (!p->ipv6)
        return next == IPPROTO_TCP_ || next == IPPROTO_UDP_ ? (first & 15) * 4 : 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __u8 header[4];
        if (next == IPPROTO_TCP_ || next == IPPROTO_UDP_)
            break;
        // Hop-by-hop, routing, fragment, authentication, destination options, mobility.
        if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60 && next != 135)
            return 0;
        if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
            return 0;
        if (next == IPPROTO_HOPOPTS_ && header[1] == 0 && header[2] == 0xc2)
            *unsent = 8;
        if (next == 44)
            offset += 8;
        else if (next == 51)
            offset += (header[1] + 2) * 4;
        else
            offset += (header[1] + 1) * 8;
        next = header[0];
    }
    if (next != IPPROTO_TCP_ && next != IPPROTO_UDP_)
        return 0;
    p->protocol = next;
    return offset;
}

// Fills `p` from the headers. Returns 0, or -1 where it is neither TCP nor UDP or is cut short; then
// wire_bytes and segments are set all the same.
static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
    __u8 *data = (void *)(long)skb->data;
    __u8 *end = (void *)(long)skb->data_end;
    __u32 length = skb->len, offset, headers, unsent = 0;

    p->wire_bytes = length;
    p->segments = 1;
    if (unlikely(data + 28 > end))
        return -1;
    __u8 first = data[0];
    if (likely(first == 0x45)) {
        p->protocol = data[9];
        p->ttl = data[8];
        offset = 20;
    } else {
        p->ipv6 = first >> 4 == 6;
        p->protocol = p->ipv6 ? data[6] : data[9];
        p->ttl = p->ipv6 ? data[7] : data[8];
        offset = 40;
    }
    if (unlikely((p->protocol != IPPROTO_TCP_ && p->protocol != IPPROTO_UDP_) || (first != 0x45 && !p->ipv6))) {
        offset = skip_extensions(skb, p, first, &unsent);
        if (offset == 0 || offset > 2047) // the verifier wants a bound
            return -1;
    }
    __u8 *transport = data + offset;
    p->transport = offset;
    if (likely(p->protocol == IPPROTO_TCP_)) {
        if (unlikely(transport + 20 > end))
            return -1;
        headers = offset + (transport[12] >> 4) * 4;
        p->tcp_flags = transport[13];
        p->sequence = bpf_ntohl(*(__u32 *)(transport + 4));
        if (unlikely(p->tcp_flags & SYN))
            p->sequence++; // a SYN takes one number; payload (TCP Fast Open) comes after it
    } else {
        if (transport + 8 > end)
            return -1;
        headers = offset + 8;
    }
    if (likely(headers == length))
        return 0;
    if (unlikely(headers > length))
        return -1;
    p->payload = p->segment_payload = length - headers;

    // The stack hands over up to 64 KiB at once and the card (or the stack further down) cuts it
    // up, each piece with headers of its own. gso_segs may be 0 with gso_size set.
    __u32 size = skb->gso_size;
    if (size) {
        __u32 segments = skb->gso_segs;
        if (!segments)
            segments = (p->payload + size - 1) / size;
        if (segments > 1) {
            headers -= unsent;
            p->segments = segments;
            p->segment_payload = size;
            p->wire_bytes = length - unsent + (__u64)(segments - 1) * headers;
        }
    }
    return 0;
}

static __always_inline void add_to_slot(int index, const struct packet *p, const int out)
{
    struct slot *slot = slots.lookup(&index);
    if (!slot)
        return;
    __sync_fetch_and_add(out ? &slot->out_wire_bytes : &slot->in_wire_bytes, p->wire_bytes);
    __sync_fetch_and_add(out ? &slot->out_payload_bytes : &slot->in_payload_bytes, (__u64)p->payload);
    __sync_fetch_and_add(out ? &slot->out_packets : &slot->in_packets, (__u64)p->segments);
}

static __always_inline int is_listening(__u16 port)
{
    int word = port >> 6;
    __u64 *bits = listening.lookup(&word);
    return bits && (*bits >> (port & 63) & 1);
}

// Both addresses and ports of a packet, as the gateway sees them. `parse` has seen that they are there;
// the checks are for the verifier.
static __always_inline void addresses(struct __sk_buff *skb, const struct packet *p, const int out,
                                      struct handshake_key *key)
{
    __u8 *data = (void *)(long)skb->data;
    __u8 *end = (void *)(long)skb->data_end;
    __u64 *source = out ? key->local : key->peer;
    __u64 *target = out ? key->peer : key->local;
    __u16 *ports = (void *)(data + (p->transport & 2047));

    if (p->ipv6) {
        if (data + 40 > end)
            return;
        __u64 *address = (void *)(data + 8);
        source[0] = address[0];
        source[1] = address[1];
        target[0] = address[2];
        target[1] = address[3];
    } else {
        if (data + 20 > end)
            return;
        __u32 *address = (void *)(data + 12);
        ((__u32 *)source)[2] = ((__u32 *)target)[2] = bpf_htonl(0xffff);
        ((__u32 *)source)[3] = address[0];
        ((__u32 *)target)[3] = address[1];
    }
    if ((void *)(ports + 2) > (void *)end)
        return;
    key->local_port = bpf_ntohs(ports[out ? 0 : 1]);
    key->peer_port = bpf_ntohs(ports[out ? 1 : 0]);
}

static __always_inline void name_flow(struct flow_event *flow, const struct handshake_key *key,
                                      __u64 cookie, __u8 protocol, __u8 role, __u64 now)
{
    flow->flow = cookie;
    flow->local[0] = key->local[0];
    flow->local[1] = key->local[1];
    flow->peer[0] = key->peer[0];
    flow->peer[1] = key->peer[1];
    flow->local_port = key->local_port;
    flow->peer_port = key->peer_port;
    flow->protocol = protocol;
    flow->born_ns = flow->last_ns = now;
    flow->role = role;
    if (protocol == IPPROTO_TCP_)
        (role == ROLE_UPSTREAM ? &flow->out : &flow->in)->state = SIDE_REQUESTS;
}

// The flow of a packet whose cookie is not in the table: a handshake that its listener answers for,
// a connection older than the probe, or none when the tables are full (then it is in a slot).
static __always_inline struct flow_event *find_or_bear(struct __sk_buff *skb, const struct packet *p,
                                                       const int out, __u64 cookie, __u64 now)
{
    struct handshake_key key = {};
    struct flow_event *flow;
    struct bpf_sock *sock = skb->sk;
    __u8 listener = p->protocol == IPPROTO_TCP_ && sock && sock->state == TCP_LISTEN_;

    addresses(skb, p, out, &key);
    if (listener) {
        flow = handshakes.lookup(&key);
        if (flow)
            return flow;
    }
    struct flow_event born = {};
    name_flow(&born, &key, cookie, p->protocol,
              listener || is_listening(key.local_port) ? ROLE_DOWNSTREAM : ROLE_UPSTREAM, now);
    if (listener) {
        handshakes.insert(&key, &born);
        flow = handshakes.lookup(&key);
    } else {
        flows.insert(&cookie, &born);
        flow = flows.lookup(&cookie);
    }
    if (!flow)
        add_to_slot(listener ? SLOT_HANDSHAKE : SLOT_OVERFLOW, p, out);
    return flow;
}

// One key per UDP socket and peer. Bit 63 keeps it apart from cookies, which count up from 1.
static __always_inline __u64 udp_key(struct __sk_buff *skb, const struct packet *p, const int out, __u64 cookie)
{
    struct handshake_key key = {};
    addresses(skb, p, out, &key);
    __u64 mix = cookie * 0x9e3779b97f4a7c15ULL;
    mix = (mix ^ mix >> 29 ^ key.peer[0]) * 0xbf58476d1ce4e5b9ULL;
    mix = (mix ^ mix >> 32 ^ key.peer[1]) * 0x94d049bb133111ebULL;
    mix = (mix ^ mix >> 29 ^ key.peer_port) * 0x9e3779b97f4a7c15ULL;
    return mix | 1ULL << 63;
}

// Ends the open turn: sends the flow as it is, before the packet that begins the next is counted.
static __always_inline void end_turn(struct __sk_buff *skb, struct flow_event *flow)
{
    int index = SLOT_RING;
    struct slot *slot = slots.lookup(&index);
    struct bpf_sock *sock = skb->sk;

    if (sock && flow->turn % 16 == 0) { // it is smoothed anyway
        struct bpf_sock *full = bpf_sk_fullsock(sock);
        if (full) {
            struct bpf_tcp_sock *tcp = bpf_tcp_sock(full);
            if (tcp)
                flow->srtt_us = tcp->srtt_us >> 3;
        }
    }
    if (slot)
        flow->seq = __sync_fetch_and_add(&slot->in_packets, 1) + 1;
    flow->kind = KIND_TURN;
    if (ring.ringbuf_output(flow, RING_RECORD_BYTES, BPF_RB_NO_WAKEUP) && slot)
        __sync_fetch_and_add(&slot->out_packets, 1);
    flow->kind = KIND_LIVE;
    flow->turn++;
    flow->in.turn_first_ns = flow->in.turn_last_ns = 0;
    flow->out.turn_first_ns = flow->out.turn_last_ns = 0;
}

// How many of a TCP packet's payload bytes are new: how far it moves the end of the stream. What it
// leaps over counts as new at once and is remembered as a hole, so that the count is the position in
// the stream even when a segment was lost on its way to the gateway; what fills the hole later is
// neither new nor resent.
static __always_inline __u32 sequence(struct direction *side, const struct packet *p)
{
    __u32 end = p->sequence + p->payload, fresh = p->payload, old;
    if (unlikely(!(side->state & SIDE_SEQUENCED))) {
        side->sequence_end = end;
        side->state |= SIDE_SEQUENCED;
        return fresh;
    }
    __s32 ahead = end - side->sequence_end;
    if (ahead > MAX_JUMP)
        ahead = 0;
    fresh = ahead > 0 ? ahead : 0;
    if (fresh)
        side->sequence_end = end;
    if (fresh == p->payload)
        return fresh; // what nearly every packet is
    if (fresh > p->payload) {
        side->hole_bytes += fresh - p->payload;
        return fresh;
    }
    old = p->payload - fresh;
    if (side->hole_bytes) {
        __u32 fill = side->hole_bytes < old ? side->hole_bytes : old;
        side->hole_bytes -= fill;
        old -= fill;
    }
    if (old) {
        __sync_fetch_and_add(&side->resent_bytes, (__u64)old);
        // Whole segments of it; the last may be shorter than the others.
        __u32 whole = fresh ? old / (p->segment_payload ?: 1)
                            : (old + p->segment_payload - 1) / (p->segment_payload ?: 1);
        __sync_fetch_and_add(&side->resent_packets, whole);
    }
    return fresh;
}

// When a packet passes; 0 for a bare acknowledgement coming in, which is not worth a look at the clock: that
// would cost half of all the rest. What TCP sends has been stamped by it already (monotonic clock).
static __always_inline __u64 time_of(struct __sk_buff *skb, const struct packet *p, const int out)
{
    if (out && likely(p->protocol == IPPROTO_TCP_)) {
        __u64 stamp = skb->tstamp;
        if (likely(stamp))
            return stamp;
    }
    return p->payload || (p->tcp_flags & ~ACK) ? bpf_ktime_get_ns() : 0;
}

static __always_inline int count(struct __sk_buff *skb, const int out)
{
    struct packet p = {};
    struct flow_event *flow;
    __u64 now, cookie;

    if (unlikely(parse(skb, &p))) {
        add_to_slot(SLOT_OTHER, &p, out);
        return LET_PASS;
    }
    cookie = bpf_get_socket_cookie(skb);
    if (unlikely(!cookie)) {
        add_to_slot(SLOT_NO_SOCKET, &p, out);
        return LET_PASS;
    }
    if (unlikely(p.protocol == IPPROTO_UDP_))
        cookie = udp_key(skb, &p, out, cookie);
    now = time_of(skb, &p, out);
    flow = flows.lookup(&cookie);
    if (unlikely(!flow)) {
        flow = find_or_bear(skb, &p, out, cookie, now ?: bpf_ktime_get_ns());
        if (!flow)
            return LET_PASS;
    }

    struct direction *side = out ? &flow->out : &flow->in;
    if (p.payload) {
        __u32 fresh = likely(p.protocol == IPPROTO_TCP_) ? sequence(side, &p) : p.payload;
        if (likely(fresh)) {
            // A request after an answer: the next turn. UDP has none.
            if (side->state & SIDE_REQUESTS && (out ? &flow->in : &flow->out)->turn_first_ns)
                end_turn(skb, flow);
            if (!side->turn_first_ns)
                side->turn_first_ns = now;
            side->turn_last_ns = now;
            __sync_fetch_and_add(&side->payload_bytes, (__u64)fresh);
        }
    } else if (unlikely(p.tcp_flags & SYN) && !(side->state & SIDE_SEQUENCED)) {
        side->sequence_end = p.sequence;
        side->state |= SIDE_SEQUENCED;
    }
    __sync_fetch_and_add(&side->wire_bytes, p.wire_bytes);
    __sync_fetch_and_add(&side->packets, (__u64)p.segments);
    if (now)
        flow->last_ns = now;
    if (unlikely(p.tcp_flags & ~side->tcp_flags))
        side->tcp_flags |= p.tcp_flags;
    if (!out && unlikely(p.ttl != side->ttl_min || p.ttl != side->ttl_max)) {
        if (p.ttl > side->ttl_max)
            side->ttl_max = p.ttl;
        if (!side->ttl_min || p.ttl < side->ttl_min)
            side->ttl_min = p.ttl;
    }
    return LET_PASS;
}

int flow_in(struct __sk_buff *skb) { return count(skb, 0); }

int flow_out(struct __sk_buff *skb) { return count(skb, 1); }

// Reads a context field here and now. Left to itself the compiler merges reads of two branches into
// one by a computed address, which the verifier refuses.
#define field(x) ({ __u32 read_ = (x); asm volatile("" : "+r"(read_)); read_; })

// What TCP says: a connection begins (its role is known here and nowhere else), or is gone.
int flow_tcp(struct bpf_sock_ops *ops)
{
    __u32 what = ops->op;
    if (what != BPF_SOCK_OPS_TCP_CONNECT_CB && what != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
        what != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && what != BPF_SOCK_OPS_STATE_CB)
        return 1;

    __u64 cookie = bpf_get_socket_cookie(ops);
    __u64 now = bpf_ktime_get_ns();
    struct flow_event *flow = flows.lookup(&cookie);

    if (what == BPF_SOCK_OPS_STATE_CB) {
        if (flow) {
            __u32 srtt = ops->srtt_us >> 3;
            if (srtt)
                flow->srtt_us = srtt;
            if (ops->args[1] == TCP_CLOSE_) {
                flow->close_state = ops->args[0];
                flow->closed_ns = now;
            }
        }
        return 1;
    }

    bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
    if (!flow) {
        struct handshake_key key = {};
        struct flow_event born = {}, *begun;
        if (ops->family == AF_INET_) {
            __u32 local = field(ops->local_ip4), peer = field(ops->remote_ip4);
            ((__u32 *)key.local)[2] = ((__u32 *)key.peer)[2] = bpf_htonl(0xffff);
            ((__u32 *)key.local)[3] = local;
            ((__u32 *)key.peer)[3] = peer;
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                ((__u32 *)key.local)[i] = field(ops->local_ip6[i]);
                ((__u32 *)key.peer)[i] = field(ops->remote_ip6[i]);
            }
        }
        key.local_port = ops->local_port;
        key.peer_port = bpf_ntohl(ops->remote_port);
        begun = what == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB ? handshakes.lookup(&key) : 0;
        if (begun) {
            begun->flow = cookie;
            begun->watched = 1;
            flows.insert(&cookie, begun);
            if (flows.lookup(&cookie))
                handshakes.delete(&key);
            // Else the table is full: the handshake stays where it is, and user space takes it
            // as a flow of its own; what follows goes to the overflow slot.
            return 1;
        }
        name_flow(&born, &key, cookie, IPPROTO_TCP_,
                  what == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB ? ROLE_DOWNSTREAM : ROLE_UPSTREAM, now);
        flows.insert(&cookie, &born);
        flow = flows.lookup(&cookie);
    }
    if (flow) {
        flow->watched = 1;
        __u32 srtt = ops->srtt_us >> 3;
        if (srtt)
            flow->srtt_us = srtt;
    }
    return 1;
}
