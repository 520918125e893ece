// A library that looks like libcuda.so.1 and runs on the processor: the memory of its devices is memory of the host, a
// stream is a thread, and a launch runs the kernel of that name, compiled as C++ (tests/kernels/cpu), on as many
// threads as it has lanes. So the whole way of a call, from C to the kernels and back, can be run where there is no
// GPU. It shows what the host does, never what hardware would: no scopes, no reordering, no speed.
//
// What it has of a real one's rules: launches of one executable graph follow each other, and a capture forbids calls as
// cuThreadExchangeStreamCaptureMode says.
//
// What can be set in the environment:
//   STUB_DEVICES=N    devices (2)           STUB_ARCH=N      their architecture (90)
//   STUB_NO_EXPORT=1  memory cannot be handed over as a descriptor
//   STUB_NO_PEER=1    the driver says that devices do not reach each other's memory
//   STUB_LOST_WRITES=1  devices say that they do, but what is written to another's memory does not arrive
//   STUB_NO_LAUNCH=1  launches do nothing, to measure what the host does around them

#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "machine.h"
#include "params.h"

using tutti::Params;

namespace {

enum : int {
    kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidDevice = 101, kInvalidContext = 201,
    kInvalidHandle = 400, kNotFound = 500, kNotReady = 600, kPeerAlreadyEnabled = 704, kCaptureUnsupported = 900,
    kCaptureInvalidated = 901, kCaptureWrongThread = 908
};

int setting(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text == nullptr ? otherwise : atoi(text);
}

// ---- counting, and failing on demand ----

struct Counter {
    const char* name;
    std::atomic<unsigned long> calls{0};
    std::atomic<int> fail_with{0};
    Counter* next;
};
std::atomic<Counter*> counters{nullptr};
std::mutex counters_lock;

struct Registered : Counter {
    explicit Registered(const char* of) {
        name = of;
        std::lock_guard lock(counters_lock);
        next = counters.load();
        counters.store(this);
    }
};

/// Begins every function of the driver.
#define DRIVER(name, ...)                                          \
    static Registered name##_counter(#name);                       \
    static int name##_(__VA_ARGS__);                               \
    extern "C" int name(__VA_ARGS__)
#define COUNTED(name, ...) BODY(name, kSuccess, __VA_ARGS__)
/// What the driver calls potentially unsafe: a capture that is going on may forbid it.
#define UNSAFE_IN_CAPTURE(name, ...) BODY(name, forbidden_by_captures(), __VA_ARGS__)
#define BODY(name, may, ...)                                       \
    {                                                              \
        name##_counter.calls.fetch_add(1, std::memory_order_relaxed); \
        if (int code = name##_counter.fail_with.load(std::memory_order_relaxed)) { \
            name##_counter.fail_with.store(0);                     \
            return code;                                           \
        }                                                          \
        if (int code = may) return code;                           \
        return name##_(__VA_ARGS__);                               \
    }

// ---- graphs, and captures that forbid ----

struct Graph {
    std::vector<std::function<void()>> work;
};

/// An instantiated graph. Launches of it follow each other, on whatever streams they are.
struct Executable {
    std::vector<std::function<void()>> work;
    std::mutex lock;
    std::condition_variable changed;
    unsigned long launched = 0, ended = 0;

    void enter(unsigned long number) {
        std::unique_lock guard(lock);
        changed.wait(guard, [&] { return ended == number; });
    }
    void leave() {
        std::lock_guard guard(lock);
        ended++;
        changed.notify_all();
    }
};

enum : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };

struct Capture {
    Graph* graph;
    int mode;
    std::thread::id thread;
    std::atomic<bool> invalid{false};
};

std::mutex captures_lock;
std::vector<Capture*> captures;
std::atomic<size_t> captures_going{0};
/// What cuThreadExchangeStreamCaptureMode sets.
thread_local int mode_of_thread = kGlobal;

/// Whether this thread may make a potentially unsafe call now; the captures that forbid it are lost.
int forbidden_by_captures() {
    if (captures_going.load() == 0 || mode_of_thread == kRelaxed) return kSuccess;
    std::lock_guard lock(captures_lock);
    int code = kSuccess;
    for (Capture* one : captures) {
        const bool own = one->thread == std::this_thread::get_id();
        if (own ? one->mode == kRelaxed : one->mode != kGlobal || mode_of_thread != kGlobal) continue;
        one->invalid = true;
        code = kCaptureUnsupported;
    }
    return code;
}

// ---- contexts, streams, events ----

struct Stream {
    int device = 0;
    std::mutex lock;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;
    bool busy = false;
    std::atomic<bool> gone{false};
    Capture* capture = nullptr;

    explicit Stream(int of) : device(of) {
        std::thread([this] { serve(); }).detach();
    }
    /// What is on it still comes to its end, and who destroys it does not wait. The value stays, so that whoever uses
    /// the stream afterwards is told.
    void destroy() {
        std::lock_guard guard(lock);
        gone = true;
        changed.notify_all();
    }
    void push(std::function<void()> one) {
        {
            std::lock_guard guard(lock);
            work.push_back(std::move(one));
        }
        changed.notify_all();
    }
    void wait() {
        std::unique_lock guard(lock);
        changed.wait(guard, [this] { return work.empty() && !busy; });
    }
    void serve() {
        std::unique_lock guard(lock);
        while (true) {
            changed.wait(guard, [this] { return gone || !work.empty(); });
            if (work.empty()) return;
            std::function<void()> one = std::move(work.front());
            work.pop_front();
            busy = true;
            guard.unlock();
            one();
            guard.lock();
            busy = false;
            changed.notify_all();
        }
    }
};

struct Event {
    std::mutex lock;
    std::condition_variable changed;
    unsigned long recorded = 0, passed = 0;
};

struct Context {
    int device;
    std::unique_ptr<Stream> legacy;
};

struct Function {
    void (*kernel)(const Params&);
    /// Of the benches, which take other parameters: what a launch does.
    std::function<void()> (*other)(void** parameters);
    Context* context;
};

std::mutex contexts_lock;
std::map<int, Context*> contexts;
thread_local std::vector<Context*> current;

/// Nothing is done, to measure what the host does around it.
bool does_nothing() {
    static const bool nothing = setting("STUB_NO_LAUNCH", 0) != 0;
    return nothing;
}

int devices() { return setting("STUB_DEVICES", 2); }
Context* here() { return current.empty() ? nullptr : current.back(); }

/// The stream behind a handle, if it belongs to the current context.
int find(void* handle, Stream** stream) {
    if (reinterpret_cast<uintptr_t>(handle) <= 2) {
        if (here() == nullptr) return kInvalidContext;
        std::lock_guard lock(contexts_lock);
        if (!here()->legacy) here()->legacy = std::make_unique<Stream>(here()->device);
        *stream = here()->legacy.get();
        return kSuccess;
    }
    *stream = static_cast<Stream*>(handle);
    if ((*stream)->gone) return kInvalidHandle;
    if (here() == nullptr) return kInvalidContext;
    return here()->device == (*stream)->device ? kSuccess : kInvalidHandle;
}

int enqueue(void* handle, std::function<void()> one) {
    Stream* stream;
    if (int code = find(handle, &stream)) return code;
    if (does_nothing()) return kSuccess;
    if (stream->capture != nullptr) {
        if (stream->capture->invalid) return kCaptureInvalidated;
        stream->capture->graph->work.push_back(std::move(one));
    } else {
        stream->push(std::move(one));
    }
    return kSuccess;
}

// ---- memory ----

struct Allocation {
    size_t bytes;
    int device, file;
};
std::mutex memory_lock;
std::map<uint64_t, Allocation> allocations;
/// Physical memory: a file, and the device it is of.
struct Physical {
    int file, device;
};
std::map<uint64_t, Physical> physicals;
uint64_t next_physical = 1;

int new_file(size_t bytes) {
    const int file = memfd_create("stub", MFD_CLOEXEC);
    if (file >= 0 && ftruncate(file, off_t(bytes)) != 0) {
        close(file);
        return -1;
    }
    return file;
}

void* map_file(int file, size_t bytes, void* at, bool lost) {
    const int flags = (lost ? MAP_PRIVATE : MAP_SHARED) | (at != nullptr ? MAP_FIXED : 0);
    void* mapped = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
    return mapped == MAP_FAILED ? nullptr : mapped;
}

/// Which device physical memory is of travels in the offset of its descriptor, which all copies of it share.
void mark_device(int file, int device) { lseek(file, device, SEEK_SET); }
int marked_device(int file) { return int(lseek(file, 0, SEEK_CUR)); }

const char* name_of(int code) {
    switch (code) {
        case kSuccess: return "CUDA_SUCCESS";
        case kInvalidValue: return "CUDA_ERROR_INVALID_VALUE";
        case kOutOfMemory: return "CUDA_ERROR_OUT_OF_MEMORY";
        case kNoDevice: return "CUDA_ERROR_NO_DEVICE";
        case kInvalidDevice: return "CUDA_ERROR_INVALID_DEVICE";
        case kInvalidContext: return "CUDA_ERROR_INVALID_CONTEXT";
        case kInvalidHandle: return "CUDA_ERROR_INVALID_HANDLE";
        case kNotFound: return "CUDA_ERROR_NOT_FOUND";
        case kNotReady: return "CUDA_ERROR_NOT_READY";
        case 700: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case kCaptureUnsupported: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        case kCaptureInvalidated: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
        case kCaptureWrongThread: return "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD";
        default: return nullptr;
    }
}

// ---- the kernels of benches/cuda.rs and benches/cuda_host.rs, which have them as PTX ----

std::function<void()> launch_nothing(void**) {
    return [] {};
}

using Word = std::atomic<unsigned>;

/// See PING_PONG in benches/cuda.rs.
std::function<void()> launch_ping_pong(void** parameters) {
    Word* word = *static_cast<Word**>(parameters[0]);
    const unsigned first = *static_cast<unsigned*>(parameters[1]), trips = *static_cast<unsigned*>(parameters[2]);
    return [=] {
        unsigned looks = 0;
        for (unsigned turn = first; turn < first + 2 * trips; turn += 2) {
            while (word->load(std::memory_order_acquire) != turn) {
                if (++looks > 1u << 24) return;
                std::this_thread::yield();
            }
            word->store(turn + 1, std::memory_order_release);
        }
    };
}

}  // namespace

// ---- what tests ask for ----

extern "C" unsigned long stub_calls(const char* name) {
    for (Counter* one = counters; one != nullptr; one = one->next) {
        if (strcmp(one->name, name) == 0 || strcmp(name, "*") == 0) {
            if (strcmp(name, "*") != 0) return one->calls;
        }
    }
    if (strcmp(name, "*") != 0) return ~0ul;
    unsigned long all = 0;
    for (Counter* one = counters; one != nullptr; one = one->next) all += one->calls;
    return all;
}
/// The next call of this function returns `code`.
extern "C" int stub_fail(const char* name, int code) {
    for (Counter* one = counters; one != nullptr; one = one->next) {
        if (strcmp(one->name, name) == 0) return one->fail_with.store(code), 1;
    }
    return 0;
}

/// How long the kernel that was launched last waits at most.
std::atomic<unsigned long> last_deadline_ns{0};
extern "C" unsigned long stub_last_deadline_ns() { return last_deadline_ns; }

// ---- the driver ----

DRIVER(cuInit, unsigned flags) COUNTED(cuInit, flags)
static int cuInit_(unsigned) { return devices() == 0 ? kNoDevice : kSuccess; }

DRIVER(cuDriverGetVersion, int* version) COUNTED(cuDriverGetVersion, version)
static int cuDriverGetVersion_(int* version) { return *version = 12020, kSuccess; }

DRIVER(cuGetErrorName, int code, const char** name) COUNTED(cuGetErrorName, code, name)
static int cuGetErrorName_(int code, const char** name) { return (*name = name_of(code)) ? kSuccess : kInvalidValue; }

DRIVER(cuDeviceGetCount, int* count) COUNTED(cuDeviceGetCount, count)
static int cuDeviceGetCount_(int* count) { return *count = devices(), kSuccess; }

DRIVER(cuDeviceGet, int* device, int ordinal) COUNTED(cuDeviceGet, device, ordinal)
static int cuDeviceGet_(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= devices()) return kInvalidDevice;
    return *device = ordinal, kSuccess;
}

DRIVER(cuDeviceGetName, char* name, int capacity, int device) COUNTED(cuDeviceGetName, name, capacity, device)
static int cuDeviceGetName_(char* name, int capacity, int device) {
    snprintf(name, size_t(capacity), "stub %d", device);
    return kSuccess;
}

struct Uuid {
    unsigned char bytes[16];
};
DRIVER(cuDeviceGetUuid_v2, Uuid* uuid, int device) COUNTED(cuDeviceGetUuid_v2, uuid, device)
static int cuDeviceGetUuid_v2_(Uuid* uuid, int device) {
    memcpy(uuid->bytes, "stub of a device", 16);
    uuid->bytes[15] = static_cast<unsigned char>(device);
    return kSuccess;
}

DRIVER(cuDeviceGetAttribute, int* value, int attribute, int device) COUNTED(cuDeviceGetAttribute, value, attribute, device)
static int cuDeviceGetAttribute_(int* value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 64; break;
        case 75: *value = setting("STUB_ARCH", 90) / 10; break;
        case 76: *value = setting("STUB_ARCH", 90) % 10; break;
        case 102: *value = 1; break;
        case 103: *value = setting("STUB_NO_EXPORT", 0) == 0; break;
        default: return kInvalidValue;
    }
    return kSuccess;
}

DRIVER(cuDeviceCanAccessPeer, int* can, int device, int peer) COUNTED(cuDeviceCanAccessPeer, can, device, peer)
static int cuDeviceCanAccessPeer_(int* can, int, int) { return *can = setting("STUB_NO_PEER", 0) == 0, kSuccess; }

DRIVER(cuDevicePrimaryCtxRetain, Context** context, int device) COUNTED(cuDevicePrimaryCtxRetain, context, device)
static int cuDevicePrimaryCtxRetain_(Context** context, int device) {
    std::lock_guard lock(contexts_lock);
    Context*& one = contexts[device];
    if (one == nullptr) one = new Context{device, nullptr};
    return *context = one, kSuccess;
}

DRIVER(cuCtxGetCurrent, Context** context) COUNTED(cuCtxGetCurrent, context)
static int cuCtxGetCurrent_(Context** context) { return *context = here(), kSuccess; }

DRIVER(cuCtxPushCurrent_v2, Context* context) COUNTED(cuCtxPushCurrent_v2, context)
static int cuCtxPushCurrent_v2_(Context* context) { return current.push_back(context), kSuccess; }

DRIVER(cuCtxPopCurrent_v2, Context** context) COUNTED(cuCtxPopCurrent_v2, context)
static int cuCtxPopCurrent_v2_(Context** context) {
    if (current.empty()) return kInvalidContext;
    *context = current.back();
    current.pop_back();
    return kSuccess;
}

DRIVER(cuCtxEnablePeerAccess, Context* peer, unsigned flags) COUNTED(cuCtxEnablePeerAccess, peer, flags)
static int cuCtxEnablePeerAccess_(Context*, unsigned) { return here() == nullptr ? kInvalidContext : kSuccess; }

DRIVER(cuModuleLoadData, void** module, const void* image) UNSAFE_IN_CAPTURE(cuModuleLoadData, module, image)
static int cuModuleLoadData_(void** module, const void* image) {
    if (here() == nullptr) return kInvalidContext;
    if (strstr(static_cast<const char*>(image), ".entry") == nullptr) return kInvalidValue;
    return *module = here(), kSuccess;
}

DRIVER(cuModuleGetFunction, Function** function, void* module, const char* name)
COUNTED(cuModuleGetFunction, function, module, name)
static int cuModuleGetFunction_(Function** function, void* module, const char* name) {
    if (strcmp(name, "nothing") == 0 || strcmp(name, "ping_pong") == 0) {
        auto other = strcmp(name, "nothing") == 0 ? launch_nothing : launch_ping_pong;
        return *function = new Function{nullptr, other, static_cast<Context*>(module)}, kSuccess;
    }
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&stub_calls), &self);
    void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    void* kernel = dlsym(library, name);
    if (kernel == nullptr) return kNotFound;
    *function = new Function{reinterpret_cast<void (*)(const Params&)>(kernel), nullptr, static_cast<Context*>(module)};
    return kSuccess;
}

DRIVER(cuOccupancyMaxActiveBlocksPerMultiprocessor, int* blocks, Function* function, int threads, size_t shared)
COUNTED(cuOccupancyMaxActiveBlocksPerMultiprocessor, blocks, function, threads, shared)
static int cuOccupancyMaxActiveBlocksPerMultiprocessor_(int* blocks, Function*, int, size_t) {
    return *blocks = 1, kSuccess;
}

struct LaunchConfig {
    unsigned grid[3], block[3], shared;
    void* stream;
    const void* attributes;
    unsigned attribute_count;
};
DRIVER(cuLaunchKernelEx, const LaunchConfig* config, Function* function, void** parameters, void** extra)
COUNTED(cuLaunchKernelEx, config, function, parameters, extra)
static int cuLaunchKernelEx_(const LaunchConfig* config, Function* function, void** parameters, void**) {
    if (here() != function->context) return here() == nullptr ? kInvalidContext : kInvalidHandle;
    if (does_nothing()) return kSuccess;
    if (function->other != nullptr) return enqueue(config->stream, function->other(parameters));
    const Params params = *static_cast<const Params*>(parameters[0]);
    last_deadline_ns = params.timeout_ns;
    const unsigned blocks = config->grid[0], threads = config->block[0];
    return enqueue(config->stream, [=] {
        std::vector<machine::Stream> streams(1);
        streams[0].threads = threads;
        machine::Launch launch;
        launch.kernel = [=] { function->kernel(params); };
        launch.blocks = blocks;
        streams[0].launches.push_back(std::move(launch));
        machine::run(streams, machine::Lanes::kThreads, 0);
    });
}

DRIVER(cuStreamCreate, Stream** stream, unsigned flags) COUNTED(cuStreamCreate, stream, flags)
static int cuStreamCreate_(Stream** stream, unsigned) {
    if (here() == nullptr) return kInvalidContext;
    return *stream = new Stream(here()->device), kSuccess;
}

DRIVER(cuStreamDestroy_v2, Stream* stream) COUNTED(cuStreamDestroy_v2, stream)
static int cuStreamDestroy_v2_(Stream* stream) {
    if (stream->gone) return kInvalidHandle;
    return stream->destroy(), kSuccess;
}

DRIVER(cuStreamSynchronize, void* handle) UNSAFE_IN_CAPTURE(cuStreamSynchronize, handle)
static int cuStreamSynchronize_(void* handle) {
    Stream* stream;
    if (int code = find(handle, &stream)) return code;
    if (stream->capture != nullptr) {
        // What it waits for is not even enqueued.
        stream->capture->invalid = true;
        return kCaptureUnsupported;
    }
    return stream->wait(), kSuccess;
}

DRIVER(cuStreamIsCapturing, void* handle, int* status) COUNTED(cuStreamIsCapturing, handle, status)
static int cuStreamIsCapturing_(void* handle, int* status) {
    Stream* stream;
    if (int code = find(handle, &stream)) return code;
    *status = stream->capture == nullptr ? 0 : stream->capture->invalid ? 2 : 1;
    return kSuccess;
}

DRIVER(cuStreamBeginCapture_v2, void* handle, int mode) COUNTED(cuStreamBeginCapture_v2, handle, mode)
static int cuStreamBeginCapture_v2_(void* handle, int mode) {
    Stream* stream;
    if (int code = find(handle, &stream)) return code;
    if (mode < kGlobal || mode > kRelaxed || stream->capture != nullptr) return kInvalidValue;
    stream->capture = new Capture{new Graph, mode, std::this_thread::get_id()};
    std::lock_guard lock(captures_lock);
    captures.push_back(stream->capture);
    return captures_going = captures.size(), kSuccess;
}

DRIVER(cuThreadExchangeStreamCaptureMode, int* mode) COUNTED(cuThreadExchangeStreamCaptureMode, mode)
static int cuThreadExchangeStreamCaptureMode_(int* mode) {
    if (*mode < kGlobal || *mode > kRelaxed) return kInvalidValue;
    return std::swap(*mode, mode_of_thread), kSuccess;
}

DRIVER(cuStreamEndCapture, void* handle, Graph** graph) COUNTED(cuStreamEndCapture, handle, graph)
static int cuStreamEndCapture_(void* handle, Graph** graph) {
    Stream* stream;
    if (int code = find(handle, &stream)) return code;
    *graph = nullptr;
    Capture* capture = stream->capture;
    if (capture == nullptr) return kInvalidValue;
    if (capture->mode != kRelaxed && capture->thread != std::this_thread::get_id()) return kCaptureWrongThread;
    {
        std::lock_guard lock(captures_lock);
        for (size_t i = 0; i < captures.size(); i++) {
            if (captures[i] == capture) captures.erase(captures.begin() + long(i));
        }
        captures_going = captures.size();
    }
    stream->capture = nullptr;
    const int code = capture->invalid ? kCaptureInvalidated : kSuccess;
    if (code == kSuccess) *graph = capture->graph;
    else delete capture->graph;
    return delete capture, code;
}

/// Behind a pointer that all launches under way share: an executable may be destroyed before they end.
using Handle = std::shared_ptr<Executable>;

DRIVER(cuGraphInstantiateWithFlags, Handle** executable, Graph* graph, unsigned long long flags)
COUNTED(cuGraphInstantiateWithFlags, executable, graph, flags)
static int cuGraphInstantiateWithFlags_(Handle** executable, Graph* graph, unsigned long long) {
    *executable = new Handle(new Executable);
    return (**executable)->work = graph->work, kSuccess;
}

DRIVER(cuGraphDestroy, Graph* graph) COUNTED(cuGraphDestroy, graph)
static int cuGraphDestroy_(Graph* graph) { return delete graph, kSuccess; }

DRIVER(cuGraphUpload, Handle* executable, void* stream) COUNTED(cuGraphUpload, executable, stream)
static int cuGraphUpload_(Handle*, void* handle) {
    Stream* stream;
    return find(handle, &stream);
}

DRIVER(cuGraphLaunch, Handle* executable, void* handle) COUNTED(cuGraphLaunch, executable, handle)
static int cuGraphLaunch_(Handle* executable, void* handle) {
    Stream* stream;
    if (int code = find(handle, &stream)) return code;
    if (stream->capture != nullptr) return kCaptureUnsupported;  // the real one makes a part of the graph of it
    if (does_nothing()) return kSuccess;
    const Handle shared = *executable;
    unsigned long number;
    {
        std::lock_guard lock(shared->lock);
        number = shared->launched++;
    }
    stream->push([shared, number] {
        shared->enter(number);
        for (const auto& one : shared->work) one();
        shared->leave();
    });
    return kSuccess;
}

DRIVER(cuGraphExecDestroy, Handle* executable) COUNTED(cuGraphExecDestroy, executable)
static int cuGraphExecDestroy_(Handle* executable) { return delete executable, kSuccess; }

DRIVER(cuEventCreate, Event** event, unsigned flags) COUNTED(cuEventCreate, event, flags)
static int cuEventCreate_(Event** event, unsigned) { return *event = new Event, kSuccess; }

DRIVER(cuEventDestroy_v2, Event* event) COUNTED(cuEventDestroy_v2, event)
static int cuEventDestroy_v2_(Event* event) {
    // What is on a stream may still pass it, as in the real driver.
    (void)event;
    return kSuccess;
}

DRIVER(cuEventRecord, Event* event, void* stream) COUNTED(cuEventRecord, event, stream)
static int cuEventRecord_(Event* event, void* stream) {
    unsigned long number;
    {
        std::lock_guard lock(event->lock);
        number = ++event->recorded;
    }
    return enqueue(stream, [event, number] {
        {
            std::lock_guard lock(event->lock);
            event->passed = number;
        }
        event->changed.notify_all();
    });
}

DRIVER(cuEventQuery, Event* event) UNSAFE_IN_CAPTURE(cuEventQuery, event)
static int cuEventQuery_(Event* event) {
    std::lock_guard lock(event->lock);
    return event->passed == event->recorded ? kSuccess : kNotReady;
}

DRIVER(cuEventSynchronize, Event* event) UNSAFE_IN_CAPTURE(cuEventSynchronize, event)
static int cuEventSynchronize_(Event* event) {
    std::unique_lock lock(event->lock);
    const unsigned long until = event->recorded;
    event->changed.wait(lock, [&] { return event->passed >= until; });
    return kSuccess;
}

DRIVER(cuStreamWaitEvent, void* stream, Event* event, unsigned flags) COUNTED(cuStreamWaitEvent, stream, event, flags)
static int cuStreamWaitEvent_(void* stream, Event* event, unsigned) {
    unsigned long until;
    {
        std::lock_guard lock(event->lock);
        until = event->recorded;
    }
    return enqueue(stream, [event, until] {
        std::unique_lock lock(event->lock);
        event->changed.wait(lock, [&] { return event->passed >= until; });
    });
}

DRIVER(cuMemAlloc_v2, uint64_t* address, size_t bytes) UNSAFE_IN_CAPTURE(cuMemAlloc_v2, address, bytes)
static int cuMemAlloc_v2_(uint64_t* address, size_t bytes) {
    if (here() == nullptr) return kInvalidContext;
    const int file = new_file(bytes);
    void* memory = file < 0 ? nullptr : map_file(file, bytes, nullptr, false);
    if (memory == nullptr) return kOutOfMemory;
    std::lock_guard lock(memory_lock);
    *address = reinterpret_cast<uint64_t>(memory);
    allocations[*address] = Allocation{bytes, here()->device, file};
    return kSuccess;
}

DRIVER(cuMemFree_v2, uint64_t address) UNSAFE_IN_CAPTURE(cuMemFree_v2, address)
static int cuMemFree_v2_(uint64_t address) {
    std::lock_guard lock(memory_lock);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return kInvalidValue;
    munmap(reinterpret_cast<void*>(address), found->second.bytes);
    close(found->second.file);
    allocations.erase(found);
    return kSuccess;
}

DRIVER(cuMemHostRegister_v2, void* host, size_t bytes, unsigned flags)
UNSAFE_IN_CAPTURE(cuMemHostRegister_v2, host, bytes, flags)
static int cuMemHostRegister_v2_(void* host, size_t, unsigned) {
    return reinterpret_cast<uintptr_t>(host) % 4096 == 0 ? kSuccess : kInvalidValue;
}

DRIVER(cuMemHostUnregister, void* host) UNSAFE_IN_CAPTURE(cuMemHostUnregister, host)
static int cuMemHostUnregister_(void*) { return kSuccess; }

DRIVER(cuMemHostGetDevicePointer_v2, uint64_t* address, void* host, unsigned flags)
COUNTED(cuMemHostGetDevicePointer_v2, address, host, flags)
static int cuMemHostGetDevicePointer_v2_(uint64_t* address, void* host, unsigned) {
    return *address = reinterpret_cast<uint64_t>(host), kSuccess;
}

DRIVER(cuMemsetD8Async, uint64_t address, unsigned char byte, size_t count, void* stream)
COUNTED(cuMemsetD8Async, address, byte, count, stream)
static int cuMemsetD8Async_(uint64_t address, unsigned char byte, size_t count, void* stream) {
    return enqueue(stream, [=] { memset(reinterpret_cast<void*>(address), byte, count); });
}

DRIVER(cuMemcpyAsync, uint64_t to, uint64_t from, size_t bytes, void* stream) COUNTED(cuMemcpyAsync, to, from, bytes, stream)
static int cuMemcpyAsync_(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    return enqueue(stream, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}

struct CopyEnd {
    size_t skipped[2];
    unsigned kind;
    void* host;
    uint64_t device;
    void* array;
    size_t pitch;
    char* start() const { return kind == 1 ? static_cast<char*>(host) : reinterpret_cast<char*>(device); }
};
struct Copy2d {
    CopyEnd from, to;
    size_t width, height;
};
bool on_device(uint64_t address) {
    std::lock_guard lock(memory_lock);
    const auto found = allocations.upper_bound(address);
    return found != allocations.begin() && std::prev(found)->first + std::prev(found)->second.bytes > address;
}
DRIVER(cuMemcpy2DAsync_v2, const Copy2d* copy, void* stream) COUNTED(cuMemcpy2DAsync_v2, copy, stream)
static int cuMemcpy2DAsync_v2_(const Copy2d* copy, void* stream) {
    for (const CopyEnd& end : {copy->from, copy->to}) {
        if (end.skipped[0] != 0 || end.skipped[1] != 0 || end.array != nullptr) return kInvalidValue;
        if (end.pitch < copy->width || end.pitch > 0x7fffffff) return kInvalidValue;
        if ((end.kind == 2) != on_device(reinterpret_cast<uint64_t>(end.start()))) return kInvalidValue;
    }
    return enqueue(stream, [copy = *copy] {
        for (size_t row = 0; row < copy.height; row++) {
            memcpy(copy.to.start() + row * copy.to.pitch, copy.from.start() + row * copy.from.pitch, copy.width);
        }
    });
}

DRIVER(cuPointerGetAttributes, unsigned count, const int* attributes, void** data, uint64_t pointer)
COUNTED(cuPointerGetAttributes, count, attributes, data, pointer)
static int cuPointerGetAttributes_(unsigned count, const int* attributes, void** data, uint64_t pointer) {
    std::lock_guard lock(memory_lock);
    auto found = allocations.upper_bound(pointer);
    const bool known = found != allocations.begin() && (--found, pointer < found->first + found->second.bytes);
    for (unsigned i = 0; i < count; i++) {
        switch (attributes[i]) {
            case 2: *static_cast<unsigned*>(data[i]) = known ? 2 : 0; break;
            case 9: *static_cast<int*>(data[i]) = known ? found->second.device : -2; break;
            case 11: *static_cast<uint64_t*>(data[i]) = known ? found->first : 0; break;
            case 12: *static_cast<size_t*>(data[i]) = known ? found->second.bytes : 0; break;
            default: return kInvalidValue;
        }
    }
    return kSuccess;
}

struct Location {
    int kind, id;
};
struct Properties {
    int kind, handles;
    Location location;
    void* security;
    unsigned char flags[8];
};
DRIVER(cuMemGetAllocationGranularity, size_t* bytes, const Properties* properties, int option)
COUNTED(cuMemGetAllocationGranularity, bytes, properties, option)
static int cuMemGetAllocationGranularity_(size_t* bytes, const Properties*, int) { return *bytes = 64 << 10, kSuccess; }

DRIVER(cuMemCreate, uint64_t* handle, size_t bytes, const Properties* properties, unsigned long long flags)
UNSAFE_IN_CAPTURE(cuMemCreate, handle, bytes, properties, flags)
static int cuMemCreate_(uint64_t* handle, size_t bytes, const Properties* properties, unsigned long long) {
    if (bytes % (64 << 10) != 0 || properties->handles != 1) return kInvalidValue;
    const int file = new_file(bytes);
    if (file < 0) return kOutOfMemory;
    mark_device(file, properties->location.id);
    std::lock_guard lock(memory_lock);
    *handle = next_physical++;
    physicals[*handle] = Physical{file, properties->location.id};
    return kSuccess;
}

DRIVER(cuMemRelease, uint64_t handle) UNSAFE_IN_CAPTURE(cuMemRelease, handle)
static int cuMemRelease_(uint64_t handle) {
    std::lock_guard lock(memory_lock);
    const auto found = physicals.find(handle);
    if (found == physicals.end()) return kInvalidValue;
    close(found->second.file);
    physicals.erase(found);
    return kSuccess;
}

DRIVER(cuMemAddressReserve, uint64_t* address, size_t bytes, size_t alignment, uint64_t wanted, unsigned long long flags)
UNSAFE_IN_CAPTURE(cuMemAddressReserve, address, bytes, alignment, wanted, flags)
static int cuMemAddressReserve_(uint64_t* address, size_t bytes, size_t, uint64_t, unsigned long long) {
    void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return kOutOfMemory;
    return *address = reinterpret_cast<uint64_t>(range), kSuccess;
}

DRIVER(cuMemAddressFree, uint64_t address, size_t bytes) UNSAFE_IN_CAPTURE(cuMemAddressFree, address, bytes)
static int cuMemAddressFree_(uint64_t address, size_t bytes) {
    return munmap(reinterpret_cast<void*>(address), bytes) == 0 ? kSuccess : kInvalidValue;
}

DRIVER(cuMemMap, uint64_t address, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags)
UNSAFE_IN_CAPTURE(cuMemMap, address, bytes, offset, handle, flags)
static int cuMemMap_(uint64_t address, size_t bytes, size_t, uint64_t handle, unsigned long long) {
    std::lock_guard lock(memory_lock);
    const auto found = physicals.find(handle);
    if (found == physicals.end()) return kInvalidValue;
    const bool lost = setting("STUB_LOST_WRITES", 0) != 0 && here() != nullptr && here()->device != found->second.device;
    if (map_file(found->second.file, bytes, reinterpret_cast<void*>(address), lost) == nullptr) return kOutOfMemory;
    // Until access is given, nobody has it.
    mprotect(reinterpret_cast<void*>(address), bytes, PROT_NONE);
    allocations[address] = Allocation{bytes, found->second.device, -1};
    return kSuccess;
}

DRIVER(cuMemUnmap, uint64_t address, size_t bytes) UNSAFE_IN_CAPTURE(cuMemUnmap, address, bytes)
static int cuMemUnmap_(uint64_t address, size_t bytes) {
    std::lock_guard lock(memory_lock);
    if (allocations.erase(address) == 0) return kInvalidValue;
    mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return kSuccess;
}

struct Access {
    Location location;
    int flags;
};
DRIVER(cuMemSetAccess, uint64_t address, size_t bytes, const Access* access, size_t count)
UNSAFE_IN_CAPTURE(cuMemSetAccess, address, bytes, access, count)
static int cuMemSetAccess_(uint64_t address, size_t bytes, const Access* access, size_t count) {
    if (count != 1 || access->flags != 3) return kInvalidValue;
    return mprotect(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE) == 0 ? kSuccess : kInvalidValue;
}

DRIVER(cuMemExportToShareableHandle, int* descriptor, uint64_t handle, int kind, unsigned long long flags)
UNSAFE_IN_CAPTURE(cuMemExportToShareableHandle, descriptor, handle, kind, flags)
static int cuMemExportToShareableHandle_(int* descriptor, uint64_t handle, int kind, unsigned long long) {
    std::lock_guard lock(memory_lock);
    const auto found = physicals.find(handle);
    if (found == physicals.end() || kind != 1) return kInvalidValue;
    return *descriptor = dup(found->second.file), kSuccess;
}

DRIVER(cuMemImportFromShareableHandle, uint64_t* handle, void* descriptor, int kind)
UNSAFE_IN_CAPTURE(cuMemImportFromShareableHandle, handle, descriptor, kind)
static int cuMemImportFromShareableHandle_(uint64_t* handle, void* descriptor, int kind) {
    const int file = dup(int(reinterpret_cast<intptr_t>(descriptor)));
    if (file < 0 || kind != 1) return kInvalidValue;
    std::lock_guard lock(memory_lock);
    *handle = next_physical++;
    physicals[*handle] = Physical{file, marked_device(file)};
    return kSuccess;
}

struct IpcHandle {
    char text[64];
};
DRIVER(cuIpcGetMemHandle, IpcHandle* handle, uint64_t address) UNSAFE_IN_CAPTURE(cuIpcGetMemHandle, handle, address)
static int cuIpcGetMemHandle_(IpcHandle* handle, uint64_t address) {
    std::lock_guard lock(memory_lock);
    const auto found = allocations.find(address);
    if (found == allocations.end()) return kInvalidValue;
    snprintf(handle->text, sizeof handle->text, "%d/fd/%d:%zu:%d", getpid(), found->second.file, found->second.bytes,
             found->second.device);
    return kSuccess;
}

DRIVER(cuIpcOpenMemHandle_v2, uint64_t* address, IpcHandle handle, unsigned flags)
UNSAFE_IN_CAPTURE(cuIpcOpenMemHandle_v2, address, handle, flags)
static int cuIpcOpenMemHandle_v2_(uint64_t* address, IpcHandle handle, unsigned) {
    int process, number, device;
    size_t bytes;
    if (sscanf(handle.text, "%d/fd/%d:%zu:%d", &process, &number, &bytes, &device) != 4) return kInvalidValue;
    if (process == getpid()) return kInvalidContext;  // the real one refuses its own
    const std::string path = "/proc/" + std::to_string(process) + "/fd/" + std::to_string(number);
    const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    void* memory = file < 0 ? nullptr : map_file(file, bytes, nullptr, false);
    if (memory == nullptr) return kInvalidValue;
    std::lock_guard lock(memory_lock);
    *address = reinterpret_cast<uint64_t>(memory);
    allocations[*address] = Allocation{bytes, device, file};
    return kSuccess;
}

DRIVER(cuIpcCloseMemHandle, uint64_t address) UNSAFE_IN_CAPTURE(cuIpcCloseMemHandle, address)
static int cuIpcCloseMemHandle_(uint64_t address) { return cuMemFree_v2_(address); }
