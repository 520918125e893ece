/* Queues: messages from one rank to all others. */
#include "check.h"

#define LARGE 300000

static unsigned char byte_of(size_t message, size_t i) {
    return (unsigned char)(message * 31 + i * 7 + i / 256);
}

static void messages_body(tutti_group_t *world, int rank, int size) {
    static const size_t sizes[] = {0, 1, 16384, 16385, LARGE, 8, 0};
    tutti_queue_options_t options = TUTTI_QUEUE_OPTIONS_INIT;
    tutti_queue_t *queue = NULL;
    unsigned char *buffer = (unsigned char *)malloc(LARGE);
    CHECK(buffer != NULL);
    options.writer = size - 1;
    options.capacity = 1; /* the smallest */
    options.name = "orders";
    options.timeout_ms = TIMEOUT_MS;
    OK(tutti_queue_create(world, &options, &queue));
    CHECK(queue != NULL);
    for (size_t m = 0; m < sizeof sizes / sizeof sizes[0]; m++) {
        size_t bytes = 0;
        if (rank == size - 1) {
            for (size_t i = 0; i < sizes[m]; i++) buffer[i] = byte_of(m, i);
            OK(tutti_queue_write(queue, buffer, sizes[m], 0));
            continue;
        }
        OK(tutti_queue_next(queue, &bytes, 0));
        CHECK(bytes == sizes[m]);
        if (bytes > 0) FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_read(queue, buffer, bytes - 1, &bytes, 0));
        OK(tutti_queue_read(queue, buffer, LARGE, m % 2 == 0 ? &bytes : NULL, 0));
        CHECK(bytes == sizes[m]);
        for (size_t i = 0; i < bytes; i++) CHECK(buffer[i] == byte_of(m, i));
    }
    if (rank == size - 1) {
        size_t none = 0;
        FAILS(TUTTI_INVALID_USAGE, tutti_queue_next(queue, &none, 0));
    } else {
        FAILS(TUTTI_INVALID_USAGE, tutti_queue_write(queue, buffer, 1, 0));
        FAILS(TUTTI_TIMEOUT, tutti_queue_read(queue, buffer, LARGE, NULL, 1)); /* changes nothing */
    }
    OK(tutti_barrier(world, NULL));
    OK(tutti_queue_destroy(queue));
    OK(tutti_queue_destroy(queue));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_write(queue, buffer, 1, 0));
    free(buffer);
}

static void every_reader_gets_every_message_whole_and_in_order(void) {
    on_threads(2, messages_body);
    on_threads(4, messages_body);
}

static void arguments_body(tutti_group_t *world, int rank, int size) {
    tutti_queue_options_t options = TUTTI_QUEUE_OPTIONS_INIT;
    tutti_queue_t *queue = (tutti_queue_t *)world;
    size_t bytes = 0;
    options.writer = size;
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_create(world, &options, &queue));
    CHECK(queue == NULL);
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_create(world, NULL, NULL));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_create(NULL, NULL, &queue));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_write(NULL, NULL, 0, 0));
    FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_next((tutti_queue_t *)world, &bytes, 0));
    OK(tutti_queue_create(world, NULL, &queue)); /* rank 0 writes */
    if (rank == 0) {
        FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_write(queue, NULL, 1, 0));
        FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_write(queue, NULL, 0, -2));
        OK(tutti_queue_write(queue, NULL, 0, 0));
    } else {
        FAILS(TUTTI_INVALID_ARGUMENT, tutti_queue_next(queue, NULL, 0));
        OK(tutti_queue_read(queue, NULL, 0, NULL, 0));
        /* The writer leaves; a reader that finds out takes nothing from those that have yet to read. */
        FAILS(TUTTI_PEER_LOST, tutti_queue_read(queue, NULL, 0, NULL, TUTTI_TIMEOUT_NEVER));
    }
    OK(tutti_queue_destroy(queue));
    OK(tutti_group_check(world)); /* the group is another matter */
}

static void wrong_arguments_are_refused_and_a_writer_that_leaves_is_named(void) {
    on_threads(2, arguments_body);
    on_threads(5, arguments_body);
}

static const test_t TESTS[] = {
    {"every_reader_gets_every_message_whole_and_in_order", every_reader_gets_every_message_whole_and_in_order},
    {"wrong_arguments_are_refused_and_a_writer_that_leaves_is_named",
     wrong_arguments_are_refused_and_a_writer_that_leaves_is_named},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
