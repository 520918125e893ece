//! Numbers, pointers, structs and texts as C passes them, checked and turned into the crate's own types.
//!
//! Everything a caller can get wrong is refused here, before a group hears of it, with a sentence that names the
//! argument. What cannot be checked, that a pointer points to what it says, is promised by the caller of each `unsafe`
//! function, who has it from the C caller.

use std::{
    ffi::{CStr, c_char, c_void},
    fmt,
    ops::Range,
    ptr::{self, NonNull},
};

use super::types::*;
use crate::{
    communicator::{Call, Descriptor, Letter, Part, Pattern, Uneven},
    config::{FLAG_ALLOW_UNAUTHENTICATED, FLAG_DETERMINISTIC, Selection},
    dtype::{Collective, DType, Op},
    error::{Error, Result},
    group::Group,
};

/// The arguments of a collective call, as C passed them.
#[derive(Clone, Copy)]
pub(super) struct Arguments {
    pub(super) collective: Collective,
    pub(super) send: *const c_void,
    pub(super) recv: *mut c_void,
    /// As the short function counts.
    pub(super) count: usize,
    pub(super) dtype: i32,
    pub(super) op: i32,
    /// The root, or the peer of a send or a receive.
    pub(super) root: i32,
    /// Of sends and receives.
    pub(super) tag: i64,
    pub(super) flags: u32,
    pub(super) stream: *mut c_void,
    /// Of v-forms: NULL, or as many numbers as the group has ranks.
    pub(super) parts: PartArrays,
}

/// The arrays of a v-form, as C passed them.
#[derive(Clone, Copy)]
pub(super) struct PartArrays {
    pub(super) send_counts: *const usize,
    pub(super) send_displs: *const usize,
    pub(super) recv_counts: *const usize,
    pub(super) recv_displs: *const usize,
}

impl PartArrays {
    pub(super) const NONE: PartArrays = PartArrays {
        send_counts: ptr::null(),
        send_displs: ptr::null(),
        recv_counts: ptr::null(),
        recv_displs: ptr::null(),
    };
}

impl Arguments {
    /// A call without arguments.
    pub(super) fn of(collective: Collective) -> Self {
        Arguments {
            collective,
            send: ptr::null(),
            recv: ptr::null_mut(),
            count: 0,
            dtype: TUTTI_BYTES,
            op: TUTTI_SUM,
            root: 0,
            tag: 0,
            flags: 0,
            stream: ptr::null_mut(),
            parts: PartArrays::NONE,
        }
    }

    /// Parses the argument of tutti_start, whose two counts are one, as the short functions have it.
    pub(super) fn from_call(call: &tutti_call) -> Result<Self> {
        let collective = Collective::parse(call.collective)?;
        if call.tag != 0 && !collective.is_letter() {
            return Err(Error::invalid(format_args!("tag is {}; only sends and receives have one", call.tag)));
        }
        let arrays = [call.send_counts, call.send_displs, call.recv_counts, call.recv_displs];
        if !collective.is_uneven() && arrays.iter().any(|array| !array.is_null()) {
            return Err(Error::invalid(format_args!(
                "{} takes one count; send_counts, send_displs, recv_counts and recv_displs must be NULL",
                collective.name()
            )));
        }
        let count = match (call.send_count, call.recv_count) {
            (_, _) if collective.is_uneven() => 0,
            (send, 0) => send,
            (0, recv) => recv,
            (send, recv) if send == recv => send,
            (send, recv) => {
                return Err(Error::invalid(format_args!(
                    "send_count is {send} and recv_count {recv}; both mean the count of tutti_{}: give one, or the same",
                    collective.name()
                )));
            }
        };
        if call.flags & !TUTTI_CALL_REGISTERED != 0 {
            return Err(Error::invalid(format_args!(
                "flags is {:#x}; a call may carry TUTTI_CALL_REGISTERED ({TUTTI_CALL_REGISTERED:#x})",
                call.flags
            )));
        }
        Ok(Arguments {
            collective,
            send: call.send,
            recv: call.recv,
            count,
            dtype: call.dtype,
            op: call.op,
            root: call.peer,
            tag: call.tag,
            flags: call.flags,
            stream: call.stream,
            parts: PartArrays {
                send_counts: call.send_counts,
                send_displs: call.send_displs,
                recv_counts: call.recv_counts,
                recv_displs: call.recv_displs,
            },
        })
    }

    /// Parses a call of this rank of `group`.
    #[inline(always)]
    pub(super) fn parse_for(&self, group: &Group) -> Result<Call> {
        self.parse(group.rank(), group.size(), group.device().is_some())
    }

    /// Parses a send or a receive in `group`.
    #[inline(always)]
    pub(super) fn parse_letter_for(self, group: &Group) -> Result<Letter> {
        self.parse_letter(group.size(), group.device().is_some())
    }

    /// Parses a v-form of this rank of `group`.
    ///
    /// # Safety
    ///
    /// The arrays are NULL or have a readable number for every rank.
    pub(super) unsafe fn parse_uneven_for(self, group: &Group) -> Result<Uneven> {
        // SAFETY: the caller's promise.
        unsafe { self.parse_uneven(group.rank(), group.size(), group.device().is_some()) }
    }

    /// Parses a send or a receive in a group of `size`, whose buffers are memory of devices or of the host.
    #[inline(always)]
    fn parse_letter(self, size: u32, on_devices: bool) -> Result<Letter> {
        self.check_stream(on_devices)?;
        let peer = rank("peer", self.root, size)?;
        if on_devices && self.tag != 0 {
            return Err(Error::invalid(format_args!("tag is {}; messages of CUDA groups have no tags", self.tag)));
        }
        if self.tag < 0 {
            return Err(Error::invalid(format_args!("tag is {}; tags are 0 or positive", self.tag)));
        }
        let Descriptor { dtype, count, .. } = descriptor(self.collective, self.count, self.dtype, 0, 0, 0, 1)?;
        let bytes = count as usize * dtype.size();
        if self.collective == Collective::Send {
            let memory = Buffer::new("the buffer to send", self.send.cast(), bytes)?;
            // SAFETY: the C caller promises a readable buffer of that size until the call is done.
            return Ok(unsafe { Letter::send(peer, self.tag, dtype, memory.start(), count) }.on_stream(self.stream));
        }
        let memory = Buffer::new("the buffer to receive into", self.recv.cast::<u8>().cast_const(), bytes)?;
        // SAFETY: as above, and writable.
        Ok(unsafe { Letter::receive(peer, self.tag, dtype, memory.start().cast_mut(), count) }.on_stream(self.stream))
    }

    /// Parses a v-form of rank `rank` in a group of `size`, whose buffers are memory of devices or of the host.
    ///
    /// # Safety
    ///
    /// The arrays are NULL or have `size` readable numbers.
    unsafe fn parse_uneven(self, rank: u32, size: u32, on_devices: bool) -> Result<Uneven> {
        use Collective::*;
        self.check_stream(on_devices)?;
        let Descriptor { dtype, op, .. } = descriptor(self.collective, 0, self.dtype, self.op, 0, 0, size)?;
        let arrays = self.parts;
        // SAFETY: the caller's promise.
        let parts = |name, counts, displs| unsafe { parts(name, counts, displs, size, dtype.size()) };
        let name = self.collective.name();
        let unused = |what: &str, array: *const usize| match array.is_null() {
            true => Ok(()),
            false => Err(Error::invalid(format_args!("{what} is not NULL, but {name} has none"))),
        };
        let me = rank as usize;
        let (send_parts, recv_parts, counts) = match self.collective {
            AllGatherV => {
                unused("send_counts", arrays.send_counts)?;
                unused("send_displs", arrays.send_displs)?;
                let (counts, recv) = parts("recv", arrays.recv_counts, arrays.recv_displs)?;
                (vec![Part { start: 0, bytes: recv[me].bytes }; size as usize], recv, counts)
            }
            ReduceScatterV => {
                unused("send_counts", arrays.send_counts)?;
                unused("recv_displs", arrays.recv_displs)?;
                let (counts, send) = parts("send", arrays.recv_counts, arrays.send_displs)?;
                let recv = vec![Part { start: 0, bytes: send[me].bytes }; size as usize];
                (send, recv, counts)
            }
            _ => {
                let (_, send) = parts("send", arrays.send_counts, arrays.send_displs)?;
                (send, parts("recv", arrays.recv_counts, arrays.recv_displs)?.1, Vec::new())
            }
        };
        let pieces = |name, start: *const u8, parts: &[Part]| {
            let piece = |part: &Part| {
                Buffer::new(name, start.wrapping_add(if start.is_null() { 0 } else { part.start }), part.bytes)
            };
            parts.iter().map(piece).collect::<Result<Vec<_>>>()
        };
        let (send, recv) = (self.send.cast::<u8>(), self.recv.cast::<u8>());
        // All parts are the same where one is all there is.
        let mut sends = pieces("send", send, &send_parts)?;
        let mut recvs = pieces("recv", recv, &recv_parts)?;
        match self.collective {
            AllGatherV => sends.truncate(1),
            ReduceScatterV => recvs.truncate(1),
            _ => {}
        }
        check_disjoint(&mut recvs.iter().collect::<Vec<_>>())?;
        for (to, one) in sends.iter().enumerate() {
            for (from, other) in recvs.iter().enumerate() {
                let in_place = one.start == other.start
                    && match self.collective {
                        AllGatherV => from == me,
                        ReduceScatterV => to == me,
                        _ => false,
                    };
                if one.overlaps(other) && !in_place {
                    return Err(Error::invalid(format_args!(
                        "{one} and {other} overlap: {}",
                        in_place_form(self.collective)
                    )));
                }
            }
        }
        let descriptor = match self.collective {
            AllToAllV => Descriptor { collective: AllToAllV, dtype, op, root: 0, flags: self.flags, count: 0 },
            collective => Uneven::descriptor(collective, dtype, op, self.flags, &counts),
        };
        let empty = |parts: &[Part]| parts.iter().all(|part| part.bytes == 0);
        Ok(Uneven {
            descriptor,
            send: if empty(&send_parts) { ptr::dangling() } else { send },
            recv: if empty(&recv_parts) { ptr::dangling_mut() } else { recv },
            send_parts,
            recv_parts,
            stream: self.stream,
        })
    }

    fn check_stream(&self, on_devices: bool) -> Result<()> {
        match on_devices || self.stream.is_null() {
            true => Ok(()),
            false => Err(Error::invalid("stream is not NULL, but this is a CPU group: its calls happen on no stream")),
        }
    }

    /// Parses a call of rank `rank` in a group of `size`, whose buffers are memory of devices or of the host.
    #[inline(always)]
    fn parse(&self, rank: u32, size: u32, on_devices: bool) -> Result<Call> {
        self.check_stream(on_devices)?;
        let descriptor = descriptor(self.collective, self.count, self.dtype, self.op, self.root, self.flags, size)?;
        let Some(pattern) = Pattern::new(&descriptor, rank, size) else {
            return Err(Error::Internal(format!("{} is parsed by another function", self.collective.name())));
        };
        let send = Buffer::new("send", self.send.cast(), pattern.send_bytes(rank))?;
        let recv = Buffer::new("recv", self.recv.cast::<u8>().cast_const(), pattern.recv_bytes(size))?;
        if send.overlaps(&recv) && !is_in_place(&descriptor, &send, &recv, rank) {
            return Err(Error::invalid(format_args!("{send} and {recv} overlap: {}", in_place_form(self.collective))));
        }
        Ok(Call { stream: self.stream, ..Call::new(descriptor, send.start(), recv.start().cast_mut()) })
    }
}

/// Parses where the parts of a buffer begin and end: counts and displacements in elements of `element` bytes.
///
/// # Safety
///
/// `counts` and `displs` are NULL or have `size` readable numbers.
unsafe fn parts(
    name: &str,
    counts: *const usize,
    displs: *const usize,
    size: u32,
    element: usize,
) -> Result<(Vec<u64>, Vec<Part>)> {
    if counts.is_null() {
        return Err(Error::invalid(format_args!(
            "the counts of {name} are NULL; every one of the {size} ranks has one"
        )));
    }
    let (mut all, mut parts) = (Vec::with_capacity(size as usize), Vec::with_capacity(size as usize));
    let mut next = 0_usize;
    let mut total = 0_usize;
    for rank in 0..size as usize {
        // SAFETY: below `size`, for which the caller promises readable numbers.
        let (count, displ) =
            unsafe { (counts.add(rank).read(), if displs.is_null() { next } else { displs.add(rank).read() }) };
        let end = displ.checked_add(count).and_then(|end| end.checked_mul(element));
        let sum = total
            .checked_add(count)
            .filter(|sum| sum.checked_mul(element).is_some_and(|sum| sum <= isize::MAX as usize));
        let (Some(_), Some(sum)) = (end.filter(|end| *end <= isize::MAX as usize), sum) else {
            return Err(Error::invalid(format_args!(
                "rank {rank}'s part of {name}, {count} elements from {displ} on, is more than can be addressed"
            )));
        };
        (next, total) = (displ + count, sum);
        all.push(count as u64);
        let start = if count == 0 { 0 } else { displ * element };
        parts.push(Part { start, bytes: count * element });
    }
    Ok((all, parts))
}

/// Refuses pieces of one buffer that share memory.
fn check_disjoint(pieces: &mut [&Buffer]) -> Result<()> {
    pieces.sort_unstable_by_key(|piece| piece.start.addr());
    let filled: Vec<_> = pieces.iter().filter(|piece| piece.bytes > 0).collect();
    match filled.windows(2).find(|two| two[0].overlaps(two[1])) {
        Some(two) => Err(Error::invalid(format_args!(
            "parts of recv overlap, {} and {}: what two ranks send cannot both be there",
            two[0], two[1]
        ))),
        None => Ok(()),
    }
}

/// Refuses a send and a receive of one call that share memory.
pub(super) fn check_apart(send: &Letter, receive: &Letter) -> Result<()> {
    let buffer = |name, letter: &Letter| Buffer::new(name, letter.memory().cast_const(), letter.bytes() as usize);
    let (send, receive) = (buffer("send", send)?, buffer("recv", receive)?);
    match send.overlaps(&receive) {
        true => Err(Error::invalid(format_args!("{send} and {receive} overlap: they must be apart"))),
        false => Ok(()),
    }
}

/// Parses what all ranks of a group of `size` must agree on.
#[inline(always)]
pub(super) fn descriptor(
    collective: Collective,
    count: usize,
    dtype: i32,
    op: i32,
    root: i32,
    flags: u32,
    size: u32,
) -> Result<Descriptor> {
    if collective == Collective::Barrier {
        if count != 0 {
            return Err(Error::invalid(format_args!("a barrier moves nothing, but its count is {count}")));
        }
        return Ok(Descriptor { collective, dtype: DType::Bytes, op: Op::Sum, root: 0, flags, count: 0 });
    }
    let dtype = DType::parse(dtype)?;
    let op = if collective.reduces() { Op::parse(op)? } else { Op::Sum };
    if collective.reduces() && !dtype.is_reducible() {
        return Err(Error::invalid(format_args!("{} is moved but never reduced", dtype.name())));
    }
    let root = if collective.has_root() { rank("root", root, size)? } else { 0 };
    let bytes = count.checked_mul(dtype.size()).and_then(|bytes| bytes.checked_mul(size as usize));
    if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Error::invalid(format_args!(
            "{count} x {} on {size} ranks is more than can be addressed",
            dtype.name()
        )));
    }
    Ok(Descriptor { collective, dtype, op, root, flags, count: count as u64 })
}

/// Parses a rank of a group of `size`.
#[inline]
pub(super) fn rank(name: &str, value: i32, size: u32) -> Result<u32> {
    u32::try_from(value).ok().filter(|rank| *rank < size).ok_or_else(|| {
        Error::invalid(format_args!("{name} is {value}, but the group has the ranks 0 to {}", size.saturating_sub(1)))
    })
}

/// Parses the members of a new group: ranks of a parent of `size`, each once.
///
/// # Safety
///
/// `ranks` is NULL or points to `count` readable numbers.
pub(super) unsafe fn members(ranks: *const i32, count: usize, size: u32) -> Result<Vec<u32>> {
    if count == 0 {
        return Err(Error::invalid("count is 0, but a group has at least one rank"));
    }
    if count > size as usize {
        return Err(Error::invalid(format_args!("count is {count}, but the parent has only {size} ranks")));
    }
    if ranks.is_null() {
        return Err(Error::invalid(format_args!("ranks is NULL with count {count}")));
    }
    let mut named = vec![false; size as usize];
    let mut members = Vec::with_capacity(count);
    for index in 0..count {
        // SAFETY: `index` is below `count`, for which the caller promises readable numbers.
        let member = rank("a member", unsafe { ranks.add(index).read() }, size)?;
        if std::mem::replace(&mut named[member as usize], true) {
            return Err(Error::invalid(format_args!("ranks names rank {member} twice")));
        }
        members.push(member);
    }
    Ok(members)
}

/// Refuses flags of tutti_explain and tutti_all_reduce_mode that do not exist.
pub(super) fn query_flags(flags: u32) -> Result<u32> {
    let known = TUTTI_CALL_CAPTURED | TUTTI_CALL_REGISTERED;
    if flags & !known != 0 {
        return Err(Error::invalid(format_args!(
            "flags is {flags:#x}; TUTTI_CALL_CAPTURED ({TUTTI_CALL_CAPTURED:#x}) and TUTTI_CALL_REGISTERED \
             ({TUTTI_CALL_REGISTERED:#x}) exist"
        )));
    }
    Ok(flags)
}

/// Refuses option flags that do not exist.
pub(super) fn world_flags(flags: u32) -> Result<u32> {
    if flags & !(FLAG_DETERMINISTIC | FLAG_ALLOW_UNAUTHENTICATED) != 0 {
        return Err(Error::invalid(format_args!(
            "flags is {flags:#x}; a world has TUTTI_FLAG_DETERMINISTIC ({FLAG_DETERMINISTIC:#x}) and \
             TUTTI_FLAG_ALLOW_UNAUTHENTICATED ({FLAG_ALLOW_UNAUTHENTICATED:#x})"
        )));
    }
    Ok(flags)
}

/// Refuses option flags that a group does not have.
pub(super) fn group_flags(flags: u32) -> Result<u32> {
    if flags & !FLAG_DETERMINISTIC != 0 {
        return Err(Error::invalid(format_args!(
            "flags is {flags:#x}; a group has TUTTI_FLAG_DETERMINISTIC ({FLAG_DETERMINISTIC:#x})"
        )));
    }
    Ok(flags)
}

/// Parses the option `communicators`.
///
/// # Safety
///
/// `list` is NULL or points to a text that ends with NUL.
pub(super) unsafe fn communicators(list: *const c_char) -> Result<Selection> {
    // SAFETY: the caller's promise.
    Ok(match unsafe { text("communicators", list) }? {
        Some(list) => Selection::parse(&list)?,
        None => Selection::All,
    })
}

/// The longest text the library takes, in bytes without its NUL: longer ones are mistakes, and nobody reads on for
/// ever where the NUL is missing.
pub(super) const TEXT_LIMIT: usize = 4095;

/// Copies a text; `None` for NULL.
///
/// # Safety
///
/// `text` is NULL or points to a text that ends with NUL.
pub(super) unsafe fn text(name: &str, text: *const c_char) -> Result<Option<String>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: bytes up to the NUL are readable by the caller's promise, and `strnlen` looks no further.
    let length = unsafe { libc::strnlen(text, TEXT_LIMIT + 1) };
    if length > TEXT_LIMIT {
        return Err(Error::invalid(format_args!("{name} is longer than {TEXT_LIMIT} bytes, or does not end with NUL")));
    }
    // SAFETY: as above; the byte at `length` is the NUL.
    let bytes = unsafe { CStr::from_ptr(text) };
    match bytes.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Error::invalid(format_args!("{name} is no UTF-8"))),
    }
}

/// A struct that begins with its size and grows at its end.
///
/// # Safety
///
/// The type is `repr(C)`, its first field is `struct_size: usize`, and all bytes zero is one of its values.
pub(super) unsafe trait Versioned: Copy {
    /// The struct's name in C.
    const NAME: &'static str;
    /// Its size in the first version that had it.
    const FIRST_SIZE: usize;
}

// SAFETY: see the definition; numbers and pointers may be zero, and so may an optional function.
unsafe impl Versioned for tutti_world_options {
    const NAME: &'static str = "tutti_world_options_t";
    const FIRST_SIZE: usize = 88;
}
// SAFETY: as above.
unsafe impl Versioned for tutti_group_options {
    const NAME: &'static str = "tutti_group_options_t";
    const FIRST_SIZE: usize = 40;
}
// SAFETY: as above.
unsafe impl Versioned for tutti_call {
    const NAME: &'static str = "tutti_call_t";
    const FIRST_SIZE: usize = 120;
}
// SAFETY: as above.
unsafe impl Versioned for tutti_failure {
    const NAME: &'static str = "tutti_failure_t";
    const FIRST_SIZE: usize = 32;
}

// SAFETY: as above.
unsafe impl Versioned for tutti_layout_options {
    const NAME: &'static str = "tutti_layout_options_t";
    const FIRST_SIZE: usize = 96;
}

// SAFETY: as above.
unsafe impl Versioned for tutti_queue_options {
    const NAME: &'static str = "tutti_queue_options_t";
    const FIRST_SIZE: usize = 40;
}

// SAFETY: as above.
unsafe impl Versioned for tutti_tensor {
    const NAME: &'static str = "tutti_tensor_t";
    const FIRST_SIZE: usize = 56;
}
// SAFETY: as above.
unsafe impl Versioned for tutti_dict_options {
    const NAME: &'static str = "tutti_dict_options_t";
    const FIRST_SIZE: usize = 32;
}

/// No struct will ever be larger, so a larger size is a mistake and nothing of the struct is read.
const LARGEST_STRUCT: usize = 1024;

/// Reads a struct of any version: what an older caller's lacks is zero, what a newer caller's has more must be.
///
/// # Safety
///
/// `pointer` is NULL or points to a `size_t` with the size of what is readable there.
pub(super) unsafe fn read_struct<T: Versioned>(pointer: *const T) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(pointer) }?;
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: `size` bytes are readable by the caller's promise, `value` has room for its own size, and any bytes a
    // caller put there are a value of the type: numbers, pointers, an optional function that the caller vouches for.
    let value = unsafe {
        ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), size.min(size_of::<T>()));
        value.assume_init()
    };
    for offset in size_of::<T>()..size {
        // SAFETY: below `size`.
        if unsafe { pointer.cast::<u8>().add(offset).read() } != 0 {
            return Err(Error::invalid(format_args!(
                "{} was compiled with a newer header than this library (version {}) and has a field set that it does \
                 not know, at byte {offset}: update libtutti",
                T::NAME,
                env!("CARGO_PKG_VERSION")
            )));
        }
    }
    Ok(value)
}

/// Reads an optional struct; all zero for NULL.
///
/// # Safety
///
/// As [`read_struct`].
pub(super) unsafe fn read_optional_struct<T: Versioned>(pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        // SAFETY: all bytes zero is a value of the type.
        return Ok(unsafe { std::mem::zeroed() });
    }
    // SAFETY: the caller's promise.
    unsafe { read_struct(pointer) }
}

/// Writes a struct of any version: what an older caller's lacks is left out, what a newer caller's has more is zero.
/// `struct_size` stays as it is.
///
/// # Safety
///
/// `pointer` is NULL or points to a `size_t` with the size of what is readable and writable there.
pub(super) unsafe fn write_struct<T: Versioned>(pointer: *mut T, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    let size = unsafe { struct_size(pointer) }?;
    let (known, header) = (size.min(size_of::<T>()), size_of::<usize>());
    // SAFETY: `size` bytes are writable by the caller's promise, and `known` is neither beyond them nor beyond `value`.
    unsafe {
        let from = ptr::from_ref(value).cast::<u8>();
        ptr::copy_nonoverlapping(from.add(header), pointer.cast::<u8>().add(header), known - header);
        pointer.cast::<u8>().add(known).write_bytes(0, size - known);
    }
    Ok(())
}

/// The caller's size of a struct, checked.
///
/// # Safety
///
/// `pointer` is NULL or points to a readable `size_t`.
unsafe fn struct_size<T: Versioned>(pointer: *const T) -> Result<usize> {
    if pointer.is_null() {
        return Err(Error::invalid(format_args!("the pointer to {} is NULL", T::NAME)));
    }
    // SAFETY: the caller's promise.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    if !(T::FIRST_SIZE..=LARGEST_STRUCT).contains(&size) {
        return Err(Error::invalid(format_args!(
            "struct_size of {} is {size}: initialise the struct with {}_INIT, or set struct_size to its sizeof",
            T::NAME,
            T::NAME.trim_end_matches("_t").to_uppercase()
        )));
    }
    Ok(size)
}

/// An out-parameter that is not NULL.
pub(super) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// Parses an out-parameter.
    ///
    /// # Safety
    ///
    /// `pointer` is NULL, or writable until this is dropped.
    pub(super) unsafe fn new(name: &str, pointer: *mut T) -> Result<Self> {
        NonNull::new(pointer).map(Out).ok_or_else(|| Error::invalid(format_args!("{name} is NULL")))
    }

    /// Writes the result.
    pub(super) fn write(&self, value: T) {
        // SAFETY: writable by the promise made to `new`.
        unsafe { self.0.write(value) }
    }
}

// SAFETY: it is only written through, and the promise made to `new` is about no particular thread.
unsafe impl<T> Send for Out<T> {}

/// Sets a handle that is about to be made to NULL, so that it is NULL whatever fails.
///
/// # Safety
///
/// `pointer` is NULL or writable.
pub(super) unsafe fn clear<T>(pointer: *mut *mut T) {
    if !pointer.is_null() {
        // SAFETY: the caller's promise.
        unsafe { pointer.write(ptr::null_mut()) }
    }
}

/// Writes a text as snprintf does: no more than `capacity` bytes, the last of them NUL, cut between characters; and
/// how long the whole is.
///
/// # Safety
///
/// `text` is NULL or points to `capacity` writable bytes; `needed` is NULL or writable.
pub(super) unsafe fn write_text(text: *mut c_char, capacity: usize, needed: *mut usize, value: &str) -> Result<()> {
    if text.is_null() && capacity != 0 {
        return Err(Error::invalid(format_args!("text is NULL with capacity {capacity}")));
    }
    // A NUL within would end the text early for its reader.
    let length = value.find('\0').unwrap_or(value.len());
    if capacity > 0 {
        let mut end = length.min(capacity - 1);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        // SAFETY: `end` is below `capacity`, for which the caller promises writable bytes.
        unsafe {
            ptr::copy_nonoverlapping(value.as_ptr(), text.cast::<u8>(), end);
            text.add(end).write(0);
        }
    }
    if !needed.is_null() {
        // SAFETY: the caller's promise.
        unsafe { needed.write(length) }
    }
    Ok(())
}

/// Bytes that are read until a call returns.
///
/// # Safety
///
/// `start` is NULL, or `bytes` bytes are readable there for as long as the result lives, and nobody writes to them.
pub(super) unsafe fn readable<'a>(name: &'static str, start: *const c_void, bytes: usize) -> Result<&'a [u8]> {
    let buffer = Buffer::new(name, start.cast(), bytes)?;
    // SAFETY: the caller's promise; where there are no bytes the pointer dangles.
    Ok(unsafe { std::slice::from_raw_parts(buffer.start(), bytes) })
}

/// Bytes that are written until a call returns.
///
/// # Safety
///
/// `start` is NULL, or `bytes` bytes are writable there for as long as the result lives, and nobody else touches them.
pub(super) unsafe fn writable<'a>(name: &'static str, start: *mut c_void, bytes: usize) -> Result<&'a mut [u8]> {
    let buffer = Buffer::new(name, start.cast_const().cast(), bytes)?;
    // SAFETY: as in `readable`. They may be uninitialised in C, but they are only written.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer.start().cast_mut(), bytes) })
}

/// One buffer of a call: where it begins and how many bytes of it this rank touches.
struct Buffer {
    name: &'static str,
    start: *const u8,
    bytes: usize,
}

impl Buffer {
    #[inline(always)]
    fn new(name: &'static str, start: *const u8, bytes: usize) -> Result<Self> {
        if bytes > 0 && start.is_null() {
            return Err(Error::invalid(format_args!("{name} is NULL, but {bytes} bytes are needed there")));
        }
        if bytes > 0 && (bytes > isize::MAX as usize || start.addr().checked_add(bytes).is_none()) {
            return Err(Error::invalid(format_args!(
                "{name} begins at {:#x}, where {bytes} bytes do not fit into the address space",
                start.addr()
            )));
        }
        Ok(Buffer { name, start, bytes })
    }

    /// The pointer for the call: dangling where nothing is touched, whatever was passed.
    fn start(&self) -> *const u8 {
        if self.bytes == 0 { ptr::dangling() } else { self.start }
    }

    fn range(&self) -> Range<usize> {
        self.start.addr()..self.start.addr() + self.bytes
    }

    fn overlaps(&self, other: &Buffer) -> bool {
        if self.bytes == 0 || other.bytes == 0 {
            return false;
        }
        let (a, b) = (self.range(), other.range());
        a.start < b.end && b.start < a.end
    }
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = self.range();
        write!(f, "{} ({:#x} to {:#x})", self.name, range.start, range.end)
    }
}

/// Whether two buffers that overlap are the in-place form of their collective.
#[inline(always)]
fn is_in_place(call: &Descriptor, send: &Buffer, recv: &Buffer, rank: u32) -> bool {
    use Collective::*;
    let (send, recv, mine) = (send.start.addr(), recv.start.addr(), call.bytes() * rank as usize);
    match call.collective {
        AllReduce | Broadcast | Reduce => send == recv,
        AllGather | Gather => send == recv + mine,
        ReduceScatter | Scatter => recv == send + mine,
        AllToAll | Send | Recv | Barrier | AllGatherV | ReduceScatterV | AllToAllV => false,
    }
}

fn in_place_form(collective: Collective) -> &'static str {
    use Collective::*;
    match collective {
        AllReduce | Broadcast | Reduce => "they must be equal or apart",
        AllGather | Gather | AllGatherV => "they must be apart, or send must be this rank's part of recv",
        ReduceScatter | Scatter | ReduceScatterV => "they must be apart, or recv must be this rank's part of send",
        AllToAll | Send | Recv | Barrier | AllToAllV => "they must be apart",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    const FLOAT: i32 = TUTTI_FLOAT32;
    /// The group of most tests: rank 1 of 4, calls of 4 floats, which are 16 bytes.
    const RANK: u32 = 1;
    const SIZE: u32 = 4;
    const COUNT: usize = 4;

    fn refused<T>(result: Result<T>, with: &str) {
        let Err(error) = result else { panic!("accepted; expected: {with}") };
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(error.to_string().contains(with), "{error:?} does not say {with:?}");
    }

    /// A call whose buffers begin at two bytes of one piece of memory.
    fn call(collective: Collective, memory: &mut [u8; 1024], send: usize, recv: usize) -> Arguments {
        let start = memory.as_mut_ptr();
        Arguments {
            send: start.wrapping_add(send).cast(),
            recv: start.wrapping_add(recv).cast(),
            count: COUNT,
            dtype: FLOAT,
            root: RANK as i32,
            ..Arguments::of(collective)
        }
    }

    #[test]
    fn the_in_place_form_of_each_collective_passes_and_one_byte_beside_it_does_not() {
        use Collective::*;
        // send and recv as byte offsets, on rank 1 of 4 with 16 bytes per part
        for (collective, send, recv) in [
            (AllReduce, 512, 512),
            (Broadcast, 512, 512),
            (Reduce, 512, 512),
            (AllGather, 512 + 16, 512),
            (Gather, 512 + 16, 512),
            (ReduceScatter, 512, 512 + 16),
            (Scatter, 512, 512 + 16),
        ] {
            let mut memory = [0; 1024];
            let parsed = call(collective, &mut memory, send, recv).parse(RANK, SIZE, false);
            let parsed = parsed.unwrap_or_else(|error| panic!("{collective:?} in place: {error}"));
            assert_eq!(parsed.send, memory.as_ptr().wrapping_add(send));
            assert_eq!(parsed.recv, memory.as_mut_ptr().wrapping_add(recv));
            for (send, recv) in [(send + 1, recv), (send - 1, recv), (send, recv + 1), (send, recv - 1)] {
                refused(call(collective, &mut memory, send, recv).parse(RANK, SIZE, false), "overlap");
            }
        }
    }

    #[test]
    fn another_ranks_part_is_not_the_in_place_form() {
        use Collective::*;
        let mut memory = [0; 1024];
        for (collective, send, recv) in [(AllGather, 512, 512), (AllGather, 544, 512), (ReduceScatter, 512, 512)] {
            refused(call(collective, &mut memory, send, recv).parse(RANK, SIZE, false), "this rank's part of");
        }
        refused(call(AllToAll, &mut memory, 512, 512).parse(RANK, SIZE, false), "they must be apart");
    }

    #[test]
    fn buffers_that_touch_do_not_overlap() {
        use Collective::*;
        let mut memory = [0; 1024];
        // bytes of send and of recv on rank 1 of 4
        for (collective, send, recv) in
            [(AllReduce, 16, 16), (AllGather, 16, 64), (ReduceScatter, 64, 16), (AllToAll, 64, 64)]
        {
            assert!(call(collective, &mut memory, 512, 512 + send).parse(RANK, SIZE, false).is_ok(), "{collective:?}");
            assert!(call(collective, &mut memory, 512 + recv, 512).parse(RANK, SIZE, false).is_ok(), "{collective:?}");
            refused(call(collective, &mut memory, 512, 512 + send - 1).parse(RANK, SIZE, false), "overlap");
            refused(call(collective, &mut memory, 512 + recv - 1, 512).parse(RANK, SIZE, false), "overlap");
        }
    }

    #[test]
    fn only_memory_that_this_rank_touches_is_looked_at() {
        use Collective::*;
        let mut memory = [0; 1024];
        // (collective, whether a rank that is not the root needs send, and recv)
        for (collective, send, recv) in
            [(Broadcast, false, true), (Reduce, true, false), (Gather, true, false), (Scatter, false, true)]
        {
            let other = Arguments { root: 0, ..call(collective, &mut memory, 512, 514) };
            assert!(other.parse(RANK, SIZE, false).is_ok(), "{collective:?}: a buffer that is not used cannot overlap");
            let without_send = Arguments { send: ptr::null(), ..other }.parse(RANK, SIZE, false);
            let without_recv = Arguments { recv: ptr::null_mut(), ..other }.parse(RANK, SIZE, false);
            assert_eq!((without_send.is_err(), without_recv.is_err()), (send, recv), "{collective:?}");
            // and the root needs both
            let root = call(collective, &mut memory, 0, 512);
            refused(Arguments { send: ptr::null(), ..root }.parse(RANK, SIZE, false), "send is NULL");
            refused(Arguments { recv: ptr::null_mut(), ..root }.parse(RANK, SIZE, false), "recv is NULL");
        }
    }

    #[test]
    fn count_zero_takes_null_and_anything_else() {
        let calls = |collective: &Collective| !collective.is_letter() && !collective.is_uneven();
        for collective in crate::dtype::COLLECTIVES.into_iter().filter(calls) {
            let empty = Arguments { dtype: FLOAT, ..Arguments::of(collective) };
            let parsed = empty.parse(RANK, SIZE, false).unwrap();
            assert!(!parsed.send.is_null() && !parsed.recv.is_null(), "{collective:?}: unused pointers are dangling");
            let wild: *mut c_void = ptr::without_provenance_mut(usize::MAX);
            assert!(Arguments { send: wild, recv: wild, ..empty }.parse(RANK, SIZE, false).is_ok(), "{collective:?}");
        }
    }

    #[test]
    fn what_cannot_be_addressed_is_refused() {
        let mut memory = [0; 1024];
        let ok = call(Collective::AllReduce, &mut memory, 0, 512);
        for count in [usize::MAX, usize::MAX / 4 + 1, isize::MAX as usize / 4 + 1, isize::MAX as usize / 16 + 1] {
            refused(Arguments { count, ..ok }.parse(RANK, SIZE, false), "more than can be addressed");
        }
        let end: *const c_void = ptr::without_provenance(usize::MAX - 14);
        refused(Arguments { send: end, ..ok }.parse(RANK, SIZE, false), "do not fit into the address space");
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused_by_name() {
        let mut memory = [0; 1024];
        let ok = Arguments { root: 0, ..call(Collective::Reduce, &mut memory, 0, 512) };
        for dtype in [-1, 12, 99, 103, i32::MAX] {
            refused(Arguments { dtype, ..ok }.parse(RANK, SIZE, false), "no dtype");
        }
        for dtype in [TUTTI_BOOL, TUTTI_INT16, TUTTI_BYTES] {
            refused(Arguments { dtype, ..ok }.parse(RANK, SIZE, false), "never reduced");
        }
        for op in [-1, 5, i32::MIN] {
            refused(Arguments { op, ..ok }.parse(RANK, SIZE, false), "no reduction");
        }
        for root in [-1, 4, i32::MAX] {
            refused(Arguments { root, ..ok }.parse(RANK, SIZE, false), "root is");
        }
        refused(Arguments { stream: memory.as_mut_ptr().cast(), ..ok }.parse(RANK, SIZE, false), "stream is not NULL");
        refused(
            Arguments { count: 1, ..Arguments::of(Collective::Barrier) }.parse(RANK, SIZE, false),
            "a barrier moves nothing",
        );
    }

    #[test]
    fn what_a_collective_does_not_use_is_not_looked_at_and_equal_on_all_ranks() {
        let mut memory = [0; 1024];
        let gather = call(Collective::AllGather, &mut memory, 0, 512);
        let plain = gather.parse(RANK, SIZE, false).unwrap().descriptor;
        assert_eq!(Arguments { op: 77, root: -5, ..gather }.parse(RANK, SIZE, false).unwrap().descriptor, plain);
        assert_eq!((plain.op, plain.root), (Op::Sum, 0));
        let barrier = Arguments::of(Collective::Barrier);
        let plain = barrier.parse(RANK, SIZE, false).unwrap().descriptor;
        assert_eq!(Arguments { dtype: 9999, op: 77, ..barrier }.parse(RANK, SIZE, false).unwrap().descriptor, plain);
    }

    #[test]
    fn letters_need_a_peer_a_tag_and_a_buffer() {
        let mut memory = [0; 1024];
        for collective in [Collective::Send, Collective::Recv] {
            let ok = Arguments { tag: 7, ..call(collective, &mut memory, 0, 512) };
            let letter = ok.parse_letter(SIZE, false).unwrap();
            assert_eq!((letter.collective(), letter.peer(), letter.tag()), (collective, RANK, 7));
            assert_eq!((letter.dtype(), letter.count(), letter.bytes()), (DType::Float32, 4, 16));
            refused(Arguments { root: 4, ..ok }.parse_letter(SIZE, false), "peer is 4");
            refused(Arguments { tag: -1, ..ok }.parse_letter(SIZE, false), "tag is -1");
            refused(Arguments { dtype: 50, ..ok }.parse_letter(SIZE, false), "no dtype");
            refused(Arguments { count: usize::MAX / 2, ..ok }.parse_letter(SIZE, false), "more than can be addressed");
            refused(
                Arguments { stream: memory.as_mut_ptr().cast(), ..ok }.parse_letter(SIZE, false),
                "stream is not NULL",
            );
            let nothing = Arguments { send: ptr::null(), recv: ptr::null_mut(), ..ok };
            refused(nothing.parse_letter(SIZE, false), "is NULL");
            assert!(Arguments { count: 0, ..nothing }.parse_letter(SIZE, false).is_ok());
            refused(ok.parse_letter(SIZE, true), "tag is 7; messages of CUDA groups have no tags");
            let stream = memory.as_mut_ptr().cast();
            let on_stream = Arguments { tag: 0, stream, ..ok }.parse_letter(SIZE, true).unwrap();
            assert_eq!(on_stream.stream(), stream);
        }
    }

    #[test]
    fn the_parts_of_v_forms_are_laid_out_checked_and_digested() {
        let mut memory = [0; 1024];
        let (counts, displs) = ([2_usize, 0, 1, 3], [0_usize, 99, 2, 10]);
        // SAFETY: as many numbers as the group has ranks.
        let parse = |arguments: Arguments| unsafe { arguments.parse_uneven(RANK + 1, SIZE, false) };
        let with = |collective, parts, memory: &mut [u8; 1024], send, recv| Arguments {
            parts,
            ..call(collective, memory, send, recv)
        };
        let gather = PartArrays { recv_counts: counts.as_ptr(), ..PartArrays::NONE };
        let packed = with(Collective::AllGatherV, gather, &mut memory, 0, 512);
        let parsed = parse(packed).unwrap();
        assert_eq!(
            parsed.recv_parts.iter().map(|part| (part.start, part.bytes)).collect::<Vec<_>>(),
            [(0, 8), (0, 0), (8, 4), (12, 12)]
        );
        assert_eq!((parsed.descriptor.count, parsed.send_parts[0].bytes), (6, 4));
        let placed = PartArrays { recv_displs: displs.as_ptr(), ..gather };
        let placed = with(Collective::AllGatherV, placed, &mut memory, 0, 512);
        assert_eq!(parse(placed).unwrap().recv_parts[3], Part { start: 40, bytes: 12 });
        assert_eq!(parse(placed).unwrap().descriptor, parsed.descriptor, "where parts lie is each rank's own affair");
        let other = [0_usize, 2, 1, 3];
        let swapped = PartArrays { recv_counts: other.as_ptr(), ..PartArrays::NONE };
        let swapped = parse(with(Collective::AllGatherV, swapped, &mut memory, 0, 512)).unwrap();
        assert_ne!(swapped.descriptor, parsed.descriptor, "the same sum of other counts");
        // In place, and one element beside it.
        assert!(parse(with(Collective::AllGatherV, gather, &mut memory, 512 + 8, 512)).is_ok());
        refused(parse(with(Collective::AllGatherV, gather, &mut memory, 512 + 12, 512)), "overlap");
        refused(parse(with(Collective::AllGatherV, PartArrays::NONE, &mut memory, 0, 512)), "counts of recv are NULL");
        let clash = [0_usize, 0, 1, 3];
        let clash = PartArrays { recv_displs: clash.as_ptr(), ..gather };
        refused(parse(with(Collective::AllGatherV, clash, &mut memory, 0, 512)), "parts of recv overlap");
        let unused = PartArrays { send_counts: counts.as_ptr(), ..gather };
        refused(parse(with(Collective::AllGatherV, unused, &mut memory, 0, 512)), "send_counts is not NULL");
        for huge in
            [[1, usize::MAX, 0, 0], [usize::MAX / 8, usize::MAX / 8, 1, 1], [0, 0, 0, isize::MAX as usize / 4 + 1]]
        {
            let huge = PartArrays { recv_counts: huge.as_ptr(), ..PartArrays::NONE };
            refused(parse(with(Collective::AllGatherV, huge, &mut memory, 0, 512)), "more than can be addressed");
        }
        let both = PartArrays { send_counts: counts.as_ptr(), ..gather };
        assert!(parse(with(Collective::AllToAllV, both, &mut memory, 0, 512)).is_ok());
        refused(parse(with(Collective::AllToAllV, both, &mut memory, 512, 512)), "they must be apart");
        let reduced = with(Collective::ReduceScatterV, gather, &mut memory, 512, 512 + 8);
        assert!(parse(reduced).is_ok(), "in place");
        refused(parse(Arguments { dtype: TUTTI_BOOL, ..reduced }), "never reduced");
    }

    fn start_call() -> tutti_call {
        // SAFETY: all bytes zero is a value of the struct.
        let zero: tutti_call = unsafe { std::mem::zeroed() };
        tutti_call { struct_size: size_of::<tutti_call>(), ..zero }
    }

    #[test]
    fn either_count_of_a_started_call_is_its_count() {
        for (send_count, recv_count, count) in [(0, 0, 0), (5, 0, 5), (0, 6, 6), (7, 7, 7)] {
            let call = tutti_call { send_count, recv_count, ..start_call() };
            assert_eq!(Arguments::from_call(&call).unwrap().count, count);
        }
        refused(
            Arguments::from_call(&tutti_call { send_count: 1, recv_count: 2, ..start_call() }),
            "both mean the count",
        );
    }

    #[test]
    fn a_started_call_is_refused_for_what_its_collective_does_not_have() {
        let displacements = [0usize; 4];
        let wrong = tutti_call { send_displs: displacements.as_ptr(), ..start_call() };
        refused(Arguments::from_call(&wrong), "must be NULL");
        refused(Arguments::from_call(&tutti_call { tag: 1, ..start_call() }), "tag is 1");
        refused(Arguments::from_call(&tutti_call { flags: TUTTI_CALL_CAPTURED, ..start_call() }), "flags is 0x1");
        refused(Arguments::from_call(&tutti_call { collective: 14, ..start_call() }), "no collective");
        let registered = tutti_call { flags: TUTTI_CALL_REGISTERED, peer: 3, op: TUTTI_MAX, ..start_call() };
        let parsed = Arguments::from_call(&registered).unwrap();
        assert_eq!((parsed.flags, parsed.root, parsed.op), (TUTTI_CALL_REGISTERED, 3, TUTTI_MAX));
    }

    /// A struct that has grown since its first version.
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Grown {
        struct_size: usize,
        old: u64,
        new: u64,
    }

    // SAFETY: numbers, the first of them the size.
    unsafe impl Versioned for Grown {
        const NAME: &'static str = "tutti_grown_t";
        const FIRST_SIZE: usize = 16;
    }

    #[test]
    fn structs_of_older_and_newer_callers_are_read() {
        let read = |words: &[u64]| {
            assert!(words.len() * 8 >= words[0] as usize);
            // SAFETY: as many bytes are there as the first word says, or it says too few or too many to be read.
            unsafe { read_struct(words.as_ptr().cast::<Grown>()) }
        };
        assert_eq!(read(&[16, 7]).unwrap(), Grown { struct_size: 16, old: 7, new: 0 });
        assert_eq!(read(&[24, 7, 8]).unwrap(), Grown { struct_size: 24, old: 7, new: 8 });
        assert_eq!(read(&[40, 7, 8, 0, 0]).unwrap(), Grown { struct_size: 40, old: 7, new: 8 });
        refused(read(&[40, 7, 8, 0, 1]), "not know, at byte 32");
        // The first word alone is readable here, so a size that is refused is refused unread.
        refused(read(&[8]), "struct_size of tutti_grown_t is 8: initialise the struct with TUTTI_GROWN_INIT");
        refused(read(&[0]), "struct_size of tutti_grown_t is 0");
        for size in [1025, usize::MAX] {
            // SAFETY: as above.
            refused(unsafe { read_struct(ptr::from_ref(&size).cast::<Grown>()) }, "struct_size");
        }
        // SAFETY: NULL is allowed.
        refused(unsafe { read_struct(ptr::null::<Grown>()) }, "tutti_grown_t is NULL");
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { read_optional_struct(ptr::null::<Grown>()) }.unwrap().old, 0);
    }

    #[test]
    fn structs_of_older_and_newer_callers_are_written() {
        let value = Grown { struct_size: 24, old: 7, new: 8 };
        for (size, expected) in
            [(16, [16, 7, 99, 99, 99]), (24, [24, 7, 8, 99, 99]), (32, [32, 7, 8, 0, 99]), (40, [40, 7, 8, 0, 0])]
        {
            let mut words = [size, 99u64, 99, 99, 99];
            // SAFETY: as many bytes are there as the first word says.
            unsafe { write_struct(words.as_mut_ptr().cast::<Grown>(), &value) }.unwrap();
            assert_eq!(words, expected);
        }
        let mut words = [8u64, 99];
        // SAFETY: too small a size is refused untouched.
        refused(unsafe { write_struct(words.as_mut_ptr().cast::<Grown>(), &value) }, "struct_size");
        assert_eq!(words, [8, 99]);
    }

    #[test]
    fn text_goes_out_as_snprintf_writes_it() {
        for (capacity, expected) in
            [(1, ""), (3, "na"), (4, "na"), (5, "na\u{ef}"), (6, "na\u{ef}v"), (7, "na\u{ef}ve"), (9, "na\u{ef}ve")]
        {
            let mut buffer = [0x55u8; 10];
            let mut needed = 0;
            // SAFETY: the buffer is larger than the capacity.
            unsafe { write_text(buffer.as_mut_ptr().cast(), capacity, &mut needed, "na\u{ef}ve") }.unwrap();
            assert_eq!(needed, 6);
            assert_eq!(CStr::from_bytes_until_nul(&buffer).unwrap().to_str().unwrap(), expected, "capacity {capacity}");
            assert!(buffer[capacity..].iter().all(|byte| *byte == 0x55), "written beyond capacity {capacity}");
        }
        let mut needed = 0;
        // SAFETY: NULL is allowed with capacity 0.
        unsafe { write_text(ptr::null_mut(), 0, &mut needed, "abc") }.unwrap();
        assert_eq!(needed, 3);
        // SAFETY: NULL is refused unwritten, and needed may be NULL.
        refused(unsafe { write_text(ptr::null_mut(), 4, ptr::null_mut(), "abc") }, "text is NULL");
    }

    #[test]
    fn texts_come_in_bounded_and_in_utf8() {
        // SAFETY: all end with NUL, or are longer than is read.
        let read = |bytes: &[u8]| unsafe { text("name", bytes.as_ptr().cast()) };
        assert_eq!(read(b"tp:0\0").unwrap().as_deref(), Some("tp:0"));
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { text("name", ptr::null()) }.unwrap(), None);
        refused(read(b"\xff\xfe\0"), "name is no UTF-8");
        refused(read(&[b'a'; TEXT_LIMIT + 1]), "does not end with NUL");
        let longest = [&[b'a'; TEXT_LIMIT][..], b"\0"].concat();
        assert_eq!(read(&longest).unwrap().unwrap().len(), TEXT_LIMIT);
    }

    #[test]
    fn members_are_ranks_of_the_parent_each_once() {
        // SAFETY: all have the length they are passed with.
        let parse = |ranks: &[i32]| unsafe { members(ranks.as_ptr(), ranks.len(), SIZE) };
        assert_eq!(parse(&[3, 0, 2]).unwrap(), [3, 0, 2]);
        refused(parse(&[]), "at least one rank");
        refused(parse(&[0, 1, 0]), "rank 0 twice");
        refused(parse(&[-1]), "a member is -1");
        refused(parse(&[4]), "a member is 4");
        refused(parse(&[0, 1, 2, 3, 0]), "only 4 ranks");
        // SAFETY: NULL is refused unread.
        refused(unsafe { members(ptr::null(), 2, SIZE) }, "ranks is NULL");
    }

    #[test]
    fn flags_that_do_not_exist_are_refused() {
        assert_eq!(world_flags(3).unwrap(), 3);
        refused(world_flags(4), "flags is 0x4");
        assert_eq!(group_flags(1).unwrap(), 1);
        refused(group_flags(FLAG_ALLOW_UNAUTHENTICATED), "flags is 0x2");
        assert_eq!(query_flags(3).unwrap(), 3);
        refused(query_flags(1 << 31), "flags is 0x80000000");
    }
}
