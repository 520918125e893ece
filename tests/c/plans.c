/* Plans of mesh-to-mesh transfers: what they say, and what they refuse. No group is needed. */
#include "check.h"

#define ROWS 6
#define COLUMNS 8

static const size_t shape[2] = {ROWS, COLUMNS}, four[1] = {4}, two[1] = {2};
static const int32_t first_four[4] = {0, 1, 2, 3}, last_two[2] = {4, 5};

/* Rows over ranks 0 to 3, to columns over ranks 4 and 5. */
typedef struct description {
    tutti_mesh_t from, to;
    tutti_placement_t rows, columns;
    tutti_tensor_layout_t source, target;
    tutti_transfer_item_t item;
} description_t;

static void describe(description_t *it) {
    static const tutti_mesh_t mesh = TUTTI_MESH_INIT;
    static const tutti_placement_t placement = TUTTI_PLACEMENT_INIT;
    static const tutti_tensor_layout_t layout = TUTTI_TENSOR_LAYOUT_INIT;
    static const tutti_transfer_item_t item = TUTTI_TRANSFER_ITEM_INIT;
    it->from = it->to = mesh;
    it->from.dims = four;
    it->from.dim_count = 1;
    it->from.ranks = first_four;
    it->from.rank_count = 4;
    it->to.dims = two;
    it->to.dim_count = 1;
    it->to.ranks = last_two;
    it->to.rank_count = 2;
    it->rows = it->columns = placement;
    it->rows.kind = it->columns.kind = TUTTI_SHARD;
    it->columns.dim = 1;
    it->source = it->target = layout;
    it->source.dtype = it->target.dtype = TUTTI_FLOAT32;
    it->source.mesh = &it->from;
    it->source.placements = &it->rows;
    it->source.placement_count = 1;
    it->target.mesh = &it->to;
    it->target.placements = &it->columns;
    it->target.placement_count = 1;
    it->item = item;
    it->item.name = "weight";
    it->item.shape = shape;
    it->item.dim_count = 2;
    it->item.source = &it->source;
    it->item.target = &it->target;
}

static void a_plan_says_what_moves(void) {
    description_t it;
    tutti_transfer_plan_t *plan = NULL, *again = NULL;
    tutti_transfer_totals_t totals = TUTTI_TRANSFER_TOTALS_INIT;
    uint8_t hash[16], other[16];
    uint64_t start[2], extent[2], elements = 0, seen = 0;
    describe(&it);
    OK(tutti_transfer_plan_create(&it.item, 1, 6, NULL, &plan));
    OK(tutti_transfer_plan_create(&it.item, 1, 6, NULL, &again));
    OK(tutti_transfer_plan_hash(plan, hash));
    OK(tutti_transfer_plan_hash(again, other));
    CHECK(memcmp(hash, other, sizeof hash) == 0);
    OK(tutti_transfer_plan_destroy(again));

    OK(tutti_transfer_plan_totals(plan, &totals));
    CHECK(totals.items == 1 && totals.ranks == 6 && totals.p2p_buckets == totals.buckets);
    CHECK(totals.wire == ROWS * COLUMNS * 4 && totals.wire_bound == totals.wire && totals.local == 0);
    CHECK(totals.largest_send <= totals.send_bound && totals.staging <= totals.staging_cap && totals.in_flight >= 1);

    /* Six rows over four ranks as torch.chunk does it: 2, 2, 2, 0. */
    OK(tutti_transfer_plan_region(plan, 0, TUTTI_SOURCE, 2, start, extent, &elements));
    CHECK(start[0] == 4 && start[1] == 0 && extent[0] == 2 && extent[1] == COLUMNS && elements == 2 * COLUMNS);
    OK(tutti_transfer_plan_region(plan, 0, TUTTI_SOURCE, 3, NULL, NULL, &elements));
    CHECK(elements == 0);
    OK(tutti_transfer_plan_region(plan, 0, TUTTI_TARGET, 1, NULL, NULL, &elements));
    CHECK(elements == 0); /* not in that mesh */

    for (size_t i = 0; i < totals.chunks; i++) {
        tutti_transfer_chunk_t chunk = TUTTI_TRANSFER_CHUNK_INIT;
        tutti_transfer_bucket_t bucket = TUTTI_TRANSFER_BUCKET_INIT;
        OK(tutti_transfer_plan_chunk(plan, i, 4, &chunk));
        OK(tutti_transfer_plan_bucket(plan, chunk.bucket, &bucket));
        CHECK(chunk.item == 0 && chunk.dim_count == 2 && chunk.dtype == TUTTI_FLOAT32 && chunk.reduced_bucket == -1);
        CHECK(chunk.transport == TUTTI_TRANSPORT_P2P && chunk.target_count == 1 && chunk.source < 3);
        CHECK(chunk.is_source == 0 && chunk.is_target == (chunk.targets[0] == 4));
        CHECK(chunk.offset % 16 == 0 && chunk.offset + chunk.bytes <= bucket.bytes);
        CHECK(i >= bucket.first_chunk && i < bucket.first_chunk + bucket.chunk_count);
        CHECK(bucket.source == chunk.source && bucket.targets[0] == chunk.targets[0] && bucket.after == -1);
        CHECK(chunk.bytes == chunk.extent[0] * chunk.extent[1] * 4);
        seen += chunk.bytes;
    }
    CHECK(seen == totals.wire);

    for (int rank = 0; rank < 6; rank++) {
        tutti_transfer_load_t load = TUTTI_TRANSFER_LOAD_INIT;
        size_t last = 0, bucket = 0;
        OK(tutti_transfer_plan_load(plan, rank, &load));
        CHECK(load.received == load.receive_bound && load.reduce_sent == 0);
        CHECK((load.sent > 0) == (rank < 3) && (load.received > 0) == (rank > 3));
        for (size_t i = 0; i < load.operations; i++) {
            OK(tutti_transfer_plan_operation(plan, rank, i, &bucket));
            CHECK(i == 0 || bucket > last);
            last = bucket;
        }
        FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_operation(plan, rank, (size_t)load.operations, &bucket));
    }
    OK(tutti_transfer_plan_destroy(plan));
    OK(tutti_transfer_plan_destroy(plan)); /* twice is fine */
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_hash(plan, hash));
}

static void a_plan_is_text_json_and_a_picture(void) {
    static const char *const begins[] = {"transfer of 1 tensors", "{\"hash\":", "<svg "};
    description_t it;
    tutti_transfer_plan_t *plan = NULL;
    describe(&it);
    OK(tutti_transfer_plan_create(&it.item, 1, 6, NULL, &plan));
    for (int32_t format = TUTTI_FORMAT_TEXT; format <= TUTTI_FORMAT_SVG; format++) {
        char small[16];
        size_t needed = 0, same = 0;
        OK(tutti_transfer_plan_report(plan, -1, format, small, sizeof small, &needed));
        CHECK(needed > sizeof small && strlen(small) == sizeof small - 1);
        char *text = (char *)malloc(needed + 1);
        CHECK(text != NULL);
        OK(tutti_transfer_plan_report(plan, -1, format, text, needed + 1, &same));
        CHECK(same == needed && strlen(text) == needed && strncmp(text, begins[format], strlen(begins[format])) == 0);
        free(text);
        if (format != TUTTI_FORMAT_TEXT) FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_report(plan, 0, format, NULL, 0, NULL));
    }
    char of_rank[4096];
    OK(tutti_transfer_plan_report(plan, 4, TUTTI_FORMAT_TEXT, of_rank, sizeof of_rank, NULL));
    CHECK(strncmp(of_rank, "rank 4: ", 8) == 0 && strstr(of_rank, "receive from 0") != NULL);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_report(plan, -1, 3, NULL, 0, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_report(plan, 6, TUTTI_FORMAT_TEXT, NULL, 0, NULL));
    OK(tutti_transfer_plan_destroy(plan));
}

static void refused(const description_t *it, tutti_status_t status, const char *why) {
    tutti_transfer_plan_t *plan = (tutti_transfer_plan_t *)(uintptr_t)1;
    FAILS(status, tutti_transfer_plan_create(&it->item, 1, 6, NULL, &plan));
    CHECK(plan == NULL);
    if (strstr(tutti_last_error(), why) == NULL) fail(__FILE__, __LINE__, "%s: not about \"%s\"", tutti_last_error(), why);
}

static void descriptions_that_do_not_add_up_are_refused(void) {
    static const size_t huge[2] = {(size_t)1 << 40, (size_t)1 << 40}, none[1] = {0}, sizes[4] = {1, 2, 3, 1};
    static const int32_t twice[4] = {0, 1, 1, 3}, outside[4] = {0, 1, 2, 6}, negative[4] = {0, 1, 2, -1};
    description_t it;
    tutti_transfer_plan_t *plan = NULL;
    tutti_transfer_options_t options = TUTTI_TRANSFER_OPTIONS_INIT;

    describe(&it), it.item.shape = huge, refused(&it, TUTTI_INVALID_ARGUMENT, "63 bits");
    describe(&it), it.from.ranks = twice, refused(&it, TUTTI_INVALID_ARGUMENT, "rank 1 twice");
    describe(&it), it.from.ranks = outside, refused(&it, TUTTI_INVALID_ARGUMENT, "rank 6");
    describe(&it), it.from.ranks = negative, refused(&it, TUTTI_INVALID_ARGUMENT, "rank -1");
    describe(&it), it.from.rank_count = 3, refused(&it, TUTTI_INVALID_ARGUMENT, "does not hold the 3 ranks");
    describe(&it), it.from.dims = none, refused(&it, TUTTI_INVALID_ARGUMENT, "no ranks");
    describe(&it), it.from.dims = NULL, refused(&it, TUTTI_INVALID_ARGUMENT, "dims is NULL");
    describe(&it), it.source.placement_count = 0, refused(&it, TUTTI_INVALID_ARGUMENT, "placements");
    describe(&it), it.source.mesh = NULL, refused(&it, TUTTI_INVALID_ARGUMENT, "NULL");
    describe(&it), it.item.source = NULL, refused(&it, TUTTI_INVALID_ARGUMENT, "NULL");
    describe(&it), it.rows.dim = 2, refused(&it, TUTTI_INVALID_ARGUMENT, "dimension 2");
    describe(&it), it.rows.dim = -1, refused(&it, TUTTI_INVALID_ARGUMENT, "dimension -1");
    describe(&it), it.rows.kind = 3, refused(&it, TUTTI_INVALID_ARGUMENT, "no placement");
    describe(&it), it.rows.split = 7, refused(&it, TUTTI_INVALID_ARGUMENT, "no split");
    describe(&it), it.rows.struct_size = 4, refused(&it, TUTTI_INVALID_ARGUMENT, "struct_size");
    describe(&it), it.columns.kind = TUTTI_PARTIAL, refused(&it, TUTTI_UNSUPPORTED, "Partial");
    describe(&it), it.target.dtype = TUTTI_INT32, refused(&it, TUTTI_UNSUPPORTED, "cannot become");
    describe(&it), it.item.wire_dtype = 77, refused(&it, TUTTI_INVALID_ARGUMENT, "77");
    describe(&it);
    it.rows.split = TUTTI_SPLIT_EXPLICIT;
    it.rows.sizes = sizes;
    it.rows.size_count = 4;
    refused(&it, TUTTI_INVALID_ARGUMENT, "do not add up to the 6");

    describe(&it);
    options.bucket_bytes = 15;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_create(&it.item, 1, 6, &options, &plan));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_create(&it.item, 1, -6, NULL, &plan));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_create(NULL, 1, 6, NULL, &plan));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_create(&it.item, (size_t)-1, 6, NULL, &plan));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_transfer_plan_create(&it.item, 1, 6, NULL, NULL));
    OK(tutti_transfer_plan_create(NULL, 0, 6, NULL, &plan)); /* nothing moves */
    OK(tutti_transfer_plan_destroy(plan));
    OK(tutti_transfer_plan_destroy(NULL));
}

static const test_t TESTS[] = {
    {"a_plan_says_what_moves", a_plan_says_what_moves},
    {"a_plan_is_text_json_and_a_picture", a_plan_is_text_json_and_a_picture},
    {"descriptions_that_do_not_add_up_are_refused", descriptions_that_do_not_add_up_are_refused},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
