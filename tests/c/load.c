/* The library as an engine's plugin loads it: by dlopen, with no symbol visible to others, and dlclose at any time. */
#include "check.h"

#include <dlfcn.h>

typedef tutti_status_t (*create_local_t)(int32_t, const int32_t *, const tutti_world_options_t *, tutti_group_t **);
typedef uint32_t (*version_t)(void);

static void *symbol(void *library, const char *name) {
    void *address = dlsym(library, name);
    if (address == NULL) fail(__FILE__, __LINE__, "%s is missing", name);
    return address;
}

static void the_library_may_be_closed_with_a_living_world(void) {
    const char *path = getenv("CHECK_LIBRARY");
    CHECK(path != NULL);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) fail(__FILE__, __LINE__, "%s", dlerror());
    create_local_t create_local;
    version_t version;
    void *address = symbol(library, "tutti_world_create_local");
    memcpy(&create_local, &address, sizeof address); /* ISO C has no cast from object to function pointers */
    address = symbol(library, "tutti_version");
    memcpy(&version, &address, sizeof address);
    CHECK(version() == TUTTI_VERSION);

    tutti_group_t *world[2];
    CHECK(create_local(2, NULL, NULL, world) == TUTTI_SUCCESS);
    CHECK(dlclose(library) == 0);
    CHECK(version() == TUTTI_VERSION); /* still mapped: -z nodelete */
    CHECK(dlopen(path, RTLD_NOW | RTLD_LOCAL) == library);
    /* ... and the process ends with the world alive. */
}

static const test_t TESTS[] = {
    {"the_library_may_be_closed_with_a_living_world", the_library_may_be_closed_with_a_living_world},
};

int main(int argc, char **argv) {
    return run_tests(TESTS, sizeof TESTS / sizeof TESTS[0], argc, argv);
}
