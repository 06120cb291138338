// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Counts what each connection of a cgroup puts on the wire. Three programs: every packet in, every
// packet out, and what TCP says about its connections. Reads headers only, changes nothing, always
// lets the packet pass.
//
// Rules of this file:
// - A packet of a seated connection costs no call of a helper but for the clock, and that only where
//   payload comes in. What is rare (birth, turn, close) is out of the way in functions of its own.
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

#define MOVE_NS 125000000 // half of CLOSE_GRACE_NS in apicost/ingest/probe.py

// Where a connection's packets find it without a hash table's help: two seats in the row that its socket's
// address names. Taken (atomically, by writing `flow`) when TCP announces the connection or, for one
// older than the probe, at its first packet; `sock` is written last, and makes it count. Given back
// by user space, which maps this table into its memory, after close plus grace.
// An address comes back as another socket, and soon. Each new TCP socket is announced before its first
// packet: whoever then still sits there under that address moves to `flows`, where user space finds it.
struct row {
    struct flow_event seat[2];
};
BPF_F_TABLE("array", int, struct row, seats, SEATS / 2, BPF_F_MMAPABLE);

// Connections that found both their seats taken, and UDP peers.
// Key: socket cookie. Value: the next event to send. Born at the handshake or the first packet, fed
// by both packet hooks, marked closed by sock_ops, removed by user space after close plus grace.
// Never LRU: an evicted flow would take its bytes along. When full, bytes go to SLOT_OVERFLOW.
BPF_HASH(flows, __u64, struct flow_event, FLOW_ENTRIES);

// Connections whose handshake the listener still answers for: SYN, SYN-ACK and the ACK that ends it
// carry the listener's cookie. Moved into `flows` when TCP calls the connection established;
// those that never get there are taken by user space after the kernel gave up on them.
BPF_HASH(handshakes, struct handshake_key, struct flow_event, HANDSHAKE_ENTRIES);

// Finished turns on their way to user space, TURNS_TOGETHER in a record. Written without a wakeup,
// which would cost 2,400 ns and more. A turn lost here merges with the next and loses no byte.
BPF_RINGBUF_OUTPUT(ring, RING_PAGES);

// Where each CPU gathers them: the same 3 KiB again and again, which stay in its cache. The ring is as large as
// it is because user space reads seldom, so none of it is in a cache when it is written, and each write waits: a
// record for each turn cost 80 to 100 ns, sixteen together about 10 ns each.
// Two for each CPU: whoever interrupts a program that is writing finds the first one busy.
BPF_F_TABLE("array", int, struct turn_batch, batches, BATCHES, BPF_F_MMAPABLE);

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

// The row of a socket. Half its address is number enough to choose one; the verifier lets programs with
// CAP_PERFMON take that half, and compare the whole, but not calculate with it.
static __always_inline struct row *row_of(void *sock)
{
    __u64 half;
    // A move of 32 bits, which bcc's compiler never makes by itself: finds the number of the register
    // that it chose and says w for r.
    asm volatile("%0 = %1\n"
                 ".irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n"
                 ".ifc r\\number, %0\n"
                 "w\\number = w\\number\n"
                 ".endif\n"
                 ".endr" : "=r"(half) : "r"(sock));
    int index = half * 0x9e3779b97f4a7c15ULL >> 40 & (SEATS / 2 - 1);
    return seats.lookup(&index);
}

static __always_inline struct flow_event *seated(struct row *row, void *sock)
{
    if (likely(row->seat[0].sock == (__u64)sock))
        return &row->seat[0];
    return row->seat[1].sock == (__u64)sock ? &row->seat[1] : 0;
}

// A free seat for a flow, all zero but its number; 0 where there is none. `sit` makes it count.
static __always_inline struct flow_event *take_seat(struct row *row, __u64 cookie)
{
    if (!row->seat[0].flow && !__sync_val_compare_and_swap(&row->seat[0].flow, 0, cookie))
        return &row->seat[0];
    if (!row->seat[1].flow && !__sync_val_compare_and_swap(&row->seat[1].flow, 0, cookie))
        return &row->seat[1];
    return 0;
}

// The seat of a connection that is gone, for the one that now has its socket's memory; 0 where it has to
// stay. User space gives back seats a quarter of a second after their close and later, so what closed longer
// ago than half of that is left to it: the two never handle the same seat.
static __always_inline struct flow_event *take_over(struct flow_event *seat, __u64 cookie, __u64 now)
{
    __u64 former = seat->flow;
    seat->sock = 0;
    if (!seat->closed_ns)
        seat->closed_ns = now;
    if (now - seat->closed_ns > MOVE_NS || flows.insert(&former, seat))
        return 0;
    seat->closed_ns = 0; // with `sock`: user space looks away until `sit`
    asm volatile("" ::: "memory");
    seat->flow = cookie;
    asm volatile("" ::: "memory");
    seat->last_ns = seat->seq = 0;
    __builtin_memset(&seat->local, 0, sizeof(*seat) - __builtin_offsetof(struct flow_event, local));
    return seat;
}

static __always_inline void sit(struct flow_event *seat, void *sock)
{
    asm volatile("" ::: "memory"); // after all else
    seat->sock = (__u64)sock;
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
    __u8 role = listener || is_listening(key.local_port) ? ROLE_DOWNSTREAM : ROLE_UPSTREAM;
    if (!listener && sock && p->protocol == IPPROTO_TCP_) {
        struct row *row = row_of(sock);
        flow = row ? take_seat(row, cookie) : 0;
        if (flow) {
            name_flow(flow, &key, cookie, p->protocol, role, now);
            sit(flow, sock);
            return flow;
        }
    }
    struct flow_event born = {};
    name_flow(&born, &key, cookie, p->protocol, role, now);
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

// A batch of this CPU that nobody is writing to, made busy; 0 where both are.
static __always_inline struct turn_batch *open_batch(int *index)
{
    struct turn_batch *batch;
    *index = bpf_get_smp_processor_id() * 2;
    batch = batches.lookup(index);
    if (likely(batch && !__sync_lock_test_and_set(&batch->busy, 1)))
        return batch;
    ++*index;
    batch = batches.lookup(index);
    return batch && !__sync_lock_test_and_set(&batch->busy, 1) ? batch : 0;
}

// Sends a finished turn on its way. User space reads `next` before the turns below it, and takes none
// that may have been written over meanwhile.
static __always_inline void send_turn(const struct flow_event *flow)
{
    int index, ring_slot = SLOT_RING;
    struct turn_batch *batch = open_batch(&index);
    if (unlikely(!batch)) {
        struct slot *slot = slots.lookup(&ring_slot);
        if (slot)
            __sync_fetch_and_add(&slot->out_packets, 1);
        return;
    }
    __u64 number = batch->next;
    __u32 place = number % TURNS_TOGETHER;
    __u64 *to = batch->turns + place * (TURN_BYTES / 8);
    const __u64 *from = &flow->last_ns;
#pragma unroll
    for (int i = 0; i < TURN_BYTES / 8; i++)
        to[i] = from[i];
    struct flow_event *turn = (void *)(to - 1); // whose `sock` is left out
    turn->seq = (__u64)index << BATCH_SHIFT | (number + 1);
    turn->kind = KIND_TURN;
    if (place == TURNS_TOGETHER - 1 &&
        !ring.ringbuf_output(&batch->turns[0], sizeof(batch->turns), BPF_RB_NO_WAKEUP))
        batch->sent = number + 1;
    asm volatile("" ::: "memory"); // after all else
    batch->next = number + 1;
    asm volatile("" ::: "memory");
    batch->busy = 0;
}

// Ends the open turn: sends the flow as it is, before the packet that begins the next is counted.
static __always_inline void end_turn(struct __sk_buff *skb, struct flow_event *flow)
{
    struct bpf_sock *sock = skb->sk;

    if (sock && flow->turn % 16 == 0) { // it is smoothed anyway
        struct bpf_sock *full = bpf_sk_fullsock(sock);
        if (full) {
            struct bpf_tcp_sock *tcp = bpf_tcp_sock(full);
            if (tcp)
                flow->srtt_us = tcp->srtt_us >> 3;
        }
    }
    send_turn(flow);
    flow->turn++;
    flow->in.turn_first_ns = flow->in.turn_last_ns = 0;
    flow->out.turn_first_ns = flow->out.turn_last_ns = 0;
}

// How many of a TCP packet's bytes move the end of the stream, which stands at `at`. What it leaps over
// counts as new at once and is remembered as a hole, so that the count is the position in the stream
// even when a segment was lost on its way to the gateway.
static __always_inline __u32 advance(const struct direction *side, const struct packet *p, __u64 at)
{
    __s32 ahead = p->sequence + p->payload - side->sequence_base - (__u32)at;
    return ahead > 0 && ahead <= MAX_JUMP ? ahead : 0;
}

// Moves the end of the stream, unless another CPU has moved it as far meanwhile. One atomic act: two
// packets of a connection at once would otherwise both count what lies between them. Returns by how much.
static __always_inline __u32 move_end(struct direction *side, const struct packet *p, __u64 at, __u32 fresh)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __u64 found = __sync_val_compare_and_swap(&side->payload_bytes, at, at + fresh);
        if (likely(found == at))
            return fresh;
        at = found;
        fresh = advance(side, p, at);
        if (!fresh)
            return 0;
    }
    return 0; // four others in a few ns: the next packet leaps over this one
}

// Payload that is not simply the next: it leaves a hole, fills one (then it is neither new nor
// resent), or was sent before.
static __always_inline void irregular(struct direction *side, const struct packet *p, __u32 fresh)
{
    if (fresh > p->payload) {
        __sync_fetch_and_add(&side->hole_bytes, fresh - p->payload);
        return;
    }
    __u32 old = p->payload - fresh, hole = side->hole_bytes;
    if (hole) {
        __u32 fill = hole < old ? hole : old;
        __sync_fetch_and_add(&side->hole_bytes, -fill);
        old -= fill;
    }
    if (old) {
        __sync_fetch_and_add(&side->resent_bytes, (__u64)old);
        // Whole segments of it; the last may be shorter than the others.
        __u32 whole = fresh ? old / (p->segment_payload ?: 1)
                            : (old + p->segment_payload - 1) / (p->segment_payload ?: 1);
        __sync_fetch_and_add(&side->resent_packets, whole);
    }
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

// The flow of a packet that has no seat, or none where that is a loss (then it is in a slot).
static __always_inline struct flow_event *unseated(struct __sk_buff *skb, const struct packet *p, const int out,
                                                   __u64 now)
{
    struct flow_event *flow;
    __u64 cookie = bpf_get_socket_cookie(skb);
    if (unlikely(!cookie)) {
        add_to_slot(SLOT_NO_SOCKET, p, out);
        return 0;
    }
    if (unlikely(p->protocol == IPPROTO_UDP_))
        cookie = udp_key(skb, p, out, cookie);
    flow = flows.lookup(&cookie);
    return likely(flow) ? flow : find_or_bear(skb, p, out, cookie, now ?: bpf_ktime_get_ns());
}

static __always_inline int count(struct __sk_buff *skb, const int out)
{
    struct packet p = {};
    struct flow_event *flow = 0;
    struct bpf_sock *sock;
    __u64 now;

    if (unlikely(parse(skb, &p))) {
        add_to_slot(SLOT_OTHER, &p, out);
        return LET_PASS;
    }
    now = time_of(skb, &p, out);
    sock = skb->sk;
    if (likely(sock && p.protocol == IPPROTO_TCP_)) {
        struct row *row = row_of(sock);
        if (likely(row))
            flow = seated(row, sock);
    }
    if (unlikely(!flow)) {
        flow = unseated(skb, &p, out, now);
        if (!flow)
            return LET_PASS;
    }

    struct direction *side = out ? &flow->out : &flow->in;
    if (p.payload) {
        __u64 at = *(volatile __u64 *)&side->payload_bytes;
        __u32 fresh = p.payload;
        if (likely(p.protocol == IPPROTO_TCP_)) {
            if (unlikely(!(side->state & SIDE_SEQUENCED))) {
                side->sequence_base = p.sequence;
                side->state |= SIDE_SEQUENCED;
            }
            fresh = advance(side, &p, at);
        }
        if (likely(fresh)) {
            // A request after an answer: the next turn. UDP has none.
            if (side->state & SIDE_REQUESTS && (out ? &flow->in : &flow->out)->turn_first_ns)
                end_turn(skb, flow);
            if (!side->turn_first_ns)
                side->turn_first_ns = now;
            side->turn_last_ns = now;
            if (likely(p.protocol == IPPROTO_TCP_))
                fresh = move_end(side, &p, at, fresh);
            else
                __sync_fetch_and_add(&side->payload_bytes, (__u64)fresh);
        }
        if (unlikely(fresh != p.payload))
            irregular(side, &p, fresh);
    } else if (unlikely(p.tcp_flags & SYN) && !(side->state & SIDE_SEQUENCED)) {
        side->sequence_base = p.sequence;
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
    struct bpf_sock *sock = ops->sk;
    struct row *row = sock ? row_of(sock) : 0;
    struct flow_event *flow = row ? seated(row, sock) : 0;

    struct flow_event *former = 0;

    if (flow && flow->flow != cookie) {
        former = flow;
        flow = 0;
    }
    if (!flow)
        flow = flows.lookup(&cookie);

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
        if (former)
            flow = take_over(former, cookie, now);
        if (row && !flow)
            flow = take_seat(row, cookie);
        if (begun) {
            begun->flow = cookie;
            begun->watched = 1;
            if (flow) {
                *flow = *begun; // whose `sock` is 0
                sit(flow, sock);
                handshakes.delete(&key);
                return 1;
            }
            flows.insert(&cookie, begun);
            if (flows.lookup(&cookie))
                handshakes.delete(&key);
            // Else the table is full: the handshake stays where it is, and user space takes it
            // as a flow of its own; what follows goes to the overflow slot.
            return 1;
        }
        __u8 role = what == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB ? ROLE_DOWNSTREAM : ROLE_UPSTREAM;
        if (flow) {
            name_flow(flow, &key, cookie, IPPROTO_TCP_, role, now);
            sit(flow, sock);
        } else {
            name_flow(&born, &key, cookie, IPPROTO_TCP_, role, now);
            flows.insert(&cookie, &born);
            flow = flows.lookup(&cookie);
        }
    }
    if (flow) {
        flow->watched = 1;
        __u32 srtt = ops->srtt_us >> 3;
        if (srtt)
            flow->srtt_us = srtt;
    }
    return 1;
}
