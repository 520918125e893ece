//! The conformance suite: one list of promises, kept by every communicator to the extent of what it claims.
//!
//! A communicator joins by one line at the end of this file.

mod harness;
mod oracle;
mod promises;

macro_rules! keeps {
    ($communicator:ident: $($promise:ident)*) => {
        mod $communicator {
            $(
                #[test]
                fn $promise() {
                    let _watchdog = crate::harness::watchdog();
                    crate::promises::$promise(stringify!($communicator));
                }
            )*
        }
    };
}

macro_rules! keep_all_promises {
    ($($communicator:ident)*) => {
        $(keeps! { $communicator:
            all_reduce_is_right_for_every_dtype_and_op
            all_reduce_is_right_at_every_size_and_world
            every_collective_moves_what_it_should
            every_algorithm_is_right_as_far_as_it_reaches
            buffers_that_are_registered_on_some_ranks_only_are_no_trouble
            registered_memory_serves_descendants_and_outlives_its_group
            a_barrier_waits_for_everybody
            ranks_that_disagree_get_mismatch_and_no_output
            an_abort_reaches_every_waiting_rank_within_10_ms
            a_missing_rank_is_named_at_the_deadline
            a_rank_that_left_is_lost_but_what_it_delivered_stays
            one_thread_starts_on_all_ranks_and_waits_in_reverse
            a_request_that_nobody_joins_stays_in_progress
            a_rank_that_waits_for_a_new_world_goes_on_with_what_it_started
            a_second_thread_in_the_same_group_is_told_so
            a_rank_that_stops_in_a_large_sliced_call_is_named
            an_abort_ends_the_making_of_a_group_too
            a_batch_that_is_refused_begins_nothing
            ranks_change_their_plan_together
            a_communicator_says_what_it_can
        })*
    };
}

keep_all_promises! { shm sockets }
