"""libtutti for Python: one file, ctypes only.

    import array, tutti

    with tutti.World() as world:                 # under torchrun, mpirun or srun
        values = array.array("f", [1.0] * 1024)
        world.all_reduce(values)                 # in place, summed over all ranks

Buffers are anything with the buffer protocol (array, bytearray, memoryview, NumPy), tensors with data_ptr() and dtype
(PyTorch), objects with __cuda_array_interface__, or a bare address with dtype and count. The element type and the
count come from the buffer where it knows them. The library is looked for at $TUTTI_LIBRARY, then beside this file, then
by the system. Calls release the GIL. What fails raises tutti.Error.
"""

import ctypes
import os
import threading
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from enum import IntEnum

__all__ = [
    "Batch", "Capture", "Collective", "DType", "Dict", "Error", "Failure", "Group", "Kind", "Layout", "Mode", "Op", "Queue",
    "Request", "Status", "Tensor", "TensorLayout", "Transfer", "TransferItem", "TransferPlan", "World", "balanced",
    "find_group", "library_path", "partial", "replicate", "set_log_callback", "shard", "uneven", "unique_id", "version",
]
__version__ = "0.1.0"

NEVER = -1
"""A timeout: wait for ever. 0 is the default of the group."""
UNIQUE_ID_BYTES = 128


class Status(IntEnum):
    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_USAGE = 2
    UNSUPPORTED = 3
    OUT_OF_MEMORY = 4
    SYSTEM_ERROR = 5
    CUDA_ERROR = 6
    COMMUNICATOR_ERROR = 7
    TIMEOUT = 8
    PEER_LOST = 9
    ABORTED = 10
    MISMATCH = 11
    INTERNAL_ERROR = 12
    IN_PROGRESS = 13


class DType(IntEnum):
    INT8 = 0
    UINT8 = 1
    INT32 = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    FLOAT16 = 6
    FLOAT32 = 7
    FLOAT64 = 8
    BFLOAT16 = 9
    FLOAT8E4M3 = 10
    FLOAT8E5M2 = 11
    BOOL = 100
    INT16 = 101
    BYTES = 102


class Op(IntEnum):
    SUM = 0
    PROD = 1
    MAX = 2
    MIN = 3
    AVG = 4


class Collective(IntEnum):
    ALL_REDUCE = 0
    ALL_GATHER = 1
    REDUCE_SCATTER = 2
    BROADCAST = 3
    REDUCE = 4
    GATHER = 5
    SCATTER = 6
    ALL_TO_ALL = 7
    SEND = 8
    RECV = 9
    BARRIER = 10
    ALL_GATHER_V = 11
    REDUCE_SCATTER_V = 12
    ALL_TO_ALL_V = 13


class Mode(IntEnum):
    NONE = 0
    INPLACE = 1
    OUTPLACE = 2
    BOTH = 3


class Kind(IntEnum):
    """Kinds of group in a layout."""

    TP = 0
    PP = 1
    DP = 2
    EXTERNAL_DP = 3
    PCP = 4
    DCP = 5
    EP = 6


class Error(RuntimeError):
    """What failed, in the library's words; `status` says what kind of failure it was."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


# ---- The C interface ---------------------------------------------------------------------------------------------


class _WorldOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("size", c_int32), ("rank", c_int32), ("device_kind", c_int32), ("device", c_int32),
        ("unique_id", c_void_p), ("unique_id_size", c_size_t), ("address", c_char_p),
        ("all_gather", c_void_p), ("user", c_void_p),
        ("timeout_ms", c_int64), ("flags", c_uint32), ("communicators", c_char_p),
    ]


class _GroupOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("name", c_char_p), ("timeout_ms", c_int64), ("flags", c_uint32),
        ("communicators", c_char_p),
    ]


class _LayoutOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("world", c_int32), ("tensor", c_int32), ("pipeline", c_int32), ("data", c_int32),
        ("external_data", c_int32), ("prefill_context", c_int32), ("decode_context", c_int32), ("expert", c_int32),
        ("axes", c_int32 * 5), ("order", POINTER(c_int32)), ("hosts", POINTER(c_int32)), ("domains", POINTER(c_int32)),
        ("lanes", POINTER(c_int32)),
    ]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("name", c_char_p), ("data", c_void_p), ("dtype", c_int32), ("device_kind", c_int32),
        ("ndim", c_int32), ("flags", c_uint32), ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
    ]


class _DictOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("peer", c_int32), ("tag", c_int32), ("replicas", c_void_p), ("timeout_ms", c_int64),
        ("stream", c_void_p),
    ]


class _QueueOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("writer", c_int32), ("capacity", c_size_t), ("name", c_char_p), ("timeout_ms", c_int64),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("collective", c_int32), ("dtype", c_int32), ("op", c_int32), ("peer", c_int32),
        ("tag", c_int64), ("flags", c_uint32), ("send", c_void_p), ("recv", c_void_p),
        ("send_count", c_size_t), ("recv_count", c_size_t),
        ("send_counts", POINTER(c_size_t)), ("send_displs", POINTER(c_size_t)),
        ("recv_counts", POINTER(c_size_t)), ("recv_displs", POINTER(c_size_t)),
        ("stream", c_void_p), ("timeout_ms", c_int64),
    ]


class _Failure(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("status", c_int32), ("rank", c_int32), ("collective", c_int32),
        ("sequence", c_uint64),
    ]


class _Mesh(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("dims", POINTER(c_size_t)), ("dim_count", c_size_t), ("ranks", POINTER(c_int32)),
        ("rank_count", c_size_t),
    ]


class _Placement(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("kind", c_int32), ("dim", c_int32), ("op", c_int32), ("split", c_int32),
        ("order", c_int32), ("sizes", POINTER(c_size_t)), ("size_count", c_size_t),
    ]


class _TensorLayout(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("dtype", c_int32), ("mesh", POINTER(_Mesh)), ("placements", POINTER(_Placement)),
        ("placement_count", c_size_t),
    ]


class _TransferItem(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("name", c_char_p), ("shape", POINTER(c_size_t)), ("dim_count", c_size_t),
        ("source", POINTER(_TensorLayout)), ("target", POINTER(_TensorLayout)), ("wire_dtype", c_int32),
    ]


class _TransferOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("bucket_bytes", c_uint64), ("staging_bytes", c_uint64), ("split_bytes", c_uint64),
        ("in_flight", c_uint32),
    ]


class _TransferTotals(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t)] + [(name, c_uint64) for name in (
        "items", "ranks", "chunks", "buckets", "p2p_buckets", "broadcast_buckets", "local_buckets", "reduce_buckets",
        "groups", "wire", "wire_bound", "injected", "injection_bound", "reduced", "reduce_bound", "local",
        "largest_send", "send_bound", "largest_receive", "receive_bound", "staging", "staging_cap")] + [
        ("in_flight", c_uint32),
    ]


class _TransferLoad(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t)] + [(name, c_uint64) for name in (
        "operations", "sent", "received", "receive_bound", "local", "reduce_sent", "reduce_received", "staging")]


class _TransferChunk(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("item", c_size_t), ("bucket", c_size_t), ("transport", c_int32),
        ("source", c_int32), ("is_source", c_int32), ("is_target", c_int32), ("targets", POINTER(c_int32)),
        ("target_count", c_size_t), ("contributors", POINTER(c_int32)), ("contributor_count", c_size_t),
        ("start", POINTER(c_uint64)), ("extent", POINTER(c_uint64)), ("dim_count", c_size_t), ("bytes", c_uint64),
        ("offset", c_uint64), ("reduced_bucket", c_int64), ("reduced_offset", c_uint64), ("dtype", c_int32),
    ]


class _TransferBucket(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("transport", c_int32), ("source", c_int32), ("targets", POINTER(c_int32)),
        ("target_count", c_size_t), ("bytes", c_uint64), ("first_chunk", c_size_t), ("chunk_count", c_size_t),
        ("after", c_int64), ("members", POINTER(c_int32)), ("member_count", c_size_t), ("blocks", POINTER(c_uint64)),
    ]


class _TransferProgress(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("phase", c_int32), ("failed_rank", c_int32), ("buckets_done", c_uint64),
        ("buckets", c_uint64), ("bytes_done", c_uint64), ("bytes", c_uint64), ("staged", c_uint64),
    ]


_LogFn = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p, c_char_p)
_AllGatherFn = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t, c_void_p)
_HANDLE, _OUT = c_void_p, POINTER(c_void_p)
_COUNTS = POINTER(c_size_t)
_TEXT = (c_char_p, c_size_t, POINTER(c_size_t))

# Every function that returns a status, with its arguments.
_FUNCTIONS = {
    "set_log_callback": (c_void_p, c_void_p),
    "world_create": (POINTER(_WorldOptions), _OUT),
    "world_create_local": (c_int32, POINTER(c_int32), POINTER(_WorldOptions), _OUT),
    "unique_id_create": (c_char_p, c_size_t, POINTER(c_size_t)),
    "group_create": (_HANDLE, POINTER(c_int32), c_size_t, POINTER(_GroupOptions), _OUT),
    "group_split": (_HANDLE, c_int32, c_int32, POINTER(_GroupOptions), _OUT),
    "group_rank": (_HANDLE, POINTER(c_int32)),
    "group_size": (_HANDLE, POINTER(c_int32)),
    "group_name": (_HANDLE, *_TEXT),
    "group_check": (_HANDLE,),
    "group_error": (_HANDLE, *_TEXT),
    "group_failure": (_HANDLE, POINTER(_Failure)),
    "group_alive": (_HANDLE, POINTER(c_uint8), c_size_t),
    "group_cpu": (_HANDLE, _OUT),
    "group_sync": (_HANDLE, c_int64),
    "group_set_enabled": (_HANDLE, c_char_p, c_int32),
    "group_abort": (_HANDLE,),
    "group_destroy": (_HANDLE,),
    "group_find": (c_char_p, c_int32, _OUT),
    "layout_create": (POINTER(_LayoutOptions), _OUT),
    "layout_digest": (_HANDLE, POINTER(c_uint64)),
    "layout_size": (_HANDLE, c_int32, POINTER(c_int32), POINTER(c_int32)),
    "layout_ranks": (_HANDLE, c_int32, POINTER(c_int32), c_size_t),
    "layout_of": (_HANDLE, c_int32, c_int32, POINTER(c_int32), POINTER(c_int32)),
    "layout_reach": (_HANDLE, c_int32, POINTER(c_int32), POINTER(c_int32), c_size_t),
    "layout_draw": (_HANDLE, c_int32, *_TEXT),
    "layout_groups": (_HANDLE, _HANDLE, c_uint32, POINTER(_GroupOptions), _OUT),
    "layout_destroy": (_HANDLE,),
    "all_reduce": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "all_reduce_auto": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p, _OUT),
    "all_reduce_mode": (_HANDLE, c_size_t, c_int32, c_int32, c_uint32, POINTER(c_int32)),
    "all_gather": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_void_p),
    "reduce_scatter": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "broadcast": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "reduce": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_int32, c_void_p),
    "gather": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "scatter": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "all_to_all": (_HANDLE, c_void_p, c_void_p, c_size_t, c_int32, c_void_p),
    "barrier": (_HANDLE, c_void_p),
    "send": (_HANDLE, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "recv": (_HANDLE, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "sendrecv": (_HANDLE, c_void_p, c_size_t, c_int32, c_void_p, c_size_t, c_int32, c_int32, c_void_p),
    "all_gather_v": (_HANDLE, c_void_p, c_void_p, _COUNTS, _COUNTS, c_int32, c_void_p),
    "reduce_scatter_v": (_HANDLE, c_void_p, c_void_p, _COUNTS, _COUNTS, c_int32, c_int32, c_void_p),
    "all_to_all_v": (_HANDLE, c_void_p, _COUNTS, _COUNTS, c_void_p, _COUNTS, _COUNTS, c_int32, c_void_p),
    "explain": (_HANDLE, c_int32, c_size_t, c_int32, c_int32, c_uint32, c_int32, *_TEXT),
    "start": (_HANDLE, POINTER(_Call), _OUT),
    "request_test": (_HANDLE,),
    "request_wait": (_HANDLE, c_int64),
    "request_free": (_HANDLE,),
    "dict_send": (_HANDLE, POINTER(_Tensor), c_size_t, POINTER(_DictOptions), _OUT),
    "object_send": (_HANDLE, c_void_p, c_size_t, POINTER(_DictOptions), _OUT),
    "dict_recv": (_HANDLE, POINTER(_DictOptions), _OUT),
    "dict_broadcast": (_HANDLE, POINTER(_Tensor), c_size_t, POINTER(_DictOptions), _OUT),
    "object_broadcast": (_HANDLE, c_void_p, c_size_t, POINTER(_DictOptions), _OUT),
    "dict_test": (_HANDLE,),
    "dict_probe": (_HANDLE, c_int64),
    "dict_wait": (_HANDLE, POINTER(_Tensor), c_size_t, c_int64),
    "dict_count": (_HANDLE, POINTER(c_size_t)),
    "dict_tensor": (_HANDLE, c_size_t, POINTER(_Tensor)),
    "dict_find": (_HANDLE, c_char_p, POINTER(c_size_t)),
    "dict_object": (_HANDLE, _OUT, POINTER(c_size_t)),
    "dict_free": (_HANDLE,),
    "tensor_from_dlpack": (c_void_p, c_char_p, POINTER(_Tensor)),
    "queue_create": (_HANDLE, POINTER(_QueueOptions), _OUT),
    "queue_write": (_HANDLE, c_void_p, c_size_t, c_int64),
    "queue_next": (_HANDLE, POINTER(c_size_t), c_int64),
    "queue_read": (_HANDLE, c_void_p, c_size_t, POINTER(c_size_t), c_int64),
    "queue_destroy": (_HANDLE,),
    "request_received": (_HANDLE, POINTER(c_size_t)),
    "batch_begin": (),
    "batch_end": (),
    "mem_alloc": (_HANDLE, c_size_t, _OUT),
    "mem_free": (c_void_p,),
    "capture_begin": (_OUT, c_size_t, _OUT),
    "capture_commit": (_HANDLE,),
    "capture_abort": (_HANDLE,),
    "capture_destroy": (_HANDLE,),
    "transfer_plan_create": (POINTER(_TransferItem), c_size_t, c_int32, POINTER(_TransferOptions), _OUT),
    "transfer_plan_destroy": (_HANDLE,),
    "transfer_plan_hash": (_HANDLE, c_char_p),
    "transfer_plan_totals": (_HANDLE, POINTER(_TransferTotals)),
    "transfer_plan_load": (_HANDLE, c_int32, POINTER(_TransferLoad)),
    "transfer_plan_chunk": (_HANDLE, c_size_t, c_int32, POINTER(_TransferChunk)),
    "transfer_plan_bucket": (_HANDLE, c_size_t, POINTER(_TransferBucket)),
    "transfer_plan_operation": (_HANDLE, c_int32, c_size_t, POINTER(c_size_t)),
    "transfer_plan_region": (_HANDLE, c_size_t, c_int32, c_int32, POINTER(c_uint64), POINTER(c_uint64),
                             POINTER(c_uint64)),
    "transfer_plan_report": (_HANDLE, c_int32, c_int32, *_TEXT),
    "transfer_create": (_HANDLE, _HANDLE, _OUT),
    "transfer_bind": (_HANDLE, c_size_t, c_void_p, POINTER(c_int64), c_void_p, POINTER(c_int64)),
    "transfer_start": (_HANDLE, c_void_p),
    "transfer_poll": (_HANDLE, POINTER(_TransferProgress)),
    "transfer_wait": (_HANDLE, c_int64),
    "transfer_written": (_HANDLE, c_size_t, POINTER(c_uint64), POINTER(c_uint64)),
    "transfer_abort": (_HANDLE,),
    "transfer_destroy": (_HANDLE,),
}


def _number(version):
    major, minor, patch = (int(part) for part in version.split("."))
    return 10000 * major + 100 * minor + patch


def _load():
    """The library, its path, and the C functions by their names without the prefix."""
    soname = "libtutti.so." + __version__.split(".")[0]
    here = os.path.dirname(os.path.realpath(__file__))
    named = os.environ.get("TUTTI_LIBRARY")
    beside = [os.path.join(here, soname), os.path.join(here, "libtutti.so")]
    # `make install` puts this file into share/tutti/python and the library into lib of the same prefix.
    beside.append(os.path.join(here, "..", "..", "..", "lib", soname))
    path = named or next((path for path in beside if os.path.exists(path)), soname)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        hint = "" if named else "; set TUTTI_LIBRARY to its path"
        raise ImportError(f"tutti: cannot load {path}: {error}{hint}") from None
    functions = {}
    try:
        library.tutti_version.restype = c_uint32
        found = library.tutti_version()
        if found // 100 != _number(__version__) // 100:
            text = f"{found // 10000}.{found // 100 % 100}.{found % 100}"
            raise ImportError(f"tutti: this module is of version {__version__}, but {path} is of version {text}")
        library.tutti_last_error.restype = library.tutti_status_string.restype = c_char_p
        library.tutti_status_string.argtypes = (c_int32,)
        for name, arguments in _FUNCTIONS.items():
            functions[name] = getattr(library, "tutti_" + name)
            functions[name].restype, functions[name].argtypes = c_int32, arguments
    except AttributeError as error:
        raise ImportError(f"tutti: {path} is not the library of version {__version__}: {error}") from None
    return library, path, functions


_library, library_path, _functions = _load()


def _check(status):
    if status != Status.SUCCESS:
        text = _library.tutti_last_error() or _library.tutti_status_string(status)
        raise Error(_status(status), text.decode("utf-8", "replace"))


def _status(code):
    try:
        return Status(code)
    except ValueError:  # a later library knows more
        return code


def _call(name, *arguments):
    _check(_functions[name](*arguments))


def _out(name, *arguments, out=c_void_p):
    """Calls a function whose last argument is an out-parameter, and returns what it wrote."""
    result = out()
    _call(name, *arguments, byref(result))
    return result.value


def _text(name, *arguments):
    capacity = 4096
    while True:
        needed = c_size_t()
        text = ctypes.create_string_buffer(capacity)
        _call(name, *arguments, text, capacity, byref(needed))
        if needed.value < capacity:
            return text.value.decode("utf-8", "replace")
        capacity = needed.value + 1


def version():
    """10000 * major + 100 * minor + patch of the library."""
    return _library.tutti_version()


# ---- Buffers -------------------------------------------------------------------------------------------------------


class _PyBuffer(ctypes.Structure):
    _fields_ = [
        ("buf", c_void_p), ("obj", c_void_p), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", c_char_p), ("shape", c_void_p),
        ("strides", c_void_p), ("suboffsets", c_void_p), ("internal", c_void_p),
    ]


_WRITABLE, _CONTIGUOUS_FORMAT = 1, 0x0008 | 0x0010 | 0x0004 | 0x0020  # PyBUF_ND | _STRIDES | _FORMAT | _C_CONTIGUOUS
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (POINTER(_PyBuffer),)
_release_buffer.restype = None

_DTYPE_NAMES = {dtype.name.lower(): dtype for dtype in DType}
_DTYPE_NAMES.update(float8_e4m3fn=DType.FLOAT8E4M3, float8_e5m2=DType.FLOAT8E5M2, bool_=DType.BOOL)
_SIZES = {
    DType.INT8: 1, DType.UINT8: 1, DType.INT32: 4, DType.UINT32: 4, DType.INT64: 8, DType.UINT64: 8, DType.FLOAT16: 2,
    DType.FLOAT32: 4, DType.FLOAT64: 8, DType.BFLOAT16: 2, DType.FLOAT8E4M3: 1, DType.FLOAT8E5M2: 1, DType.BOOL: 1,
    DType.INT16: 2, DType.BYTES: 1,
}


def _struct_dtype(code, size):
    """The dtype of a struct or array-interface type code; None if there is none."""
    kind = {"e": "f", "f": "f", "d": "f", "?": "bool", "b1": "bool"}.get(code)
    if kind is None:
        if code in ("c", "V", "s", "S"):
            return DType.BYTES if size == 1 else None
        kind = "i" if code in "bhilqn" else "u" if code in "BHILQN" else code
    if kind == "bool":
        return DType.BOOL
    prefix = {"f": "FLOAT", "i": "INT", "u": "UINT"}.get(kind)
    return DType.__members__.get(f"{prefix}{8 * size}") if prefix else None


def dtype_of(value):
    """A DType from a DType, its number, its name ("float16"), or a NumPy or PyTorch dtype."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    name = str(getattr(value, "name", None) or getattr(value, "__name__", None) or value).rpartition(".")[2].lower()
    if name not in _DTYPE_NAMES:
        raise ValueError(f"{value!r} is no dtype of libtutti")
    return _DTYPE_NAMES[name]


def _op(value):
    return Op[value.upper()] if isinstance(value, str) else int(value)


class _Buffer:
    """Where the elements of an object lie. Keeps the object, and its memory in place, as long as it lives."""

    __slots__ = ("address", "count", "dtype", "_held", "_exported")

    def __init__(self, source, writable, dtype=None):
        self.address, self.count, self.dtype, self._held, self._exported = None, None, None, source, None
        if source is None:
            pass
        elif isinstance(source, int):
            self.address = source
        elif isinstance(source, c_void_p):
            self.address = source.value
        elif hasattr(source, "data_ptr"):  # a torch tensor
            if not source.is_contiguous():
                raise ValueError("the tensor is not contiguous")
            self.address, self.count, self.dtype = source.data_ptr(), source.numel(), dtype_of(source.dtype)
        elif hasattr(source, "__cuda_array_interface__"):
            self._from_cuda(source.__cuda_array_interface__, writable)
        else:
            self._from_buffer(source, writable)
        if dtype is not None:
            wanted = dtype_of(dtype)
            if self.count is not None and self.dtype is not None:
                self.count = self.count * _SIZES[self.dtype] // _SIZES.get(wanted, 1)
            self.dtype = wanted

    def _from_cuda(self, interface, writable):
        if interface.get("strides") is not None:
            raise ValueError("the array is not contiguous")
        self.address, readonly = interface["data"]
        if writable and readonly:
            raise ValueError("the array is read-only")
        self.count = 1
        for extent in interface["shape"]:
            self.count *= extent
        code = interface["typestr"]
        self.dtype = _struct_dtype("b1" if code[1] == "b" else code[1], int(code[2:]))

    def _from_buffer(self, source, writable):
        view = _PyBuffer()
        # Raises BufferError where the memory is read-only or not contiguous, TypeError where there is none.
        _get_buffer(source, byref(view), _CONTIGUOUS_FORMAT | (_WRITABLE if writable else 0))
        self._exported = view
        self.address = view.buf
        code = (view.format or b"B").decode().lstrip("@=<")
        self.dtype = _struct_dtype(code, view.itemsize)
        self.count = view.len // max(view.itemsize, 1)
        if self.dtype is None:  # an opaque element: bytes
            self.dtype, self.count = DType.BYTES, view.len

    def __del__(self):
        if self._exported is not None:
            _release_buffer(byref(self._exported))


def _stream(stream):
    """A CUstream: an address, None, or an object that has one (torch and CuPy streams)."""
    for name in ("cuda_stream", "ptr"):
        if hasattr(stream, name):
            return getattr(stream, name)
    return stream


class _Arguments:
    """The buffers of one call, and the dtype and count they agree on."""

    __slots__ = ("send", "recv", "dtype", "count")

    def __init__(self, send, recv, dtype, count, counted):
        in_place = recv is None
        self.send = _Buffer(send, in_place, dtype)
        self.recv = self.send if in_place or recv is send else _Buffer(recv, True, dtype)
        known = [buffer.dtype for buffer in (self.send, self.recv) if buffer.dtype is not None]
        if not known:
            raise ValueError("an address has no element type: give dtype and count")
        if len(set(known)) > 1:
            raise ValueError(f"send has elements of {DType(known[0]).name}, recv of {DType(known[1]).name}")
        self.dtype = known[0]
        if count is None:
            count = getattr(self, counted).count
        if count is None:
            raise ValueError("an address has no length: give count")
        self.count = count
        self.holds(counted, count)

    def holds(self, which, elements):
        have = getattr(self, which).count
        if have is not None and have < elements:
            raise ValueError(f"{which} has {have} elements; the call needs {elements}")


# ---- Groups --------------------------------------------------------------------------------------------------------


class Failure:
    """A group's first failure: status, rank and collective (None: none named), sequence, and the sentence."""

    def __init__(self, raw, text):
        self.status = _status(raw.status)
        self.rank = raw.rank if raw.rank >= 0 else None
        self.collective = Collective(raw.collective) if raw.collective >= 0 else None
        self.sequence = raw.sequence
        self.text = text

    def __repr__(self):
        return f"Failure({self.text!r})"


def _group_options(name, timeout_ms, deterministic, communicators):
    return _GroupOptions(
        struct_size=ctypes.sizeof(_GroupOptions), name=name.encode() if name else None, timeout_ms=timeout_ms,
        flags=1 if deterministic else 0, communicators=communicators.encode() if communicators else None,
    )


class Group:
    """Ordered ranks that communicate, as one of them sees them. Leaving its `with` block destroys it.

    Two threads may not be inside calls of one group at once; abort, check and queries are free.
    """

    def __init__(self, handle, owned=True):
        self._handle, self._owned = handle, owned
        self._pending = None  # where the end of an open batch writes the handle

    @property
    def handle(self):
        """The tutti_group_t *, as an integer, for other C libraries."""
        if self._pending is not None:
            raise Error(Status.INVALID_USAGE, "the group exists only after the end of its batch")
        return self._handle

    def __bool__(self):
        return bool(self._handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    def destroy(self):
        """Leaves the group. Local, and fine to repeat."""
        handle, self._handle = self._handle, None
        if handle and self._owned:
            _call("group_destroy", handle)

    # A group that is only forgotten lives on: when Python collects it is no moment other ranks could rely on.

    def create(self, ranks, *, name=None, timeout_ms=0, deterministic=False, communicators=None):
        """A group of these ranks, in this order; None on ranks that are no members."""
        members = (c_int32 * len(ranks))(*ranks)
        options = _group_options(name, timeout_ms, deterministic, communicators)
        return self._made("group_create", self.handle, members, len(ranks), byref(options))

    def split(self, color, key=0, *, name=None, timeout_ms=0, deterministic=False, communicators=None):
        """One group for every color, ordered by key; None where color is below 0."""
        options = _group_options(name, timeout_ms, deterministic, communicators)
        return self._made("group_split", self.handle, color, key, byref(options))

    def _made(self, name, *arguments):
        out = c_void_p()
        _call(name, *arguments, byref(out))
        batch = Batch.current()
        if batch is None:
            return Group(out.value) if out.value else None
        group = Group(None)
        group._pending = out
        batch._groups.append(group)
        return group

    @property
    def rank(self):
        return _out("group_rank", self.handle, out=c_int32)

    @property
    def size(self):
        return _out("group_size", self.handle, out=c_int32)

    @property
    def name(self):
        return _text("group_name", self.handle)

    def check(self):
        """Raises the group's first failure, if it has failed."""
        _call("group_check", self.handle)

    @property
    def failure(self):
        """The group's first failure, or None."""
        raw = _Failure(struct_size=ctypes.sizeof(_Failure))
        _call("group_failure", self.handle, byref(raw))
        return Failure(raw, _text("group_error", self.handle)) if raw.status else None

    def alive(self):
        """For every rank, whether it is alive."""
        alive = (c_uint8 * self.size)()
        _call("group_alive", self.handle, alive, len(alive))
        return [bool(rank) for rank in alive]

    def cpu(self):
        """The group of the same ranks whose buffers are host memory; it belongs to this one."""
        return Group(_out("group_cpu", self.handle), owned=False)

    def sync(self, timeout_ms=0):
        """A barrier of the hosts."""
        _call("group_sync", self.handle, timeout_ms)

    def set_enabled(self, communicator, enabled):
        """Lets a communicator serve calls or not, on all ranks alike."""
        _call("group_set_enabled", self.handle, communicator.encode(), 1 if enabled else 0)

    def abort(self):
        """Fails the group on every rank and wakes all that wait in it."""
        _call("group_abort", self.handle)

    def all_reduce(self, send, recv=None, op=Op.SUM, *, dtype=None, count=None, stream=None):
        """Reduces over all ranks; without recv in place."""
        call = _Arguments(send, recv, dtype, count, "send")
        call.holds("recv", call.count)
        self._run("all_reduce", call, call.count, call.dtype, _op(op), _stream(stream))

    def all_reduce_auto(self, buffer, scratch, op=Op.SUM, *, dtype=None, count=None, stream=None):
        """Reduces to wherever that is fastest, and returns that: buffer or scratch."""
        call = _Arguments(buffer, scratch, dtype, count, "send")
        call.holds("recv", call.count)
        where = c_void_p()
        self._run("all_reduce_auto", call, call.count, call.dtype, _op(op), _stream(stream), byref(where))
        return buffer if (where.value or 0) == (call.send.address or 0) else scratch

    def all_reduce_mode(self, count, dtype, op=Op.SUM, flags=0):
        """How an all_reduce could be served without a copy."""
        return Mode(_out("all_reduce_mode", self.handle, count, dtype_of(dtype), _op(op), flags, out=c_int32))

    def all_gather(self, send, recv, *, dtype=None, count=None, stream=None):
        """Gathers every rank's `count` elements on every rank."""
        call = _Arguments(send, recv, dtype, count, "send")
        call.holds("recv", call.count * self.size)
        self._run("all_gather", call, call.count, call.dtype, _stream(stream))

    def reduce_scatter(self, send, recv, op=Op.SUM, *, dtype=None, count=None, stream=None):
        """Reduces over all ranks and leaves each with its part; count is that of recv."""
        call = _Arguments(send, recv, dtype, count, "recv")
        call.holds("send", call.count * self.size)
        self._run("reduce_scatter", call, call.count, call.dtype, _op(op), _stream(stream))

    def broadcast(self, send, recv=None, root=0, *, dtype=None, count=None, stream=None):
        """Copies the root's elements to every rank; without recv in place."""
        call = _Arguments(send, recv, dtype, count, "recv")
        self._run("broadcast", call, call.count, call.dtype, root, _stream(stream))

    def reduce(self, send, recv=None, op=Op.SUM, root=0, *, dtype=None, count=None, stream=None):
        """Reduces to the root; without recv in place there."""
        call = _Arguments(send, recv, dtype, count, "send")
        self._run("reduce", call, call.count, call.dtype, _op(op), root, _stream(stream))

    def gather(self, send, recv=None, root=0, *, dtype=None, count=None, stream=None):
        """Gathers every rank's elements on the root; recv is needed only there."""
        call = _Arguments(send, recv if recv is not None else 0, dtype, count, "send")
        self._run("gather", call, call.count, call.dtype, root, _stream(stream))

    def scatter(self, send, recv, root=0, *, dtype=None, count=None, stream=None):
        """Hands each rank its part of the root's elements; send (or None) is needed only there."""
        call = _Arguments(send, recv, dtype, count, "recv")
        self._run("scatter", call, call.count, call.dtype, root, _stream(stream))

    def all_to_all(self, send, recv, *, dtype=None, count=None, stream=None):
        """Sends part r to rank r; count is that of one part."""
        if count is None:
            count = _Buffer(send, False, dtype).count // self.size
        call = _Arguments(send, recv, dtype, count, "send")
        for which in ("send", "recv"):
            call.holds(which, call.count * self.size)
        self._run("all_to_all", call, call.count, call.dtype, _stream(stream))

    def barrier(self, stream=None):
        _call("barrier", self.handle, _stream(stream))

    def send(self, buffer, peer, *, dtype=None, count=None, stream=None):
        """Sends to one rank; with a tag or without waiting by start(Collective.SEND, ...)."""
        call = _Arguments(buffer, 0, dtype, count, "send")
        _call("send", self.handle, call.send.address, call.count, call.dtype, peer, _stream(stream))
        self._keep(call)

    def recv(self, buffer, peer, *, dtype=None, count=None, stream=None):
        """Receives up to so many elements from one rank."""
        call = _Arguments(buffer, None, dtype, count, "recv")
        _call("recv", self.handle, call.recv.address, call.count, call.dtype, peer, _stream(stream))
        self._keep(call)

    def sendrecv(self, send, to, recv, from_, *, dtype=None, send_count=None, recv_count=None, stream=None):
        """Sends to one rank and receives from another, both at once."""
        call = _Arguments(send, recv, dtype, send_count, "send")
        room = call.recv.count if recv_count is None else recv_count
        if room is None:
            raise ValueError("an address has no length: give recv_count")
        call.holds("recv", room)
        _call("sendrecv", self.handle, call.send.address, call.count, to, call.recv.address, room, from_, call.dtype,
              _stream(stream))
        self._keep(call)

    def all_gather_v(self, send, recv, counts, displs=None, *, dtype=None, stream=None):
        """Gathers every rank's elements, counts[r] of rank r at displs[r]; without displs one after the other."""
        call = _Arguments(send, recv, dtype, counts[self.rank], "send")
        self._run("all_gather_v", call, self._parts(counts), self._parts(displs), call.dtype, _stream(stream))

    def reduce_scatter_v(self, send, recv, counts, displs=None, op=Op.SUM, *, dtype=None, stream=None):
        """Reduces over all ranks and leaves each with its part: counts[r] elements at displs[r] of send."""
        call = _Arguments(send, recv, dtype, counts[self.rank], "recv")
        self._run("reduce_scatter_v", call, self._parts(counts), self._parts(displs), call.dtype, _op(op), _stream(stream))

    def all_to_all_v(self, send, send_counts, recv, recv_counts, send_displs=None, recv_displs=None, *, dtype=None,
                     stream=None):
        """Sends every rank its elements and receives from every rank, as many as it sends."""
        call = _Arguments(send, recv, dtype, 0, "send")
        _call("all_to_all_v", self.handle, call.send.address, self._parts(send_counts), self._parts(send_displs),
              call.recv.address, self._parts(recv_counts), self._parts(recv_displs), call.dtype, _stream(stream))
        self._keep(call)

    def _parts(self, numbers):
        """One number for every rank; None stays None."""
        if numbers is None:
            return None
        if len(numbers) != self.size:
            raise ValueError(f"{len(numbers)} counts or displacements for {self.size} ranks")
        return (c_size_t * self.size)(*numbers)

    def _run(self, name, call, *rest):
        _call(name, self.handle, call.send.address, call.recv.address, *rest)
        self._keep((call, rest))

    @staticmethod
    def _keep(held):
        """What the end of an open batch will read and write must live until then."""
        batch = Batch.current()
        if batch is not None:
            batch._held.append(held)

    def start(self, collective, send=None, recv=None, *, op=Op.SUM, peer=0, dtype=None, count=None, tag=0, flags=0,
              stream=None, timeout_ms=0):
        """Starts any collective; count is that of its own method. The request keeps the buffers alive."""
        collective = Collective(collective)
        raw = _Call(struct_size=ctypes.sizeof(_Call), collective=collective, op=_op(op), peer=peer, tag=tag,
                    flags=flags, stream=_stream(stream), timeout_ms=timeout_ms)
        held = None
        if collective is not Collective.BARRIER:
            if collective is Collective.SEND:
                recv = 0
            elif collective is Collective.RECV:
                send = 0
            receives = (Collective.REDUCE_SCATTER, Collective.SCATTER, Collective.RECV)
            held = _Arguments(send, recv, dtype, count, "recv" if collective in receives else "send")
            raw.send, raw.recv = held.send.address, held.recv.address
            raw.send_count, raw.dtype = held.count, held.dtype
        return Request(_out("start", self.handle, byref(raw)), held)

    def explain(self, collective=Collective.ALL_REDUCE, count=1, dtype=DType.FLOAT32, op=Op.SUM, *, flags=0, json=False):
        """Which communicator serves such a call, and why the others do not: a table, or with json an object's text."""
        return _text("explain", self.handle, int(collective), count, dtype_of(dtype), _op(op), flags, 1 if json else 0)

    def mem_alloc(self, size):
        """Memory that the group reaches without a copy, as an address; free it with tutti.mem_free."""
        return _out("mem_alloc", self.handle, size)


def mem_free(address):
    _call("mem_free", address)


class World(Group):
    """All ranks that start together: without arguments by the environment of torchrun, mpirun or srun."""

    def __init__(self, size=0, rank=0, *, unique_id=None, address=None, all_gather=None, device_kind=0, device=0,
                 timeout_ms=0, deterministic=False, allow_unauthenticated=False, communicators=None):
        options, held = _world_options(
            size, rank, unique_id, address, all_gather, device_kind, device, timeout_ms, deterministic,
            allow_unauthenticated, communicators)
        handle = c_void_p()
        status = _functions["world_create"](byref(options), byref(handle))
        held.reraise()
        _check(status)
        super().__init__(handle.value)

    @staticmethod
    def local(size, *, devices=None, timeout_ms=0, deterministic=False, communicators=None):
        """A world whose ranks all live in this process: a list of groups, one for each rank."""
        options, _ = _world_options(0, 0, None, None, None, 0, 0, timeout_ms, deterministic, False, communicators)
        if devices is not None and len(devices) != size:
            raise ValueError("a local world takes one device for every rank")
        ordinals = (c_int32 * size)(*devices) if devices is not None else None
        ranks = (c_void_p * max(size, 1))()
        _call("world_create_local", size, ordinals, byref(options), ranks)
        return [Group(rank) for rank in ranks]


class _Bootstrap:
    """The caller's own all-gather as a C function, and what it raised: no exception may pass through C."""

    def __init__(self, function, size):
        self.raised = None

        def gather(_, mine, size_in_bytes, everyone):
            try:
                result = function(ctypes.string_at(mine, size_in_bytes))
                joined = result if isinstance(result, (bytes, bytearray)) else b"".join(result)
                if len(joined) != size * size_in_bytes:
                    raise ValueError(f"all_gather gave {len(joined)} bytes for {size} ranks of {size_in_bytes}")
                ctypes.memmove(everyone, bytes(joined), len(joined))
                return 0
            except BaseException as error:  # KeyboardInterrupt too: it is raised again as soon as C has returned
                self.raised = error
                return 1

        self.function = _AllGatherFn(gather) if function else None

    def reraise(self):
        if self.raised is not None:
            raise self.raised


def _world_options(size, rank, unique_id, address, all_gather, device_kind, device, timeout_ms, deterministic,
                   allow_unauthenticated, communicators):
    options = _WorldOptions(
        struct_size=ctypes.sizeof(_WorldOptions), size=size, rank=rank, device_kind=device_kind, device=device,
        address=address.encode() if address else None, timeout_ms=timeout_ms,
        flags=(1 if deterministic else 0) | (2 if allow_unauthenticated else 0),
        communicators=communicators.encode() if communicators else None,
    )
    held = _Bootstrap(all_gather, size)
    if unique_id is not None:
        held.id = ctypes.create_string_buffer(bytes(unique_id), len(unique_id))
        options.unique_id, options.unique_id_size = ctypes.addressof(held.id), len(unique_id)
    if held.function:
        options.all_gather = ctypes.cast(held.function, c_void_p)
    return options, held


def unique_id():
    """What the ranks of a new world share, as bytes. The process that makes it must hold rank 0."""
    id = ctypes.create_string_buffer(UNIQUE_ID_BYTES)
    needed = c_size_t()
    _call("unique_id_create", id, UNIQUE_ID_BYTES, byref(needed))
    return id.raw[:needed.value]


def find_group(name, rank=None):
    """The live group of this name in this process; it belongs to whoever made it. rank: whose, where several ranks of
    the group are in this process."""
    return Group(_out("group_find", name.encode(), -1 if rank is None else rank), owned=False)


# ---- Layouts -------------------------------------------------------------------------------------------------------


class Layout:
    """How a world splits into groups of every kind: sizes of 0 are 1, of expert all there are.

    axes: kinds of group along them, those farthest apart first. order: the rank at each place. hosts, domains, lanes:
    where each rank stands. Leaving its `with` block destroys it; groups made from it live on.
    """

    def __init__(self, world, *, tensor=0, pipeline=0, data=0, external_data=0, prefill_context=0, decode_context=0,
                 expert=0, axes=None, order=None, hosts=None, domains=None, lanes=None):
        options = _LayoutOptions(
            struct_size=ctypes.sizeof(_LayoutOptions), world=world, tensor=tensor, pipeline=pipeline, data=data,
            external_data=external_data, prefill_context=prefill_context, decode_context=decode_context, expert=expert,
        )
        self._handle, self.world = None, world
        if axes is not None:
            if len(axes) != 5:
                raise ValueError("a layout has five axes: name all of them, or none")
            options.axes = (c_int32 * 5)(*axes)
        for name, values in (("order", order), ("hosts", hosts), ("domains", domains), ("lanes", lanes)):
            if values is not None:
                if len(values) != world:
                    raise ValueError(f"{name} has {len(values)} numbers for {world} ranks")
                setattr(options, name, (c_int32 * max(world, 1))(*values))
        self._handle = _out("layout_create", byref(options))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    def __del__(self):
        self.destroy()  # nobody else counts on it

    def destroy(self):
        handle, self._handle = self._handle, None
        if handle:
            _call("layout_destroy", handle)

    @property
    def digest(self):
        """Equal for layouts that mean the same."""
        return _out("layout_digest", self._handle, out=c_uint64)

    def groups(self, kind):
        """The ranks of every group of a kind, each in the order of its own ranks."""
        size, _ = self._sizes(kind)
        ranks = (c_int32 * self.world)()
        _call("layout_ranks", self._handle, kind, ranks, self.world)
        return [ranks[first:first + size] for first in range(0, self.world, size)]

    def of(self, kind, rank):
        """Which group of a kind a rank is in, and its rank within that."""
        return self._pair("layout_of", kind, rank)

    def reach(self, kind):
        """How many hosts and how many domains each group of a kind touches."""
        _, count = self._sizes(kind)
        hosts, domains = (c_int32 * count)(), (c_int32 * count)()
        _call("layout_reach", self._handle, kind, hosts, domains, count)
        return list(zip(hosts, domains))

    def draw(self, format="text"):
        """A table; with "json" an object's text; with "svg" a picture."""
        return _text("layout_draw", self._handle, ("text", "json", "svg").index(format))

    def create(self, parent, kinds=(), *, name=None, timeout_ms=0, deterministic=False, communicators=None):
        """The groups that this rank of `parent` has, by kind; no kinds: all."""
        wanted = 0
        for kind in kinds:
            wanted |= 1 << kind
        options = _group_options(name, timeout_ms, deterministic, communicators)
        made = (c_void_p * len(Kind))()
        _call("layout_groups", parent.handle, self._handle, wanted, byref(options), made)
        batch, groups = Batch.current(), {}
        for kind in Kind:
            if wanted == 0 or wanted >> kind & 1:
                groups[kind] = Group(made[kind])
                if batch is not None:
                    groups[kind]._pending = _Element(made, kind)
                    batch._groups.append(groups[kind])
        return groups

    def _sizes(self, kind):
        return self._pair("layout_size", kind)

    def _pair(self, name, *arguments):
        first, second = c_int32(), c_int32()
        _call(name, self._handle, *arguments, byref(first), byref(second))
        return first.value, second.value


class _Element:
    """A handle in an array that the end of a batch fills."""

    def __init__(self, array, index):
        self._array, self._index = array, index

    @property
    def value(self):
        return self._array[self._index]


# ---- Tensor dicts --------------------------------------------------------------------------------------------------


class Tensor:
    """A tensor of a message: name, dtype, shape and strides (in elements), whether it is on a device (if only announced,
    whether its sender has it there), and the address of its data, which belong to its Dict."""

    def __init__(self, raw, owner):
        self.name = raw.name.decode()
        self.dtype = DType(raw.dtype)
        self.shape, self.strides = tuple(raw.shape[:raw.ndim]), tuple(raw.strides[:raw.ndim])
        self.address, self.is_cuda, self._owner = raw.data, raw.device_kind == 2, owner

    def memory(self):
        """The bytes of the elements, in the order of the strides, as a memoryview; valid while the Dict is."""
        count = 1
        for extent in self.shape:
            count *= extent
        if self.address is None:
            raise Error(Status.INVALID_USAGE, "the message is announced, but not here yet: wait for it")
        if self.is_cuda:
            raise Error(Status.INVALID_USAGE, "the tensor is in the memory of a device")
        return memoryview((c_uint8 * (count * _SIZES[self.dtype])).from_address(self.address))

    def tobytes(self):
        return bytes(self.memory())


class _Tensors:
    """An array of tensors for one call, and what keeps their memory in place."""

    def __init__(self, tensors, whole=(), sliced=(), writable=False):
        self.count, self._held, self._writable = len(tensors), [], writable
        self.raw = (_Tensor * max(len(tensors), 1))()
        for raw, (name, source) in zip(self.raw, tensors):
            raw.struct_size = ctypes.sizeof(_Tensor)
            raw.name = name.encode()
            raw.flags = 1 if name in whole else 2 if name in sliced else 0
            shape, strides = self._place(raw, source)
            raw.ndim = len(shape)
            raw.shape = (c_int64 * max(len(shape), 1))(*shape)
            if strides is not None:
                raw.strides = (c_int64 * max(len(strides), 1))(*strides)

    def _place(self, raw, source):
        if isinstance(source, Tensor):
            self._held.append(source)
            raw.data, raw.dtype = source.address, source.dtype
            return source.shape, source.strides
        if hasattr(source, "data_ptr"):  # a torch tensor, of any strides
            self._held.append(source)
            raw.data, raw.dtype = source.data_ptr(), dtype_of(source.dtype)
            raw.device_kind = 2 if getattr(source, "is_cuda", False) else 1
            return tuple(source.shape), tuple(source.stride())
        buffer = _Buffer(source, self._writable)
        self._held.append(buffer)
        raw.data, raw.dtype = buffer.address, buffer.dtype
        shape = getattr(source, "shape", None)
        opaque = buffer.dtype == DType.BYTES
        return (tuple(shape) if shape is not None and not opaque else (buffer.count,)), None


def _dict_options(peer, tag, replicas, timeout_ms, stream=None):
    return _DictOptions(struct_size=ctypes.sizeof(_DictOptions), peer=peer, tag=tag, timeout_ms=timeout_ms,
                        replicas=replicas.handle if replicas is not None else None, stream=_stream(stream))


class Dict:
    """A message of named tensors, or an object of bytes: on its way, or here. Freeing an unfinished one aborts its group.

    Sources are what buffers of collective calls are, or torch tensors of any strides, by name. replicas: the group whose
    ranks all hold the same tensors, each of which then sends a slice of the large ones, or that gather the slices; names
    in `whole` differ from rank to rank and are sent whole. Tensors of a CUDA group may be on the device; stream is where
    they are read or written.
    """

    def __init__(self, handle, held=None):
        self._handle, self._held = handle, held

    @staticmethod
    def send(group, tensors, peer, *, tag=0, replicas=None, whole=(), sliced=(), timeout_ms=0, stream=None):
        """Sends tensors, and returns when their memory may be used again."""
        raw = _Tensors(list(tensors.items()), whole, sliced)
        options = _dict_options(peer, tag, replicas, timeout_ms, stream)
        _call("dict_send", group.handle, raw.raw, raw.count, byref(options), None)

    @staticmethod
    def start_send(group, tensors, peer, *, tag=0, replicas=None, whole=(), sliced=(), timeout_ms=0, stream=None):
        """Starts to send tensors; wait() says when their memory may be used again."""
        raw = _Tensors(list(tensors.items()), whole, sliced)
        options = _dict_options(peer, tag, replicas, timeout_ms, stream)
        return Dict(_out("dict_send", group.handle, raw.raw, raw.count, byref(options)), raw)

    @staticmethod
    def send_object(group, data, peer, *, tag=0, timeout_ms=0):
        """Sends bytes."""
        buffer = _Buffer(data, False, DType.BYTES)
        _call("object_send", group.handle, buffer.address, buffer.count, byref(_dict_options(peer, tag, None, timeout_ms)), None)

    @staticmethod
    def receive(group, peer, *, tag=0, replicas=None, timeout_ms=0, stream=None):
        """Starts to receive the next message of a peer and tag; wait() brings it here."""
        options = _dict_options(peer, tag, replicas, timeout_ms, stream)
        return Dict(_out("dict_recv", group.handle, byref(options)))

    @staticmethod
    def broadcast(group, tensors, root=0, *, timeout_ms=0, stream=None):
        """Starts to broadcast the root's tensors (None elsewhere); every rank waits for it before its next collective."""
        raw = _Tensors(list(tensors.items()) if tensors else [])
        options = _dict_options(root, 0, None, timeout_ms, stream)
        return Dict(_out("dict_broadcast", group.handle, raw.raw, raw.count, byref(options)), raw)

    @staticmethod
    def broadcast_object(group, data, root=0, *, timeout_ms=0):
        """Starts to broadcast the root's bytes (None elsewhere); every rank waits for it before its next collective."""
        buffer = _Buffer(data, False, DType.BYTES) if data is not None else _Buffer(None, False)
        options = _dict_options(root, 0, None, timeout_ms)
        return Dict(_out("object_broadcast", group.handle, buffer.address, buffer.count or 0, byref(options)), buffer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.free()

    def free(self):
        handle, self._handle = self._handle, None
        if handle:
            _call("dict_free", handle)
        self._held = None

    def test(self):
        """Whether wait() would not wait for a peer to begin."""
        return Request._done(_functions["dict_test"](self._handle))

    def probe(self, timeout_ms=NEVER):
        """Waits until it is known what comes; False if timeout_ms ended first."""
        return Request._done(_functions["dict_probe"](self._handle, timeout_ms))

    def wait(self, into=None, timeout_ms=NEVER):
        """Finishes it: into memory of the library, or into a list of sources, one for each tensor that comes. False if
        timeout_ms ended before it began."""
        if into is None:
            return Request._done(_functions["dict_wait"](self._handle, None, 0, timeout_ms))
        raw = _Tensors([("", source) for source in into], writable=True)
        done = Request._done(_functions["dict_wait"](self._handle, raw.raw, raw.count, timeout_ms))
        self._held = raw
        return done

    def tensors(self):
        """The tensors of the message, by name."""
        found = {}
        for index in range(_out("dict_count", self._handle, out=c_size_t)):
            raw = _Tensor(struct_size=ctypes.sizeof(_Tensor))
            _call("dict_tensor", self._handle, index, byref(raw))
            found[raw.name.decode()] = Tensor(raw, self)
        return found

    def object(self):
        """The bytes of an object, copied."""
        data, size = c_void_p(), c_size_t()
        _call("dict_object", self._handle, byref(data), byref(size))
        if data.value is None:
            raise Error(Status.INVALID_USAGE, "the object is announced, but not here yet: wait for it")
        return ctypes.string_at(data.value, size.value)


# ---- Queues --------------------------------------------------------------------------------------------------------


class Queue:
    """Messages from one rank of a group, the writer, to all others. Leaving its `with` block destroys this end of it."""

    def __init__(self, group, writer=0, *, capacity=0, name=None, timeout_ms=0):
        options = _QueueOptions(struct_size=ctypes.sizeof(_QueueOptions), writer=writer, capacity=capacity,
                                name=name.encode() if name else None, timeout_ms=timeout_ms)
        self._handle = _out("queue_create", group.handle, byref(options))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    def destroy(self):
        handle, self._handle = self._handle, None
        if handle:
            _call("queue_destroy", handle)

    def write(self, message, timeout_ms=0):
        """Writes a message, of bytes or anything with the buffer protocol, to all readers."""
        buffer = _Buffer(message, False, DType.BYTES)
        _call("queue_write", self._handle, buffer.address, buffer.count, timeout_ms)

    def next(self, timeout_ms=0):
        """Waits for the next message, leaves it, and says how many bytes it has."""
        size = c_size_t()
        _call("queue_next", self._handle, byref(size), timeout_ms)
        return size.value

    def read(self, timeout_ms=0):
        """Waits for the next message and takes it."""
        size = self.next(timeout_ms)
        message = ctypes.create_string_buffer(max(size, 1))
        _call("queue_read", self._handle, message, size, None, timeout_ms)
        return message.raw[:size]


# ---- Requests, batches, captures -----------------------------------------------------------------------------------


class Request:
    """A started call. Freeing an unfinished one aborts its group, because the others count on its buffers."""

    def __init__(self, handle, held):
        self._handle, self._held = handle, held

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.free()

    def test(self):
        """Whether the call is done. Goes on with every unfinished request of this thread."""
        return self._done(_functions["request_test"](self._handle))

    def wait(self, timeout_ms=NEVER):
        """Waits until the call is done; False if timeout_ms ended first, and then nothing has failed."""
        return self._done(_functions["request_wait"](self._handle, timeout_ms))

    def received(self):
        """How many elements a receive that is done has got; None while it is not."""
        count = c_size_t()
        return count.value if self._done(_functions["request_received"](self._handle, byref(count))) else None

    @staticmethod
    def _done(status):
        if status == Status.IN_PROGRESS:
            return False
        _check(status)
        return True

    def free(self):
        handle, self._handle = self._handle, None
        if handle:
            _call("request_free", handle)
        self._held = None


class Batch:
    """Calls of this thread, made together at the end of the `with` block; an exception in it makes none of them.

    Groups made inside exist after the block; one that this rank does not belong to is then false.
    """

    _open = threading.local()

    @staticmethod
    def current():
        return getattr(Batch._open, "batch", None)

    def __enter__(self):
        _call("batch_begin")
        self._groups, self._held = [], []
        Batch._open.batch = self
        return self

    def __exit__(self, kind, *_):
        Batch._open.batch = None
        if kind is not None:
            _functions["barrier"](None, None)  # one refused call cancels a batch
            _functions["batch_end"]()
        else:
            _call("batch_end")
        for group in self._groups:
            group._handle, group._pending = group._pending.value, None
        self._groups, self._held = [], []


class Capture:
    """A capture session over groups: commit it once all graphs are captured, destroy it after the last replay."""

    def __init__(self, groups):
        handles = (c_void_p * max(len(groups), 1))(*(group.handle for group in groups))
        self._handle = _out("capture_begin", handles, len(groups))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    def commit(self):
        _call("capture_commit", self._handle)

    def abort(self):
        _call("capture_abort", self._handle)

    def destroy(self):
        handle, self._handle = self._handle, None
        if handle:
            _call("capture_destroy", handle)


# ---- Transfers -----------------------------------------------------------------------------------------------------

SOURCE, TARGET = 0, 1
"""Sides of a tensor in a transfer: where it is, and where it shall be."""


def replicate():
    """A placement: every coordinate of the mesh dimension holds the same."""
    return {"kind": 0}


def shard(dim, order=0):
    """A placement: parts as torch.chunk makes them. Lower orders split first where several split one dimension."""
    return {"kind": 1, "dim": dim, "order": order}


def balanced(dim, order=0):
    """A placement: parts whose sizes differ by one at most."""
    return {"kind": 1, "dim": dim, "split": 1, "order": order}


def uneven(dim, sizes, order=0):
    """A placement: parts of these sizes."""
    return {"kind": 1, "dim": dim, "split": 2, "order": order, "sizes": list(sizes)}


def partial(op=Op.SUM):
    """A placement of a source: contributions that are added up."""
    return {"kind": 2, "op": _op(op)}


class TensorLayout:
    """Where a tensor lies: `ranks` (row-major) in a grid of `dims`, and one placement for every dimension of it."""

    def __init__(self, dtype, dims, ranks, placements):
        self.dtype, self.dims, self.ranks, self.placements = dtype_of(dtype), list(dims), list(ranks), list(placements)

    def _raw(self, held):
        """As C wants it; what it points to goes to `held`."""
        mesh = _Mesh(struct_size=ctypes.sizeof(_Mesh), dim_count=len(self.dims), rank_count=len(self.ranks))
        mesh.dims = (c_size_t * max(len(self.dims), 1))(*self.dims)
        mesh.ranks = (c_int32 * max(len(self.ranks), 1))(*self.ranks)
        placements = (_Placement * max(len(self.placements), 1))()
        for raw, placement in zip(placements, self.placements):
            raw.struct_size = ctypes.sizeof(_Placement)
            for name in ("kind", "dim", "op", "split", "order"):
                setattr(raw, name, placement.get(name, 0))
            sizes = placement.get("sizes", [])
            raw.sizes, raw.size_count = (c_size_t * max(len(sizes), 1))(*sizes), len(sizes)
        layout = _TensorLayout(struct_size=ctypes.sizeof(_TensorLayout), dtype=self.dtype,
                               placements=placements, placement_count=len(self.placements))
        layout.mesh = ctypes.pointer(mesh)
        held.append((mesh, placements, layout))
        return ctypes.pointer(layout)


class TransferItem:
    """One tensor to move. wire: the type that travels; None: the narrower of both."""

    def __init__(self, name, shape, source, target, wire=None):
        self.name, self.shape, self.source, self.target = name, list(shape), source, target
        self.wire = 0 if wire is None else dtype_of(wire)


class TransferPlan:
    """How tensors get from one layout to another: pure data, local, the same on every rank.

    size: ranks of the group that will carry it out. Zero is the default of every other option.
    """

    def __init__(self, items, size, *, bucket_bytes=0, staging_bytes=0, split_bytes=0, in_flight=0):
        held = []
        raw = (_TransferItem * max(len(items), 1))()
        for one, item in zip(raw, items):
            one.struct_size, one.name = ctypes.sizeof(_TransferItem), item.name.encode()
            one.shape, one.dim_count = (c_size_t * max(len(item.shape), 1))(*item.shape), len(item.shape)
            one.source, one.target = item.source._raw(held), item.target._raw(held)
            one.wire_dtype = item.wire
        options = _TransferOptions(struct_size=ctypes.sizeof(_TransferOptions), bucket_bytes=bucket_bytes,
                                   staging_bytes=staging_bytes, split_bytes=split_bytes, in_flight=in_flight)
        self._dims = [len(item.shape) for item in items]
        self._dtypes = [(item.source.dtype, item.target.dtype) for item in items]
        self._handle = None
        self._handle = _out("transfer_plan_create", raw, len(items), size, byref(options))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    @property
    def handle(self):
        return self._handle

    def destroy(self):
        handle, self._handle = self._handle, None
        if handle:
            _call("transfer_plan_destroy", handle)

    @property
    def hash(self):
        """16 bytes that tell plans apart."""
        hash = ctypes.create_string_buffer(16)
        _call("transfer_plan_hash", self.handle, hash)
        return hash.raw

    def _record(self, name, kind, *arguments):
        record = kind(struct_size=ctypes.sizeof(kind))
        _call(name, self.handle, *arguments, byref(record))
        return record

    def totals(self):
        """What the plan does in all, in bytes, beside lower bounds, as a dict."""
        return _numbers(self._record("transfer_plan_totals", _TransferTotals))

    def load(self, rank):
        """What one rank does, any rank, as a dict."""
        return _numbers(self._record("transfer_plan_load", _TransferLoad, rank))

    def chunk(self, index, rank=0):
        """One chunk, as a dict; is_source and is_target are those of `rank`."""
        raw = self._record("transfer_plan_chunk", _TransferChunk, index, rank)
        chunk = _numbers(raw)
        chunk["targets"] = raw.targets[:raw.target_count]
        chunk["contributors"] = raw.contributors[:raw.contributor_count]
        chunk["start"], chunk["extent"] = raw.start[:raw.dim_count], raw.extent[:raw.dim_count]
        return chunk

    def bucket(self, index):
        """One bucket, as a dict."""
        raw = self._record("transfer_plan_bucket", _TransferBucket, index)
        bucket = _numbers(raw)
        bucket["targets"], bucket["members"] = raw.targets[:raw.target_count], raw.members[:raw.member_count]
        bucket["blocks"] = raw.blocks[:raw.member_count + 1] if raw.member_count else []
        return bucket

    def operations(self, rank):
        """The buckets in which a rank takes part, in its order."""
        return [_out("transfer_plan_operation", self.handle, rank, index, out=c_size_t)
                for index in range(self.load(rank)["operations"])]

    def region(self, item, side, rank):
        """(start, extent, elements) of what a rank holds on one side; 0 elements where it is not in the mesh."""
        dims = self._dims[item] if item < len(self._dims) else 0
        start, extent, elements = (c_uint64 * max(dims, 1))(), (c_uint64 * max(dims, 1))(), c_uint64()
        _call("transfer_plan_region", self.handle, item, side, rank, start, extent, byref(elements))
        return start[:dims], extent[:dims], elements.value

    def report(self, format="text", rank=-1):
        """The plan as "text", "json" or "svg", or as text what one rank does."""
        return _text("transfer_plan_report", self.handle, rank, ("text", "json", "svg").index(format))


class Transfer:
    """A plan carried out over a group. Destroying one that goes on aborts its group."""

    def __init__(self, plan, group):
        self._held = {}
        self._handle = None
        self._handle = _out("transfer_create", plan.handle, group.handle)
        rank = group.rank
        self._bytes = [
            tuple(plan.region(item, side, rank)[2] * _SIZES[dtypes[side]] for side in (SOURCE, TARGET))
            for item, dtypes in enumerate(plan._dtypes)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    def destroy(self):
        handle, self._handle = self._handle, None
        if handle:
            _call("transfer_destroy", handle)
        self._held = {}

    def bind(self, item, source=None, target=None, *, source_strides=None, target_strides=None):
        """Says where this rank's part of a tensor lies: buffers, or addresses of its first element. Strides are in
        elements, one for every dimension; None: contiguous. The buffers are kept until they are bound anew."""
        sides = []
        for side, place, strides in ((SOURCE, source, source_strides), (TARGET, target, target_strides)):
            buffer = None
            if place is not None:
                buffer = _Buffer(place, side == TARGET)
                room = buffer.count * _SIZES[buffer.dtype] if buffer.count is not None else None
                if room is not None and strides is None and item < len(self._bytes) and room < self._bytes[item][side]:
                    raise ValueError(f"the buffer holds {room} bytes, but {self._bytes[item][side]} are needed")
                self._held[item, side] = buffer
            sides += [buffer.address if buffer else None, (c_int64 * len(strides))(*strides) if strides else None]
        _call("transfer_bind", self._handle, item, *sides)

    def start(self, stream=None):
        _call("transfer_start", self._handle, _stream(stream))

    def poll(self):
        """Goes on without waiting. Whether it is over."""
        return Request._done(_functions["transfer_poll"](self._handle, None))

    def progress(self):
        """Goes on without waiting, and says how far it is, as a dict, also after a failure."""
        progress = _TransferProgress(struct_size=ctypes.sizeof(_TransferProgress))
        _functions["transfer_poll"](self._handle, byref(progress))
        return _numbers(progress)

    def wait(self, timeout_ms=NEVER):
        """Waits until it is over; False if timeout_ms ended first, and then nothing has failed."""
        return Request._done(_functions["transfer_wait"](self._handle, timeout_ms))

    def written(self, item):
        """(bytes of a target that were written, all that will be)."""
        written, all_bytes = c_uint64(), c_uint64()
        _call("transfer_written", self._handle, item, byref(written), byref(all_bytes))
        return written.value, all_bytes.value

    def abort(self):
        _call("transfer_abort", self._handle)


def _numbers(record):
    """The numbers of a struct, by name."""
    fields = ((name, getattr(record, name)) for name, _ in record._fields_ if name != "struct_size")
    return {name: value for name, value in fields if isinstance(value, int)}


# ---- Logs ----------------------------------------------------------------------------------------------------------

_log_function = None


def set_log_callback(function):
    """Sends the library's log to function(level, target, message); None: to nobody. Level 1 is an error, 5 a trace."""
    global _log_function

    def log(_, level, target, message):
        function(level, target.decode("utf-8", "replace"), message.decode("utf-8", "replace"))

    new = _LogFn(log) if function is not None else None
    _call("set_log_callback", ctypes.cast(new, c_void_p) if new else None, None)
    _log_function = new  # the former one is not running any more
