// The C++ interface: ownership, exceptions, typed calls, batches. What the calls themselves do is tested in C.
#include <tutti.hpp>

#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <numeric>
#include <thread>
#include <type_traits>

#include "check.h"

static_assert(!std::is_copy_constructible_v<tutti::Group> && !std::is_copy_assignable_v<tutti::Group>);
static_assert(std::is_nothrow_move_constructible_v<tutti::Group> && std::is_nothrow_move_assignable_v<tutti::Group>);
static_assert(!std::is_copy_constructible_v<tutti::Request> && std::is_nothrow_move_constructible_v<tutti::Request>);
static_assert(!std::is_copy_constructible_v<tutti::Batch> && !std::is_move_constructible_v<tutti::Batch>);
static_assert(std::is_nothrow_copy_constructible_v<tutti::GroupRef>);
static_assert(std::is_base_of_v<std::runtime_error, tutti::Error>);
static_assert(tutti::dtype_of<float> == tutti::DType::float32 && tutti::dtype_of<const double> == tutti::DType::float64);
static_assert(tutti::dtype_of<char> == tutti::DType::int8 && tutti::dtype_of<unsigned long> == tutti::DType::uint64);
static_assert(tutti::dtype_of<long long> == tutti::DType::int64 && tutti::dtype_of<std::byte> == tutti::DType::bytes);

namespace {

// Runs `body` on `size` threads, each with its own rank of one world.
void threads(int size, const std::function<void(tutti::GroupRef)> &body) {
    const tutti::UniqueId id = tutti::unique_id();
    std::vector<std::thread> running;
    for (int rank = 0; rank < size; rank++) {
        running.emplace_back([&, rank] {
            try {
                tutti::WorldOptions options;
                options.size = size;
                options.rank = rank;
                options.unique_id = id;
                options.timeout = std::chrono::milliseconds(TIMEOUT_MS);
                const tutti::Group world = tutti::world(options);
                body(world);
            } catch (const std::exception &error) {
                fail(__FILE__, __LINE__, "rank %d: %s", rank, error.what());
            }
        });
    }
    for (std::thread &thread : running) thread.join();
}

// The status a call throws; success if it throws nothing.
tutti::Status thrown(const std::function<void()> &call) {
    try {
        call();
    } catch (const tutti::Error &error) {
        CHECK(error.what()[0] != '\0');
        return error.status();
    }
    return tutti::Status::success;
}

void typed_pointers_name_their_dtype() {
    threads(3, [](tutti::GroupRef world) {
        const int rank = world.rank(), size = world.size();
        CHECK(size == 3);
        std::vector<float> values(1000);
        std::iota(values.begin(), values.end(), static_cast<float>(rank));
        world.all_reduce(values.data(), values.size());
        for (std::size_t i = 0; i < values.size(); i++) CHECK(values[i] == static_cast<float>(3 * i + 3));

        const std::int64_t mine = 10 + rank;
        std::int64_t largest = 0, all[3] = {0, 0, 0};
        world.all_reduce(&mine, &largest, 1, tutti::Op::max);
        CHECK(largest == 12);
        world.all_gather(&mine, all, 1);
        CHECK(all[0] == 10 && all[1] == 11 && all[2] == 12);

        double parts[3] = {1, 2, 3}, part = 0;
        world.reduce_scatter(parts, &part, 1);
        CHECK(part == 3.0 * (rank + 1));

        std::int16_t moved = static_cast<std::int16_t>(rank + 5); // no arithmetic, but it travels
        world.broadcast(&moved, 1, 2);
        CHECK(moved == 7);

        const std::uint16_t one = 0x3c00; // float16 has no C++17 type: its dtype is named
        std::uint16_t sum = 0;
        world.all_reduce(&one, &sum, 1, tutti::DType::float16);
        CHECK(sum == 0x4200);

        std::int32_t rooted = 1, at_root = 0, to_all[3] = {rank, rank, rank}, from_all[3];
        world.reduce(&rooted, &at_root, 1, tutti::DType::int32, tutti::Op::sum, 1);
        CHECK(at_root == (rank == 1 ? 3 : 0));
        world.all_to_all(to_all, from_all, 1, tutti::DType::int32);
        CHECK(from_all[0] == 0 && from_all[1] == 1 && from_all[2] == 2);
        world.gather(&rank, from_all, 1, tutti::DType::int32, 0);
        world.scatter(from_all, &rooted, 1, tutti::DType::int32, 0);
        CHECK(rooted == rank);

        const int next = (rank + 1) % size, before = (rank + 2) % size;
        world.sendrecv(&rank, 1, next, &at_root, 1, before, tutti::DType::int32);
        CHECK(at_root == before);
        tutti::Request received =
            world.start(tutti::Call::recv_from(from_all, 3, tutti::DType::int32, before, 4));
        tutti::Request sent = world.start(tutti::Call::send_to(to_all, 2, tutti::DType::int32, next, 4));
        received.wait();
        sent.wait();
        CHECK(received.received() == std::optional<std::size_t>(2) && from_all[1] == before);

        const std::vector<std::size_t> counts = {1, 0, 2};
        world.all_gather_v(to_all, from_all, counts, {}, tutti::DType::int32);
        CHECK(from_all[0] == 0 && from_all[1] == 2 && from_all[2] == 2);
        world.barrier();
        world.sync();
        CHECK(world.check() == tutti::Status::success && world.error().empty() && !world.failure());
        CHECK(world.alive() == std::vector<bool>(3, true));
        CHECK(world.cpu().size() == 3);
        world.sync(); // a rank that has left is not alive any more
    });
}

void groups_are_made_and_left_by_scope() {
    threads(4, [](tutti::GroupRef world) {
        const int rank = world.rank();
        tutti::GroupOptions options;
        options.name = "pair";
        tutti::Group pair = world.split(rank / 2, 0, options);
        CHECK(pair && pair.size() == 2 && pair.rank() == rank % 2 && pair.name().rfind("pair", 0) == 0);
        std::int32_t value = rank;
        pair.all_reduce(&value, 1);
        CHECK(value == (rank < 2 ? 1 : 5));

        tutti::Group moved = std::move(pair);
        CHECK(moved && moved.size() == 2);
        tutti::Group outer = world.create({3, 0});
        CHECK(static_cast<bool>(outer) == (rank == 0 || rank == 3));
        if (outer) CHECK(outer.rank() == (rank == 3 ? 0 : 1));
        const tutti::Group none = world.split(rank == 0 ? -1 : 0);
        CHECK(static_cast<bool>(none) == (rank != 0));
        moved.reset();
        CHECK(!moved);
    });
}

void errors_carry_status_and_sentence() {
    std::vector<tutti::Group> world = tutti::local_world(1);
    float value = 1;
    const auto bad_dtype = static_cast<tutti::DType>(55);
    CHECK(thrown([&] { world[0].all_reduce(&value, &value, 1, bad_dtype); }) == tutti::Status::invalid_argument);
    CHECK(thrown([&] { tutti::GroupRef().barrier(); }) == tutti::Status::invalid_argument);
    CHECK(thrown([] { (void)tutti::local_world(0); }) == tutti::Status::invalid_argument);
    CHECK(thrown([] { (void)tutti::local_world(2, {0}); }) == tutti::Status::invalid_argument);
    CHECK(thrown([&] { world[0].all_gather_v(&value, &value, {1, 1}, {}, tutti::DType::float32); }) ==
          tutti::Status::invalid_argument);
    CHECK(std::strcmp(tutti::to_string(tutti::Status::mismatch), tutti_status_string(TUTTI_MISMATCH)) == 0);
    CHECK(world[0].check() == tutti::Status::success);

    world[0].abort();
    CHECK(world[0].check() == tutti::Status::aborted);
    CHECK(thrown([&] { world[0].barrier(); }) == tutti::Status::aborted);
    const std::optional<tutti::Failure> failure = world[0].failure();
    CHECK(failure && failure->status == tutti::Status::aborted && !world[0].error().empty());
}

void one_thread_drives_all_ranks_with_requests() {
    std::vector<tutti::Group> world = tutti::local_world(3);
    std::vector<std::int32_t> values = {1, 2, 3};
    std::vector<tutti::Request> requests;
    for (std::size_t rank = 0; rank < 3; rank++) {
        requests.push_back(world[rank].start(tutti::Call::all_reduce(&values[rank], &values[rank], 1, tutti::DType::int32)));
        if (rank < 2) CHECK(!requests[0].test());
    }
    CHECK(requests[2].wait_for(std::chrono::milliseconds(TIMEOUT_MS)));
    for (tutti::Request &request : requests) request.wait();
    CHECK(values == std::vector<std::int32_t>({6, 6, 6}));

    // An unfinished request that is given up takes its group with it: others may count on its buffers.
    { const tutti::Request given_up = world[0].start(tutti::Call::barrier()); }
    CHECK(world[0].check() == tutti::Status::aborted);
}

void batches_make_groups_and_calls_for_all_ranks() {
    std::vector<tutti::Group> world = tutti::local_world(4), pairs(4), columns(4);
    {
        tutti::Batch batch;
        for (int rank = 0; rank < 4; rank++) {
            const std::int32_t first = rank / 2 * 2;
            batch.create(world[static_cast<std::size_t>(rank)], {first, first + 1}, pairs[static_cast<std::size_t>(rank)]);
        }
        batch.end();
    }
    {
        tutti::Batch batch;
        for (std::size_t rank = 0; rank < 4; rank++) batch.split(world[rank], static_cast<int>(rank % 2), 0, columns[rank]);
        batch.end();
    }
    std::vector<double> row = {1, 2, 3, 4}, column = row;
    tutti::Batch batch;
    for (std::size_t rank = 0; rank < 4; rank++) {
        pairs[rank].all_reduce(&row[rank], 1);
        columns[rank].all_reduce(&column[rank], 1);
    }
    batch.end();
    CHECK(row == std::vector<double>({3, 3, 7, 7}) && column == std::vector<double>({4, 6, 4, 6}));
}

void a_batch_left_by_an_exception_makes_nothing() {
    std::vector<tutti::Group> world = tutti::local_world(2);
    std::vector<float> values = {1, 2};
    try {
        tutti::Batch batch;
        for (std::size_t rank = 0; rank < 2; rank++) world[rank].all_reduce(&values[rank], 1);
        throw std::logic_error("the caller changed its mind");
    } catch (const std::logic_error &) {
    }
    CHECK(values == std::vector<float>({1, 2}));
    CHECK(world[0].check() == tutti::Status::success);
    tutti::Batch batch; // none is open any more
    for (std::size_t rank = 0; rank < 2; rank++) world[rank].all_reduce(&values[rank], 1);
    batch.end();
    CHECK(values == std::vector<float>({3, 3}));
}

// All ranks in one process exchange bytes over a table that stands for the caller's own network.
struct Table {
    std::mutex lock;
    std::condition_variable changed;
    std::vector<unsigned char> bytes;
    std::size_t arrived = 0, round = 0;

    void exchange(std::size_t rank, std::size_t size, const void *mine, std::size_t count, void *all) {
        std::unique_lock<std::mutex> guard(lock);
        bytes.resize(size * count);
        std::memcpy(bytes.data() + rank * count, mine, count);
        const std::size_t now = round;
        if (++arrived == size) {
            arrived = 0;
            round++;
            changed.notify_all();
        }
        changed.wait(guard, [&] { return round != now; });
        std::memcpy(all, bytes.data(), size * count);
        // Nobody starts the next round before all have read this one.
        const std::size_t read = round;
        if (++arrived == size) {
            arrived = 0;
            round++;
            changed.notify_all();
        }
        changed.wait(guard, [&] { return round != read; });
    }
};

void the_callers_own_bootstrap_makes_a_world() {
    Table table;
    std::vector<std::thread> running;
    for (int rank = 0; rank < 3; rank++) {
        running.emplace_back([&, rank] {
            try {
                tutti::WorldOptions options;
                options.size = 3;
                options.rank = rank;
                options.all_gather = [&](const void *mine, std::size_t bytes, void *all) {
                    table.exchange(static_cast<std::size_t>(rank), 3, mine, bytes, all);
                };
                const tutti::Group world = tutti::world(options);
                std::int32_t value = rank;
                world.all_reduce(&value, 1);
                CHECK(value == 3);
            } catch (const std::exception &error) {
                fail(__FILE__, __LINE__, "rank %d: %s", rank, error.what());
            }
        });
    }
    for (std::thread &thread : running) thread.join();

    tutti::WorldOptions options;
    options.size = 2;
    options.all_gather = [](const void *, std::size_t, void *) { throw std::logic_error("no network"); };
    bool caught = false;
    try {
        (void)tutti::world(options);
    } catch (const std::logic_error &error) { // what the bootstrap threw, not a status
        caught = std::strcmp(error.what(), "no network") == 0;
    }
    CHECK(caught);
}

void explain_is_text_and_json() {
    threads(2, [](tutti::GroupRef world) {
        const std::string text = world.explain(tutti::Collective::all_reduce, 1 << 20, tutti::DType::bfloat16);
        CHECK(text.find("all_reduce") != std::string::npos && text.size() > 100);
        const std::string json = world.explain(tutti::Collective::all_reduce, 1 << 20, tutti::DType::bfloat16, tutti::Op::sum,
                                               0, tutti::Format::json);
        CHECK(json.front() == '{');
        CHECK(world.all_reduce_mode(1, tutti::DType::float32) != tutti::Mode::none);
        float buffer = 1, scratch = 0;
        void *result = world.all_reduce_auto(&buffer, &scratch, 1, tutti::DType::float32);
        CHECK(*static_cast<float *>(result) == 2);
    });
}

void a_capture_session_on_cpu_groups_does_nothing() {
    threads(2, [](tutti::GroupRef world) {
        tutti::Capture session({world});
        float value = 1;
        world.all_reduce(&value, 1);
        CHECK(value == 2);
        session.commit();
        tutti::Capture given_up({world});
        given_up.abort();
    });
}

void a_layout_plans_draws_and_makes_groups() {
    tutti::LayoutOptions options;
    options.world = 4;
    options.tensor = 2;
    options.pipeline = 2;
    options.hosts = {0, 0, 1, 1};
    options.domains = {0, 1, 0, 1};
    const tutti::Layout layout(options);
    using Groups = std::vector<std::vector<std::int32_t>>;
    CHECK(layout.groups(tutti::Kind::tp) == (Groups{{0, 2}, {1, 3}}));
    CHECK(layout.of(tutti::Kind::pp, 3) == std::make_pair(1, 1));
    CHECK(layout.reach(tutti::Kind::tp)[0] == std::make_pair(2, 1));
    CHECK(layout.digest() == tutti::Layout(options).digest());
    CHECK(layout.draw(tutti::Format::svg).rfind("<svg ", 0) == 0);
    options.lanes = {0};
    CHECK(thrown([&] { tutti::Layout refused(options); }) == tutti::Status::invalid_argument);
    threads(4, [&](tutti::GroupRef world) {
        const auto groups = layout.create(world, {tutti::Kind::tp, tutti::Kind::pp});
        const tutti::GroupRef tp = groups[static_cast<std::size_t>(tutti::Kind::tp)];
        CHECK(!groups[static_cast<std::size_t>(tutti::Kind::ep)]);
        CHECK(tutti::find_group(tp.name(), tp.rank()).get() == tp.get());
        int sum = 1 << world.rank();
        tp.all_reduce(&sum, 1);
        CHECK(sum == (world.rank() % 2 == 0 ? 5 : 10));
        CHECK(thrown([] { (void)tutti::find_group("nobody"); }) == tutti::Status::invalid_argument);
    });
}

void a_queue_carries_messages_to_all_readers() {
    threads(3, [](tutti::GroupRef world) {
        tutti::QueueOptions options;
        options.writer = 1;
        tutti::Queue queue(world, options);
        tutti::Queue moved = std::move(queue);
        const std::vector<unsigned char> message(100000, 7);
        if (world.rank() == 1) {
            moved.write(message.data(), message.size());
            CHECK(thrown([&] { (void)moved.next(); }) == tutti::Status::invalid_usage);
        } else {
            CHECK(moved.next() == message.size() && moved.read() == message);
            CHECK(thrown([&] { moved.write("", 0); }) == tutti::Status::invalid_usage);
        }
        world.barrier();
    });
}

void dicts_carry_tensors_and_objects() {
    threads(2, [](tutti::GroupRef world) {
        tutti::DictOptions options;
        options.peer = 1 - world.rank();
        std::vector<float> values(30000, 1.5f);
        std::int32_t seven = 7;
        const std::vector<tutti::Tensor> tensors = {{"values", values.data(), tutti::DType::float32, {300, 100}, {}},
                                                    {"seven", &seven, tutti::DType::int32, {}, {}}};
        if (world.rank() == 0) {
            tutti::Dict::send(world, tensors, options);
            const tutti::Dict started = tutti::Dict::start_send(world, tensors, options);
            CHECK(started.wait());
            tutti::Dict::send_object(world, "bytes", 5, options);
        } else {
            tutti::Dict dict = tutti::Dict::receive(world, options);
            CHECK(dict.probe() && dict.tensors().size() == 2 && dict.tensors()[0].data == nullptr);
            CHECK(dict.wait() && dict.test());
            const tutti::Tensor got = dict.tensor("values");
            CHECK(got.shape == (std::vector<std::int64_t>{300, 100}) && got.strides[0] == 100);
            CHECK(std::memcmp(got.data, values.data(), values.size() * sizeof(float)) == 0);
            CHECK(*static_cast<const std::int32_t *>(dict.tensor("seven").data) == 7);
            CHECK(thrown([&] { (void)dict.object(); }) == tutti::Status::invalid_usage);
            std::vector<float> own(values.size());
            std::int32_t number = 0;
            dict = tutti::Dict::receive(world, options);
            CHECK(dict.wait_into({{"", own.data(), tutti::DType::float32, {300, 100}, {}}, {"", &number, tutti::DType::int32, {}, {}}}));
            CHECK(own == values && number == 7);
            dict = tutti::Dict::receive(world, options);
            CHECK(dict.wait() && dict.object().second == 5 && std::memcmp(dict.object().first, "bytes", 5) == 0);
        }
        options.peer = 0;
        const tutti::Dict all = tutti::Dict::broadcast(world, tensors, options);
        CHECK(all.wait());
        if (world.rank() != 0) CHECK(all.tensors().size() == 2);
        world.barrier();
    });
}

void a_transfer_plan_is_made_of_values() {
    const tutti::Mesh training{{2, 2}, {0, 1, 2, 3}}, inference{{3}, {3, 4, 5}};
    const std::vector<tutti::TransferItem> items = {
        {"gradient", {10, 6}, {tutti::DType::float32, training, {tutti::Placement::partial(), tutti::Placement::shard(0)}},
         {tutti::DType::bfloat16, inference, {tutti::Placement::uneven(1, {1, 5, 0})}}, std::nullopt},
        {"bias", {7}, {tutti::DType::float32, training, {tutti::Placement::replicate(), tutti::Placement::replicate()}},
         {tutti::DType::float32, inference, {tutti::Placement::balanced(0)}}, tutti::DType::float16},
    };
    tutti::TransferPlan made(items, 6), plan(std::move(made));
    const tutti_transfer_totals_t totals = plan.totals();
    CHECK(totals.items == 2 && totals.reduced == totals.reduce_bound && totals.reduced == 10 * 6 * 4);
    const tutti::Region region = plan.region(0, tutti::Side::target, 4);
    CHECK(region.elements == 50 && region.start[1] == 1 && region.extent[0] == 10);
    CHECK(plan.region(0, tutti::Side::target, 5).elements == 0 && plan.region(1, tutti::Side::source, 5).elements == 0);
    CHECK(plan.report(TUTTI_FORMAT_JSON).front() == '{' && plan.report(TUTTI_FORMAT_TEXT, 4).find("rank 4: ") == 0);
    for (std::size_t i = 0; i < plan.load(3).operations; i++) CHECK(plan.bucket(plan.operation(3, i)).bytes > 0);
    CHECK(plan.chunk(0).bytes > 0 && plan.hash() == tutti::TransferPlan(items, 6).hash());
    try {
        const tutti::TransferPlan impossible(items, 5);
        CHECK(!"a rank outside of the world");
    } catch (const tutti::Error &error) {
        CHECK(error.status() == tutti::Status::invalid_argument);
    }
}

void a_transfer_moves_what_is_bound() {
    threads(3, [](tutti::GroupRef world) {
        const tutti::Mesh all{{3}, {0, 1, 2}}, first{{1}, {0}};
        const std::vector<tutti::TransferItem> items = {
            {"sum", {5}, {tutti::DType::int32, all, {tutti::Placement::partial()}},
             {tutti::DType::int32, all, {tutti::Placement::shard(0)}}, std::nullopt},
            {"all", {4, 2}, {tutti::DType::float32, first, {tutti::Placement::replicate()}},
             {tutti::DType::float64, all, {tutti::Placement::replicate()}}, std::nullopt},
        };
        const tutti::TransferPlan plan(items, 3);
        tutti::Transfer transfer(plan, world);
        const std::int32_t rank = world.rank();
        std::vector<std::int32_t> addend(5, rank + 1), sum(2, -1);
        const std::vector<float> matrix = {0, 1, 2, 3, 4, 5, 6, 7};
        std::vector<double> columns(8, -1); // column by column
        transfer.bind(0, addend.data(), sum.data());
        transfer.bind(1, rank == 0 ? matrix.data() : nullptr, columns.data(), {}, {1, 4});
        for (int turn = 0; turn < 2; turn++) {
            transfer.start();
            CHECK(transfer.wait(std::chrono::milliseconds(TIMEOUT_MS)) && transfer.poll());
        }
        for (std::uint64_t i = 0; i < plan.region(0, tutti::Side::target, rank).elements; i++) CHECK(sum[i] == 6);
        for (std::size_t i = 0; i < 8; i++) CHECK(columns[i % 2 * 4 + i / 2] == static_cast<double>(i));
        CHECK(transfer.written(1) == std::make_pair(std::uint64_t{64}, std::uint64_t{64}));
        world.barrier();
    });
}

const test_t TESTS[] = {
    {"dicts_carry_tensors_and_objects", dicts_carry_tensors_and_objects},
    {"a_queue_carries_messages_to_all_readers", a_queue_carries_messages_to_all_readers},
    {"a_layout_plans_draws_and_makes_groups", a_layout_plans_draws_and_makes_groups},
    {"a_transfer_moves_what_is_bound", a_transfer_moves_what_is_bound},
    {"a_transfer_plan_is_made_of_values", a_transfer_plan_is_made_of_values},
    {"typed_pointers_name_their_dtype", typed_pointers_name_their_dtype},
    {"groups_are_made_and_left_by_scope", groups_are_made_and_left_by_scope},
    {"errors_carry_status_and_sentence", errors_carry_status_and_sentence},
    {"one_thread_drives_all_ranks_with_requests", one_thread_drives_all_ranks_with_requests},
    {"batches_make_groups_and_calls_for_all_ranks", batches_make_groups_and_calls_for_all_ranks},
    {"a_batch_left_by_an_exception_makes_nothing", a_batch_left_by_an_exception_makes_nothing},
    {"the_callers_own_bootstrap_makes_a_world", the_callers_own_bootstrap_makes_a_world},
    {"explain_is_text_and_json", explain_is_text_and_json},
    {"a_capture_session_on_cpu_groups_does_nothing", a_capture_session_on_cpu_groups_does_nothing},
};

}  // namespace

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
