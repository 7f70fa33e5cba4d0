#define _GNU_SOURCE
#include "src/base/topo.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt_build.h"
#include "src/base/mem.h"

#ifdef DT_HAVE_HWLOC
#include <hwloc.h>
#endif

/* A hardware thread with what decides its place in the order. */
typedef struct topo_pu {
    int os_index;
    int core;    /* number of its core, in the machine's own order */
    int sibling; /* 0 for the first hardware thread of the core that we may use */
    int kind;    /* higher is faster; all 0 where the system does not tell */
} topo_pu;

struct dt_topo {
    topo_pu *pus;
    int n_pus;
    int n_cores;
    int n_slow_cores; /* efficient cores beside performance cores */
    int n_packages;   /* 0: not known */
    bool synthetic;
    char cpu_name[96];
    size_t cache_bytes; /* of the last level */
#ifdef DT_HAVE_HWLOC
    hwloc_topology_t hwloc;
#endif
};

static int by_preference(const void *left, const void *right) {
    const topo_pu *a = left, *b = right;
    if (a->sibling != b->sibling)
        return a->sibling < b->sibling ? -1 : 1;
    if (a->kind != b->kind)
        return a->kind > b->kind ? -1 : 1;
    if (a->core != b->core)
        return a->core < b->core ? -1 : 1;
    return (a->os_index > b->os_index) - (a->os_index < b->os_index);
}

/* Numbers the siblings of each core, counts, sorts. `pus` come in the machine's order. */
static void arrange(dt_topo *topo) {
    int best = 0;
    for (int i = 0; i < topo->n_pus; i++) {
        topo_pu *pu = &topo->pus[i];
        pu->sibling = 0;
        if (i > 0 && topo->pus[i - 1].core == pu->core)
            pu->sibling = topo->pus[i - 1].sibling + 1;
        topo->n_cores += pu->sibling == 0;
        best = DT_MAX(best, pu->kind);
    }
    for (int i = 0; i < topo->n_pus; i++)
        topo->n_slow_cores += topo->pus[i].sibling == 0 && topo->pus[i].kind < best;
    qsort(topo->pus, (size_t)topo->n_pus, sizeof *topo->pus, by_preference);
}

#ifdef DT_HAVE_HWLOC

/* "pack:1 core:4 pu:1;2-3": a description, and the hardware threads of its efficient cores. */
static dt_err set_synthetic(dt_topo *topo, const char *text) {
    char description[256];
    size_t n = strcspn(text, ";");
    if (n >= sizeof description)
        DT_FAIL(DT_ERR_INPUT, "the synthetic topology is longer than %zu bytes",
            sizeof description - 1);
    memcpy(description, text, n);
    description[n] = 0;
    if (hwloc_topology_set_synthetic(topo->hwloc, description) != 0)
        DT_FAIL(DT_ERR_INPUT, "\"%s\" is no synthetic topology of hwloc's", description);
    return DT_OK;
}

/* What hwloc cannot describe in a synthetic topology: two kinds of cores. */
static dt_err set_synthetic_kinds(dt_topo *topo, const char *text) {
    const char *list = strchr(text, ';');
    if (list == NULL)
        return DT_OK;
    dt_err err = DT_OK;
    hwloc_bitmap_t slow = hwloc_bitmap_alloc(), fast = hwloc_bitmap_alloc();
    if (slow == NULL || fast == NULL)
        err = DT_ERROR(DT_ERR_MEMORY, "out of memory for a set of CPUs");
    else if (hwloc_bitmap_list_sscanf(slow, list + 1) != 0)
        err = DT_ERROR(DT_ERR_INPUT, "\"%s\" is no list of CPUs", list + 1);
    else {
        hwloc_bitmap_andnot(fast, hwloc_topology_get_topology_cpuset(topo->hwloc), slow);
        if (hwloc_cpukinds_register(topo->hwloc, slow, 0, 0, NULL, 0) != 0 ||
            hwloc_cpukinds_register(topo->hwloc, fast, 1, 0, NULL, 0) != 0)
            err = DT_ERROR(DT_ERR_INPUT, "hwloc refuses the kinds \"%s\"", list + 1);
    }
    hwloc_bitmap_free(slow);
    hwloc_bitmap_free(fast);
    return err;
}

/* How fast the core of `pu` is against the other kinds; 0 where that is not known. */
static int kind_of(hwloc_topology_t hwloc, hwloc_obj_t pu) {
    int kind = hwloc_cpukinds_get_by_cpuset(hwloc, pu->cpuset, 0);
    int efficiency = -1;
    if (kind >= 0 &&
        hwloc_cpukinds_get_info(hwloc, (unsigned)kind, NULL, &efficiency, NULL, NULL, 0) != 0)
        efficiency = -1;
    return efficiency > 0 ? efficiency : 0;
}

/* The data cache that is farthest from a hardware thread, NULL if none is known. */
static hwloc_obj_t last_cache(hwloc_obj_t pu) {
    hwloc_obj_t last = NULL;
    for (hwloc_obj_t at = pu->parent; at != NULL; at = at->parent)
        if (hwloc_obj_type_is_dcache(at->type))
            last = at;
    return last;
}

/* hwloc leaves out what the cgroup denies; the affinity mask of the thread is ours to apply. */
static dt_err collect(dt_topo *topo) {
    hwloc_topology_t hwloc = topo->hwloc;
    hwloc_bitmap_t allowed = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(hwloc));
    hwloc_bitmap_t bound = hwloc_bitmap_alloc();
    dt_err err = DT_OK;
    if (allowed == NULL || bound == NULL) {
        err = DT_ERROR(DT_ERR_MEMORY, "out of memory for a set of CPUs");
        goto done;
    }
    if (!topo->synthetic && hwloc_get_cpubind(hwloc, bound, HWLOC_CPUBIND_THREAD) == 0 &&
        hwloc_bitmap_intersects(allowed, bound))
        hwloc_bitmap_and(allowed, allowed, bound);
    int n = hwloc_bitmap_weight(allowed);
    if (n < 1) {
        err = DT_ERROR(DT_ERR_INTERNAL, "hwloc finds no CPU that this process may use");
        goto done;
    }
    err = dt_mem_alloc(&topo->pus, (size_t)n * sizeof *topo->pus);
    if (err != DT_OK)
        goto done;

    hwloc_obj_t pu = NULL, core_before = NULL, package_before = NULL;
    hwloc_obj_t cache_before = NULL;
    int i_core = -1;
    while ((pu = hwloc_get_next_obj_by_type(hwloc, HWLOC_OBJ_PU, pu)) != NULL) {
        if (!hwloc_bitmap_isset(allowed, pu->os_index) || topo->n_pus == n)
            continue;
        /* Some virtual machines show no cores: each hardware thread then counts as one. */
        hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(hwloc, HWLOC_OBJ_CORE, pu);
        hwloc_obj_t package = hwloc_get_ancestor_obj_by_type(hwloc, HWLOC_OBJ_PACKAGE, pu);
        i_core += core == NULL || core != core_before;
        topo->n_packages += package != NULL && package != package_before;
        hwloc_obj_t cache = last_cache(pu);
        if (cache != NULL && cache != cache_before)
            topo->cache_bytes += cache->attr->cache.size;
        cache_before = cache;
        core_before = core;
        package_before = package;
        topo->pus[topo->n_pus++] =
            (topo_pu){.os_index = (int)pu->os_index, .core = i_core, .kind = kind_of(hwloc, pu)};
    }
done:
    hwloc_bitmap_free(allowed);
    hwloc_bitmap_free(bound);
    return err;
}

static void read_name(dt_topo *topo) {
    hwloc_obj_t package = hwloc_get_obj_by_type(topo->hwloc, HWLOC_OBJ_PACKAGE, 0);
    hwloc_obj_t root = hwloc_get_root_obj(topo->hwloc);
    const char *name = package != NULL ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
    if (name == NULL)
        name = hwloc_obj_get_info_by_name(root, "CPUModel");
    if (name != NULL)
        snprintf(topo->cpu_name, sizeof topo->cpu_name, "%s", name);
}

static dt_err discover(dt_topo *topo, const char *synthetic) {
    if (hwloc_topology_init(&topo->hwloc) != 0) {
        topo->hwloc = NULL;
        DT_FAIL(DT_ERR_MEMORY, "hwloc cannot start: %s", strerror(errno));
    }
    hwloc_topology_set_icache_types_filter(topo->hwloc, HWLOC_TYPE_FILTER_KEEP_NONE);
    if (synthetic != NULL)
        DT_TRY(set_synthetic(topo, synthetic));
    if (hwloc_topology_load(topo->hwloc) != 0)
        DT_FAIL(DT_ERR_IO, "hwloc cannot read the machine's topology: %s", strerror(errno));
    if (synthetic != NULL)
        DT_TRY(set_synthetic_kinds(topo, synthetic));
    read_name(topo);
    return collect(topo);
}

#else

static dt_err discover(dt_topo *topo, const char *synthetic) {
    if (synthetic != NULL)
        DT_FAIL(DT_ERR_UNSUPPORTED, "synthetic topologies need a build with hwloc");
    /* The mask's size is the kernel's, which may exceed cpu_set_t. */
    for (int n_cpus = 1024; n_cpus <= 1 << 16; n_cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)n_cpus);
        if (set == NULL)
            DT_FAIL(DT_ERR_MEMORY, "out of memory for a set of CPUs");
        size_t n_bytes = CPU_ALLOC_SIZE((size_t)n_cpus);
        if (sched_getaffinity(0, n_bytes, set) != 0) {
            int code = errno;
            CPU_FREE(set);
            if (code == EINVAL) /* too small for this kernel */
                continue;
            DT_FAIL(DT_ERR_IO, "cannot read which CPUs this process may use: %s", strerror(code));
        }
        dt_err err =
            dt_mem_alloc(&topo->pus, (size_t)CPU_COUNT_S(n_bytes, set) * sizeof *topo->pus);
        for (int i = 0; err == DT_OK && i < n_cpus; i++)
            if (CPU_ISSET_S((size_t)i, n_bytes, set)) {
                topo->pus[topo->n_pus] = (topo_pu){.os_index = i, .core = topo->n_pus};
                topo->n_pus++;
            }
        CPU_FREE(set);
        return err;
    }
    DT_FAIL(DT_ERR_IO, "this system has more CPUs than 65536");
}

#endif

dt_err dt_topo_open(dt_topo **out, const char *synthetic) {
    *out = NULL;
    dt_topo *topo;
    DT_TRY(dt_mem_alloc(&topo, sizeof *topo));
    topo->synthetic = synthetic != NULL;
    dt_err err = discover(topo, synthetic);
    if (err == DT_OK && topo->n_pus == 0)
        err = DT_ERROR(DT_ERR_INTERNAL, "no CPU that this process may use was found");
    if (err != DT_OK) {
        dt_topo_close(topo);
        return err;
    }
    arrange(topo);
    *out = topo;
    return DT_OK;
}

void dt_topo_close(dt_topo *topo) {
    if (topo == NULL)
        return;
#ifdef DT_HAVE_HWLOC
    if (topo->hwloc != NULL)
        hwloc_topology_destroy(topo->hwloc);
#endif
    dt_mem_free(topo->pus);
    dt_mem_free(topo);
}

int dt_topo_n_cores(const dt_topo *topo) {
    return topo->n_cores;
}

int dt_topo_n_pus(const dt_topo *topo) {
    return topo->n_pus;
}

int dt_topo_pu(const dt_topo *topo, int i) {
    return topo->pus[i].os_index;
}

const char *dt_topo_cpu_name(const dt_topo *topo) {
    return topo->cpu_name;
}

size_t dt_topo_cache_bytes(const dt_topo *topo) {
    return topo->cache_bytes;
}

dt_err dt_topo_bind(const dt_topo *topo, int i) {
    if (i < 0 || i >= topo->n_pus)
        DT_FAIL(DT_ERR_LIMIT, "cannot bind to hardware thread %d of %d", i, topo->n_pus);
    if (topo->synthetic)
        DT_FAIL(DT_ERR_UNSUPPORTED, "cannot bind to a synthetic topology");
    int pu = topo->pus[i].os_index;
#ifdef DT_HAVE_HWLOC
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    if (set == NULL)
        DT_FAIL(DT_ERR_MEMORY, "out of memory for a set of CPUs");
    hwloc_bitmap_only(set, (unsigned)pu);
    int failed = hwloc_set_cpubind(topo->hwloc, set, HWLOC_CPUBIND_THREAD);
    int code = errno;
    hwloc_bitmap_free(set);
#else
    cpu_set_t *set = CPU_ALLOC((size_t)pu + 1);
    if (set == NULL)
        DT_FAIL(DT_ERR_MEMORY, "out of memory for a set of CPUs");
    size_t n_bytes = CPU_ALLOC_SIZE((size_t)pu + 1);
    CPU_ZERO_S(n_bytes, set);
    CPU_SET_S((size_t)pu, n_bytes, set);
    int failed = sched_setaffinity(0, n_bytes, set);
    int code = errno;
    CPU_FREE(set);
#endif
    if (failed)
        DT_FAIL(DT_ERR_IO, "cannot bind a thread to CPU %d: %s", pu, strerror(code));
    return DT_OK;
}

void dt_topo_describe(const dt_topo *topo, char *out, size_t n_bytes) {
    char kinds[64] = "", packages[32] = "";
    if (topo->n_slow_cores > 0)
        snprintf(kinds, sizeof kinds, " (%d performance, %d efficient)",
            topo->n_cores - topo->n_slow_cores, topo->n_slow_cores);
    if (topo->n_packages > 0)
        snprintf(packages, sizeof packages, ", %d package%s", topo->n_packages,
            topo->n_packages == 1 ? "" : "s");
    snprintf(out, n_bytes, "%d core%s%s, %d thread%s%s", topo->n_cores,
        topo->n_cores == 1 ? "" : "s", kinds, topo->n_pus, topo->n_pus == 1 ? "" : "s", packages);
}
