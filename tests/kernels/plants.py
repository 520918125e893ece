"""Mistakes that are easily made in the kernels, each planted in a copy of them: the harness must catch every one.

`caught` says by what: "race" is ThreadSanitizer, "values" is a wrong result or report, "stuck" a run without end.
"""

from dataclasses import dataclass


@dataclass
class Plant:
    name: str
    file: str
    old: str
    new: str
    test: str  # part of the name of the test that must fail
    caught: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3)  # it must be caught by one of them


PLANTS = [
    Plant("the ready flag is relaxed", "exchange.cuh",
          "ptx::store_line_release_sys(&session_.board(peer)->where[phase][session_.params.rank],",
          "ptx::store_line_relaxed_sys(u64(&session_.board(peer)->where[phase][session_.params.rank]),",
          "every_kernel", ("race",)),
    Plant("the ready flag is read relaxed", "exchange.cuh",
          "line = ptx::load_line_acquire_sys(told);",
          "line = ptx::load_line_relaxed_sys_if<0>(true, u64(told));",
          "every_kernel", ("race",)),
    Plant("the done flag is relaxed", "exchange.cuh",
          "ptx::store_release_sys(&session_.board(peer)->done", "ptx::store_relaxed_sys(&session_.board(peer)->done",
          "calls_of_all_kinds", ("race",)),
    Plant("no barrier before the ready flag", "exchange.cuh",
          "void tell(u32 phase, Location mine) const {\n        ptx::block_sync();",
          "void tell(u32 phase, Location mine) const {",
          "every_kernel", ("race", "values")),
    Plant("no barrier before the done flag", "exchange.cuh",
          "void finish(Location mine) {\n        ptx::block_sync();", "void finish(Location mine) {",
          "calls_of_all_kinds", ("race", "values")),
    Plant("the owner does not wait for done", "exchange.cuh",
          "if (mine == 0) return;", "return;",
          "calls_of_all_kinds", ("race", "values")),
    Plant("the epoch is not advanced", "session.cuh",
          "ptx::store_relaxed_gpu(&turn_of(params)->word, epoch);",
          "ptx::store_relaxed_gpu(&turn_of(params)->word, epoch - 1);",
          "calls_of_all_kinds", ("values", "race", "stuck")),
    Plant("even and odd epochs share their slots", "session.cuh",
          "return 2 * ptx::block() + epoch % 2;", "return 2 * ptx::block();",
          "calls_of_all_kinds", ("values", "race", "stuck")),
    Plant("blocks share their slots", "session.cuh",
          "return 2 * ptx::block() + epoch % 2;", "return epoch % 2;",
          "calls_of_all_kinds", ("values", "race", "stuck")),
    Plant("the sender writes into the wrong rank's slot", "mailbox.cuh",
          "const u64 at = place(peer, session_.params.rank, index);",
          "const u64 at = place(peer, session_.next(session_.params.rank), index);",
          "every_kernel", ("values", "stuck")),
    Plant("only half of a vector is checked for its epoch", "mailbox.cuh",
          "| (u32(b.low >> 32) ^ epoch) |\n                (u32(b.high >> 32) ^ epoch)) != 0;", ") != 0;",
          "every_kernel", ("values",)),
    Plant("one word of a line is not checked for its epoch", "mailbox.cuh",
          "(u32(a.low >> 32) ^ epoch) | ", "",
          "every_kernel", ("values",)),
    Plant("the last cycle is not forgotten at the wrap", "session.cuh",
          "if (epoch >= 0xfffffffeu) forget_last_cycle();", "",
          "the_epoch_may_wrap", ("values", "race")),
    Plant("the epoch wraps to 0", "session.cuh",
          "return next < 2 ? 2 : next;", "return next;",
          "the_epoch_may_wrap", ("values", "race", "stuck")),
    Plant("ranks other than the root do not say that they are here", "broadcast.cuh",
          "exchange.ask(0, session.peers() & ~(1u << params.root), 0, 0, 0);", "",
          "calls_of_all_kinds", ("values", "race", "stuck")),
    Plant("pull one-shot in place reads what a fast rank has overwritten", "all_reduce.cuh",
          "params.send == params.recv ? 0 : exchange.resolve(params.send_at)", "exchange.resolve(params.send_at)",
          "every_kernel", ("race", "values")),
    Plant("the tail of a vector is written beyond the end", "memory.cuh",
          "return valid == kVectorBytes && at % kVectorBytes == 0;", "return at % kVectorBytes == 0;",
          "every_kernel", ("values", "race")),
    Plant("nobody looks at the clock", "session.cuh",
          "if (now - started_ >= params_.timeout_ns) return fail(kTimeout, missing);", "",
          "a_rank_that_never_arrives", ("stuck",)),
    Plant("nobody looks whether to stop", "session.cuh",
          "if ((orders & kStop) != 0) return fail(kAborted, missing);", "",
          "an_abort_ends", ("stuck",)),
    Plant("nobody looks who is gone", "session.cuh",
          "if ((gone_ & missing) != 0) return fail(kGone, gone_ & missing);", "",
          "a_rank_that_is_gone", ("stuck",)),
    Plant("everybody is given up when somebody is gone", "session.cuh",
          "if ((gone_ & missing) != 0) return fail(kGone, gone_ & missing);",
          "if (gone_ != 0) return fail(kGone, gone_);",
          "a_rank_that_is_gone", ("values",)),
    Plant("the peers are not told of a failure", "session.cuh",
          "if (peer != params_.rank) ptx::store_relaxed_sys(&arena_of(params_, peer)->failed, cause);", "",
          "a_rank_that_never_arrives", ("values", "stuck")),
    Plant("a failed group goes on", "session.cuh",
          "if (failed != 0) {\n            watch.give_up();\n        } else if", "if",
          "a_rank_that_never_arrives", ("values", "stuck")),
    Plant("two kernels at once go unnoticed", "session.cuh",
          "} else if ((turn & kBusy) != 0) {", "} else if (false) {",
          "overlapping_kernels", ("values", "stuck", "race")),
    Plant("sums are taken in the order of arrival, own rank first", "numbers.cuh",
          "if (first + i == params.rank) v[i] = own;", "if (first + i == params.rank) { v[i] = v[0]; v[0] = own; }",
          "every_kernel", ("values",)),
]
