#include "src/base/limits.h"

#include <limits.h> /* PATH_MAX */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first bytes of a small file as text; false if there are none. */
static bool read_text(char *out, size_t n_bytes, const char *path) {
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    size_t n = fread(out, 1, n_bytes - 1, file);
    fclose(file);
    out[n] = 0;
    return n > 0;
}

/* A file of one number; -1 where there is none ("max" among them). */
static double read_number(const char *folder, const char *name) {
    char path[PATH_MAX], text[64], *end;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path ||
        !read_text(text, sizeof text, path))
        return -1;
    double value = strtod(text, &end);
    return end != text ? value : -1;
}

/* The value behind "name " or "name:" at the start of a line; -1 without one. */
static double find_number(const char *text, const char *name) {
    size_t n = strlen(name);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, n) == 0 && (line[n] == ' ' || line[n] == ':'))
            return strtod(line + n + 1, NULL);
    }
    return -1;
}

static void lower_cpus(dt_limits *limits, double quota, double period) {
    if (quota > 0 && period > 0 && (limits->cpus == 0 || quota / period < limits->cpus))
        limits->cpus = quota / period;
}

/* `used` counts what the group's file cache could give back: `cache`. */
static void lower_memory(dt_limits *limits, double limit, double used, double cache) {
    /* The first version writes a huge number for "none". */
    if (limit <= 0 || limits->memory_bytes == 0 || limit >= (double)limits->memory_bytes)
        return;
    limits->memory_bytes = (size_t)limit;
    double left = limit - DT_MAX(used - cache, 0);
    if (used >= 0)
        limits->available_bytes = DT_MIN(limits->available_bytes, (size_t)DT_MAX(left, 0));
}

/* A mapped model counts as active; its pages can be given back like the others. */
static double read_cache(const char *folder, const char *inactive, const char *active) {
    char path[PATH_MAX], text[4096];
    if (snprintf(path, sizeof path, "%s/memory.stat", folder) >= (int)sizeof path ||
        !read_text(text, sizeof text, path))
        return 0;
    return DT_MAX(find_number(text, inactive), 0) + DT_MAX(find_number(text, active), 0);
}

static void read_group(dt_limits *limits, const char *folder) {
    char path[PATH_MAX], text[64];
    double quota, period;
    if (snprintf(path, sizeof path, "%s/cpu.max", folder) < (int)sizeof path &&
        read_text(text, sizeof text, path) && sscanf(text, "%lf %lf", &quota, &period) == 2)
        lower_cpus(limits, quota, period);
    lower_cpus(
        limits, read_number(folder, "cpu.cfs_quota_us"), read_number(folder, "cpu.cfs_period_us"));
    lower_memory(limits, read_number(folder, "memory.max"), read_number(folder, "memory.current"),
        read_cache(folder, "inactive_file", "active_file"));
    lower_memory(limits, read_number(folder, "memory.limit_in_bytes"),
        read_number(folder, "memory.usage_in_bytes"),
        read_cache(folder, "total_inactive_file", "total_active_file"));
}

/* A group and those above it. In a container the path may be the host's: then only the upper end
 * of it exists here. */
static void read_path(dt_limits *limits, const char *mount, const char *group) {
    char folder[PATH_MAX];
    int n_mount = (int)strlen(mount);
    if (snprintf(folder, sizeof folder, "%s%s", mount, group) >= (int)sizeof folder)
        return;
    while (true) {
        read_group(limits, folder);
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash - folder < n_mount)
            return;
        *slash = 0;
    }
}

static void read_machine(dt_limits *limits, const char *root) {
    char path[PATH_MAX], text[4096];
    if (snprintf(path, sizeof path, "%s/proc/meminfo", root) >= (int)sizeof path ||
        !read_text(text, sizeof text, path))
        return;
    limits->memory_bytes = (size_t)(DT_MAX(find_number(text, "MemTotal"), 0) * 1024);
    limits->available_bytes = (size_t)(DT_MAX(find_number(text, "MemAvailable"), 0) * 1024);
}

/* A line of /proc/self/cgroup: "0::/path" or "4:cpu,cpuacct:/path". */
static void read_membership(dt_limits *limits, const char *root, char *line) {
    char mount[PATH_MAX];
    char *controllers = strchr(line, ':');
    char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
    if (group == NULL)
        return;
    *group++ = 0;
    controllers++;
    if (strcmp(group, "/") == 0)
        group = "";
    if (*controllers == 0) {
        if (snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root) < (int)sizeof mount)
            read_path(limits, mount, group);
        return;
    }
    /* The folder is named like the whole list, or has a link named like each controller. */
    char *state = NULL;
    for (char *name = strtok_r(controllers, ",", &state); name != NULL;
         name = strtok_r(NULL, ",", &state))
        if ((strcmp(name, "cpu") == 0 || strcmp(name, "memory") == 0) &&
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%s", root, name) < (int)sizeof mount)
            read_path(limits, mount, group);
}

void dt_limits_read(dt_limits *out, const char *root) {
    char path[PATH_MAX], text[8192], *state = NULL;
    *out = (dt_limits){0};
    read_machine(out, root);
    if (snprintf(path, sizeof path, "%s/proc/self/cgroup", root) >= (int)sizeof path ||
        !read_text(text, sizeof text, path))
        return;
    for (char *line = strtok_r(text, "\n", &state); line != NULL;
         line = strtok_r(NULL, "\n", &state))
        read_membership(out, root, line);
}

int dt_limits_threads(int n_cores, double cpus) {
    if (cpus <= 0 || cpus >= n_cores)
        return n_cores;
    int n = (int)cpus;
    return DT_MAX(n + (n < cpus), 1);
}
