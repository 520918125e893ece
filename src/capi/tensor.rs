//! Tensor dicts and objects: named tensors that travel as one message.

use std::{
    ffi::{CString, c_char, c_void},
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    group::GROUPS,
    guard::{answer, guard},
    handles::{Entry, Table, destroy},
    parse::{Out, Versioned, clear, read_optional_struct, read_struct, text, write_struct},
    request::status_of,
    types::*,
};
use crate::{
    config::Timeout,
    dtype::DType,
    error::{Error, Result, Status},
    group::Group,
    tensor::{
        Dict, Options, Received, Slicing, View,
        manifest::{Device, MOST_RECORDS},
        shape::{MAX_DIMENSIONS, Shape},
    },
};

/// The dicts that C has handles of.
static DICTS: Table<Handle> = Table::new();

/// A dict, and what its tensors are told by: kept as long as the handle, since C gets pointers to it.
struct Handle {
    dict: Arc<Dict>,
    told: Mutex<Vec<Told>>,
}

struct Told {
    name: CString,
    dtype: DType,
    data: usize,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Entry for Handle {
    type Handle = tutti_dict;
    const KIND: u8 = b'D';
    const NAME: &'static str = "dict";

    fn retire(&self) {
        self.dict.release();
    }
}

/// Sends named tensors to a rank as one message, which tutti_dict_recv receives.
///
/// tensors[0] to tensors[count - 1]: their names are different; any strides, any extents, 0 included. All have
/// the same struct_size. options->peer and options->tag: to whom, and what the message meets its receive by.
///
/// The memory of the tensors is host memory or, on a CUDA group and with device_kind TUTTI_DEVICE_CUDA, memory of the rank's
/// device without gaps between the elements. Such tensors are copied to the host behind what is on options->stream, which
/// is waited for before the function returns, also where it starts a dict. All of a CUDA group's message travels by its CPU
/// sibling (see tutti_group_cpu), and the order among the sibling's calls is what counts.
///
/// options->replicas: where all ranks of that group hold the same tensors, as those of a TP group hold the hidden
/// state, and each of them sends to its own counterpart: each then sends only its slice of the large ones, and the
/// receivers gather them. TUTTI_TENSOR_WHOLE excepts a tensor that differs between the ranks. The message says what was
/// sliced, so the receivers need not know.
///
/// dict NULL: returns when the memory may be used again. Otherwise returns at once, and *dict gets a handle, NULL on
/// failure, that the caller must free with tutti_dict_free; the tensors belong to the library until tutti_dict_wait or
/// tutti_dict_test returns TUTTI_SUCCESS.
///
/// Returns what tutti_send returns; TUTTI_INVALID_ARGUMENT for tensors that cannot be sent, and why; TUTTI_UNSUPPORTED for
/// memory of a device with gaps, on a CPU group, or while the stream is captured.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_send(
    group: *mut tutti_group_t,
    tensors: *const tutti_tensor_t,
    count: usize,
    options: *const tutti_dict_options_t,
    dict: *mut *mut tutti_dict_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises what send asks for, and `count` tensors that are what their comments say.
    unsafe { send("tutti_dict_send", group, options, dict, false, || parse_tensors(tensors, count)) }
}

/// Sends `bytes` bytes as one message, which tutti_dict_recv receives and tutti_dict_object tells. Otherwise like
/// tutti_dict_send; options->replicas must be NULL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_object_send(
    group: *mut tutti_group_t,
    object: *const c_void,
    bytes: usize,
    options: *const tutti_dict_options_t,
    dict: *mut *mut tutti_dict_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises what send asks for.
    unsafe { send("tutti_object_send", group, options, dict, true, || object_view(object, bytes)) }
}

/// Starts to receive the next message of options->peer with options->tag: tensors or an object. Returns at once. Several
/// may be awaited at once; those of one peer and tag have to be waited for in the order in which they were started, and a
/// wait for a later one is TUTTI_INVALID_USAGE until the earlier ones are here.
///
/// *dict gets a handle, NULL on failure, that the caller must free with tutti_dict_free. tutti_dict_wait brings the
/// message here, into memory of the library or the caller's; tutti_dict_probe waits only until it is known what comes.
/// options->replicas: the group of the ranks that each receive a slice and gather them; needed where the senders gave
/// theirs, with as many ranks, each of which receives from the sender of its own rank; ignored where nothing is sliced.
///
/// Returns what tutti_recv returns.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_recv(
    group: *mut tutti_group_t,
    options: *const tutti_dict_options_t,
    dict: *mut *mut tutti_dict_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises what start asks for.
    unsafe { start("tutti_dict_recv", group, options, dict, Dict::start_receive) }
}

/// Starts to broadcast named tensors from the rank options->peer to all ranks of the group. Collective; returns at once.
///
/// tensors, count: of the root, as in tutti_dict_send; NULL and 0 on all others. *dict gets a handle, NULL on failure, that
/// the caller must free with tutti_dict_free. The data move in tutti_dict_wait, which every rank calls before its next
/// collective call on the group; all others than the root may call tutti_dict_probe before. options->tag is ignored,
/// options->replicas must be NULL.
///
/// Returns what tutti_broadcast returns; TUTTI_INVALID_ARGUMENT for tensors that cannot be sent, and why.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_broadcast(
    group: *mut tutti_group_t,
    tensors: *const tutti_tensor_t,
    count: usize,
    options: *const tutti_dict_options_t,
    dict: *mut *mut tutti_dict_t,
) -> tutti_status_t {
    let views = || {
        // SAFETY: the C caller promises `count` tensors that are what their comments say.
        unsafe { parse_tensors(tensors, count) }
    };
    // SAFETY: the C caller promises what start asks for.
    unsafe {
        start("tutti_dict_broadcast", group, options, dict, |group, options| {
            Dict::start_broadcast(group, &views()?, false, options)
        })
    }
}

/// Starts to broadcast `bytes` bytes from the rank options->peer; object NULL and bytes 0 on all others. Otherwise like
/// tutti_dict_broadcast.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_object_broadcast(
    group: *mut tutti_group_t,
    object: *const c_void,
    bytes: usize,
    options: *const tutti_dict_options_t,
    dict: *mut *mut tutti_dict_t,
) -> tutti_status_t {
    let view = || object_view(object, bytes);
    // SAFETY: the C caller promises what start asks for.
    unsafe {
        start("tutti_object_broadcast", group, options, dict, |group, options| {
            Dict::start_broadcast(group, &view()?, true, options)
        })
    }
}

/// Says without waiting whether tutti_dict_wait would wait for a peer to begin: TUTTI_SUCCESS for a send that is done, and
/// for a message of which it is known what comes. Any thread.
///
/// Returns TUTTI_IN_PROGRESS; TUTTI_SUCCESS; its failure; TUTTI_INVALID_ARGUMENT (no such dict); TUTTI_INVALID_USAGE
/// (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_test(dict: *mut tutti_dict_t) -> tutti_status_t {
    ask("tutti_dict_test", dict, |handle| handle.dict.test().map(status_of))
}

/// Waits until it is known what comes, so that tutti_dict_tensor tells names, dtypes and shapes and memory can be made
/// for them. timeout_ms: how long this wait may take; when it ends first nothing has failed.
///
/// Returns TUTTI_SUCCESS; TUTTI_IN_PROGRESS when timeout_ms ended first; TUTTI_MISMATCH (what came is no message of
/// tensors, and why); its failure; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, a batch is open, or
/// another thread waits for it).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_probe(dict: *mut tutti_dict_t, timeout_ms: i64) -> tutti_status_t {
    ask("tutti_dict_probe", dict, |handle| handle.dict.probe(Timeout::from_ms(timeout_ms)?).map(status_of))
}

/// Finishes a dict: one that is sent, until the memory of its tensors may be used again; one that comes, until all of it
/// is here. Slices are gathered here, so all ranks of options->replicas wait for their dicts in one order with their
/// other collective calls on that group.
///
/// tensors NULL and count 0: in memory of the library, which tutti_dict_tensor tells and tutti_dict_free frees. Otherwise
/// one tensor for each that comes, in its order, of its dtype and shape, with any strides; names are ignored. On a CUDA
/// group any of them may be memory of the device (device_kind TUTTI_DEVICE_CUDA, no gaps), wherever the sender has it: it is
/// written on options->stream, so what is put there after the return sees it. For a dict
/// that is sent they must be NULL and 0. timeout_ms: how long it may take until the message begins; when it ends first
/// nothing has failed. The rest has the deadline of the options.
///
/// Returns TUTTI_SUCCESS; TUTTI_IN_PROGRESS when timeout_ms ended first; TUTTI_INVALID_ARGUMENT (tensors that do not fit
/// the message, which is then not lost); TUTTI_MISMATCH (what came is no message of tensors, or was sliced for other
/// ranks); its failure; TUTTI_OUT_OF_MEMORY; TUTTI_INVALID_USAGE (forked process, a batch is open, another thread waits for
/// it, or a message that was started before is to come first).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_wait(
    dict: *mut tutti_dict_t,
    tensors: *const tutti_tensor_t,
    count: usize,
    timeout_ms: i64,
) -> tutti_status_t {
    ask("tutti_dict_wait", dict, |handle| {
        let timeout = Timeout::from_ms(timeout_ms)?;
        if tensors.is_null() && count == 0 {
            return handle.dict.wait(timeout).map(status_of);
        }
        // SAFETY: the C caller promises `count` tensors that are what their comments say.
        let views = unsafe { parse_tensors(tensors, count) }?;
        handle.dict.wait_into(&views, timeout).map(status_of)
    })
}

/// Writes how many tensors a message has. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, it is not known yet,
/// or another thread waits for it).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_count(dict: *mut tutti_dict_t, count: *mut usize) -> tutti_status_t {
    tell("tutti_dict_count", dict, |handle| {
        // SAFETY: the C caller promises that a count which is not NULL is writable.
        unsafe { Out::new("count", count) }?.write(handle.dict.records()?.len());
        Ok(())
    })
}

/// Writes what a tensor of a message is: all fields of *tensor; its data are NULL until the message is here. Set
/// tensor->struct_size before the call (TUTTI_TENSOR_INIT does). What the fields point to belongs to the dict.
///
/// Strides are those the sender had, where its tensor had no gaps; otherwise elements lie row by row. device_kind is where
/// the data are: in memory of the library always the host; while they are not here yet, where the sender has them. Any
/// thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, it is not known yet,
/// or another thread waits for it).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_tensor(
    dict: *mut tutti_dict_t,
    index: usize,
    tensor: *mut tutti_tensor_t,
) -> tutti_status_t {
    // SAFETY: the C caller promises that tensor is NULL or a writable struct as large as it says.
    tell("tutti_dict_tensor", dict, |handle| unsafe { write_struct(tensor, &handle.tell(index)?) })
}

/// Writes which tensor of a message has this name. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (none has); TUTTI_INVALID_USAGE (forked process, it is not known
/// yet, or another thread waits for it).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_find(
    dict: *mut tutti_dict_t,
    name: *const c_char,
    index: *mut usize,
) -> tutti_status_t {
    tell("tutti_dict_find", dict, |handle| {
        // SAFETY: the C caller promises that an index which is not NULL is writable.
        let index = unsafe { Out::new("index", index) }?;
        // SAFETY: the C caller promises that name is NULL or a text.
        let name = unsafe { text("name", name) }?.ok_or_else(|| Error::invalid("name is NULL"))?;
        index.write(handle.find(&name)?);
        Ok(())
    })
}

/// Writes where the bytes of an object are and how many; *object is NULL until they are here. They belong to the dict, or
/// are where the caller wanted them. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_INVALID_USAGE (forked process, the message has tensors and is no
/// object, it is not known yet, or another thread waits for it).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_dict_object(
    dict: *mut tutti_dict_t,
    object: *mut *mut c_void,
    bytes: *mut usize,
) -> tutti_status_t {
    tell("tutti_dict_object", dict, |handle| {
        // SAFETY: the C caller promises that object and bytes are NULL or writable.
        let (object, bytes) = unsafe { (Out::new("object", object)?, Out::new("bytes", bytes)?) };
        let whole = handle.object()?;
        object.write(whole.data.cast());
        bytes.write(whole.record.bytes());
        Ok(())
    })
}

/// Frees a dict, and the memory of the library that its tensors are in. One that is not over aborts its group first, since
/// its peer counts on it; so does one that was announced and never waited for. A wait in another thread ends with
/// TUTTI_ABORTED. Freeing NULL or a freed dict succeeds.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT (not a dict); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tutti_dict_free(dict: *mut tutti_dict_t) -> tutti_status_t {
    guard("tutti_dict_free", || destroy(&DICTS, dict))
}

/// Describes a tensor of DLPack: *tensor gets what `dlpack` says, and the given name.
///
/// dlpack: a DLTensor of DLPack 0.2 or later, such as &managed->dl_tensor. What it points to must live as long as *tensor is
/// used; nothing is copied or owned. name: kept as a pointer. Set tensor->struct_size before the call. Any thread.
///
/// Returns TUTTI_SUCCESS; TUTTI_INVALID_ARGUMENT; TUTTI_UNSUPPORTED (an element type or device that this library does not
/// know); TUTTI_INVALID_USAGE (forked process).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tutti_tensor_from_dlpack(
    dlpack: *const c_void,
    name: *const c_char,
    tensor: *mut tutti_tensor_t,
) -> tutti_status_t {
    guard("tutti_tensor_from_dlpack", || {
        if dlpack.is_null() {
            return Err(Error::invalid("dlpack is NULL"));
        }
        // SAFETY: the C caller promises a DLTensor.
        let theirs = unsafe { dlpack.cast::<DlTensor>().read_unaligned() };
        let data = match theirs.data.is_null() {
            true => ptr::null_mut(),
            false => theirs.data.wrapping_byte_add(
                usize::try_from(theirs.byte_offset)
                    .map_err(|_| Error::invalid(format_args!("byte_offset is {}", theirs.byte_offset)))?,
            ),
        };
        let described = tutti_tensor {
            struct_size: size_of::<tutti_tensor>(),
            name,
            data,
            dtype: theirs.dtype()?,
            device_kind: theirs.device_kind()?,
            ndim: theirs.ndim,
            flags: 0,
            shape: theirs.shape,
            strides: theirs.strides,
        };
        // SAFETY: the C caller promises that tensor is NULL or a writable struct as large as it says.
        unsafe { write_struct(tensor, &described) }
    })
}

/// DLPack's DLTensor, as its ABI has been since version 0.2.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const _: () = assert!(size_of::<DlTensor>() == 48);

impl DlTensor {
    fn dtype(&self) -> Result<i32> {
        // DLDataTypeCode: int 0, uint 1, float 2, bfloat 4, bool 6, and the 8-bit floats of OCP as PyTorch uses them.
        Ok(match (self.code, self.bits, self.lanes) {
            (0, 8, 1) => TUTTI_INT8,
            (0, 16, 1) => TUTTI_INT16,
            (0, 32, 1) => TUTTI_INT32,
            (0, 64, 1) => TUTTI_INT64,
            (1, 8, 1) => TUTTI_UINT8,
            (1, 32, 1) => TUTTI_UINT32,
            (1, 64, 1) => TUTTI_UINT64,
            (2, 16, 1) => TUTTI_FLOAT16,
            (2, 32, 1) => TUTTI_FLOAT32,
            (2, 64, 1) => TUTTI_FLOAT64,
            (4, 16, 1) => TUTTI_BFLOAT16,
            (6, 8, 1) => TUTTI_BOOL,
            (10, 8, 1) => TUTTI_FLOAT8E4M3,
            (12, 8, 1) => TUTTI_FLOAT8E5M2,
            (code, bits, lanes) => {
                return Err(Error::Unsupported(format!(
                    "DLPack's dtype of code {code}, {bits} bits and {lanes} lanes has no counterpart here: describe the \
                     tensor as bytes"
                )));
            }
        })
    }

    fn device_kind(&self) -> Result<i32> {
        // DLDeviceType: CPU 1, CUDA 2, CUDA host 3, CUDA managed 13.
        match self.device_type {
            1 | 3 => Ok(TUTTI_DEVICE_CPU),
            2 | 13 => Ok(TUTTI_DEVICE_CUDA),
            other => Err(Error::Unsupported(format!("DLPack's device type {other} is neither the CPU nor CUDA"))),
        }
    }
}

impl Handle {
    fn new(dict: Arc<Dict>) -> Self {
        Handle { dict, told: Mutex::new(Vec::new()) }
    }

    /// The number of the tensor of this name.
    fn find(&self, name: &str) -> Result<usize> {
        let records = self.dict.records()?;
        let found = records.iter().position(|received| received.record.name == name);
        found.ok_or_else(|| Error::invalid(format_args!("no tensor of the message is named {name:?}")))
    }

    /// The one tensor that an object is.
    fn object(&self) -> Result<Received> {
        let mut records = self.dict.records()?;
        match self.dict.is_object()? {
            true => records.pop().ok_or_else(|| Error::Internal("an object of nothing".into())),
            false => Err(Error::usage("the message is a dict of tensors, no object")),
        }
    }

    /// What a tensor is, in pointers that stay valid until the handle is freed.
    fn tell(&self, index: usize) -> Result<tutti_tensor> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let records = self.dict.records()?;
        let count = records.len();
        if index >= count {
            return Err(Error::invalid(format_args!("index is {index}, but the message has {count} tensors")));
        }
        if told.is_empty() {
            for received in &records {
                let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
                told.push(Told {
                    // A manifest has no NUL in a name.
                    name: CString::new(received.record.name.as_str()).unwrap_or_default(),
                    dtype: received.record.dtype,
                    data: 0,
                    shape: received.record.shape.extents().iter().copied().map(number).collect(),
                    strides: received.record.shape.strides().to_vec(),
                });
            }
        }
        let (told, received) = (&mut told[index], &records[index]);
        told.data = received.data.addr();
        told.strides.copy_from_slice(received.shape.strides());
        Ok(tutti_tensor {
            struct_size: size_of::<tutti_tensor>(),
            name: told.name.as_ptr(),
            data: received.data.cast(),
            dtype: told.dtype as i32,
            device_kind: match received.device {
                Device::Host => TUTTI_DEVICE_CPU,
                Device::Cuda => TUTTI_DEVICE_CUDA,
            },
            ndim: told.shape.len() as i32,
            flags: 0,
            shape: told.shape.as_ptr(),
            strides: told.strides.as_ptr(),
        })
    }
}

/// The body of the C function `name` that starts a dict: what `begin` makes of a group and options becomes *dict.
///
/// # Safety
///
/// `options` is NULL or points to a struct as large as it says; `dict` is NULL or writable.
unsafe fn start(
    name: &'static str,
    group: *mut tutti_group_t,
    options: *const tutti_dict_options_t,
    dict: *mut *mut tutti_dict_t,
    begin: impl FnOnce(&Arc<Group>, Options) -> Result<Arc<Dict>>,
) -> tutti_status_t {
    // SAFETY: the caller's promise.
    unsafe { clear(dict) };
    guard(name, || {
        let group = GROUPS.pin(group)?;
        // SAFETY: as above.
        let (dict, options) = unsafe { (Out::new("dict", dict)?, parse_options(options)?) };
        let place = DICTS.reserve()?;
        dict.write(place.fill(Handle::new(begin(&group, options)?)));
        Ok(())
    })
}

/// The body of the C function `name` that sends what `views` parses: started if there is a place for its handle, else
/// blocking.
///
/// # Safety
///
/// As for [`start`].
unsafe fn send(
    name: &'static str,
    group: *mut tutti_group_t,
    options: *const tutti_dict_options_t,
    dict: *mut *mut tutti_dict_t,
    is_object: bool,
    views: impl FnOnce() -> Result<Vec<View>>,
) -> tutti_status_t {
    if !dict.is_null() {
        let begin = |group: &Arc<Group>, options| Dict::start_send(group, &views()?, is_object, options);
        // SAFETY: the caller's promise.
        return unsafe { start(name, group, options, dict, begin) };
    }
    guard(name, || {
        let group = GROUPS.pin(group)?;
        // SAFETY: the caller's promise.
        let options = unsafe { parse_options(options) }?;
        Dict::send(&group, &views()?, is_object, options)
    })
}

/// The body of the C function `name` that asks a dict how far it is.
fn ask(
    name: &'static str,
    dict: *mut tutti_dict_t,
    question: impl FnOnce(&Handle) -> Result<Status>,
) -> tutti_status_t {
    answer(name, || question(&*DICTS.pin(dict)?))
}

/// The body of the C function `name` that tells what a dict holds.
fn tell(name: &'static str, dict: *mut tutti_dict_t, answer: impl FnOnce(&Handle) -> Result<()>) -> tutti_status_t {
    guard(name, || answer(&*DICTS.pin(dict)?))
}

/// Parses the options of a dict.
///
/// # Safety
///
/// `options` is NULL or points to a struct as large as it says.
unsafe fn parse_options(options: *const tutti_dict_options) -> Result<Options> {
    // SAFETY: the caller's promise.
    let options = unsafe { read_optional_struct(options) }?;
    let replicas: Option<Arc<Group>> = match options.replicas.is_null() {
        true => None,
        false => {
            let replicas = GROUPS.pin(options.replicas)?;
            Some(Arc::clone(&*replicas))
        }
    };
    let number = |name: &str, value: i32| {
        u32::try_from(value).map_err(|_| Error::invalid(format_args!("{name} is {value}; it must be 0 or more")))
    };
    Ok(Options {
        peer: number("peer", options.peer)?,
        tag: number("tag", options.tag)?,
        replicas,
        timeout: Timeout::from_ms(options.timeout_ms)?,
        stream: options.stream as usize,
    })
}

/// Parses an array of tensors, each as large as the first says.
///
/// # Safety
///
/// `tensors` is NULL or points to `count` structs as large as the first of them says, whose names are NULL or texts and
/// whose shapes and strides have as many numbers as they have dimensions.
unsafe fn parse_tensors(tensors: *const tutti_tensor, count: usize) -> Result<Vec<View>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if tensors.is_null() {
        return Err(Error::invalid(format_args!("tensors is NULL with count {count}")));
    }
    if count > MOST_RECORDS {
        return Err(Error::invalid(format_args!("{count} tensors are more than the {MOST_RECORDS} of a dict")));
    }
    // SAFETY: the caller's promise.
    let first = unsafe { read_struct(tensors) }?;
    let mut views = Vec::with_capacity(count);
    for index in 0..count {
        let at = tensors.wrapping_byte_add(index * first.struct_size);
        // SAFETY: the array goes on by the size that its first element says, by the caller's promise.
        let tensor = unsafe { read_struct(at) }?;
        if tensor.struct_size != first.struct_size {
            return Err(Error::invalid(format_args!(
                "struct_size of tensors[{index}] is {}, of tensors[0] {}: {} must be of one size in an array",
                tensor.struct_size,
                first.struct_size,
                tutti_tensor::NAME
            )));
        }
        // SAFETY: the caller's promise.
        views.push(unsafe { parse_tensor(index, &tensor) }?);
    }
    Ok(views)
}

/// # Safety
///
/// As [`parse_tensors`], for one.
unsafe fn parse_tensor(index: usize, tensor: &tutti_tensor) -> Result<View> {
    // SAFETY: the caller's promise.
    let name = unsafe { text("a tensor's name", tensor.name) }?.unwrap_or_default();
    let wrong = |text: String| Error::invalid(format_args!("tensors[{index}] ({name:?}): {text}"));
    let dtype = DType::parse(tensor.dtype).map_err(|error| wrong(error.to_string()))?;
    let dimensions = usize::try_from(tensor.ndim).ok().filter(|ndim| *ndim <= MAX_DIMENSIONS);
    let dimensions = dimensions
        .ok_or_else(|| wrong(format!("it has {} dimensions; 0 to {MAX_DIMENSIONS} are possible", tensor.ndim)))?;
    if dimensions > 0 && tensor.shape.is_null() {
        return Err(wrong("shape is NULL".into()));
    }
    let mut extents = [0; MAX_DIMENSIONS];
    let extents = &mut extents[..dimensions];
    for (i, place) in extents.iter_mut().enumerate() {
        // SAFETY: below the number of dimensions, for which the caller promises readable numbers.
        let extent = unsafe { tensor.shape.add(i).read() };
        *place = u64::try_from(extent).map_err(|_| wrong(format!("shape[{i}] is {extent}")))?;
    }
    let shape = match tensor.strides.is_null() || dimensions == 0 {
        true => Shape::rows(extents, dtype.size()),
        false => {
            // SAFETY: as above.
            let strides = unsafe { std::slice::from_raw_parts(tensor.strides, dimensions) };
            Shape::new(extents, strides, dtype.size())
        }
    };
    let shape = shape.map_err(|error| wrong(error.to_string()))?;
    if shape.count() > 0 && tensor.data.is_null() {
        return Err(wrong("data is NULL".into()));
    }
    let device = match tensor.device_kind {
        TUTTI_DEVICE_DEFAULT | TUTTI_DEVICE_CPU => Device::Host,
        TUTTI_DEVICE_CUDA => Device::Cuda,
        other => return Err(wrong(format!("device_kind is {other}"))),
    };
    let slicing = match tensor.flags {
        0 => Slicing::Auto,
        TUTTI_TENSOR_WHOLE => Slicing::Whole,
        TUTTI_TENSOR_SLICED => Slicing::Sliced,
        other => {
            return Err(wrong(format!(
                "flags is {other:#x}; TUTTI_TENSOR_WHOLE ({TUTTI_TENSOR_WHOLE}) or TUTTI_TENSOR_SLICED \
                 ({TUTTI_TENSOR_SLICED}) exist"
            )));
        }
    };
    Ok(View { name, dtype, device, shape, data: tensor.data.cast(), slicing })
}

/// The bytes of an object as the one tensor of a message.
fn object_view(object: *const c_void, bytes: usize) -> Result<Vec<View>> {
    if object.is_null() && bytes > 0 {
        return Err(Error::invalid(format_args!("object is NULL, but {bytes} bytes are needed there")));
    }
    Ok(vec![View {
        name: String::new(),
        dtype: DType::Bytes,
        device: Device::Host,
        shape: Shape::rows(&[bytes as u64], 1)?,
        data: object.cast_mut().cast(),
        slicing: Slicing::Whole,
    }])
}
