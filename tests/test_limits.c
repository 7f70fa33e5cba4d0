/* Quotas and memory limits, read from folders that stand for a machine's. */
#define _GNU_SOURCE
#include "tests/test.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/limits.h"

static char root[64];

/* Writes root/path, making its folders. */
static void put(const char *path, const char *text) {
    char full[256];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = 0;
        CHECK(mkdir(full, 0700) == 0 || errno == EEXIST);
        *at = '/';
    }
    FILE *file = fopen(full, "w");
    CHECK(file != NULL);
    if (file == NULL)
        return;
    fputs(text, file);
    fclose(file);
}

static void start(void) {
    snprintf(root, sizeof root, "/tmp/dt_limits_XXXXXX");
    CHECK(mkdtemp(root) != NULL);
    put("proc/meminfo", "MemTotal:       16000000 kB\nMemFree:  1000 kB\n"
                        "MemAvailable:   12000000 kB\n");
}

static void finish(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    CHECK(system(command) == 0);
}

static void check(double cpus, size_t memory_bytes, size_t available_bytes) {
    dt_limits limits;
    dt_limits_read(&limits, root);
    CHECK_MSG(limits.cpus == cpus && limits.memory_bytes == memory_bytes &&
                  limits.available_bytes == available_bytes,
        "%g CPUs, %zu bytes, %zu available: want %g, %zu, %zu", limits.cpus, limits.memory_bytes,
        limits.available_bytes, cpus, memory_bytes, available_bytes);
}

enum { KB = 1024 };
static const size_t MACHINE = (size_t)16000000 * KB, AVAILABLE = (size_t)12000000 * KB;

static void test_none(void) {
    dt_limits limits;
    dt_limits_read(&limits, "/no/such/folder");
    CHECK(limits.cpus == 0 && limits.memory_bytes == 0 && limits.available_bytes == 0);
    start();
    check(0, MACHINE, AVAILABLE);
    put("proc/self/cgroup", "nonsense\n\n0::\n7:cpu");
    check(0, MACHINE, AVAILABLE);
    finish();
}

static void test_unified(void) {
    start();
    put("proc/self/cgroup", "0::/user/one\n");
    put("sys/fs/cgroup/user/one/cpu.max", "max 100000\n");
    put("sys/fs/cgroup/user/one/memory.max", "max\n");
    check(0, MACHINE, AVAILABLE);
    put("sys/fs/cgroup/user/one/cpu.max", "250000 100000\n");
    check(2.5, MACHINE, AVAILABLE);
    /* The group above has less. */
    put("sys/fs/cgroup/user/cpu.max", "150000 100000\n");
    put("sys/fs/cgroup/user/memory.max", "1000000\n");
    put("sys/fs/cgroup/user/memory.current", "700000\n");
    put("sys/fs/cgroup/user/memory.stat", "anon 5\nfile 9\ninactive_file 150000\nactive_file 50000\n");
    check(1.5, 1000000, 500000);
    put("sys/fs/cgroup/user/memory.current", "1400000\n");
    check(1.5, 1000000, 0);
    /* A container that sees its own root where the path is the host's. */
    put("proc/self/cgroup", "0::/somewhere/on/the/host\n");
    put("sys/fs/cgroup/cpu.max", "300000 100000\n");
    check(3, MACHINE, AVAILABLE);
    finish();
}

static void test_first_version(void) {
    start();
    put("proc/self/cgroup", "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n");
    put("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
    put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "5\n");
    check(0, MACHINE, AVAILABLE);
    put("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n");
    put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "800000\n");
    check(0.5, 800000, 799995);
    finish();
}

static void test_threads(void) {
    CHECK(dt_limits_threads(8, 0) == 8);
    CHECK(dt_limits_threads(8, 16) == 8);
    CHECK(dt_limits_threads(8, 8) == 8);
    CHECK(dt_limits_threads(8, 2) == 2);
    CHECK(dt_limits_threads(8, 2.5) == 3);
    CHECK(dt_limits_threads(8, 0.3) == 1);
    CHECK(dt_limits_threads(1, 0.3) == 1);
}

int main(void) {
    test_none();
    test_unified();
    test_first_version();
    test_threads();
    return test_end();
}
