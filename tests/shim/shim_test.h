/* What a test may ask of the host shim (C and C++). The shim itself reads these variables once:
 *
 *   SHIM_ORDER=forward|reverse|random[:SEED]   order of threads and blocks; random prints its seed
 *   SHIM_FAIL=[lose@|hang@]KIND:N[,...]        see below; KIND: alloc copy launch event sync graph
 *                                              stream other any; N counts from 1
 *   SHIM_DRIVER=N                              every call fails with error N (35: no driver)
 *   SHIM_DEVICES=N, SHIM_VRAM_MB=A[,B...]      devices (1) and the memory of each (8192)
 *   SHIM_CC=NN                                 compute capability (89)
 *   SHIM_LEAKS=1                               what is not freed at exit is told, exit code 70
 *
 * The calls may come from any thread; the counts are those of the process. */
#ifndef DT_SHIM_TEST_H
#define DT_SHIM_TEST_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum shim_kind {
    SHIM_KIND_ALLOC, /* device and pinned memory */
    SHIM_KIND_COPY,  /* copies and fills */
    SHIM_KIND_LAUNCH,
    SHIM_KIND_EVENT,  /* create, record, wait */
    SHIM_KIND_SYNC,   /* synchronise and query */
    SHIM_KIND_GRAPH,  /* capture, instantiate, update, launch */
    SHIM_KIND_STREAM, /* create */
    SHIM_KIND_OTHER,  /* devices and their properties */
    SHIM_KIND_ANY,
    SHIM_N_KINDS,
} shim_kind;

typedef enum shim_order { SHIM_ORDER_FORWARD, SHIM_ORDER_REVERSE, SHIM_ORDER_RANDOM } shim_order;

/* The n-th call of the kind from now on (1 = the next) fails once; 0 takes it back. */
void shim_fail_nth(shim_kind kind, long n);
/* From the n-th call of the kind on the device is lost: every call fails with the same error. */
void shim_lose_nth(shim_kind kind, long n);
/* The n-th call of the kind does not return until shim_release (which calls may be made then). */
void shim_hang_nth(shim_kind kind, long n);
void shim_release(void);
/* How many calls hang now. */
int shim_n_hanging(void);
/* Calls of the kind since shim_reset. */
long shim_n_calls(shim_kind kind);
/* No failures, no lost device, counts 0; objects stay. */
void shim_reset(void);
/* SHIM_DRIVER while running; 0: the driver is there. */
void shim_set_driver(int error);
void shim_set_vram(int device, size_t size_bytes);
void shim_set_order(shim_order order, unsigned long long seed);

/* Device memory in use (of every device), its peak, pinned memory; streams + events + graphs. */
size_t shim_device_bytes(void);
size_t shim_device_peak_bytes(void);
size_t shim_pinned_bytes(void);
int shim_n_objects(void);
/* Kernels that have run. */
long shim_n_kernels_run(void);

#ifdef __cplusplus
}
#endif
#endif
