// reduce_scatter: the first half of a two-shot all_reduce. Rank r gets part r, reduced in rank order.
//
//   push   every rank writes to each peer the part that is the peer's, readiness inside: one trip.
//   pull   every rank says where its input lies, and reads its own part of all others: two trips, no copy if registered.
#pragma once

#include "exchange.cuh"
#include "mailbox.cuh"
#include "numbers.cuh"

namespace tutti {

template <class T>
TUTTI_DEVICE void reduce_scatter_push(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        if (!session.fits(session.span.per_block, params.push_vectors)) return;
        const Mailbox mailbox(session);
        const auto part = [&](u32 rank) { return Bytes{params.send + rank * params.stride, params.bytes}; };
        const Bytes recv{params.recv, params.bytes};

        mailbox.send_each(session.span.count, [&](u32 peer, u32 i) { return part(peer)[session.span.first + i]; });
#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            const u32 index = session.span.first + i;
            const Vector own = part(params.rank)[index].load();
            const auto from_mail = [&](u32 first, Vector(&v)[kAtOnce]) { return mailbox.take_all(first, i, own, v); };
            Vector result;
            if (!reduce<T>(session, from_mail, result)) return;
            recv[index].store(result);
        }
    });
}

template <class T>
TUTTI_DEVICE void reduce_scatter_pull(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        Exchange exchange(session);
        const auto part = [&](u32 rank) { return Bytes{params.send + rank * params.stride, params.bytes}; };
        const Bytes recv{params.recv, params.bytes};
        const u32 staged_part = session.span.per_block;
        const Location at = exchange.resolve(params.send_at);

        if (at == 0) {
            if (!session.fits(staged_part, params.stage_vectors / params.world)) return;
            exchange.stage_each(session.span.count, staged_part,
                                [&](u32 peer, u32 i) { return part(peer)[session.span.first + i]; });
        }
        exchange.tell(0, at);
        if (!exchange.ask(0, session.peers(), u64(session.span.first) * kVectorBytes, params.stride,
                          u64(staged_part) * kVectorBytes)) {
            return;
        }
        const auto place_of = [&](u32 rank, u32 i) {
            return exchange.place(rank, params.rank, i, recv.valid(session.span.first + i));
        };
        reduce_in_batches<T>(session, session.span.count, place_of, [&](const Batch& batch) {
            batch.store([&](u32, u32 i) { return recv[session.span.first + i]; });
        });
        exchange.finish(at);
    });
}

}  // namespace tutti
