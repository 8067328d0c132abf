#include "tests/cudahost/fibers.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <vector>

#if defined(LVP_CUDAHOST_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *size);
}
#elif defined(LVP_CUDAHOST_TSAN) // this file itself is compiled without instrumentation
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *address);
void __tsan_release(void *address);
}
#endif

LVP_HOST_LOCAL uint3 threadIdx, blockIdx;
LVP_HOST_LOCAL dim3 blockDim, gridDim;

// Saves what the calling convention keeps, on the stack, and goes on where another did so: swapcontext without its
// system calls, of which a kernel would make millions.
extern "C" void lvp_host_switch(void **save, void *load);
#if defined(__x86_64__)
asm(R"(
.text
.type lvp_host_switch,@function
lvp_host_switch:
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
.size lvp_host_switch,.-lvp_host_switch
)");
#else
#error "the host runtime knows how to switch stacks on x86-64 only"
#endif

namespace lvp_host
{
namespace
{

enum { WARP = 32, MOST_THREADS = 1024, STACK_BYTES = 256 << 10 };

struct copy {
    void *to;
    const void *from;
};

struct fiber {
    void *at; // its stack pointer while another runs
    char *stack;
    bool live;
    const uint64_t *waits_for; // a counter that moves on when the wait is over; NULL: can run
    uint64_t seen;
    const char *file; // where it waits
    int line;
    std::vector<std::vector<copy>> copies; // groups; the last one is open
    void *asan_stack, *tsan;
};

// Where a warp's lanes, or a block's threads, meet.
struct meeting {
    uint64_t held; // meetings so far
    unsigned arrived;
    int n_arrived;
    unsigned mask;
    const char *file;
    int line;
};

struct warp {
    meeting exchange, barrier;
    unsigned char values[2][WARP][EXCHANGE_BYTES]; // of this meeting and of the last, which may still be read
};

struct room {
    const void *key;
    std::vector<uint64_t> memory;
};

struct machine {
    std::vector<fiber> fibers;
    int n, current, live;
    std::vector<warp> warps;
    meeting barrier;
    std::vector<room> rooms;
    std::vector<uint64_t> dynamic_memory;
    void *scheduler;             // its stack pointer
    const void *scheduler_stack; // as the sanitizer knows it
    size_t scheduler_stack_bytes;
    void *scheduler_asan, *scheduler_tsan;
    const std::function<void()> *body;
    uint64_t random;
};

LVP_HOST_LOCAL machine m;

enum order { FORWARD, REVERSE, DEPTH, RANDOM };

order the_order(uint64_t *seed)
{
    const char *name = getenv("LVP_CUDAHOST_ORDER");
    if (name == nullptr || *name == '\0' || strcmp(name, "forward") == 0) return FORWARD;
    if (strcmp(name, "reverse") == 0) return REVERSE;
    if (strcmp(name, "depth") == 0) return DEPTH;
    *seed = strtoull(name, nullptr, 10) * 2 + 1;
    return RANDOM;
}

void acquire(void *address)
{
#ifdef LVP_CUDAHOST_TSAN
    __tsan_acquire(address);
#endif
    (void)address;
}

void release(void *address)
{
#ifdef LVP_CUDAHOST_TSAN
    __tsan_release(address);
#endif
    (void)address;
}

// --- switching

// Back to the scheduler. `last`: the fiber has ended.
void leave(bool last)
{
    fiber *self = &m.fibers[static_cast<size_t>(m.current)];
#if defined(LVP_CUDAHOST_ASAN)
    __sanitizer_start_switch_fiber(last ? nullptr : &self->asan_stack, m.scheduler_stack, m.scheduler_stack_bytes);
#elif defined(LVP_CUDAHOST_TSAN)
    __tsan_switch_to_fiber(m.scheduler_tsan, 1);
#endif
    (void)last;
    lvp_host_switch(&self->at, m.scheduler);
#if defined(LVP_CUDAHOST_ASAN)
    __sanitizer_finish_switch_fiber(self->asan_stack, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
}

void main_of_fiber()
{
#if defined(LVP_CUDAHOST_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
    acquire(&m.body); // what the host did before the block
    (*m.body)();
    release(&m.live); // for the host, not for threads that start later
    m.fibers[static_cast<size_t>(m.current)].live = false;
    m.live--;
    leave(true);
}

void enter(int i)
{
    fiber *next = &m.fibers[static_cast<size_t>(i)];
    m.current = i;
    unsigned x = blockDim.x, y = blockDim.y, u = static_cast<unsigned>(i);
    threadIdx = {u % x, u / x % y, u / x / y};
#if defined(LVP_CUDAHOST_ASAN)
    __sanitizer_start_switch_fiber(&m.scheduler_asan, next->stack, STACK_BYTES);
#elif defined(LVP_CUDAHOST_TSAN)
    __tsan_switch_to_fiber(next->tsan, 1);
#endif
    lvp_host_switch(&m.scheduler, next->at);
#if defined(LVP_CUDAHOST_ASAN)
    __sanitizer_finish_switch_fiber(m.scheduler_asan, nullptr, nullptr);
#endif
}

void wait_until_moves(const uint64_t *counter, const char *file, int line)
{
    fiber *self = &m.fibers[static_cast<size_t>(m.current)];
    self->waits_for = counter;
    self->seen = *counter;
    self->file = file;
    self->line = line;
    leave(false);
    self->waits_for = nullptr;
}

bool can_run(int i)
{
    const fiber &f = m.fibers[static_cast<size_t>(i)];
    return f.live && (f.waits_for == nullptr || *f.waits_for != f.seen);
}

// The next fiber to run; -1: all wait.
int pick(order how)
{
    int start = m.current;
    if (how == RANDOM) {
        m.random = m.random * 6364136223846793005U + 1442695040888963407U;
        start = static_cast<int>((m.random >> 33) % static_cast<uint64_t>(m.n));
    }
    if (how == DEPTH)
        for (int i = start / WARP * WARP; i < m.n && i / WARP == start / WARP; i++)
            if (can_run(i)) return i;
    for (int step = 1; step <= m.n; step++) {
        int i = how == REVERSE ? (start - step + 2 * m.n) % m.n : (start + step) % m.n;
        if (can_run(i)) return i;
    }
    return -1;
}

[[noreturn]] void report_deadlock()
{
    fprintf(stderr, "cudahost: block (%u, %u, %u): %d of %d threads have ended, the others wait for them:\n",
            blockIdx.x, blockIdx.y, blockIdx.z, m.n - m.live, m.n);
    std::vector<bool> told(static_cast<size_t>(m.n), false);
    for (int i = 0; i < m.n; i++) {
        const fiber &f = m.fibers[static_cast<size_t>(i)];
        if (!f.live || told[static_cast<size_t>(i)]) continue;
        int n = 0;
        for (int j = i; j < m.n; j++) {
            const fiber &g = m.fibers[static_cast<size_t>(j)];
            if (!g.live || g.file != f.file || g.line != f.line) continue;
            told[static_cast<size_t>(j)] = true;
            n++;
        }
        fprintf(stderr, "cudahost:   %d from thread %d on at %s:%d\n", n, i, f.file, f.line);
    }
    abort();
}

// --- meetings

// True for the one who came last; the others have waited.
bool meet(meeting *at, unsigned bit, int n_expected, unsigned mask, const char *file, int line)
{
    if (at->n_arrived == 0) {
        at->mask = mask;
        at->file = file;
        at->line = line;
        at->arrived = 0;
    } else if (at->line != line || strcmp(at->file, file) != 0) {
        fprintf(stderr, "cudahost: threads that should meet are at %s:%d and at %s:%d\n", at->file, at->line, file,
                line);
        abort();
    } else if (at->mask != mask) {
        stop("lanes name different masks", file, line);
    }
    at->arrived |= bit;
    if (++at->n_arrived < n_expected) {
        wait_until_moves(&at->held, file, line);
        return false;
    }
    at->n_arrived = 0;
    at->held++;
    return true;
}

warp *my_warp()
{
    return &m.warps[static_cast<size_t>(m.current / WARP)];
}

void check_mask(unsigned mask, const char *file, int line)
{
    if ((mask >> lane() & 1) == 0) stop("a lane outside the mask", file, line);
    int first = m.current / WARP * WARP;
    for (int i = 0; i < WARP; i++)
        if ((mask >> i & 1) != 0 && (first + i >= m.n || !m.fibers[static_cast<size_t>(first + i)].live))
            stop("the mask names a lane that is not there, or has ended", file, line);
}

void prepare(int n, const std::function<void()> &body)
{
    while (m.fibers.size() < static_cast<size_t>(n)) {
        fiber f = {};
        void *memory =
            mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        f.stack = static_cast<char *>(memory);
#ifdef LVP_CUDAHOST_TSAN
        f.tsan = __tsan_create_fiber(0);
#endif
        m.fibers.push_back(f);
    }
    m.n = m.live = n;
    m.body = &body;
    m.warps.assign(static_cast<size_t>((n + WARP - 1) / WARP), warp());
    m.barrier = {};
    m.rooms.clear();
    for (int i = 0; i < n; i++) {
        fiber *f = &m.fibers[static_cast<size_t>(i)];
        f->live = true;
        f->waits_for = nullptr;
        if (f->copies.size() != 1 || !f->copies[0].empty()) f->copies.assign(1, {});
        // As lvp_host_switch left it: six registers, then where it returns to; a call would have put the stack 8 bytes
        // off a multiple of 16.
        void **top = reinterpret_cast<void **>(f->stack + STACK_BYTES) - 2;
        *--top = nullptr; // nobody called it
        *--top = reinterpret_cast<void *>(&main_of_fiber);
        for (int r = 0; r < 6; r++) *--top = nullptr;
        f->at = top;
    }
}

} // namespace

void stop(const char *what, const char *file, int line)
{
    fprintf(stderr, "cudahost: %s: %s:%d, block (%u, %u, %u), thread %u\n", what, file, line, blockIdx.x, blockIdx.y,
            blockIdx.z, threadIdx.x);
    abort();
}

void *shared(const void *key, size_t n_bytes)
{
    for (room &r : m.rooms)
        if (r.key == key) {
            acquire(r.memory.data()); // on a device it was there from the start: only its making orders anything
            return r.memory.data();
        }
    m.rooms.push_back({key, std::vector<uint64_t>((n_bytes + 7) / 8, ~0ULL)});
    release(m.rooms.back().memory.data());
    return m.rooms.back().memory.data();
}

void *dynamic_shared()
{
    void *memory = m.dynamic_memory.data();
    return reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(memory) + 15) / 16 * 16);
}

int lane()
{
    return m.current % WARP;
}

void barrier(const char *file, int line)
{
    if (m.live < m.n) stop("a barrier that threads which have ended will not reach", file, line);
    release(&m.barrier);
    (void)meet(&m.barrier, 0, m.n, 0, file, line);
    acquire(&m.barrier);
}

void warp_barrier(unsigned mask, const char *file, int line)
{
    check_mask(mask, file, line);
    warp *w = my_warp();
    release(&w->barrier);
    (void)meet(&w->barrier, 1U << lane(), __builtin_popcount(mask), mask, file, line);
    acquire(&w->barrier);
}

const void *exchange_bytes(const void *mine, size_t n_bytes, unsigned mask, const char *file, int line)
{
    check_mask(mask, file, line);
    warp *w = my_warp();
    unsigned char(*values)[EXCHANGE_BYTES] = w->values[w->exchange.held % 2];
    copy_unwatched(values[lane()], mine, n_bytes);
    (void)meet(&w->exchange, 1U << lane(), __builtin_popcount(mask), mask, file, line);
    return values;
}

#ifdef LVP_CUDAHOST_TSAN
void copy_unwatched(void *to, const void *from, size_t n_bytes)
{
    volatile char *into = static_cast<volatile char *>(to); // or the loop becomes a memcpy, which is watched
    for (size_t i = 0; i < n_bytes; i++) into[i] = static_cast<const char *>(from)[i];
}
#endif

void copy_later(void *to, const void *from)
{
    m.fibers[static_cast<size_t>(m.current)].copies.back().push_back({to, from});
}

void copy_commit()
{
    m.fibers[static_cast<size_t>(m.current)].copies.push_back({});
}

void copy_wait(int groups)
{
    std::vector<std::vector<copy>> &copies = m.fibers[static_cast<size_t>(m.current)].copies;
    while (copies.size() > static_cast<size_t>(groups) + 1) { // the open group is not waited for
        for (const copy &c : copies.front()) memcpy(c.to, c.from, 16);
        copies.erase(copies.begin());
    }
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &body)
{
    uint64_t seed = 1;
    order how = the_order(&seed);
    unsigned n = block.x * block.y * block.z;
    if (n == 0 || n > MOST_THREADS || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
        stop("a launch that no device takes", __FILE__, __LINE__);
    blockDim = block;
    gridDim = grid;
    m.random = seed;
#ifdef LVP_CUDAHOST_TSAN
    m.scheduler_tsan = __tsan_get_current_fiber();
#endif
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                m.dynamic_memory.assign(shared_bytes / 8 + 3, ~0ULL);
                prepare(static_cast<int>(n), body);
                m.current = how == REVERSE ? 0 : m.n - 1;
                release(&m.body);
                for (int next = pick(how); m.live > 0; next = pick(how)) {
                    if (next < 0) report_deadlock();
                    enter(next);
                }
                acquire(&m.live); // blocks end before the host goes on, and here before the next one
            }
}

} // namespace lvp_host
