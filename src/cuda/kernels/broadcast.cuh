// broadcast: every rank gets the root's bytes. One kernel serves all types. The root's `recv` may be `send`.
//
//   push   the root writes to every peer, readiness inside: one trip. Best for small calls.
//   pull   the root says where its bytes lie, and all others read them: two trips, no copy if registered.
//
// In both, ranks other than the root tell all peers that they are here, and every rank waits for that: a slot may only
// be written again once its owner is known to have come this far (README.md).
#pragma once

#include "exchange.cuh"
#include "mailbox.cuh"

namespace tutti {

TUTTI_DEVICE void broadcast_push(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        if (!session.fits(session.span.per_block, params.push_vectors)) return;
        const Mailbox mailbox(session);
        Exchange exchange(session);
        const Bytes send{params.send, params.bytes}, recv{params.recv, params.bytes};

        const auto output = [&](u32 i) { return recv[session.span.first + i]; };
        const auto to_output = [&](u32, u32 i) { return output(i); };

        if (params.rank == params.root) {
            const auto input = [&](u32 i) { return send[session.span.first + i]; };
            in_batches(session.span.count, input, [&](const Batch& batch) {
                mailbox.send_to_all(batch);
                if (params.send != params.recv) batch.store(to_output);
            });
        } else {
            exchange.tell(0, 0);
#pragma unroll 1
            for (u32 i = ptx::thread(); i < session.span.count; i += ptx::threads()) {
                if (!mailbox.deliver(1u << params.root, i, [&](u32) { return output(i); })) break;
            }
        }
        exchange.ask(0, session.peers() & ~(1u << params.root), 0, 0, 0);
    });
}

TUTTI_DEVICE void broadcast_pull(const Params& params) {
    in_session(params, vectors_of(params.bytes), [&](Session& session) {
        Exchange exchange(session);
        const bool is_root = params.rank == params.root;
        const Bytes send{params.send, params.bytes}, recv{params.recv, params.bytes};
        const Location at = is_root ? exchange.resolve(params.send_at) : 0;
        const auto output = [&](u32 i) { return recv[session.span.first + i]; };
        const auto to_output = [&](u32, u32 i) { return output(i); };

        if (is_root) {
            if (at == 0 && !session.fits(session.span.per_block, params.stage_vectors)) return;
            const auto input = [&](u32 i) { return send[session.span.first + i]; };
            in_batches(session.span.count, input, [&](const Batch& batch) {
                if (at == 0) batch.store([&](u32, u32 i) { return exchange.staged(i); });
                if (params.send != params.recv) batch.store(to_output);
            });
        }
        exchange.tell(0, at);
        if (!exchange.ask(0, session.peers(), u64(session.span.first) * kVectorBytes, 0, 0)) return;

        if (!is_root) {
            const auto of_root = [&](u32 i) { return exchange.place(params.root, 0, i, output(i).valid); };
            in_batches(session.span.count, of_root, [&](const Batch& batch) { batch.store(to_output); });
        }
        exchange.finish(at);
    });
}

}  // namespace tutti
