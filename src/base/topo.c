#define _GNU_SOURCE
#include "src/base/topo.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dt_build.h"
#include "src/base/limits.h"
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
    bool slow;   /* of an efficient core beside performance cores */
} topo_pu;

struct dt_topo {
    topo_pu *pus;
    int n_pus;
    int n_cores;
    int n_slow_cores; /* efficient cores beside performance cores */
    int n_packages;   /* 0: not known */
    int n_nodes;      /* of memory, 0: not known */
    int n_pus_all;    /* of the whole machine, 0: not known */
    double cpus;      /* of time, by a control group's quota; 0: no quota */
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
    for (int i = 0; i < topo->n_pus; i++) {
        topo->pus[i].slow = topo->pus[i].kind < best;
        topo->n_slow_cores += topo->pus[i].sibling == 0 && topo->pus[i].slow;
    }
    qsort(topo->pus, (size_t)topo->n_pus, sizeof *topo->pus, by_preference);
}

#ifdef DT_HAVE_HWLOC

/* "pack:1 core:4 pu:1;2-3": a description, and the hardware threads of its efficient cores. */
static dt_err set_synthetic(dt_topo *topo, const char *text) {
    char description[256];
    size_t n = strcspn(text, ";"), n_text = strlen(text);
    if (n_text > 4 && strcmp(text + n_text - 4, ".xml") == 0) {
        if (hwloc_topology_set_xml(topo->hwloc, text) != 0)
            DT_FAIL(DT_ERR_INPUT, "%s: no topology in XML, as lstopo writes it", text);
        return DT_OK;
    }
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
    topo->n_nodes = DT_MAX(hwloc_get_nbobjs_by_type(hwloc, HWLOC_OBJ_NUMANODE), 0);
    topo->n_pus_all = hwloc_bitmap_weight(hwloc_topology_get_complete_cpuset(hwloc));
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
    if (!topo->synthetic) {
        dt_limits limits;
        dt_limits_read(&limits, "");
        topo->cpus = limits.cpus;
    }
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

int dt_topo_n_threads(const dt_topo *topo) {
    return dt_limits_threads(topo->n_cores, topo->cpus);
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

/* ---- as text ---- */

typedef struct lines {
    char *out;
    size_t room;
} lines;

/* Appends; what does not fit is cut off. */
static void add(lines *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(lines *l, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(l->out, l->room, format, args);
    va_end(args);
    size_t taken = DT_MIN((size_t)DT_MAX(n, 0), l->room - 1);
    l->out += taken;
    l->room -= taken;
}

static const char *plural(int n) {
    return n == 1 ? "" : "s";
}

#ifdef DT_HAVE_HWLOC

static bool same_shape(const dt_topo *topo, hwloc_obj_t a, hwloc_obj_t b) {
    if (a->type != b->type || a->arity != b->arity || a->memory_arity != b->memory_arity)
        return false;
    if (hwloc_obj_type_is_cache(a->type) && a->attr->cache.size != b->attr->cache.size)
        return false;
    if (a->type == HWLOC_OBJ_PU && kind_of(topo->hwloc, a) != kind_of(topo->hwloc, b))
        return false;
    if (a->memory_arity > 0 && a->memory_first_child->attr->numanode.local_memory !=
                                   b->memory_first_child->attr->numanode.local_memory)
        return false;
    for (unsigned i = 0; i < a->arity; i++)
        if (!same_shape(topo, a->children[i], b->children[i]))
            return false;
    return true;
}

static void add_bytes(lines *l, uint64_t n_bytes) {
    if (n_bytes >= (uint64_t)1 << 30)
        add(l, " %.1f GiB", (double)n_bytes / (1 << 30));
    else if (n_bytes >= 1 << 20)
        add(l, " %.4g MiB", (double)n_bytes / (1 << 20));
    else
        add(l, " %.4g KiB", (double)n_bytes / (1 << 10));
}

static void add_cpus(lines *l, hwloc_const_bitmap_t set) {
    char list[128];
    hwloc_bitmap_list_snprintf(list, sizeof list, set);
    add(l, ": CPU%s %s", plural(hwloc_bitmap_weight(set)), list);
}

static void add_core(lines *l, const dt_topo *topo, hwloc_obj_t core) {
    hwloc_obj_t pu = core;
    while (pu->type != HWLOC_OBJ_PU && pu->arity > 0)
        pu = pu->children[0];
    if (topo->n_slow_cores > 0) {
        int i = 0;
        while (i < topo->n_pus - 1 && topo->pus[i].os_index != (int)pu->os_index)
            i++;
        add(l, topo->pus[i].slow ? "efficient " : "performance ");
    }
    add(l, "core");
    if (core->arity > 1)
        add(l, " of %u hardware threads", core->arity);
}

/* `n` objects like this one, side by side. `one_of`: it stands for others too, so that CPU numbers
 * would mislead. */
static void add_object(
    lines *l, const dt_topo *topo, hwloc_obj_t object, int n, int depth, bool one_of) {
    char name[32];
    bool leaf = object->type == HWLOC_OBJ_CORE || object->type == HWLOC_OBJ_PU;
    if (object->type != HWLOC_OBJ_MACHINE) {
        hwloc_bitmap_t set = hwloc_bitmap_dup(object->cpuset);
        hwloc_obj_t next = object;
        for (int i = 1; i < n && set != NULL; i++) {
            next = next->next_sibling;
            hwloc_bitmap_or(set, set, next->cpuset);
        }
        hwloc_obj_type_snprintf(name, sizeof name, object, 0);
        add(l, "%*s", 2 * depth, "");
        if (n > 1)
            add(l, "%d x ", n);
        if (leaf)
            add_core(l, topo, object);
        else
            add(l, "%s", object->type == HWLOC_OBJ_PACKAGE ? "package" : name);
        if (hwloc_obj_type_is_cache(object->type))
            add_bytes(l, object->attr->cache.size);
        if (set != NULL && !one_of)
            add_cpus(l, set);
        add(l, "\n");
        hwloc_bitmap_free(set);
        depth++;
    }
    for (hwloc_obj_t node = object->memory_first_child; node != NULL; node = node->next_sibling)
        if (node->type == HWLOC_OBJ_NUMANODE && node->attr->numanode.local_memory > 0) {
            add(l, "%*sNUMA node", 2 * depth, "");
            add_bytes(l, node->attr->numanode.local_memory);
            add(l, "\n");
        }
    for (unsigned i = 0; i < object->arity && !leaf;) {
        unsigned end = i + 1;
        while (end < object->arity && same_shape(topo, object->children[i], object->children[end]))
            end++;
        add_object(l, topo, object->children[i], (int)(end - i), depth, one_of || n > 1);
        i = end;
    }
}

#endif

void dt_topo_tree(const dt_topo *topo, char *out, size_t n_bytes) {
    lines l = {out, n_bytes};
    out[0] = 0;
#ifdef DT_HAVE_HWLOC
    add_object(&l, topo, hwloc_get_root_obj(topo->hwloc), 1, 0, false);
#else
    for (int i = 0; i < topo->n_pus; i++)
        add(&l, "CPU %d\n", topo->pus[i].os_index);
#endif
}

static int by_number(const void *left, const void *right) {
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

/* "CPUs 0-3,8" of places first .. end - 1. */
static void add_places(lines *l, const dt_topo *topo, int first, int end) {
    int numbers[256], n = 0;
    for (int i = first; i < end && n < (int)DT_COUNT(numbers); i++)
        numbers[n++] = topo->pus[i].os_index;
    qsort(numbers, (size_t)n, sizeof *numbers, by_number);
    add(l, "CPU%s", plural(n));
    for (int i = 0; i < n;) {
        int j = i;
        while (j + 1 < n && numbers[j + 1] == numbers[j] + 1)
            j++;
        add(l, "%s%d", i == 0 ? " " : ",", numbers[i]);
        if (j > i)
            add(l, "-%d", numbers[j]);
        i = j + 1;
    }
}

void dt_topo_plan(const dt_topo *topo, int n_threads, char *out, size_t n_bytes) {
    lines l = {out, n_bytes};
    out[0] = 0;
    int n_placed = DT_MIN(n_threads, topo->n_pus), n_cores = topo->n_cores;
    add(&l, "team: %d thread%s, bound to ", n_threads, plural(n_threads));
    add_places(&l, topo, 0, n_placed);
    if (n_threads == n_cores)
        add(&l, ", one for each core\n");
    else if (n_threads < n_cores && n_threads == dt_topo_n_threads(topo))
        add(&l, ", as many as the quota keeps running\n");
    else if (n_threads < n_cores)
        add(&l, " of %d cores, as asked\n", n_cores);
    else if (n_threads <= topo->n_pus)
        add(&l, ", more than one for some of the %d cores, as asked\n", n_cores);
    else
        add(&l, ", which they share, as asked\n");
    if (topo->cpus > 0)
        add(&l, "quota: the control group grants the time of %.3g CPUs\n", topo->cpus);
    if (topo->n_pus_all > topo->n_pus)
        add(&l, "limits: this process may use %d of the machine's %d hardware threads\n",
            topo->n_pus, topo->n_pus_all);
    int n_fast = n_cores - topo->n_slow_cores;
    if (topo->n_slow_cores > 0 && n_threads > n_fast)
        add(&l,
            "efficient cores: %d in the team, behind the performance cores; work is taken in "
            "small pieces, so that a slow core takes fewer and delays the others by one at "
            "most\n",
            DT_MIN(n_threads, n_cores) - n_fast);
    else if (topo->n_slow_cores > 0)
        add(&l, "efficient cores: all %d stay free\n", topo->n_slow_cores);
    if (topo->n_pus > n_cores && n_placed < topo->n_pus) {
        int first = DT_MAX(n_placed, n_cores);
        add(&l, "second threads of cores: ");
        add_places(&l, topo, first, topo->n_pus);
        add(&l, " stay free, since a core's threads share its arithmetic and its caches\n");
    }
    if (topo->n_packages > 1 || topo->n_nodes > 1)
        add(&l,
            "memory: %d package%s, %d NUMA node%s; each piece of the weights lies near the "
            "thread that packed it, and any thread may take it\n",
            topo->n_packages, plural(topo->n_packages), topo->n_nodes, plural(topo->n_nodes));
    add(&l, "verify: the program's own thread, which hands passes of the target to the team and "
            "sleeps meanwhile\n");
    add(&l, "draft: a thread of its own; a draft on the CPU has its passes run by the same team in "
            "turn, n-grams need no team\n");
}
