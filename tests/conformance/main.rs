//! The conformance suite: one list of promises, kept by every communicator to the extent of what it claims.
//!
//! A communicator joins by one line at the end of this file. Those of CUDA groups keep the promises about results here, on the
//! stub of the driver or, with `TUTTI_CUDA_CARD`, on a card; what their calls do beyond that is in `tests/cuda`.

mod device;
mod harness;
mod letters;
mod oracle;
mod programs;
mod promises;
#[cfg(not(sanitized))] // the stub is no part of such a build
#[path = "../cuda/stub.rs"]
#[allow(dead_code, reason = "what only tests/cuda asks of the stub")]
mod stub;
mod uneven;

macro_rules! keeps {
    ($communicator:ident: $($room:ident::$promise:ident)*) => {
        mod $communicator {
            $(
                #[test]
                fn $promise() {
                    let _watchdog = crate::harness::watchdog();
                    crate::$room::$promise(stringify!($communicator));
                }
            )*
        }
    };
}

macro_rules! keep_all_promises {
    ($($communicator:ident)*) => {
        $(keeps! { $communicator:
            promises::all_reduce_is_right_for_every_dtype_and_op
            promises::all_reduce_is_right_at_every_size_and_world
            promises::every_collective_moves_what_it_should
            promises::every_algorithm_is_right_as_far_as_it_reaches
            promises::buffers_that_are_registered_on_some_ranks_only_are_no_trouble
            promises::registered_memory_serves_descendants_and_outlives_its_group
            promises::a_barrier_waits_for_everybody
            promises::ranks_that_disagree_get_mismatch_and_no_output
            promises::an_abort_reaches_every_waiting_rank_within_10_ms
            promises::a_missing_rank_is_named_at_the_deadline
            promises::a_rank_that_left_is_lost_but_what_it_delivered_stays
            promises::one_thread_starts_on_all_ranks_and_waits_in_reverse
            promises::a_request_that_nobody_joins_stays_in_progress
            promises::a_rank_that_waits_for_a_new_world_goes_on_with_what_it_started
            promises::a_second_thread_in_the_same_group_is_told_so
            promises::a_rank_that_stops_in_a_large_sliced_call_is_named
            promises::an_abort_ends_the_making_of_a_group_too
            promises::a_batch_that_is_refused_begins_nothing
            promises::ranks_change_their_plan_together
            promises::a_communicator_says_what_it_can
            uneven::uneven_parts_come_to_their_places
            uneven::ranks_whose_counts_differ_get_mismatch_and_no_output
            programs::programs_do_what_their_definitions_say
            letters::a_message_arrives_as_it_was_sent
            letters::messages_keep_their_order_by_tag_and_overtake_other_tags
            letters::receives_posted_first_get_the_messages_in_order
            letters::large_messages_may_cross
            letters::letters_and_calls_do_not_wait_for_each_other
            letters::a_message_that_does_not_fit_harms_nothing_else
            letters::many_messages_that_do_not_fit_are_all_refused
            letters::a_rank_may_write_to_itself
            letters::a_receive_nobody_sends_to_names_the_rank
            letters::an_abort_ends_letters_within_10_ms
            letters::a_rank_that_left_is_lost_to_those_who_wait_for_its_letters
            letters::one_thread_carries_the_letters_of_several_ranks
            letters::a_flood_of_unasked_messages_is_bounded_and_arrives
            letters::letters_are_explained_and_borrowed_ones_kept_out_of_batches
        })*
    };
}

keep_all_promises! { shm sockets }

#[cfg(not(sanitized))]
macro_rules! keep_promises_on_a_device {
    ($($communicator:ident)*) => {
        $(keeps_on_a_device! { $communicator:
            promises::all_reduce_is_right_for_every_dtype_and_op
            promises::all_reduce_is_right_at_every_size_and_world
            promises::every_collective_moves_what_it_should
            promises::every_algorithm_is_right_as_far_as_it_reaches
            promises::buffers_that_are_registered_on_some_ranks_only_are_no_trouble
            promises::registered_memory_serves_descendants_and_outlives_its_group
        })*
    };
}

#[cfg(not(sanitized))]
macro_rules! keeps_on_a_device {
    ($communicator:ident: $($room:ident::$promise:ident)*) => {
        mod $communicator {
            $(
                #[test]
                fn $promise() {
                    let test = concat!(module_path!(), "::", stringify!($promise)).split_once("::").unwrap().1;
                    let plan = crate::stub::in_tree("tests/conformance/cuda_plan.txt");
                    let variables = [("TUTTI_CUDA_PLAN", plan.to_str().unwrap())];
                    if crate::stub::on_card() || crate::stub::on_stub(test, &variables) {
                        let _watchdog = crate::harness::watchdog();
                        crate::$room::$promise(stringify!($communicator));
                    }
                }
            )*
        }
    };
}

#[cfg(not(sanitized))]
keep_promises_on_a_device! { push pull staged }

/// What only the last resort serves on devices.
#[cfg(not(sanitized))]
mod uneven_on_a_device {
    keeps_on_a_device! { staged:
        uneven::uneven_parts_come_to_their_places
        uneven::ranks_whose_counts_differ_get_mismatch_and_no_output
    }
}
