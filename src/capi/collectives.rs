//! The collectives: one short function for each.
//!
//! Each function parses what C passed into a call and hands it to its group; nothing is chosen or moved here.

use std::ffi::{c_char, c_void};

use super::{
    group::GROUPS,
    guard::{guard, guard_batched},
    parse::{Arguments, Out, PartArrays, check_apart, descriptor, query_flags, write_text},
    types::*,
};
use crate::{
    communicator::{Call, Placement},
    config::Timeout,
    dispatch::Format,
    dtype::Collective::{self, *},
    error::Error,
};

/// Reduces `count` elements over all ranks; every rank gets the same bits.
///
/// send: `count` elements. recv: `count` elements. In place: send == recv.
/// Stream, order, batches and threads: see "Collective calls" at the top of this header.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE; TUTTI_UNSUPPORTED; or the group's failure:
/// TUTTI_TIMEOUT, TUTTI_PEER_LOST, TUTTI_ABORTED, TUTTI_MISMATCH, TUTTI_COMMUNICATOR_ERROR, TUTTI_SYSTEM_ERROR,
/// TUTTI_CUDA_ERROR, TUTTI_OUT_OF_MEMORY, TUTTI_INTERNAL_ERROR. All collective calls return these.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_all_reduce(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: i32,
    op: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_all_reduce", group, || Arguments { send, recv, count, dtype, op, stream, ..Arguments::of(AllReduce) })
}

/// Reduces `count` elements over all ranks, and lets the communicator that serves the call choose where the result
/// is: over the input, or beside it, whichever it does without a copy.
///
/// buffer: `count` elements, this rank's input. scratch: `count` elements that do not overlap it. *result gets
/// either `buffer` or `scratch`, when the call returns (in an open batch too: the data is there after
/// tutti_batch_end). If it is scratch, buffer is untouched; if it is buffer, scratch is. Every rank gets the same
/// answer. See tutti_all_reduce_mode for asking beforehand.
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_all_reduce_auto(
    group: *mut tutti_group_t,
    buffer: *mut c_void,
    scratch: *mut c_void,
    count: usize,
    dtype: i32,
    op: i32,
    stream: *mut c_void,
    result: *mut *mut c_void,
) -> tutti_status_t {
    guard_batched("tutti_all_reduce_auto", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises that a result which is not NULL is writable.
        let result = unsafe { Out::new("result", result) }?;
        let arguments = Arguments { send: buffer, recv: scratch, count, dtype, op, stream, ..Arguments::of(AllReduce) };
        let beside = arguments.parse_for(&group)?;
        if count > 0 && buffer == scratch {
            return Err(Error::invalid("buffer and scratch are the same memory; they must be apart"));
        }
        let mode = group.all_reduce_mode(&beside.descriptor);
        let (call, place) = if matches!(mode, Placement::InPlace | Placement::Both) {
            (Call { recv: beside.send.cast_mut(), ..beside }, buffer)
        } else {
            (beside, scratch)
        };
        group.run(call, Timeout::Default)?;
        result.write(place);
        Ok(())
    })
}

/// Writes where the communicator that would serve an all_reduce can put its result without a copy: TUTTI_MODE_NONE
/// (none serves it), TUTTI_MODE_INPLACE, TUTTI_MODE_OUTPLACE or TUTTI_MODE_BOTH. tutti_all_reduce always does both.
///
/// flags: TUTTI_CALL_CAPTURED, TUTTI_CALL_REGISTERED. Local, cheap, the same on every rank; any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_all_reduce_mode(
    group: *const tutti_group_t,
    count: usize,
    dtype: i32,
    op: i32,
    flags: u32,
    mode: *mut i32,
) -> tutti_status_t {
    guard("tutti_all_reduce_mode", || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises that a mode which is not NULL is writable.
        let mode = unsafe { Out::new("mode", mode) }?;
        let flags = query_flags(flags)?;
        mode.write(group.all_reduce_mode(&descriptor(AllReduce, count, dtype, op, 0, flags, group.size())?) as i32);
        Ok(())
    })
}

/// Gathers every rank's elements on every rank.
///
/// send: `send_count` elements. recv: size * send_count elements; rank r's begin at r * send_count. In place:
/// send == recv + rank * send_count elements. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_all_gather(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    send_count: usize,
    dtype: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_all_gather", group, || Arguments {
        send,
        recv,
        count: send_count,
        dtype,
        stream,
        ..Arguments::of(AllGather)
    })
}

/// Reduces over all ranks and leaves each rank with its part of the result.
///
/// send: size * recv_count elements. recv: `recv_count` elements, those that begin at rank * recv_count. In place:
/// recv == send + rank * recv_count elements; the rest of send is then unspecified. Stream, order, batches and
/// threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_reduce_scatter(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    recv_count: usize,
    dtype: i32,
    op: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_reduce_scatter", group, || Arguments {
        send,
        recv,
        count: recv_count,
        dtype,
        op,
        stream,
        ..Arguments::of(ReduceScatter)
    })
}

/// Copies the root's elements to every rank.
///
/// send: `count` elements on the root; ignored elsewhere, where it may be NULL. recv: `count` elements on every rank,
/// the root included. root: a rank of the group. In place: send == recv. Stream, order, batches and threads: see
/// "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_broadcast(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: i32,
    root: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_broadcast", group, || Arguments { send, recv, count, dtype, root, stream, ..Arguments::of(Broadcast) })
}

/// Reduces `count` elements over all ranks to the root.
///
/// send: `count` elements. recv: `count` elements on the root; ignored elsewhere, where it may be NULL. root: a rank
/// of the group. In place on the root: send == recv. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_reduce(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: i32,
    op: i32,
    root: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_reduce", group, || Arguments { send, recv, count, dtype, op, root, stream, ..Arguments::of(Reduce) })
}

/// Gathers every rank's elements on the root.
///
/// send: `count` elements. recv: size * count elements on the root, rank r's beginning at r * count; ignored elsewhere,
/// where it may be NULL. root: a rank of the group. In place on the root: send == recv + root * count elements.
/// Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_gather(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: i32,
    root: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_gather", group, || Arguments { send, recv, count, dtype, root, stream, ..Arguments::of(Gather) })
}

/// Hands each rank its part of the root's elements.
///
/// send: size * count elements on the root, rank r's beginning at r * count; ignored elsewhere, where it may be NULL.
/// recv: `count` elements. root: a rank of the group. In place on the root: recv == send + root * count elements.
/// Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_scatter(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: i32,
    root: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_scatter", group, || Arguments { send, recv, count, dtype, root, stream, ..Arguments::of(Scatter) })
}

/// Sends part r of every rank's elements to rank r.
///
/// send: size * count elements, those for rank r beginning at r * count. recv: size * count elements, those from rank
/// r beginning at r * count. There is no in-place form. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_all_to_all(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    run("tutti_all_to_all", group, || Arguments { send, recv, count, dtype, stream, ..Arguments::of(AllToAll) })
}

/// Waits (on CUDA groups: makes the stream wait) until every rank has come here.
///
/// Stream, order, batches and threads: see "Collective calls". tutti_group_sync is the barrier of the hosts.
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_barrier(group: *mut tutti_group_t, stream: *mut c_void) -> tutti_status_t {
    run("tutti_barrier", group, || Arguments { stream, ..Arguments::of(Barrier) })
}

/// Sends `count` elements at `buffer` to rank `peer` of the group.
///
/// A message meets a receive of the same peer, direction and tag, in the order in which each side posted them; the tag
/// is 0 here, and anything from 0 on in tutti_start. Messages go beside the collectives of the group: they take no turn
/// among them, and an unfinished one holds up none of them.
///
/// The receive must name the same dtype and have room for all elements. If not, it ends with TUTTI_MISMATCH, and so does
/// the send if it still waits; both sentences name both sizes, nothing is written, that message is lost, and the group
/// lives on. The call returns when the buffer may be used again: a small message may be on its way then, a large one has
/// been asked for. peer may be this rank, whose receive must then have been started before, or stand in the same batch.
///
/// On a CUDA group messages go through the host: what is on the stream is waited for, the message is copied out, and the
/// call returns as above; a receive returns when its copy to the device is enqueued. Neither can be captured. Tags are 0
/// there. Messages to one rank keep their order, whatever streams they leave by.
///
/// Stream, batches, threads and deadlines: see "Collective calls". Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_send(
    group: *mut tutti_group_t,
    buffer: *const c_void,
    count: usize,
    dtype: i32,
    peer: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    letter("tutti_send", group, || Arguments { send: buffer, count, dtype, root: peer, stream, ..Arguments::of(Send) })
}

/// Receives up to `count` elements at `buffer` from rank `peer` of the group.
///
/// A shorter message leaves the rest of the buffer as it is; tutti_request_received says how many elements came. What
/// else there is to say is at tutti_send.
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_recv(
    group: *mut tutti_group_t,
    buffer: *mut c_void,
    count: usize,
    dtype: i32,
    peer: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    letter("tutti_recv", group, || Arguments { recv: buffer, count, dtype, root: peer, stream, ..Arguments::of(Recv) })
}

/// Sends `send_count` elements to rank `to` and receives up to `recv_count` elements from rank `from`, both at once, so
/// that ranks in a ring, or two that send each other, never wait for each other's turn. The buffers may not overlap.
///
/// It meets tutti_send and tutti_recv of other ranks like these. Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_sendrecv(
    group: *mut tutti_group_t,
    send: *const c_void,
    send_count: usize,
    to: i32,
    recv: *mut c_void,
    recv_count: usize,
    from: i32,
    dtype: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    let receive = Arguments { recv, count: recv_count, dtype, root: from, stream, ..Arguments::of(Recv) };
    let send = Arguments { send, count: send_count, dtype, root: to, stream, ..Arguments::of(Send) };
    guard_batched("tutti_sendrecv", || {
        let group = GROUPS.pin(group)?;
        let (receive, send) = (receive.parse_letter_for(&group)?, send.parse_letter_for(&group)?);
        check_apart(&send, &receive)?;
        group.exchange(&[receive, send], Timeout::Default).map(drop)
    })
}

/// Gathers every rank's elements on every rank; ranks may have different counts.
///
/// send: counts[rank] elements. recv: rank r's counts[r] elements begin at displs[r]. counts: one for every rank, equal on
/// all ranks; ranks whose counts differ get TUTTI_MISMATCH. displs: in elements, each rank's own affair; NULL: one rank's
/// elements directly after the other's. Parts of recv may not overlap. In place: send is this rank's part of recv. The
/// arrays are read before the function returns. In tutti_start the two are recv_counts and recv_displs. Stream, order,
/// batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_all_gather_v(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    counts: *const usize,
    displs: *const usize,
    dtype: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    let parts = PartArrays { recv_counts: counts, recv_displs: displs, ..PartArrays::NONE };
    uneven("tutti_all_gather_v", group, Arguments { send, recv, dtype, stream, parts, ..Arguments::of(AllGatherV) })
}

/// Reduces over all ranks and leaves each rank with its part of the result; parts may differ in size.
///
/// send: rank r's counts[r] elements begin at displs[r]. recv: counts[rank] elements. counts and displs: as in
/// tutti_all_gather_v. In place: recv is this rank's part of send; the rest of send is then unspecified. In tutti_start
/// the two are recv_counts and send_displs.
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_reduce_scatter_v(
    group: *mut tutti_group_t,
    send: *const c_void,
    recv: *mut c_void,
    counts: *const usize,
    displs: *const usize,
    dtype: i32,
    op: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    let parts = PartArrays { recv_counts: counts, send_displs: displs, ..PartArrays::NONE };
    let arguments = Arguments { send, recv, dtype, op, stream, parts, ..Arguments::of(ReduceScatterV) };
    uneven("tutti_reduce_scatter_v", group, arguments)
}

/// Sends every rank its elements and receives from every rank; any counts.
///
/// send: send_counts[r] elements for rank r begin at send_displs[r]. recv: recv_counts[r] elements from rank r begin at
/// recv_displs[r], as many as r sends here: where a rank sends another number than the receiver expects, all ranks get
/// TUTTI_MISMATCH, which names both, and nothing is written. Displacements are in elements; NULL: one after the other.
/// Parts of recv may not overlap each other or send; there is no in-place form. The arrays are read before the function
/// returns. Stream, order, batches and threads: see "Collective calls".
///
/// Returns what tutti_all_reduce returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_all_to_all_v(
    group: *mut tutti_group_t,
    send: *const c_void,
    send_counts: *const usize,
    send_displs: *const usize,
    recv: *mut c_void,
    recv_counts: *const usize,
    recv_displs: *const usize,
    dtype: i32,
    stream: *mut c_void,
) -> tutti_status_t {
    let parts = PartArrays { send_counts, send_displs, recv_counts, recv_displs };
    uneven("tutti_all_to_all_v", group, Arguments { send, recv, dtype, stream, parts, ..Arguments::of(AllToAllV) })
}

/// Writes which communicator serves such a call on this group, and why the others do not.
///
/// collective, count, dtype, op: as the call has them; op is ignored where nothing is reduced. flags:
/// TUTTI_CALL_CAPTURED, TUTTI_CALL_REGISTERED. format: TUTTI_FORMAT_TEXT, TUTTI_FORMAT_JSON. text, capacity, needed:
/// see "Texts" at the top of this header. Local; any thread at any time, failed groups too.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_explain(
    group: *const tutti_group_t,
    collective: i32,
    count: usize,
    dtype: i32,
    op: i32,
    flags: u32,
    format: i32,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> tutti_status_t {
    guard("tutti_explain", || {
        let group = GROUPS.pin(group)?;
        let format = match format {
            TUTTI_FORMAT_TEXT => Format::Text,
            TUTTI_FORMAT_JSON => Format::Json,
            other => return Err(Error::invalid(format_args!("format is {other}; it is 0 (text) or 1 (JSON)"))),
        };
        let flags = query_flags(flags)?;
        let descriptor = descriptor(Collective::parse(collective)?, count, dtype, op, 0, flags, group.size())?;
        let explanation = group.explain(&descriptor, format)?;
        // SAFETY: the C caller promises `capacity` writable bytes at text, and a writable needed, where not NULL.
        unsafe { write_text(text, capacity, needed, &explanation) }
    })
}

/// What every short function does: parses the call and makes it. The arguments are put together inside, where the compiler
/// sees of which collective they are, and leaves out what the others need.
#[inline(always)]
fn run(name: &'static str, group: *const tutti_group, arguments: impl FnOnce() -> Arguments) -> tutti_status_t {
    guard_batched(name, || {
        let group = GROUPS.pin(group)?;
        let call = arguments().parse_for(&group)?;
        group.run(call, Timeout::Default)
    })
}

/// What the functions of one side of a message do; see [`run`] for why the arguments are put together inside.
#[inline(always)]
fn letter(name: &'static str, group: *const tutti_group, arguments: impl FnOnce() -> Arguments) -> tutti_status_t {
    guard_batched(name, || {
        let group = GROUPS.pin(group)?;
        group.exchange(&[arguments().parse_letter_for(&group)?], Timeout::Default).map(drop)
    })
}

/// What the functions of v-forms do.
fn uneven(name: &'static str, group: *const tutti_group, arguments: Arguments) -> tutti_status_t {
    guard_batched(name, || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the C caller promises arrays that are NULL or have a number for every rank.
        group.run_uneven(unsafe { arguments.parse_uneven_for(&group) }?, Timeout::Default)
    })
}
