// A GPU's blocks and threads on a CPU: what stands before a CUDA C source that g++ compiles.
//
// Blocks run one after another. The threads of a block are fibers with stacks of their own: one runs
// until it waits (a barrier, a shuffle) or ends, so a kernel without either costs two switches a thread.
// Whatever would hang or be undefined on a GPU is an error here, with kernel, block and thread.

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
// Thread-local only to lie in one known place, which is filled with a pattern before each block.
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(host::dynamic_shared)
#define __syncthreads() host::barrier(__LINE__, 0)
#define __syncthreads_or(p) (host::barrier(__LINE__, !!(p)) != 0)
#define __syncthreads_and(p) (host::barrier(__LINE__, !(p)) == 0)
#define __syncthreads_count(p) host::barrier(__LINE__, !!(p))
#define HOST_HIDDEN __attribute__((visibility("hidden")))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
HOST_HIDDEN uint3 threadIdx, blockIdx;
HOST_HIDDEN dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace host {

enum State { READY, AT_BARRIER, AT_NAMED, IN_WARP, GONE };
const int MOST_THREADS = 1024, MOST_BYTES = 256;
const size_t STACK = 256 << 10, SHARED_ROOM = 256 << 10, PAGE = 4096;

// What the lanes of `mask` bring to one collective operation of their warp.
struct Group {
    unsigned mask, arrived;
    int kind, line, unread;
    bool complete;
    alignas(16) unsigned char bytes[32][MOST_BYTES];
};

struct Fiber {
    void* sp;
    char* stack;
    uint3 index;
    State state;
    int line, name;
    Group* group;
};

struct Named { int arrived, wanted; };

HOST_HIDDEN unsigned char* dynamic_shared;
HOST_HIDDEN Fiber fibers[MOST_THREADS];
HOST_HIDDEN int total, current, finished, at_barrier, votes, decided;
HOST_HIDDEN int ready[2 * MOST_THREADS], ready_from, ready_to;  // a ring
HOST_HIDDEN Named named[16];
HOST_HIDDEN Group* open_groups[32][32];  // warp, any order
HOST_HIDDEN Group* free_groups[MOST_THREADS];
HOST_HIDDEN int free_group_count;
HOST_HIDDEN char* free_stacks[MOST_THREADS];
HOST_HIDDEN int free_stack_count;
HOST_HIDDEN char* stacks;
HOST_HIDDEN void* scheduler;
HOST_HIDDEN void (*entry)(void**);
HOST_HIDDEN void** arguments;
HOST_HIDDEN bool failed;
HOST_HIDDEN char* message;
HOST_HIDDEN size_t message_room;
HOST_HIDDEN const char* kernel_name;
HOST_HIDDEN sigjmp_buf fault;
HOST_HIDDEN void* fault_address;
HOST_HIDDEN int fault_signal;
static thread_local char anchor[16];  // finds the place of shared memory

extern "C" HOST_HIDDEN void host_switch(void** save, void* to);
asm(R"(
    .text
    .hidden host_switch
    .globl host_switch
    .type host_switch,@function
host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

static void to_scheduler() { host_switch(&fibers[current].sp, scheduler); }

// Ends the launch with an error; does not return.
static void fail(const char* format, ...) {
    uint3 t = fibers[current].index;
    int used = snprintf(message, message_room, "%s, block (%u,%u,%u), thread (%u,%u,%u): ", kernel_name,
                        blockIdx.x, blockIdx.y, blockIdx.z, t.x, t.y, t.z);
    va_list rest;
    va_start(rest, format);
    vsnprintf(message + used, message_room - used, format, rest);
    va_end(rest);
    failed = true;
    to_scheduler();
}

static void make_ready(int i) {
    fibers[i].state = READY;
    ready[ready_to] = i;
    ready_to = (ready_to + 1) % (2 * MOST_THREADS);
}

static void wait_as(State state, int line) {
    fibers[current].state = state;
    fibers[current].line = line;
    to_scheduler();
}

// All threads of the block meet at one line; returns how many brought a vote.
HOST_HIDDEN __attribute__((noinline)) int barrier(int line, int vote) {
    votes += vote;
    if (++at_barrier < total) {
        wait_as(AT_BARRIER, line);
        return decided;
    }
    decided = votes;
    votes = at_barrier = 0;
    for (int i = 0; i < total; i++) {
        if (i == current) continue;
        if (fibers[i].line != line)
            fail("waits at the barrier of line %d, thread (%u,%u,%u) at that of line %d", line,
                 fibers[i].index.x, fibers[i].index.y, fibers[i].index.z, fibers[i].line);
        make_ready(i);
    }
    return decided;
}

// PTX `barrier.sync id, threads`: some of a block's threads meet.
HOST_HIDDEN __attribute__((noinline)) void named_barrier(int id, int threads, bool wait = true,
                                                         int line = __builtin_LINE()) {
    Named& b = named[id];
    if (b.arrived && b.wanted != threads)
        fail("barrier %d is for %d threads here, for %d elsewhere", id, threads, b.wanted);
    b.wanted = threads;
    if (++b.arrived < threads) {
        if (!wait) return;
        fibers[current].name = id;
        wait_as(AT_NAMED, line);
        return;
    }
    b.arrived = 0;
    for (int i = 0; i < total; i++)
        if (fibers[i].state == AT_NAMED && fibers[i].name == id) make_ready(i);
}

// ---- warps ---------------------------------------------------------------------------------------

static int lane() { return current % 32; }
static unsigned warp_members() {
    int left = total - current / 32 * 32;
    return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

static Group* new_group(unsigned mask, int kind, int line) {
    Group* g = free_group_count ? free_groups[--free_group_count] : (Group*)aligned_alloc(16, sizeof(Group));
    *g = Group{mask, 0, kind, line, 0, false};
    return g;
}

// Every lane of `mask` brings `size` bytes and waits for the others. Read what they brought from the
// result (bytes[lane]), then `leave` it; there is no switch in between.
HOST_HIDDEN __attribute__((noinline)) Group* meet(int kind, unsigned mask, const void* mine, int size, int line) {
    int warp = current / 32, me = lane();
    if (!(mask >> me & 1)) fail("line %d: the mask %08x lacks the calling lane %d", line, mask, me);
    Group* g = nullptr;
    int place = 0;
    for (int i = 0; i < 32; i++) {
        Group* seen = open_groups[warp][i];
        if (!seen) place = i;
        else if (!seen->complete && seen->mask == mask) g = seen;
    }
    if (!g) g = open_groups[warp][place] = new_group(mask, kind, line);
    if (g->kind != kind || g->line != line)
        fail("line %d with mask %08x, while other lanes of that mask are at line %d", line, mask, g->line);
    if (size) memcpy(g->bytes[me], mine, size);
    g->arrived |= 1u << me;
    if (g->arrived != mask) {
        fibers[current].group = g;
        wait_as(IN_WARP, line);
        return g;
    }
    g->complete = true;
    g->unread = __builtin_popcount(mask);
    for (int i = 0; i < 32; i++)
        if (i != me && (mask >> i & 1)) make_ready(warp * 32 + i);
    return g;
}

static void leave(Group* g) {
    if (--g->unread) return;
    for (Group*& slot : open_groups[current / 32])
        if (slot == g) slot = nullptr;
    free_groups[free_group_count++] = g;
}

// For kernels' own emulation of warp-wide instructions: lane i finds lane j's `size` bytes (at most
// MOST_BYTES) at all32 + j * size.
static void warp_exchange(const void* mine, size_t size, void* all32, int line = __builtin_LINE()) {
    Group* g = meet('x', 0xffffffffu, mine, (int)size, line);
    for (int i = 0; i < 32; i++) memcpy((char*)all32 + i * size, g->bytes[i], size);
    leave(g);
}

}  // namespace host
