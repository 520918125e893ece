/* two_groups: groups of one world that make different numbers of calls, as a draft model runs more often than the model it
 * drafts for, and a queue that tells all ranks when to stop.
 *
 * Every group counts its own calls, so nothing has to be kept in step: ranks 0 and 1 are the draft group, all four are
 * the target group. The draft group makes CALLS calls for every one of the target group. Rank 0 tells through a queue,
 * at which the others sleep, whether there is another round.
 *
 * Under a launcher every process is one rank of four; started alone, the program makes all of them as threads. */
#define _GNU_SOURCE
#include "common.h"

enum { RANKS = 4, DRAFTERS = 2, ROUNDS = 20, CALLS = 25 };

/* An all-reduce whose sum only this group can have. */
static void call(tutti_group_t *group, int32_t rank, int32_t size, int number) {
    int32_t value = number * 100 + rank, sum = 0;
    TRY(tutti_all_reduce(group, &value, &sum, 1, TUTTI_INT32, TUTTI_SUM, NULL));
    if (sum != size * number * 100 + size * (size - 1) / 2) {
        fprintf(stderr, "call %d of %d ranks gave %d\n", number, (int)size, (int)sum);
        exit(1);
    }
}

static void run(tutti_group_t *target) {
    static const int32_t drafters[DRAFTERS] = {0, 1};
    tutti_group_options_t named = TUTTI_GROUP_OPTIONS_INIT;
    tutti_group_t *draft = NULL;
    tutti_queue_t *queue = NULL;
    int32_t rank = 0;
    int drafted = 0, checked = 0;
    TRY(tutti_group_rank(target, &rank));
    named.name = "draft";
    TRY(tutti_group_create(target, drafters, DRAFTERS, &named, &draft)); /* NULL on the others */
    TRY(tutti_queue_create(target, NULL, &queue));
    for (;;) {
        unsigned char more = checked < ROUNDS;
        if (rank == 0) {
            TRY(tutti_queue_write(queue, &more, 1, 0));
        } else {
            TRY(tutti_queue_read(queue, &more, 1, NULL, TUTTI_TIMEOUT_NEVER));
        }
        if (!more) break;
        for (int i = 0; draft != NULL && i < CALLS; i++) call(draft, rank, DRAFTERS, ++drafted);
        call(target, rank, RANKS, ++checked);
    }
    if (rank == 0) printf("%d calls of the draft group, %d of the target group\n", drafted, checked);
    TRY(tutti_barrier(target, NULL));
    TRY(tutti_queue_destroy(queue));
    TRY(tutti_group_destroy(draft));
    TRY(tutti_group_destroy(target));
}

int main(void) { return run_ranks(RANKS, run); }
