/* The order of cores and the plan on machines one is not on (hwloc's synthetic topologies, and a
 * hybrid one from XML), and on this one within its affinity mask. */
#define _GNU_SOURCE
#include "tests/test.h"

#include <sched.h>

#include "dt_build.h"
#include "src/base/topo.h"

static void check_order(
    const char *synthetic, const char *description, int n_cores, const int *order, int n_pus) {
    dt_topo *topo;
    CHECK_OK(dt_topo_open(&topo, synthetic));
    if (topo == NULL)
        return;
    CHECK(dt_topo_n_cores(topo) == n_cores);
    CHECK(dt_topo_n_pus(topo) == n_pus);
    for (int i = 0; i < DT_MIN(n_pus, dt_topo_n_pus(topo)); i++)
        CHECK_MSG(dt_topo_pu(topo, i) == order[i], "%s: place %d is CPU %d, want %d", synthetic, i,
            dt_topo_pu(topo, i), order[i]);
    char text[128];
    dt_topo_describe(topo, text, sizeof text);
    CHECK_MSG(strcmp(text, description) == 0, "%s: \"%s\"", synthetic, text);
    CHECK_FAILS(dt_topo_bind(topo, 0), DT_ERR_UNSUPPORTED, "synthetic");
    dt_topo_close(topo);
}

static void test_synthetic(void) {
    dt_topo *topo;
#ifdef DT_HAVE_HWLOC
    check_order("pu:1", "1 core, 1 thread", 1, (const int[]){0}, 1);
    check_order(
        "pack:1 core:4 pu:1", "4 cores, 4 threads, 1 package", 4, (const int[]){0, 1, 2, 3}, 4);
    /* Hardware threads of a core numbered side by side, then half the machine apart (Intel). */
    check_order("pack:1 core:4 pu:2", "4 cores, 8 threads, 1 package", 4,
        (const int[]){0, 2, 4, 6, 1, 3, 5, 7}, 8);
    check_order("pack:1 core:4 pu:2(indexes=0,4,1,5,2,6,3,7)", "4 cores, 8 threads, 1 package", 4,
        (const int[]){0, 1, 2, 3, 4, 5, 6, 7}, 8);
    check_order("pack:2 core:2 pu:2", "4 cores, 8 threads, 2 packages", 4,
        (const int[]){0, 2, 4, 6, 1, 3, 5, 7}, 8);
    /* Cores 0-1 and 4 are efficient: first after the others, and their siblings too. */
    check_order("pack:1 core:6 pu:1;0-1,4",
        "6 cores (3 performance, 3 efficient), 6 threads, 1 package", 6,
        (const int[]){2, 3, 5, 0, 1, 4}, 6);
    check_order("pack:1 core:3 pu:2;0-1",
        "3 cores (2 performance, 1 efficient), 6 threads, 1 package", 3,
        (const int[]){2, 4, 0, 3, 5, 1}, 6);
    CHECK_FAILS(dt_topo_open(&topo, "nonsense"), DT_ERR_INPUT, "nonsense");
    CHECK(topo == NULL);
    CHECK_FAILS(dt_topo_open(&topo, "pack:1 core:2 pu:1;x"), DT_ERR_INPUT, "list of CPUs");
#else
    (void)check_order;
    CHECK_FAILS(dt_topo_open(&topo, "pu:2"), DT_ERR_UNSUPPORTED, "hwloc");
#endif
    dt_topo_close(NULL);
}

#ifdef DT_HAVE_HWLOC

/* The plan, or the tree for n_threads 0, has these lines, among others. */
static void check_text(const char *machine, int n_threads, const char *const lines[], int n) {
    dt_topo *topo;
    char text[4096];
    CHECK_OK(dt_topo_open(&topo, machine));
    if (topo == NULL)
        return;
    if (n_threads == 0)
        dt_topo_tree(topo, text, sizeof text);
    else
        dt_topo_plan(topo, n_threads < 0 ? dt_topo_n_threads(topo) : n_threads, text, sizeof text);
    for (int i = 0; i < n; i++)
        CHECK_MSG(
            strstr(text, lines[i]) != NULL, "%s: want \"%s\" in\n%s", machine, lines[i], text);
    dt_topo_close(topo);
}

#define CHECK_TEXT(machine, n_threads, ...)                                                        \
    check_text(machine, n_threads, (const char *const[]){__VA_ARGS__},                             \
        (int)DT_COUNT(((const char *const[]){__VA_ARGS__})))

enum { TREE = 0, BY_DEFAULT = -1 };

static void test_plans(void) {
    char hybrid[512];
    const char *data = getenv("DT_TEST_DATA");
    snprintf(hybrid, sizeof hybrid, "%s/topo_hybrid.xml", data ? data : "tests/data");
    CHECK_TEXT("pu:1", BY_DEFAULT, "team: 1 thread, bound to CPU 0, one for each core\n",
        "verify: ", "draft: ");
    CHECK_TEXT("pack:1 core:2 pu:1", BY_DEFAULT, "team: 2 threads, bound to CPUs 0-1, one for");
    CHECK_TEXT("pack:1 core:2 pu:1", 3, "team: 3 threads, bound to CPUs 0-1, which they share");
    CHECK_TEXT("pack:1 core:8 pu:2", BY_DEFAULT,
        "team: 8 threads, bound to CPUs 0,2,4,6,8,10,12,14, one for each core\n",
        "second threads of cores: CPUs 1,3,5,7,9,11,13,15 stay free");
    CHECK_TEXT("pack:1 core:8 pu:2(indexes=2*8:1*2)", 12, "team: 12 threads, bound to CPUs",
        "more than one for some of the 8 cores");
    CHECK_TEXT("pack:1 core:8 pu:1", 3, "team: 3 threads, bound to CPUs 0-2 of 8 cores, as asked");
    CHECK_TEXT("pack:2 numa:1 core:4 pu:1", BY_DEFAULT, "team: 8 threads, bound to CPUs 0-7, one",
        "memory: 2 packages, 2 NUMA nodes");
    CHECK_TEXT("pack:2 l3:1(size=16777216) core:4 pu:1", TREE, "2 x package: CPUs 0-7\n",
        "\n  L3 16 MiB\n", "\n    4 x core\n");
    /* Two performance cores of two hardware threads, four efficient ones of one. */
    CHECK_TEXT(hybrid, BY_DEFAULT, "team: 6 threads, bound to CPUs 0,2,4,6,8,10, one for each core",
        "efficient cores: 4 in the team, behind the performance cores",
        "second threads of cores: CPUs 1,3 stay free");
    CHECK_TEXT(hybrid, 2, "team: 2 threads, bound to CPUs 0,2 of 6 cores, as asked",
        "efficient cores: all 4 stay free");
    CHECK_TEXT(hybrid, 3, "efficient cores: 1 in the team");
    CHECK_TEXT(hybrid, TREE, "NUMA node 16.0 GiB\n", "  L3 12 MiB: CPUs 0-4,6,8,10\n",
        "performance core of 2 hardware threads\n", "efficient core\n");
    check_order(hybrid, "6 cores (2 performance, 4 efficient), 8 threads, 1 package", 6,
        (const int[]){0, 2, 4, 6, 8, 10, 1, 3}, 8);

    dt_topo *topo;
    CHECK_FAILS(dt_topo_open(&topo, "/no/such/file.xml"), DT_ERR_INPUT, "file.xml");
    CHECK_OK(dt_topo_open(&topo, "pack:1 l3:2(size=4194304) core:2 pu:1"));
    if (topo != NULL) {
        CHECK(dt_topo_cache_bytes(topo) == 2 * (4 << 20));
        char small[8];
        dt_topo_tree(topo, small, sizeof small);
        CHECK(strlen(small) == sizeof small - 1); /* cut off, and ended */
        dt_topo_plan(topo, 4, small, sizeof small);
        CHECK(strcmp(small, "team: 4") == 0);
    }
    dt_topo_close(topo);
}

#else

static void test_plans(void) {
}

#endif

static void test_this_machine(void) {
    cpu_set_t before, now;
    CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
    dt_topo *topo;
    CHECK_OK(dt_topo_open(&topo, NULL));
    if (topo == NULL)
        return;
    char text[128];
    dt_topo_describe(topo, text, sizeof text);
    printf("%s\n", text);
    int n = dt_topo_n_pus(topo);
    CHECK(n == CPU_COUNT(&before));
    CHECK(dt_topo_n_cores(topo) >= 1 && dt_topo_n_cores(topo) <= n);
    CHECK(dt_topo_n_threads(topo) >= 1 && dt_topo_n_threads(topo) <= dt_topo_n_cores(topo));
    cpu_set_t seen;
    CPU_ZERO(&seen);
    for (int i = 0; i < n; i++) {
        CHECK(CPU_ISSET(dt_topo_pu(topo, i), &before) && !CPU_ISSET(dt_topo_pu(topo, i), &seen));
        CPU_SET(dt_topo_pu(topo, i), &seen);
        CHECK_OK(dt_topo_bind(topo, i));
        CHECK(sched_getaffinity(0, sizeof now, &now) == 0);
        CHECK(CPU_COUNT(&now) == 1 && CPU_ISSET(dt_topo_pu(topo, i), &now));
    }
    CHECK_FAILS(dt_topo_bind(topo, n), DT_ERR_LIMIT, "hardware thread");
    CHECK_FAILS(dt_topo_bind(topo, -1), DT_ERR_LIMIT, "hardware thread");
    int last = dt_topo_pu(topo, n - 1);
    dt_topo_close(topo);

    /* Still bound to the last one: it is all there is now. */
    CHECK_OK(dt_topo_open(&topo, NULL));
    if (topo != NULL)
        CHECK(
            dt_topo_n_pus(topo) == 1 && dt_topo_n_cores(topo) == 1 && dt_topo_pu(topo, 0) == last);
    dt_topo_close(topo);
    CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
}

int main(void) {
    test_synthetic();
    test_plans();
    test_this_machine();
    return test_end();
}
