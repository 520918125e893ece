/* tutti.hpp: libtutti for C++17. Header-only, over tutti.h, which has the contract of every call.
 *
 * Owners (Group, Request, Layout, Dict, Queue, Memory, Capture, TransferPlan, Transfer) are move-only and free what they
 * own; GroupRef is a group somebody else owns, as a string_view is to a string. What fails throws tutti::Error with the
 * status and the library's sentence; whoever wants no exceptions passes get() to the C functions. Element types of
 * pointers become dtypes by themselves: all_reduce(float *, count); for others name the dtype. */
#ifndef TUTTI_HPP
#define TUTTI_HPP

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tutti.h"

namespace tutti {

enum class Status : std::int32_t {
    success = TUTTI_SUCCESS,
    invalid_argument = TUTTI_INVALID_ARGUMENT,
    invalid_usage = TUTTI_INVALID_USAGE,
    unsupported = TUTTI_UNSUPPORTED,
    out_of_memory = TUTTI_OUT_OF_MEMORY,
    system_error = TUTTI_SYSTEM_ERROR,
    cuda_error = TUTTI_CUDA_ERROR,
    communicator_error = TUTTI_COMMUNICATOR_ERROR,
    timeout = TUTTI_TIMEOUT,
    peer_lost = TUTTI_PEER_LOST,
    aborted = TUTTI_ABORTED,
    mismatch = TUTTI_MISMATCH,
    internal_error = TUTTI_INTERNAL_ERROR,
    in_progress = TUTTI_IN_PROGRESS,
};

enum class DType : std::int32_t {
    int8 = TUTTI_INT8,
    uint8 = TUTTI_UINT8,
    int32 = TUTTI_INT32,
    uint32 = TUTTI_UINT32,
    int64 = TUTTI_INT64,
    uint64 = TUTTI_UINT64,
    float16 = TUTTI_FLOAT16,
    float32 = TUTTI_FLOAT32,
    float64 = TUTTI_FLOAT64,
    bfloat16 = TUTTI_BFLOAT16,
    float8e4m3 = TUTTI_FLOAT8E4M3,
    float8e5m2 = TUTTI_FLOAT8E5M2,
    boolean = TUTTI_BOOL,
    int16 = TUTTI_INT16,
    bytes = TUTTI_BYTES,
};

enum class Op : std::int32_t { sum = TUTTI_SUM, prod = TUTTI_PROD, max = TUTTI_MAX, min = TUTTI_MIN, avg = TUTTI_AVG };

enum class Collective : std::int32_t {
    all_reduce = TUTTI_ALL_REDUCE,
    all_gather = TUTTI_ALL_GATHER,
    reduce_scatter = TUTTI_REDUCE_SCATTER,
    broadcast = TUTTI_BROADCAST,
    reduce = TUTTI_REDUCE,
    gather = TUTTI_GATHER,
    scatter = TUTTI_SCATTER,
    all_to_all = TUTTI_ALL_TO_ALL,
    send = TUTTI_SEND,
    recv = TUTTI_RECV,
    barrier = TUTTI_BARRIER,
    all_gather_v = TUTTI_ALL_GATHER_V,
    reduce_scatter_v = TUTTI_REDUCE_SCATTER_V,
    all_to_all_v = TUTTI_ALL_TO_ALL_V,
};

enum class Mode : std::int32_t {
    none = TUTTI_MODE_NONE,
    in_place = TUTTI_MODE_INPLACE,
    out_of_place = TUTTI_MODE_OUTPLACE,
    both = TUTTI_MODE_BOTH,
};

enum class Format : std::int32_t { text = TUTTI_FORMAT_TEXT, json = TUTTI_FORMAT_JSON, svg = TUTTI_FORMAT_SVG };

/// Kinds of group in a layout.
enum class Kind : std::int32_t {
    tp = TUTTI_LAYOUT_TP,
    pp = TUTTI_LAYOUT_PP,
    dp = TUTTI_LAYOUT_DP,
    external_dp = TUTTI_LAYOUT_EXTERNAL_DP,
    pcp = TUTTI_LAYOUT_PCP,
    dcp = TUTTI_LAYOUT_DCP,
    ep = TUTTI_LAYOUT_EP,
};

enum class Device : std::int32_t {
    from_environment = TUTTI_DEVICE_DEFAULT,
    cpu = TUTTI_DEVICE_CPU,
    cuda = TUTTI_DEVICE_CUDA,
};

/// Zero is the default of what it is given to.
using Timeout = std::chrono::milliseconds;
inline constexpr Timeout never{TUTTI_TIMEOUT_NEVER};

/// What failed, with the whole story in what().
class Error : public std::runtime_error {
public:
    Error(Status status, const std::string &text) : std::runtime_error(text), status_(status) {}
    [[nodiscard]] Status status() const noexcept { return status_; }

private:
    Status status_;
};

namespace detail {

inline void check(tutti_status_t status) {
    if (status != TUTTI_SUCCESS) throw Error(static_cast<Status>(status), tutti_last_error());
}

/// The whole of a text that comes as (text, capacity, needed). It may grow between two calls.
template <class Ask>
std::string text(Ask ask) {
    std::string result(256, '\0');
    for (;;) {
        std::size_t needed = 0;
        check(ask(result.data(), result.size() + 1, &needed));
        const bool complete = needed <= result.size();
        result.resize(needed);
        if (complete) return result;
    }
}

template <class T>
constexpr std::optional<DType> dtype() {
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_same_v<U, bool>) return DType::boolean;
    if constexpr (std::is_same_v<U, std::byte>) return DType::bytes;
    if constexpr (std::is_same_v<U, float>) return DType::float32;
    if constexpr (std::is_same_v<U, double>) return DType::float64;
    if constexpr (std::is_integral_v<U>) {
        constexpr bool s = std::is_signed_v<U>;
        if constexpr (sizeof(U) == 1) return s ? DType::int8 : DType::uint8;
        if constexpr (sizeof(U) == 2 && s) return DType::int16;
        if constexpr (sizeof(U) == 4) return s ? DType::int32 : DType::uint32;
        if constexpr (sizeof(U) == 8) return s ? DType::int64 : DType::uint64;
    }
    return std::nullopt;
}

template <class T>
using IfElement = std::enable_if_t<dtype<T>().has_value(), int>;

}  // namespace detail

/// The dtype of a C++ type. Half precision has no type in C++17: name the dtype there.
template <class T>
inline constexpr DType dtype_of = detail::dtype<T>().value();

/// 10000 * major + 100 * minor + patch of the library that was loaded; TUTTI_VERSION is the header's.
[[nodiscard]] inline std::uint32_t version() noexcept { return tutti_version(); }

[[nodiscard]] inline const char *to_string(Status status) noexcept {
    return tutti_status_string(static_cast<tutti_status_t>(status));
}

/// See tutti_set_log_callback; nullptr ends the log.
inline void set_log_callback(tutti_log_fn callback, void *user = nullptr) {
    detail::check(tutti_set_log_callback(callback, user));
}

/// What ranks that start together share. Made by the process that holds rank 0; whoever has it may join.
using UniqueId = std::array<unsigned char, TUTTI_UNIQUE_ID_BYTES>;

[[nodiscard]] inline UniqueId unique_id() {
    UniqueId id{};
    detail::check(tutti_unique_id_create(id.data(), id.size(), nullptr));
    return id;
}

/// How a group is made; as it stands: as its parent.
struct GroupOptions {
    std::string name;
    Timeout timeout{0};
    bool deterministic = false;
    std::string communicators;

    /// Valid while this object is.
    [[nodiscard]] tutti_group_options_t raw() const noexcept {
        tutti_group_options_t options = TUTTI_GROUP_OPTIONS_INIT;
        options.name = name.empty() ? nullptr : name.c_str();
        options.timeout_ms = timeout.count();
        options.flags = deterministic ? TUTTI_FLAG_DETERMINISTIC : 0;
        options.communicators = communicators.empty() ? nullptr : communicators.c_str();
        return options;
    }
};

/// How a rank finds its world; as it stands: by the environment.
struct WorldOptions {
    int size = 0;
    int rank = 0;
    Device device_kind = Device::from_environment;
    int device = 0;
    std::optional<UniqueId> unique_id;
    std::string address;
    /// The caller's own bootstrap: hand out `bytes` bytes at `mine`, fill `all` with every rank's. May throw.
    std::function<void(const void *mine, std::size_t bytes, void *all)> all_gather;
    Timeout timeout{0};
    bool deterministic = false;
    bool allow_unauthenticated = false;
    std::string communicators;
};

/// A group's first failure.
struct Failure {
    Status status;
    std::optional<int> rank;
    std::optional<Collective> collective;
    std::uint64_t sequence;
};

/// One call of any collective; fill in what the factories below do not name.
struct Call : tutti_call_t {
    Call() noexcept : tutti_call_t TUTTI_CALL_INIT {}

    static Call all_reduce(const void *send, void *recv, std::size_t count, DType dtype, Op op = Op::sum) noexcept {
        return make(Collective::all_reduce, send, recv, count, dtype, op);
    }
    static Call all_gather(const void *send, void *recv, std::size_t count, DType dtype) noexcept {
        return make(Collective::all_gather, send, recv, count, dtype, Op::sum);
    }
    static Call reduce_scatter(const void *send, void *recv, std::size_t count, DType dtype, Op op = Op::sum) noexcept {
        return make(Collective::reduce_scatter, send, recv, count, dtype, op);
    }
    static Call broadcast(const void *send, void *recv, std::size_t count, DType dtype, int root) noexcept {
        Call call = make(Collective::broadcast, send, recv, count, dtype, Op::sum);
        call.peer = root;
        return call;
    }
    static Call send_to(const void *buffer, std::size_t count, DType dtype, int peer, std::int64_t tag = 0) noexcept {
        return letter(Collective::send, buffer, nullptr, count, dtype, peer, tag);
    }
    static Call recv_from(void *buffer, std::size_t count, DType dtype, int peer, std::int64_t tag = 0) noexcept {
        return letter(Collective::recv, nullptr, buffer, count, dtype, peer, tag);
    }
    static Call barrier() noexcept { return make(Collective::barrier, nullptr, nullptr, 0, DType::bytes, Op::sum); }

private:
    static Call letter(Collective collective, const void *send, void *recv, std::size_t count, DType dtype, int peer,
                       std::int64_t tag) noexcept {
        Call call = make(collective, send, recv, count, dtype, Op::sum);
        call.peer = peer;
        call.tag = tag;
        return call;
    }
    static Call make(Collective collective, const void *send, void *recv, std::size_t count, DType dtype, Op op) noexcept {
        Call call;
        call.tutti_call_t::collective = static_cast<std::int32_t>(collective);
        call.dtype = static_cast<std::int32_t>(dtype);
        call.op = static_cast<std::int32_t>(op);
        call.tutti_call_t::send = send;
        call.tutti_call_t::recv = recv;
        call.send_count = count;
        return call;
    }
};

/// A started call. Destroying an unfinished one aborts its group, because the others count on its buffers.
class [[nodiscard]] Request {
public:
    Request() noexcept = default;
    explicit Request(tutti_request_t *owned) noexcept : raw_(owned) {}
    Request(Request &&other) noexcept : raw_(other.release()) {}
    Request &operator=(Request &&other) noexcept {
        if (this != &other) reset(other.release());
        return *this;
    }
    ~Request() { reset(); }

    /// Whether the call is done. Goes on with every unfinished request of this thread.
    [[nodiscard]] bool test() { return done(tutti_request_test(raw_)); }
    /// Waits until the call is done, or its deadline ends.
    void wait() { done(tutti_request_wait(raw_, TUTTI_TIMEOUT_NEVER)); }
    /// Whether the call was done before `timeout` ended; nothing has failed if not.
    [[nodiscard]] bool wait_for(Timeout timeout) { return done(tutti_request_wait(raw_, timeout.count())); }

    /// Elements that a receive which is done has got; none while it is not.
    [[nodiscard]] std::optional<std::size_t> received() {
        std::size_t count = 0;
        return done(tutti_request_received(raw_, &count)) ? std::optional<std::size_t>(count) : std::nullopt;
    }

    [[nodiscard]] tutti_request_t *get() const noexcept { return raw_; }
    [[nodiscard]] tutti_request_t *release() noexcept { return std::exchange(raw_, nullptr); }
    explicit operator bool() const noexcept { return raw_ != nullptr; }

private:
    static bool done(tutti_status_t status) {
        if (status == TUTTI_IN_PROGRESS) return false;
        detail::check(status);
        return true;
    }
    void reset(tutti_request_t *other = nullptr) noexcept {
        if (raw_ != nullptr) tutti_request_free(raw_);
        raw_ = other;
    }

    tutti_request_t *raw_ = nullptr;
};

class Group;

/// A group somebody else owns. Copies are cheap and refer to the same group; all calls are here.
class GroupRef {
public:
    GroupRef() noexcept = default;
    explicit GroupRef(tutti_group_t *group) noexcept : raw_(group) {}
    [[nodiscard]] tutti_group_t *get() const noexcept { return raw_; }
    explicit operator bool() const noexcept { return raw_ != nullptr; }

    /// Empty on ranks that are no members.
    [[nodiscard]] Group create(const std::vector<std::int32_t> &ranks, const GroupOptions &options = {}) const;
    /// Empty where color is below 0.
    [[nodiscard]] Group split(int color, int key = 0, const GroupOptions &options = {}) const;

    [[nodiscard]] int rank() const { return number(tutti_group_rank); }
    [[nodiscard]] int size() const { return number(tutti_group_size); }
    [[nodiscard]] std::string name() const { return text(tutti_group_name); }
    /// The group's first failure in one sentence; empty while it lives.
    [[nodiscard]] std::string error() const { return text(tutti_group_error); }
    /// success while the group lives. Does not throw.
    [[nodiscard]] Status check() const noexcept { return static_cast<Status>(tutti_group_check(raw_)); }

    [[nodiscard]] std::optional<Failure> failure() const {
        tutti_failure_t raw = TUTTI_FAILURE_INIT;
        detail::check(tutti_group_failure(raw_, &raw));
        if (raw.status == TUTTI_SUCCESS) return std::nullopt;
        Failure failure{static_cast<Status>(raw.status), std::nullopt, std::nullopt, raw.sequence};
        if (raw.rank >= 0) failure.rank = raw.rank;
        if (raw.collective >= 0) failure.collective = static_cast<Collective>(raw.collective);
        return failure;
    }

    [[nodiscard]] std::vector<bool> alive() const {
        std::vector<std::uint8_t> alive(static_cast<std::size_t>(size()));
        detail::check(tutti_group_alive(raw_, alive.data(), alive.size()));
        return {alive.begin(), alive.end()};
    }

    /// Owned by this group.
    [[nodiscard]] GroupRef cpu() const {
        tutti_group_t *cpu = nullptr;
        detail::check(tutti_group_cpu(raw_, &cpu));
        return GroupRef(cpu);
    }

    void sync(Timeout timeout = Timeout{0}) const { detail::check(tutti_group_sync(raw_, timeout.count())); }
    void set_enabled(const std::string &communicator, bool enabled) const {
        detail::check(tutti_group_set_enabled(raw_, communicator.c_str(), enabled ? 1 : 0));
    }
    void abort() const { detail::check(tutti_group_abort(raw_)); }

    [[nodiscard]] Request start(const Call &call) const {
        tutti_request_t *request = nullptr;
        detail::check(tutti_start(raw_, &call, &request));
        return Request(request);
    }

    // Collectives: in tutti.h's order of arguments. With a typed pointer the dtype is its element type.

    void all_reduce(const void *send, void *recv, std::size_t count, DType dtype, Op op = Op::sum,
                    void *stream = nullptr) const {
        detail::check(tutti_all_reduce(raw_, send, recv, count, raw(dtype), raw(op), stream));
    }
    template <class T, detail::IfElement<T> = 0>
    void all_reduce(const T *send, T *recv, std::size_t count, Op op = Op::sum, void *stream = nullptr) const {
        all_reduce(send, recv, count, dtype_of<T>, op, stream);
    }
    /// In place.
    template <class T, detail::IfElement<T> = 0>
    void all_reduce(T *buffer, std::size_t count, Op op = Op::sum, void *stream = nullptr) const {
        all_reduce(buffer, buffer, count, dtype_of<T>, op, stream);
    }

    /// Where the result is: buffer or scratch.
    [[nodiscard]] void *all_reduce_auto(void *buffer, void *scratch, std::size_t count, DType dtype, Op op = Op::sum,
                                        void *stream = nullptr) const {
        void *result = nullptr;
        detail::check(tutti_all_reduce_auto(raw_, buffer, scratch, count, raw(dtype), raw(op), stream, &result));
        return result;
    }
    [[nodiscard]] Mode all_reduce_mode(std::size_t count, DType dtype, Op op = Op::sum, std::uint32_t flags = 0) const {
        std::int32_t mode = 0;
        detail::check(tutti_all_reduce_mode(raw_, count, raw(dtype), raw(op), flags, &mode));
        return static_cast<Mode>(mode);
    }

    void all_gather(const void *send, void *recv, std::size_t send_count, DType dtype, void *stream = nullptr) const {
        detail::check(tutti_all_gather(raw_, send, recv, send_count, raw(dtype), stream));
    }
    template <class T, detail::IfElement<T> = 0>
    void all_gather(const T *send, T *recv, std::size_t send_count, void *stream = nullptr) const {
        all_gather(send, recv, send_count, dtype_of<T>, stream);
    }

    void reduce_scatter(const void *send, void *recv, std::size_t recv_count, DType dtype, Op op = Op::sum,
                        void *stream = nullptr) const {
        detail::check(tutti_reduce_scatter(raw_, send, recv, recv_count, raw(dtype), raw(op), stream));
    }
    template <class T, detail::IfElement<T> = 0>
    void reduce_scatter(const T *send, T *recv, std::size_t recv_count, Op op = Op::sum, void *stream = nullptr) const {
        reduce_scatter(send, recv, recv_count, dtype_of<T>, op, stream);
    }

    void broadcast(const void *send, void *recv, std::size_t count, DType dtype, int root,
                   void *stream = nullptr) const {
        detail::check(tutti_broadcast(raw_, send, recv, count, raw(dtype), root, stream));
    }
    /// In place.
    template <class T, detail::IfElement<T> = 0>
    void broadcast(T *buffer, std::size_t count, int root, void *stream = nullptr) const {
        broadcast(buffer, buffer, count, dtype_of<T>, root, stream);
    }

    void reduce(const void *send, void *recv, std::size_t count, DType dtype, Op op, int root,
                void *stream = nullptr) const {
        detail::check(tutti_reduce(raw_, send, recv, count, raw(dtype), raw(op), root, stream));
    }
    void gather(const void *send, void *recv, std::size_t count, DType dtype, int root, void *stream = nullptr) const {
        detail::check(tutti_gather(raw_, send, recv, count, raw(dtype), root, stream));
    }
    void scatter(const void *send, void *recv, std::size_t count, DType dtype, int root, void *stream = nullptr) const {
        detail::check(tutti_scatter(raw_, send, recv, count, raw(dtype), root, stream));
    }
    void all_to_all(const void *send, void *recv, std::size_t count, DType dtype, void *stream = nullptr) const {
        detail::check(tutti_all_to_all(raw_, send, recv, count, raw(dtype), stream));
    }
    void barrier(void *stream = nullptr) const { detail::check(tutti_barrier(raw_, stream)); }

    void send(const void *buffer, std::size_t count, DType dtype, int peer, void *stream = nullptr) const {
        detail::check(tutti_send(raw_, buffer, count, raw(dtype), peer, stream));
    }
    void recv(void *buffer, std::size_t count, DType dtype, int peer, void *stream = nullptr) const {
        detail::check(tutti_recv(raw_, buffer, count, raw(dtype), peer, stream));
    }
    void sendrecv(const void *send, std::size_t send_count, int to, void *recv, std::size_t recv_count, int from,
                  DType dtype, void *stream = nullptr) const {
        detail::check(tutti_sendrecv(raw_, send, send_count, to, recv, recv_count, from, raw(dtype), stream));
    }

    // The v-forms: one count and one displacement for every rank; empty displacements: one after the other.

    void all_gather_v(const void *send, void *recv, const std::vector<std::size_t> &counts,
                      const std::vector<std::size_t> &displs, DType dtype, void *stream = nullptr) const {
        detail::check(tutti_all_gather_v(raw_, send, recv, ranks(counts), ranks(displs), raw(dtype), stream));
    }
    void reduce_scatter_v(const void *send, void *recv, const std::vector<std::size_t> &counts,
                          const std::vector<std::size_t> &displs, DType dtype, Op op = Op::sum,
                          void *stream = nullptr) const {
        detail::check(
            tutti_reduce_scatter_v(raw_, send, recv, ranks(counts), ranks(displs), raw(dtype), raw(op), stream));
    }
    void all_to_all_v(const void *send, const std::vector<std::size_t> &send_counts,
                      const std::vector<std::size_t> &send_displs, void *recv,
                      const std::vector<std::size_t> &recv_counts, const std::vector<std::size_t> &recv_displs,
                      DType dtype, void *stream = nullptr) const {
        detail::check(tutti_all_to_all_v(raw_, send, ranks(send_counts), ranks(send_displs), recv, ranks(recv_counts),
                                         ranks(recv_displs), raw(dtype), stream));
    }

    /// Which communicator serves such a call, and why the others do not.
    [[nodiscard]] std::string explain(Collective collective, std::size_t count, DType dtype, Op op = Op::sum,
                                      std::uint32_t flags = 0, Format format = Format::text) const {
        return detail::text([&](char *text, std::size_t capacity, std::size_t *needed) {
            return tutti_explain(raw_, static_cast<std::int32_t>(collective), count, raw(dtype), raw(op), flags,
                                 static_cast<std::int32_t>(format), text, capacity, needed);
        });
    }

protected:
    tutti_group_t *raw_ = nullptr;

private:
    static std::int32_t raw(DType dtype) noexcept { return static_cast<std::int32_t>(dtype); }
    static std::int32_t raw(Op op) noexcept { return static_cast<std::int32_t>(op); }

    template <class Ask>
    int number(Ask ask) const {
        std::int32_t number = 0;
        detail::check(ask(raw_, &number));
        return number;
    }
    template <class Ask>
    std::string text(Ask ask) const {
        return detail::text([&](char *text, std::size_t capacity, std::size_t *needed) {
            return ask(raw_, text, capacity, needed);
        });
    }
    const std::size_t *ranks(const std::vector<std::size_t> &values) const {
        if (values.empty()) return nullptr;
        if (values.size() != static_cast<std::size_t>(size())) {
            throw Error(Status::invalid_argument, "a v-form takes one count and one displacement for every rank");
        }
        return values.data();
    }
};

/// A group this object owns. Destroying it is local: it waits for nobody.
class [[nodiscard]] Group : public GroupRef {
public:
    Group() noexcept = default;
    explicit Group(tutti_group_t *owned) noexcept : GroupRef(owned) {}
    Group(Group &&other) noexcept : GroupRef(other.release()) {}
    Group &operator=(Group &&other) noexcept {
        if (this != &other) reset(other.release());
        return *this;
    }
    ~Group() { reset(); }

    void reset(tutti_group_t *other = nullptr) noexcept {
        if (raw_ != nullptr) tutti_group_destroy(raw_);
        raw_ = other;
    }
    [[nodiscard]] tutti_group_t *release() noexcept { return std::exchange(raw_, nullptr); }
};

namespace detail {

/// WorldOptions in C, and what the caller's bootstrap threw: no exception may pass through the library.
class WorldCall {
public:
    explicit WorldCall(const WorldOptions &options) : options_(options) {
        if (tutti_version() / 100 != TUTTI_VERSION / 100) {
            throw Error(Status::invalid_usage, "the program was built with the header of libtutti " +
                                                   std::to_string(TUTTI_VERSION) + ", but loaded the library of version " +
                                                   std::to_string(tutti_version()));
        }
        raw_.size = options.size;
        raw_.rank = options.rank;
        raw_.device_kind = static_cast<std::int32_t>(options.device_kind);
        raw_.device = options.device;
        if (options.unique_id) {
            raw_.unique_id = options.unique_id->data();
            raw_.unique_id_size = options.unique_id->size();
        }
        raw_.address = options.address.empty() ? nullptr : options.address.c_str();
        if (options.all_gather) {
            raw_.all_gather = gather;
            raw_.user = this;
        }
        raw_.timeout_ms = options.timeout.count();
        raw_.flags = (options.deterministic ? TUTTI_FLAG_DETERMINISTIC : 0u) |
                     (options.allow_unauthenticated ? TUTTI_FLAG_ALLOW_UNAUTHENTICATED : 0u);
        raw_.communicators = options.communicators.empty() ? nullptr : options.communicators.c_str();
    }
    WorldCall(const WorldCall &) = delete;
    WorldCall &operator=(const WorldCall &) = delete;

    [[nodiscard]] const tutti_world_options_t *raw() const noexcept { return &raw_; }
    void finish(tutti_status_t status) const {
        if (thrown_) std::rethrow_exception(thrown_);
        check(status);
    }

private:
    static std::int32_t gather(void *user, const void *mine, std::size_t bytes, void *all) noexcept {
        auto &self = *static_cast<WorldCall *>(user);
        try {
            self.options_.all_gather(mine, bytes, all);
            return 0;
        } catch (...) {
            self.thrown_ = std::current_exception();
            return 1;
        }
    }

    const WorldOptions &options_;
    tutti_world_options_t raw_ = TUTTI_WORLD_OPTIONS_INIT;
    std::exception_ptr thrown_;
};

}  // namespace detail

/// Joins the world: all ranks that start together.
[[nodiscard]] inline Group world(const WorldOptions &options = {}) {
    const detail::WorldCall call(options);
    tutti_group_t *world = nullptr;
    const tutti_status_t status = tutti_world_create(call.raw(), &world);
    Group owner(world);
    call.finish(status);
    return owner;
}

/// Makes a world whose ranks all live in this process. devices: a CUDA ordinal for every rank, or empty: CPU ranks.
[[nodiscard]] inline std::vector<Group> local_world(int size, const std::vector<std::int32_t> &devices = {},
                                                    const WorldOptions &options = {}) {
    if (!devices.empty() && devices.size() != static_cast<std::size_t>(size < 0 ? 0 : size)) {
        throw Error(Status::invalid_argument, "a local world takes one device for every rank");
    }
    const detail::WorldCall call(options);
    std::vector<tutti_group_t *> ranks(size > 0 ? static_cast<std::size_t>(size) : 1, nullptr);
    call.finish(tutti_world_create_local(size, devices.empty() ? nullptr : devices.data(), call.raw(), ranks.data()));
    std::vector<Group> owners;
    owners.reserve(ranks.size());
    for (tutti_group_t *rank : ranks) owners.emplace_back(rank);
    return owners;
}

inline Group GroupRef::create(const std::vector<std::int32_t> &ranks, const GroupOptions &options) const {
    tutti_group_t *group = nullptr;
    const tutti_group_options_t raw = options.raw();
    detail::check(tutti_group_create(raw_, ranks.data(), ranks.size(), &raw, &group));
    return Group(group);
}

inline Group GroupRef::split(int color, int key, const GroupOptions &options) const {
    tutti_group_t *group = nullptr;
    const tutti_group_options_t raw = options.raw();
    detail::check(tutti_group_split(raw_, color, key, &raw, &group));
    return Group(group);
}

/// The live group of this name in this process; owned by whoever made it. rank: whose, where several ranks of the
/// group are in this process.
[[nodiscard]] inline GroupRef find_group(const std::string &name, std::optional<int> rank = std::nullopt) {
    tutti_group_t *group = nullptr;
    detail::check(tutti_group_find(name.c_str(), rank.value_or(-1), &group));
    return GroupRef(group);
}

/// What a layout is planned from; a size of 0 is 1, of expert all there are.
struct LayoutOptions {
    int world = 0;
    int tensor = 0;
    int pipeline = 0;
    int data = 0;
    int external_data = 0;
    int prefill_context = 0;
    int decode_context = 0;
    int expert = 0;
    /// The axes, the one whose neighbours are farthest apart first; empty: external DP, DP, PP, PCP, TP.
    std::vector<Kind> axes;
    /// The rank at each place, and where each rank stands; empty, or one for every rank.
    std::vector<std::int32_t> order, hosts, domains, lanes;
};

/// How a world splits into groups of every kind.
class [[nodiscard]] Layout {
public:
    explicit Layout(const LayoutOptions &options) {
        tutti_layout_options_t raw = TUTTI_LAYOUT_OPTIONS_INIT;
        raw.world = options.world;
        raw.tensor = options.tensor;
        raw.pipeline = options.pipeline;
        raw.data = options.data;
        raw.external_data = options.external_data;
        raw.prefill_context = options.prefill_context;
        raw.decode_context = options.decode_context;
        raw.expert = options.expert;
        constexpr std::size_t axes = sizeof raw.axes / sizeof raw.axes[0];
        if (!options.axes.empty() && options.axes.size() != axes) {
            throw Error(Status::invalid_argument, "a layout has five axes: name all of them, or none");
        }
        for (std::size_t i = 0; i < options.axes.size(); i++) raw.axes[i] = static_cast<std::int32_t>(options.axes[i]);
        raw.order = numbers(options, options.order);
        raw.hosts = numbers(options, options.hosts);
        raw.domains = numbers(options, options.domains);
        raw.lanes = numbers(options, options.lanes);
        detail::check(tutti_layout_create(&raw, &raw_));
        world_ = static_cast<std::size_t>(options.world);
    }
    Layout(Layout &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)), world_(other.world_) {}
    Layout &operator=(Layout &&other) noexcept {
        std::swap(raw_, other.raw_);
        std::swap(world_, other.world_);
        return *this;
    }
    ~Layout() {
        if (raw_ != nullptr) tutti_layout_destroy(raw_);
    }

    [[nodiscard]] std::uint64_t digest() const {
        std::uint64_t digest = 0;
        detail::check(tutti_layout_digest(raw_, &digest));
        return digest;
    }
    /// The ranks of every group of a kind, each in the order of its own ranks.
    [[nodiscard]] std::vector<std::vector<std::int32_t>> groups(Kind kind) const {
        std::vector<std::int32_t> ranks(world_);
        detail::check(tutti_layout_ranks(raw_, raw(kind), ranks.data(), ranks.size()));
        const std::size_t size = sizes(kind).first;
        std::vector<std::vector<std::int32_t>> groups;
        for (auto first = ranks.begin(); first != ranks.end(); first += static_cast<std::ptrdiff_t>(size)) {
            groups.emplace_back(first, first + static_cast<std::ptrdiff_t>(size));
        }
        return groups;
    }
    /// Which group of a kind a rank is in, and its rank within that.
    [[nodiscard]] std::pair<int, int> of(Kind kind, int rank) const {
        std::int32_t index = 0, position = 0;
        detail::check(tutti_layout_of(raw_, raw(kind), rank, &index, &position));
        return {index, position};
    }
    /// How many hosts and how many domains each group of a kind touches.
    [[nodiscard]] std::vector<std::pair<int, int>> reach(Kind kind) const {
        std::vector<std::int32_t> hosts(sizes(kind).second), domains(hosts.size());
        detail::check(tutti_layout_reach(raw_, raw(kind), hosts.data(), domains.data(), hosts.size()));
        std::vector<std::pair<int, int>> reach;
        for (std::size_t group = 0; group < hosts.size(); group++) reach.emplace_back(hosts[group], domains[group]);
        return reach;
    }
    [[nodiscard]] std::string draw(Format format = Format::text) const {
        return detail::text([&](char *text, std::size_t capacity, std::size_t *needed) {
            return tutti_layout_draw(raw_, static_cast<std::int32_t>(format), text, capacity, needed);
        });
    }
    /// Makes the groups that this rank of `parent` has, by kind. Empty kinds: all.
    [[nodiscard]] std::array<Group, TUTTI_LAYOUT_KINDS> create(GroupRef parent, const std::vector<Kind> &kinds = {},
                                                               const GroupOptions &options = {}) const {
        std::uint32_t wanted = 0;
        for (Kind kind : kinds) wanted |= 1u << raw(kind);
        tutti_group_t *made[TUTTI_LAYOUT_KINDS] = {};
        const tutti_group_options_t names = options.raw();
        detail::check(tutti_layout_groups(parent.get(), raw_, wanted, &names, made));
        std::array<Group, TUTTI_LAYOUT_KINDS> groups;
        for (std::size_t kind = 0; kind < groups.size(); kind++) groups[kind].reset(made[kind]);
        return groups;
    }
    [[nodiscard]] tutti_layout_t *get() const noexcept { return raw_; }

private:
    static std::int32_t raw(Kind kind) noexcept { return static_cast<std::int32_t>(kind); }
    static const std::int32_t *numbers(const LayoutOptions &options, const std::vector<std::int32_t> &values) {
        if (values.empty()) return nullptr;
        if (values.size() != static_cast<std::size_t>(options.world)) {
            throw Error(Status::invalid_argument, "a layout takes one number for every rank, or none");
        }
        return values.data();
    }
    [[nodiscard]] std::pair<std::size_t, std::size_t> sizes(Kind kind) const {
        std::int32_t size = 0, count = 0;
        detail::check(tutti_layout_size(raw_, raw(kind), &size, &count));
        return {static_cast<std::size_t>(size), static_cast<std::size_t>(count)};
    }

    tutti_layout_t *raw_ = nullptr;
    std::size_t world_ = 0;
};

/// A tensor of the caller's; strides in elements, empty: row by row. May be kept by a dict: it owns its name and shape.
struct Tensor {
    std::string name;
    void *data = nullptr;
    DType dtype = DType::bytes;
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> strides;
    Device device = Device::cpu;
    /// TUTTI_TENSOR_WHOLE, TUTTI_TENSOR_SLICED, or 0.
    std::uint32_t flags = 0;

    /// Valid while this object is.
    [[nodiscard]] tutti_tensor_t raw() const noexcept {
        tutti_tensor_t tensor = TUTTI_TENSOR_INIT;
        tensor.name = name.c_str();
        tensor.data = data;
        tensor.dtype = static_cast<std::int32_t>(dtype);
        tensor.device_kind = static_cast<std::int32_t>(device);
        tensor.ndim = static_cast<std::int32_t>(shape.size());
        tensor.flags = flags;
        tensor.shape = shape.data();
        tensor.strides = strides.empty() ? nullptr : strides.data();
        return tensor;
    }
};

/// With whom a dict is exchanged: the peer or root, the tag, and the group that holds or gathers the same tensors.
struct DictOptions {
    int peer = 0;
    int tag = 0;
    GroupRef replicas;
    Timeout timeout{0};
    /// On CUDA groups, the stream behind which tensors of the device are read and written.
    void *stream = nullptr;

    [[nodiscard]] tutti_dict_options_t raw() const noexcept {
        tutti_dict_options_t options = TUTTI_DICT_OPTIONS_INIT;
        options.peer = peer;
        options.tag = tag;
        options.replicas = replicas.get();
        options.timeout_ms = timeout.count();
        options.stream = stream;
        return options;
    }
};

/// A message of tensors, or an object: on its way, or here. Destroying an unfinished one aborts its group.
class [[nodiscard]] Dict {
public:
    /// Sends tensors, and returns when their memory may be used again.
    static void send(GroupRef group, const std::vector<Tensor> &tensors, const DictOptions &options) {
        const Raw raw(tensors);
        const tutti_dict_options_t how = options.raw();
        detail::check(tutti_dict_send(group.get(), raw.data(), raw.size(), &how, nullptr));
    }
    static void send_object(GroupRef group, const void *object, std::size_t bytes, const DictOptions &options) {
        const tutti_dict_options_t how = options.raw();
        detail::check(tutti_object_send(group.get(), object, bytes, &how, nullptr));
    }
    /// Starts to send tensors, whose memory must stay until wait() returns.
    static Dict start_send(GroupRef group, const std::vector<Tensor> &tensors, const DictOptions &options) {
        const Raw raw(tensors);
        return made(options, [&](const tutti_dict_options_t *how, tutti_dict_t **dict) {
            return tutti_dict_send(group.get(), raw.data(), raw.size(), how, dict);
        });
    }
    /// Starts to receive the next message of a peer and tag.
    static Dict receive(GroupRef group, const DictOptions &options) {
        return made(options, [&](const tutti_dict_options_t *how, tutti_dict_t **dict) {
            return tutti_dict_recv(group.get(), how, dict);
        });
    }
    /// Starts to broadcast the root's tensors; every rank waits for it before its next collective call on the group.
    static Dict broadcast(GroupRef group, const std::vector<Tensor> &tensors, const DictOptions &options) {
        const Raw raw(tensors);
        return made(options, [&](const tutti_dict_options_t *how, tutti_dict_t **dict) {
            return tutti_dict_broadcast(group.get(), raw.data(), raw.size(), how, dict);
        });
    }
    static Dict broadcast_object(GroupRef group, const void *object, std::size_t bytes, const DictOptions &options) {
        return made(options, [&](const tutti_dict_options_t *how, tutti_dict_t **dict) {
            return tutti_object_broadcast(group.get(), object, bytes, how, dict);
        });
    }

    Dict(Dict &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    Dict &operator=(Dict &&other) noexcept {
        std::swap(raw_, other.raw_);
        return *this;
    }
    ~Dict() {
        if (raw_ != nullptr) tutti_dict_free(raw_);
    }

    /// Whether wait() would not wait for a peer to begin.
    [[nodiscard]] bool test() const { return done(tutti_dict_test(raw_)); }
    /// Waits until it is known what comes; false if `timeout` ended first.
    bool probe(Timeout timeout = never) const { return done(tutti_dict_probe(raw_, timeout.count())); }
    /// Finishes it, into memory of the library; false if `timeout` ended before it began.
    bool wait(Timeout timeout = never) const { return done(tutti_dict_wait(raw_, nullptr, 0, timeout.count())); }
    /// Finishes it, into the caller's tensors, one for each of the message's.
    bool wait_into(const std::vector<Tensor> &tensors, Timeout timeout = never) const {
        const Raw raw(tensors);
        return done(tutti_dict_wait(raw_, raw.data(), raw.size(), timeout.count()));
    }

    /// The tensors of the message; their data belong to this object.
    [[nodiscard]] std::vector<Tensor> tensors() const {
        std::size_t count = 0;
        detail::check(tutti_dict_count(raw_, &count));
        std::vector<Tensor> tensors;
        for (std::size_t index = 0; index < count; index++) tensors.push_back(at(index));
        return tensors;
    }
    /// The tensor of this name.
    [[nodiscard]] Tensor tensor(const std::string &name) const {
        std::size_t index = 0;
        detail::check(tutti_dict_find(raw_, name.c_str(), &index));
        return at(index);
    }
    /// The bytes of an object, which belong to this object.
    [[nodiscard]] std::pair<const void *, std::size_t> object() const {
        void *object = nullptr;
        std::size_t bytes = 0;
        detail::check(tutti_dict_object(raw_, &object, &bytes));
        return {object, bytes};
    }
    [[nodiscard]] tutti_dict_t *get() const noexcept { return raw_; }

private:
    class Raw {
    public:
        explicit Raw(const std::vector<Tensor> &tensors) {
            for (const Tensor &tensor : tensors) raw_.push_back(tensor.raw());
        }
        [[nodiscard]] const tutti_tensor_t *data() const noexcept { return raw_.empty() ? nullptr : raw_.data(); }
        [[nodiscard]] std::size_t size() const noexcept { return raw_.size(); }

    private:
        std::vector<tutti_tensor_t> raw_;
    };

    explicit Dict(tutti_dict_t *owned) noexcept : raw_(owned) {}
    template <class Make>
    static Dict made(const DictOptions &options, Make make) {
        const tutti_dict_options_t how = options.raw();
        tutti_dict_t *dict = nullptr;
        detail::check(make(&how, &dict));
        return Dict(dict);
    }
    static bool done(tutti_status_t status) {
        if (status == TUTTI_IN_PROGRESS) return false;
        detail::check(status);
        return true;
    }
    [[nodiscard]] Tensor at(std::size_t index) const {
        tutti_tensor_t raw = TUTTI_TENSOR_INIT;
        detail::check(tutti_dict_tensor(raw_, index, &raw));
        Tensor tensor;
        tensor.name = raw.name;
        tensor.data = raw.data;
        tensor.dtype = static_cast<DType>(raw.dtype);
        tensor.shape.assign(raw.shape, raw.shape + raw.ndim);
        tensor.strides.assign(raw.strides, raw.strides + raw.ndim);
        return tensor;
    }

    tutti_dict_t *raw_ = nullptr;
};

/// How a queue is made; as it stands: rank 0 writes, and 1 MiB may wait for the slowest reader.
struct QueueOptions {
    int writer = 0;
    std::size_t capacity = 0;
    std::string name;
    Timeout timeout{0};
};

/// This rank's end of a queue: messages from one rank to all others.
class [[nodiscard]] Queue {
public:
    /// Collective.
    explicit Queue(GroupRef group, const QueueOptions &options = {}) {
        tutti_queue_options_t raw = TUTTI_QUEUE_OPTIONS_INIT;
        raw.writer = options.writer;
        raw.capacity = options.capacity;
        raw.name = options.name.empty() ? nullptr : options.name.c_str();
        raw.timeout_ms = options.timeout.count();
        detail::check(tutti_queue_create(group.get(), &raw, &raw_));
    }
    Queue(Queue &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    Queue &operator=(Queue &&other) noexcept {
        std::swap(raw_, other.raw_);
        return *this;
    }
    ~Queue() {
        if (raw_ != nullptr) tutti_queue_destroy(raw_);
    }

    void write(const void *message, std::size_t bytes, Timeout timeout = Timeout{0}) const {
        detail::check(tutti_queue_write(raw_, message, bytes, timeout.count()));
    }
    /// Waits for the next message, leaves it, and says how many bytes it has.
    [[nodiscard]] std::size_t next(Timeout timeout = Timeout{0}) const {
        std::size_t bytes = 0;
        detail::check(tutti_queue_next(raw_, &bytes, timeout.count()));
        return bytes;
    }
    /// Waits for the next message and takes it.
    [[nodiscard]] std::vector<unsigned char> read(Timeout timeout = Timeout{0}) const {
        std::vector<unsigned char> message(next(timeout));
        detail::check(tutti_queue_read(raw_, message.data(), message.size(), nullptr, timeout.count()));
        return message;
    }
    [[nodiscard]] tutti_queue_t *get() const noexcept { return raw_; }

private:
    tutti_queue_t *raw_ = nullptr;
};

/// Calls of this thread, made together by end(): so that one thread can drive several ranks. A batch that is destroyed
/// before its end, by an exception, makes none of them. Groups are made through the batch, because they exist only
/// after its end; `group` must stay where it is until then.
class Batch {
public:
    Batch() { detail::check(tutti_batch_begin()); }
    Batch(const Batch &) = delete;
    Batch &operator=(const Batch &) = delete;
    ~Batch() {
        if (!open_) return;
        // One refused call cancels a batch.
        [[maybe_unused]] tutti_status_t status = tutti_barrier(nullptr, nullptr);
        status = tutti_batch_end();
    }

    void create(GroupRef parent, const std::vector<std::int32_t> &ranks, Group &group, const GroupOptions &options = {}) {
        const tutti_group_options_t raw = options.raw();
        detail::check(tutti_group_create(parent.get(), ranks.data(), ranks.size(), &raw, output(group)));
    }
    void split(GroupRef parent, int color, int key, Group &group, const GroupOptions &options = {}) {
        const tutti_group_options_t raw = options.raw();
        detail::check(tutti_group_split(parent.get(), color, key, &raw, output(group)));
    }

    void end() {
        open_ = false;
        detail::check(tutti_batch_end());
        for (auto &[group, made] : outputs_) group->reset(made);
    }

private:
    tutti_group_t **output(Group &group) {
        outputs_.emplace_back(&group, nullptr); // a deque's elements stay where they are
        return &outputs_.back().second;
    }

    bool open_ = true;
    std::deque<std::pair<Group *, tutti_group_t *>> outputs_;
};

/// Memory of tutti_mem_alloc.
class [[nodiscard]] Memory {
public:
    Memory() noexcept = default;
    /// Collective.
    Memory(GroupRef group, std::size_t bytes) { detail::check(tutti_mem_alloc(group.get(), bytes, &raw_)); }
    Memory(Memory &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    Memory &operator=(Memory &&other) noexcept {
        std::swap(raw_, other.raw_);
        return *this;
    }
    ~Memory() {
        if (raw_ != nullptr) tutti_mem_free(raw_);
    }
    [[nodiscard]] void *get() const noexcept { return raw_; }

private:
    void *raw_ = nullptr;
};

/// A capture session; destroy it after the last replay of its graphs.
class [[nodiscard]] Capture {
public:
    explicit Capture(const std::vector<GroupRef> &groups) {
        std::vector<tutti_group_t *> raw;
        raw.reserve(groups.size());
        for (GroupRef group : groups) raw.push_back(group.get());
        detail::check(tutti_capture_begin(raw.data(), raw.size(), &raw_));
    }
    Capture(Capture &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    Capture &operator=(Capture &&other) noexcept {
        std::swap(raw_, other.raw_);
        return *this;
    }
    ~Capture() {
        if (raw_ != nullptr) tutti_capture_destroy(raw_);
    }
    void commit() { detail::check(tutti_capture_commit(raw_)); }
    void abort() { detail::check(tutti_capture_abort(raw_)); }
    [[nodiscard]] tutti_capture_t *get() const noexcept { return raw_; }

private:
    tutti_capture_t *raw_ = nullptr;
};

/// Ranks in a grid, row-major.
struct Mesh {
    std::vector<std::size_t> dims;
    std::vector<std::int32_t> ranks;
};

/// What one mesh dimension does to a tensor.
struct Placement {
    std::int32_t kind = TUTTI_REPLICATE;
    std::int32_t dim = 0;
    Op op = Op::sum;
    std::int32_t split = TUTTI_SPLIT_CEIL;
    std::int32_t order = 0;
    std::vector<std::size_t> sizes;

    [[nodiscard]] static Placement replicate() { return {}; }
    /// As torch.chunk splits; order: see tutti_placement_t.
    [[nodiscard]] static Placement shard(int dim, int order = 0) {
        return {TUTTI_SHARD, dim, Op::sum, TUTTI_SPLIT_CEIL, order, {}};
    }
    /// Sizes that differ by one at most.
    [[nodiscard]] static Placement balanced(int dim, int order = 0) {
        return {TUTTI_SHARD, dim, Op::sum, TUTTI_SPLIT_BALANCED, order, {}};
    }
    [[nodiscard]] static Placement uneven(int dim, std::vector<std::size_t> sizes, int order = 0) {
        return {TUTTI_SHARD, dim, Op::sum, TUTTI_SPLIT_EXPLICIT, order, std::move(sizes)};
    }
    /// Of a source: contributions that are added up.
    [[nodiscard]] static Placement partial(Op op = Op::sum) { return {TUTTI_PARTIAL, 0, op, TUTTI_SPLIT_CEIL, 0, {}}; }
};

/// Where a tensor lies: one placement for every mesh dimension.
struct TensorLayout {
    DType dtype = DType::float32;
    Mesh mesh;
    std::vector<Placement> placements;
};

/// One tensor to move.
struct TransferItem {
    std::string name;
    std::vector<std::size_t> shape;
    TensorLayout source;
    TensorLayout target;
    std::optional<DType> wire;
};

/// Zero is the default.
struct TransferOptions {
    std::uint64_t bucket_bytes = 0;
    std::uint64_t staging_bytes = 0;
    std::uint64_t split_bytes = 0;
    std::uint32_t in_flight = 0;
};

enum class Side : std::int32_t { source = TUTTI_SOURCE, target = TUTTI_TARGET };

/// A box of a tensor.
struct Region {
    std::vector<std::uint64_t> start;
    std::vector<std::uint64_t> extent;
    std::uint64_t elements = 0;
};

/// How tensors get from one layout to another: pure data, the same on every rank.
class [[nodiscard]] TransferPlan {
public:
    /// size: ranks of the group that will carry it out. Local.
    TransferPlan(const std::vector<TransferItem> &items, int size, const TransferOptions &options = {}) {
        // Inner vectors do not move any more once all are filled, so what points into them stays right.
        std::deque<Sides> sides;
        std::vector<tutti_transfer_item_t> raw;
        raw.reserve(items.size());
        for (const TransferItem &item : items) {
            Sides &both = sides.emplace_back(item);
            tutti_transfer_item_t one = TUTTI_TRANSFER_ITEM_INIT;
            one.name = item.name.c_str();
            one.shape = item.shape.data();
            one.dim_count = item.shape.size();
            one.source = &both.source.layout;
            one.target = &both.target.layout;
            one.wire_dtype = item.wire ? static_cast<std::int32_t>(*item.wire) : 0;
            raw.push_back(one);
            dims_.push_back(item.shape.size());
        }
        tutti_transfer_options_t how = TUTTI_TRANSFER_OPTIONS_INIT;
        how.bucket_bytes = options.bucket_bytes;
        how.staging_bytes = options.staging_bytes;
        how.split_bytes = options.split_bytes;
        how.in_flight = options.in_flight;
        detail::check(tutti_transfer_plan_create(raw.data(), raw.size(), size, &how, &raw_));
    }
    TransferPlan(TransferPlan &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)), dims_(std::move(other.dims_)) {}
    TransferPlan &operator=(TransferPlan &&other) noexcept {
        std::swap(raw_, other.raw_);
        std::swap(dims_, other.dims_);
        return *this;
    }
    ~TransferPlan() {
        if (raw_ != nullptr) tutti_transfer_plan_destroy(raw_);
    }

    [[nodiscard]] std::array<std::uint8_t, 16> hash() const {
        std::array<std::uint8_t, 16> hash{};
        detail::check(tutti_transfer_plan_hash(raw_, hash.data()));
        return hash;
    }
    [[nodiscard]] tutti_transfer_totals_t totals() const {
        tutti_transfer_totals_t totals = TUTTI_TRANSFER_TOTALS_INIT;
        detail::check(tutti_transfer_plan_totals(raw_, &totals));
        return totals;
    }
    [[nodiscard]] tutti_transfer_load_t load(int rank) const {
        tutti_transfer_load_t load = TUTTI_TRANSFER_LOAD_INIT;
        detail::check(tutti_transfer_plan_load(raw_, rank, &load));
        return load;
    }
    /// Its arrays live as long as the plan; so do those of a bucket.
    [[nodiscard]] tutti_transfer_chunk_t chunk(std::size_t index, int rank = 0) const {
        tutti_transfer_chunk_t chunk = TUTTI_TRANSFER_CHUNK_INIT;
        detail::check(tutti_transfer_plan_chunk(raw_, index, rank, &chunk));
        return chunk;
    }
    [[nodiscard]] tutti_transfer_bucket_t bucket(std::size_t index) const {
        tutti_transfer_bucket_t bucket = TUTTI_TRANSFER_BUCKET_INIT;
        detail::check(tutti_transfer_plan_bucket(raw_, index, &bucket));
        return bucket;
    }
    [[nodiscard]] std::size_t operation(int rank, std::size_t index) const {
        std::size_t bucket = 0;
        detail::check(tutti_transfer_plan_operation(raw_, rank, index, &bucket));
        return bucket;
    }
    /// What a rank holds of a tensor; no elements where it is not in the mesh.
    [[nodiscard]] Region region(std::size_t item, Side side, int rank) const {
        const std::size_t dims = item < dims_.size() ? dims_[item] : 0;
        Region region{std::vector<std::uint64_t>(dims), std::vector<std::uint64_t>(dims), 0};
        detail::check(tutti_transfer_plan_region(raw_, item, static_cast<std::int32_t>(side), rank, region.start.data(),
                                                 region.extent.data(), &region.elements));
        return region;
    }
    /// format: TUTTI_FORMAT_TEXT, TUTTI_FORMAT_JSON or TUTTI_FORMAT_SVG; rank: -1, or one rank's operations as text.
    [[nodiscard]] std::string report(std::int32_t format = TUTTI_FORMAT_TEXT, int rank = -1) const {
        return detail::text([&](char *text, std::size_t capacity, std::size_t *needed) {
            return tutti_transfer_plan_report(raw_, rank, format, text, capacity, needed);
        });
    }
    [[nodiscard]] tutti_transfer_plan_t *get() const noexcept { return raw_; }

private:
    struct LayoutInC {
        explicit LayoutInC(const TensorLayout &from) {
            mesh.dims = from.mesh.dims.data();
            mesh.dim_count = from.mesh.dims.size();
            mesh.ranks = from.mesh.ranks.data();
            mesh.rank_count = from.mesh.ranks.size();
            for (const Placement &placement : from.placements) {
                tutti_placement_t one = TUTTI_PLACEMENT_INIT;
                one.kind = placement.kind;
                one.dim = placement.dim;
                one.op = static_cast<std::int32_t>(placement.op);
                one.split = placement.split;
                one.order = placement.order;
                one.sizes = placement.sizes.data();
                one.size_count = placement.sizes.size();
                placements.push_back(one);
            }
            layout.dtype = static_cast<std::int32_t>(from.dtype);
            layout.mesh = &mesh;
            layout.placements = placements.data();
            layout.placement_count = placements.size();
        }
        LayoutInC(const LayoutInC &) = delete;
        LayoutInC &operator=(const LayoutInC &) = delete;

        tutti_mesh_t mesh = TUTTI_MESH_INIT;
        std::vector<tutti_placement_t> placements;
        tutti_tensor_layout_t layout = TUTTI_TENSOR_LAYOUT_INIT;
    };
    struct Sides {
        explicit Sides(const TransferItem &item) : source(item.source), target(item.target) {}
        LayoutInC source;
        LayoutInC target;
    };

    tutti_transfer_plan_t *raw_ = nullptr;
    std::vector<std::size_t> dims_;
};

/// A plan carried out over a group. Destroying one that goes on aborts its group.
class [[nodiscard]] Transfer {
public:
    Transfer(const TransferPlan &plan, GroupRef group) {
        detail::check(tutti_transfer_create(plan.get(), group.get(), &raw_));
    }
    Transfer(Transfer &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    Transfer &operator=(Transfer &&other) noexcept {
        std::swap(raw_, other.raw_);
        return *this;
    }
    ~Transfer() {
        if (raw_ != nullptr) tutti_transfer_destroy(raw_);
    }

    /// nullptr where this rank has no part. Strides in elements, one for every dimension; empty: contiguous.
    void bind(std::size_t item, const void *source, void *target, const std::vector<std::int64_t> &source_strides = {},
              const std::vector<std::int64_t> &target_strides = {}) {
        detail::check(tutti_transfer_bind(raw_, item, source, source_strides.empty() ? nullptr : source_strides.data(),
                                          target, target_strides.empty() ? nullptr : target_strides.data()));
    }
    void start(void *stream = nullptr) { detail::check(tutti_transfer_start(raw_, stream)); }
    /// Whether it is over. Goes on without waiting.
    [[nodiscard]] bool poll(tutti_transfer_progress_t *progress = nullptr) {
        return is_over(tutti_transfer_poll(raw_, progress));
    }
    /// False if the timeout ended first.
    bool wait(Timeout timeout = never) { return is_over(tutti_transfer_wait(raw_, timeout.count())); }
    /// Bytes of a target that were written, and all that will be.
    [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> written(std::size_t item) const {
        std::pair<std::uint64_t, std::uint64_t> bytes;
        detail::check(tutti_transfer_written(raw_, item, &bytes.first, &bytes.second));
        return bytes;
    }
    void abort() { detail::check(tutti_transfer_abort(raw_)); }
    [[nodiscard]] tutti_transfer_t *get() const noexcept { return raw_; }

private:
    static bool is_over(tutti_status_t status) {
        if (status == TUTTI_IN_PROGRESS) return false;
        detail::check(status);
        return true;
    }

    tutti_transfer_t *raw_ = nullptr;
};

}  // namespace tutti

#endif
