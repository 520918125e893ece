// all_gather: every rank gets every rank's part, in rank order. Nothing is computed, so one kernel serves all types.
//
//   push   every rank writes its part to every peer, readiness inside: one trip. Best for small parts.
//   pull   every rank says where its part lies, and reads all others: two trips, half the bytes, no copy if registered.
#pragma once

#include "exchange.cuh"
#include "mailbox.cuh"

namespace tutti {

TUTTI_DEVICE void all_gather_push(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        if (!session.fits(session.span.per_block, params.push_vectors)) return;
        const Mailbox mailbox(session);
        const Bytes send{params.send, params.bytes};
        const auto part = [&](u32 rank) { return Bytes{params.recv + rank * params.stride, params.bytes}; };

#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            const u32 index = session.span.first + i;
            const Vector v = send[index].load();
            mailbox.send_to_all(i, v);
            part(params.rank)[index].store(v);
        }
#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            const auto place_of = [&](u32 rank) { return part(rank)[session.span.first + i]; };
            if (!mailbox.deliver(session.peers(), i, place_of)) return;
        }
    });
}

TUTTI_DEVICE void all_gather_pull(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        Exchange exchange(session);
        const Bytes send{params.send, params.bytes};
        const auto part = [&](u32 rank) { return Bytes{params.recv + rank * params.stride, params.bytes}; };
        const Location at = exchange.resolve(params.send_at);

        if (at == 0 && !session.fits(session.span.per_block, params.stage_vectors)) return;
#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            const u32 index = session.span.first + i;
            const Vector v = send[index].load();
            if (at == 0) exchange.put(i, v);
            part(params.rank)[index].store(v);
        }
        exchange.tell(0, at);
        if (!exchange.ask(0, session.peers(), u64(session.span.first) * kVectorBytes, 0, 0)) return;

#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            exchange.deliver(session.peers(), i, 0, [&](u32 rank) { return part(rank)[session.span.first + i]; });
        }
        exchange.finish(at);
    });
}

}  // namespace tutti
