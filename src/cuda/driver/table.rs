//! The functions of the driver that this library calls, with their arguments as `cuda.h` has them, and the numbers
//! they take and give. Each becomes a method of [`Driver`] that turns its code into a result.
//!
//! A function is in the list because something here calls it; all of them are in the driver of CUDA 12.2.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::os::unix::{Library, Symbol};

use super::Driver;
use super::error::CudaError;

/// A device's number in the driver.
pub type Device = c_int;
/// An address in the memory of a device.
pub type Address = u64;
/// Handles of the driver.
pub type Context = *mut c_void;
/// A loaded module.
pub type Module = *mut c_void;
/// A kernel.
pub type Function = *mut c_void;
/// A stream; NULL: the legacy default stream.
pub type Stream = *mut c_void;
/// An event.
pub type Event = *mut c_void;
/// Physical memory.
pub type Physical = u64;

/// Codes that are told apart.
pub const OUT_OF_MEMORY: i32 = 2;
/// The driver works, but there is nothing to drive.
pub const NO_DEVICE: i32 = 100;
/// No context is current, or not the right one.
pub const INVALID_CONTEXT: i32 = 201;
/// Peer access was enabled before.
pub const PEER_ACCESS_ALREADY_ENABLED: i32 = 704;
/// A handle is not one, or belongs to another context.
pub const INVALID_HANDLE: i32 = 400;
/// Work has not come to its end.
pub const NOT_READY: i32 = 600;

/// Attributes of a device.
pub const MULTIPROCESSORS: i32 = 16;
/// The two halves of "8.0".
pub const MAJOR: i32 = 75;
/// See [`MAJOR`].
pub const MINOR: i32 = 76;
/// Whether memory can be mapped by hand.
pub const VIRTUAL_MEMORY: i32 = 102;
/// Whether such memory can be handed over as a descriptor.
pub const POSIX_DESCRIPTORS: i32 = 103;

/// Attributes of a pointer: the kind of memory, the device that has it, and where the allocation begins and how long it is.
pub const POINTER_FACTS: [i32; 4] = [2, 9, 11, 12];
/// Memory of a device, or managed by the driver.
pub const MEMORY_OF_DEVICE: u32 = 2;

/// `cuStreamIsCapturing`: nothing, a capture, a capture that has failed.
pub const CAPTURE_NONE: i32 = 0;
/// See [`CAPTURE_NONE`].
pub const CAPTURE_ACTIVE: i32 = 1;
/// `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`: the legacy stream would wait for one that is captured.
pub const CAPTURE_IMPLICIT: i32 = 906;
/// `cuThreadExchangeStreamCaptureMode`: nothing is forbidden to the thread while streams are captured.
pub const CAPTURE_MODE_RELAXED: c_int = 2;

/// Flags and small numbers of single functions.
pub const EVENT_DISABLE_TIMING: c_uint = 2;
/// The stream waits for no other and no other for it.
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// Host memory that every context may use, and that kernels can reach.
pub const HOST_PORTABLE_MAPPED: c_uint = 1 | 2;
/// Handle type: a descriptor.
pub const HANDLE_DESCRIPTOR: c_int = 1;
/// Access: read and write.
pub const ACCESS_READ_WRITE: c_int = 3;
/// A stretch of device memory is pinned.
pub const ALLOCATION_PINNED: c_int = 1;
/// A location: a device.
pub const LOCATION_DEVICE: c_int = 1;
/// An attribute of a launch: it may begin while the kernel before it still runs.
pub const LAUNCH_PROGRAMMATIC: c_int = 6;

/// The kinds of memory at the ends of a [`Copy2d`].
pub const END_ON_HOST: c_uint = 1;
/// See [`END_ON_HOST`].
pub const END_ON_DEVICE: c_uint = 2;
/// The furthest that rows of a [`Copy2d`] may be apart, on every device.
pub const MAX_PITCH: usize = i32::MAX as usize;

/// One end of a [`Copy2d`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CopyEnd {
    /// Bytes and rows to leave out.
    pub skipped: [usize; 2],
    /// [`END_ON_HOST`] or [`END_ON_DEVICE`].
    pub kind: c_uint,
    /// The first row, if it is on the host.
    pub host: *mut c_void,
    /// The first row, if it is on a device.
    pub device: Address,
    /// Where it is in an array: nowhere.
    pub array: *mut c_void,
    /// From row to row.
    pub pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Copy2d {
    /// The source.
    pub from: CopyEnd,
    /// The target.
    pub to: CopyEnd,
    /// Bytes of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// `CUuuid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

/// `CUipcMemHandle`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcHandle(pub [u8; 64]);

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    /// [`LOCATION_DEVICE`].
    pub kind: c_int,
    /// The device.
    pub id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AllocationProperties {
    /// [`ALLOCATION_PINNED`].
    pub kind: c_int,
    /// [`HANDLE_DESCRIPTOR`], or 0: not to be handed over.
    pub handles: c_int,
    /// Where.
    pub location: Location,
    /// Of Windows.
    pub security: *mut c_void,
    /// Compression, direct access by network cards, usage: none.
    pub flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Access {
    /// Who.
    pub location: Location,
    /// [`ACCESS_READ_WRITE`].
    pub flags: c_int,
}

/// `CUlaunchAttribute`: its value is a union of 64 bytes, of which we use the first int.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    /// [`LAUNCH_PROGRAMMATIC`].
    pub id: c_int,
    /// Of the struct in C.
    pub padding: c_int,
    /// The value, 1: yes.
    pub value: [c_int; 16],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [c_uint; 3],
    /// Threads of a block.
    pub block: [c_uint; 3],
    /// Dynamic shared memory.
    pub shared_bytes: c_uint,
    /// Where.
    pub stream: Stream,
    /// Attributes.
    pub attributes: *const LaunchAttribute,
    /// How many.
    pub attribute_count: c_uint,
}

const _: () = assert!(size_of::<AllocationProperties>() == 32 && size_of::<Access>() == 12);
const _: () = assert!(size_of::<LaunchAttribute>() == 72 && size_of::<LaunchConfig>() == 56);

macro_rules! functions {
    ($($method:ident = $symbol:literal ($($argument:ident: $type:ty),*);)*) => {
        /// The functions, as the library has them.
        pub struct Functions {
            $($method: unsafe extern "C" fn($($type),*) -> c_int,)*
            /// Never closed: the driver has threads of its own.
            _library: std::mem::ManuallyDrop<Library>,
        }

        impl Functions {
            /// Finds all functions, or says which one is not there.
            ///
            /// # Safety
            /// `library` is the CUDA driver.
            pub(super) unsafe fn load(library: Library) -> Result<Self, &'static str> {
                $(
                    let $method: Symbol<unsafe extern "C" fn($($type),*) -> c_int> =
                        // SAFETY: in the driver this name has these arguments, as the caller promises.
                        unsafe { library.get($symbol) }.map_err(|_| name($symbol))?;
                )*
                Ok(Functions { $($method: *$method,)* _library: std::mem::ManuallyDrop::new(library) })
            }
        }

        impl Driver {
            $(
                #[doc = concat!("`", stringify!($method), "`, see `cuda.h`.")]
                ///
                /// # Safety
                /// The arguments are what the driver's documentation asks for.
                #[inline]
                pub unsafe fn $method(&self, $($argument: $type),*) -> Result<(), CudaError> {
                    // SAFETY: the caller's promise.
                    let code = unsafe { (self.functions.$method)($($argument),*) };
                    if code == 0 { Ok(()) } else { Err(CudaError::new(self, name($symbol), code)) }
                }
            )*
        }

        /// All names, for whoever wants to know what a driver must have.
        pub const SYMBOLS: &[&CStr] = &[$($symbol),*];
    };
}

functions! {
    init = c"cuInit" (flags: c_uint);
    driver_get_version = c"cuDriverGetVersion" (version: *mut c_int);
    get_error_name = c"cuGetErrorName" (code: c_int, name: *mut *const c_char);
    device_get_count = c"cuDeviceGetCount" (count: *mut c_int);
    device_get = c"cuDeviceGet" (device: *mut Device, ordinal: c_int);
    device_get_name = c"cuDeviceGetName" (name: *mut c_char, capacity: c_int, device: Device);
    device_get_uuid = c"cuDeviceGetUuid_v2" (uuid: *mut Uuid, device: Device);
    device_get_attribute = c"cuDeviceGetAttribute" (value: *mut c_int, attribute: c_int, device: Device);
    device_can_access_peer = c"cuDeviceCanAccessPeer" (can: *mut c_int, device: Device, peer: Device);
    primary_ctx_retain = c"cuDevicePrimaryCtxRetain" (context: *mut Context, device: Device);
    ctx_get_current = c"cuCtxGetCurrent" (context: *mut Context);
    ctx_push_current = c"cuCtxPushCurrent_v2" (context: Context);
    ctx_pop_current = c"cuCtxPopCurrent_v2" (context: *mut Context);
    ctx_enable_peer_access = c"cuCtxEnablePeerAccess" (peer: Context, flags: c_uint);
    module_load_data = c"cuModuleLoadData" (module: *mut Module, image: *const c_void);
    module_get_function = c"cuModuleGetFunction" (function: *mut Function, module: Module, name: *const c_char);
    occupancy = c"cuOccupancyMaxActiveBlocksPerMultiprocessor"
        (blocks: *mut c_int, function: Function, threads: c_int, shared_bytes: usize);
    launch_kernel_ex = c"cuLaunchKernelEx"
        (config: *const LaunchConfig, function: Function, parameters: *mut *mut c_void, extra: *mut *mut c_void);
    stream_create = c"cuStreamCreate" (stream: *mut Stream, flags: c_uint);
    stream_destroy = c"cuStreamDestroy_v2" (stream: Stream);
    stream_synchronize = c"cuStreamSynchronize" (stream: Stream);
    stream_wait_event = c"cuStreamWaitEvent" (stream: Stream, event: Event, flags: c_uint);
    stream_is_capturing = c"cuStreamIsCapturing" (stream: Stream, status: *mut c_int);
    exchange_capture_mode = c"cuThreadExchangeStreamCaptureMode" (mode: *mut c_int);
    event_create = c"cuEventCreate" (event: *mut Event, flags: c_uint);
    event_destroy = c"cuEventDestroy_v2" (event: Event);
    event_record = c"cuEventRecord" (event: Event, stream: Stream);
    event_query = c"cuEventQuery" (event: Event);
    event_synchronize = c"cuEventSynchronize" (event: Event);
    mem_alloc = c"cuMemAlloc_v2" (address: *mut Address, bytes: usize);
    mem_free = c"cuMemFree_v2" (address: Address);
    mem_host_register = c"cuMemHostRegister_v2" (host: *mut c_void, bytes: usize, flags: c_uint);
    mem_host_unregister = c"cuMemHostUnregister" (host: *mut c_void);
    mem_host_get_device_pointer = c"cuMemHostGetDevicePointer_v2"
        (address: *mut Address, host: *mut c_void, flags: c_uint);
    memset_async = c"cuMemsetD8Async" (address: Address, byte: u8, count: usize, stream: Stream);
    memcpy_async = c"cuMemcpyAsync" (to: Address, from: Address, bytes: usize, stream: Stream);
    memcpy_2d_async = c"cuMemcpy2DAsync_v2" (copy: *const Copy2d, stream: Stream);
    pointer_get_attributes = c"cuPointerGetAttributes"
        (count: c_uint, attributes: *const c_int, data: *mut *mut c_void, pointer: Address);
    mem_create = c"cuMemCreate"
        (handle: *mut Physical, bytes: usize, properties: *const AllocationProperties, flags: u64);
    mem_release = c"cuMemRelease" (handle: Physical);
    mem_get_granularity = c"cuMemGetAllocationGranularity"
        (bytes: *mut usize, properties: *const AllocationProperties, option: c_int);
    mem_address_reserve = c"cuMemAddressReserve"
        (address: *mut Address, bytes: usize, alignment: usize, wanted: Address, flags: u64);
    mem_address_free = c"cuMemAddressFree" (address: Address, bytes: usize);
    mem_map = c"cuMemMap" (address: Address, bytes: usize, offset: usize, handle: Physical, flags: u64);
    mem_unmap = c"cuMemUnmap" (address: Address, bytes: usize);
    mem_set_access = c"cuMemSetAccess" (address: Address, bytes: usize, access: *const Access, count: usize);
    mem_export = c"cuMemExportToShareableHandle"
        (descriptor: *mut c_void, handle: Physical, kind: c_int, flags: u64);
    mem_import = c"cuMemImportFromShareableHandle" (handle: *mut Physical, descriptor: *mut c_void, kind: c_int);
    ipc_get_handle = c"cuIpcGetMemHandle" (handle: *mut IpcHandle, address: Address);
    ipc_open_handle = c"cuIpcOpenMemHandle_v2" (address: *mut Address, handle: IpcHandle, flags: c_uint);
    ipc_close_handle = c"cuIpcCloseMemHandle" (address: Address);
}

impl Driver {
    /// `cuGetErrorName`, whose own error has no name.
    ///
    /// # Safety
    /// `text` is writable.
    pub(super) unsafe fn raw_error_name(&self, code: c_int, text: *mut *const c_char) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { (self.functions.get_error_name)(code, text) }
    }
}

/// A name as text: all of them are ASCII.
fn name(symbol: &'static CStr) -> &'static str {
    symbol.to_str().unwrap_or_default()
}
