// all_reduce, four ways. All of them add in rank order and give every rank the same bits; they differ in what travels.
// With N ranks, S bytes, and one trip over the wire as the unit of waiting:
//
//   push one-shot  every rank writes S to every peer, readiness inside: one trip, 2 (N-1) S bytes out of each rank.
//                  Best while a trip costs more than the bytes: two ranks always, eight up to about 100 KiB.
//   push two-shot  every rank sends each peer its part, reduces one part, and sends that to all: two trips,
//                  4 (N-1) S/N bytes. Best in the middle, up to a few MiB.
//   pull one-shot  every rank says where its input lies and reads all others: two trips (tell, read), (N-1) S bytes in.
//                  Best where the push slots are too small for the call but there are few ranks.
//   pull two-shot  every rank reads one part of all others, reduces it, and reads the other parts from their reducers:
//                  four trips, 2 (N-1) S/N bytes, none of them twice. Best for large calls; from registered memory
//                  without any copy.
//
// Where each begins is decided by measurement in the selection plan, not here.
#pragma once

#include "exchange.cuh"
#include "mailbox.cuh"
#include "numbers.cuh"

namespace tutti {

template <class T>
TUTTI_DEVICE void all_reduce_push_one_shot(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        if (!session.fits(session.span.per_block, params.push_vectors)) return;
        const Mailbox mailbox(session);
        const Bytes send{params.send, params.bytes}, recv{params.recv, params.bytes};

        const auto input = [&](u32 i) { return send[session.span.first + i]; };
        in_batches(session.span.count, input, [&](const Batch& batch) { mailbox.send_to_all(batch); });
#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            const Vector own = send[session.span.first + i].load();
            const auto from_mail = [&](u32 first, Vector(&v)[kAtOnce]) { return mailbox.take_all(first, i, own, v); };
            Vector result;
            if (!reduce<T>(session, from_mail, result)) return;
            recv[session.span.first + i].store(result);
        }
    });
}

template <class T>
TUTTI_DEVICE void all_reduce_push_two_shot(const Params& params) {
    const u32 part = part_of(vectors_of(params.bytes), params.world);
    in_session(params, part, [&](Session& session) {
        const u32 second = params.push_vectors / 2;  // the other half of every slot is for the reduced parts
        if (!session.fits(session.span.per_block, second)) return;
        const Mailbox mailbox(session);
        const Bytes send{params.send, params.bytes}, recv{params.recv, params.bytes};
        const u32 mine = params.rank * part + session.span.first;

        mailbox.send_each(session.span.count, [&](u32 peer, u32 i) { return send[peer * part + session.span.first + i]; });
#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            const Vector own = send[mine + i].load();
            const auto from_mail = [&](u32 first, Vector(&v)[kAtOnce]) { return mailbox.take_all(first, i, own, v); };
            Vector result;
            if (!reduce<T>(session, from_mail, result)) return;
            mailbox.send_to_all(second + i, result);
            recv[mine + i].store(result);
        }
#pragma unroll 1
        for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
            const auto place_of = [&](u32 rank) { return recv[rank * part + session.span.first + i]; };
            if (!mailbox.deliver(session.peers(), second + i, place_of)) return;
        }
    });
}

template <class T>
TUTTI_DEVICE void all_reduce_pull_one_shot(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        Exchange exchange(session);
        const Bytes send{params.send, params.bytes}, recv{params.recv, params.bytes};
        // In place, a fast rank would overwrite what a slow one still has to read.
        const Location at = params.send == params.recv ? 0 : exchange.resolve(params.send_at);

        if (at == 0) {
            if (!session.fits(session.span.per_block, params.stage_vectors)) return;
            const auto input = [&](u32 i) { return send[session.span.first + i]; };
            in_batches(session.span.count, input, [&](const Batch& batch) {
                batch.store([&](u32, u32 i) { return exchange.staged(i); });
            });
        }
        exchange.tell(0, at);
        if (!exchange.ask(0, session.peers(), u64(session.span.first) * kVectorBytes, 0, 0)) return;

        const auto place_of = [&](u32 rank, u32 i) {
            return exchange.place(rank, 0, i, send.valid(session.span.first + i));
        };
        reduce_in_batches<T>(session, session.span.count, place_of, [&](const Batch& batch) {
            batch.store([&](u32, u32 i) { return recv[session.span.first + i]; });
        });
        exchange.finish(at);
    });
}

template <class T>
TUTTI_DEVICE void all_reduce_pull_two_shot(const Params& params) {
    const u32 part = part_of(vectors_of(params.bytes), params.world);
    in_session(params, part, [&](Session& session) {
        Exchange exchange(session);
        const Bytes send{params.send, params.bytes}, recv{params.recv, params.bytes};
        const u64 begin = u64(session.span.first) * kVectorBytes, part_bytes = u64(part) * kVectorBytes;
        const u32 staged_part = session.span.per_block;
        const u32 mine = params.rank * part + session.span.first;
        const Location input = exchange.resolve(params.send_at), output = exchange.resolve(params.recv_at);

        if (input == 0 || output == 0) {
            if (!session.fits(staged_part, params.stage_vectors / params.world)) return;
        }
        if (input == 0) {
            // Not this rank's own part: its place on the stage is for the result.
            exchange.stage_each(session.span.count, staged_part,
                                [&](u32 peer, u32 i) { return send[peer * part + session.span.first + i]; });
        }
        exchange.tell(0, input);
        if (!exchange.ask(0, session.peers(), begin, part_bytes, u64(staged_part) * kVectorBytes)) return;

        const auto place_of = [&](u32 rank, u32 i) {
            return exchange.place(rank, params.rank, i, send.valid(mine + i));
        };
        reduce_in_batches<T>(session, session.span.count, place_of, [&](const Batch& batch) {
            if (output == 0) batch.store([&](u32, u32 i) { return exchange.staged(params.rank * staged_part + i); });
            batch.store([&](u32, u32 i) { return recv[mine + i]; });
        });
        exchange.tell(1, output);
        if (!exchange.ask(1, session.peers(), begin, part_bytes, u64(staged_part) * kVectorBytes)) return;

        exchange.deliver(session.span.count, Exchange::kOwnPart,
                         [&](u32 peer, u32 i) { return recv[peer * part + session.span.first + i]; });
        exchange.finish(output);
    });
}

}  // namespace tutti
