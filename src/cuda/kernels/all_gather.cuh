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

        const auto input = [&](u32 i) { return send[session.span.first + i]; };
        in_batches(session.span.count, input, [&](const Batch& batch) {
            mailbox.send_to_all(batch);
            batch.store([&](u32, u32 i) { return part(params.rank)[session.span.first + i]; });
        });
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
        const auto input = [&](u32 i) { return send[session.span.first + i]; };
        in_batches(session.span.count, input, [&](const Batch& batch) {
            if (at == 0) batch.store([&](u32, u32 i) { return exchange.staged(i); });
            batch.store([&](u32, u32 i) { return part(params.rank)[session.span.first + i]; });
        });
        exchange.tell(0, at);
        if (!exchange.ask(0, session.peers(), u64(session.span.first) * kVectorBytes, 0, 0)) return;

        exchange.deliver(session.span.count, 0, [&](u32 peer, u32 i) { return part(peer)[session.span.first + i]; });
        exchange.finish(at);
    });
}

}  // namespace tutti
