// Running a grid, and what a kernel's parameters are (after fibers.hpp, before the kernels).

namespace host {

// ---- running -------------------------------------------------------------------------------------

static void fiber_main() {
    entry(arguments);
    Fiber& f = fibers[current];
    f.state = GONE;
    finished++;
    free_stacks[free_stack_count++] = f.stack;
    to_scheduler();
}

static void start(int i) {
    Fiber& f = fibers[i];
    f.stack = free_stacks[--free_stack_count];
    void** top = (void**)(f.stack + STACK - 64);
    *--top = nullptr;  // keeps the alignment that a call leaves
    *--top = (void*)fiber_main;
    for (int r = 0; r < 6; r++) *--top = nullptr;
    f.sp = top;
}

static void tell_deadlock() {
    int used = snprintf(message, message_room, "%s, block (%u,%u,%u): its threads wait for each other:",
                        kernel_name, blockIdx.x, blockIdx.y, blockIdx.z);
    bool told[MOST_THREADS] = {};
    for (int i = 0; i < total; i++) {
        if (told[i]) continue;
        int like = 0;
        for (int j = i; j < total; j++)
            if (fibers[j].state == fibers[i].state &&
                (fibers[i].state == GONE || fibers[j].line == fibers[i].line))
                told[j] = true, like++;
        const char* what[] = {"are ready", "wait at the barrier of", "wait at the named barrier of",
                              "wait for other lanes of their warp at", "have ended"};
        const Fiber& f = fibers[i];
        used += snprintf(message + used, message_room - used, " %d %s", like, what[f.state]);
        if (f.state != GONE) used += snprintf(message + used, message_room - used, " line %d", f.line);
        used += snprintf(message + used, message_room - used, " (first: thread (%u,%u,%u)", f.index.x,
                         f.index.y, f.index.z);
        if (f.state == IN_WARP)
            used += snprintf(message + used, message_room - used, ", mask %08x, arrived %08x", f.group->mask,
                             f.group->arrived);
        used += snprintf(message + used, message_room - used, ");");
        if (used + 200 > (int)message_room) break;
    }
    failed = true;
}

static void run_block(bool backwards) {
    finished = at_barrier = votes = ready_from = ready_to = 0;
    memset(named, 0, sizeof named);
    for (int n = 0; n < total; n++) {
        int i = backwards ? total - 1 - n : n;
        fibers[i].group = nullptr;
        fibers[i].stack = nullptr;
        make_ready(i);
    }
    while (ready_from != ready_to) {
        int i = ready[ready_from];
        ready_from = (ready_from + 1) % (2 * MOST_THREADS);
        if (!fibers[i].stack) start(i);
        current = i;
        threadIdx = fibers[i].index;
        host_switch(&scheduler, fibers[i].sp);
        if (failed) return;
    }
    if (finished < total) tell_deadlock();
}

static void on_fault(int number, siginfo_t* info, void*) {
    fault_signal = number;
    fault_address = info->si_addr;
    siglongjmp(fault, 1);
}

static int find_module(dl_phdr_info* info, size_t, void* out) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        char* base = (char*)info->dlpi_tls_data;
        if (part.p_type == PT_TLS && base && anchor >= base && anchor < base + part.p_memsz) {
            ((void**)out)[0] = base;
            ((size_t*)out)[1] = part.p_memsz;
            return 1;
        }
    }
    return 0;
}

struct Place { char* base; size_t size; };
static Place static_shared() {
    static ptrdiff_t before = -1;
    static size_t size;
    if (before < 0) {
        Place found = {anchor, sizeof anchor};
        *(volatile char*)anchor = 0;
        dl_iterate_phdr(find_module, &found);
        before = anchor - found.base, size = found.size;
    }
    return {anchor - before, size};
}

// The stacks of all threads, the same for all libraries of a process: each has a page that may not be
// touched, and a process may not have many thousands of such pieces of memory.
static char* common_stacks() {
    char name[64], text[32];
    snprintf(name, sizeof name, "DISTTORCH_HOST_STACKS_%d", (int)getpid());
    const char* known = getenv(name);
    if (known) return (char*)strtoull(known, 0, 16);
    const size_t all = MOST_THREADS * STACK;
    char* made = (char*)mmap(0, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int i = 0; i < MOST_THREADS; i++) mprotect(made + i * STACK, PAGE, PROT_NONE);
    snprintf(text, sizeof text, "%llx", (unsigned long long)(size_t)made);
    setenv(name, text, 1);
    return made;
}

static void reset() {
    if (!stacks) {
        stacks = common_stacks();
        char* room = (char*)mmap(0, SHARED_ROOM + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(room + SHARED_ROOM, PAGE, PROT_NONE);
        dynamic_shared = (unsigned char*)room + SHARED_ROOM;
    }
    for (free_stack_count = 0; free_stack_count < MOST_THREADS; free_stack_count++)
        free_stacks[free_stack_count] = stacks + free_stack_count * STACK;
    memset(open_groups, 0, sizeof open_groups);
    failed = false;
}

static void run_grid(size_t shared, int order) {
    Place fixed = static_shared();
    unsigned char* end = dynamic_shared;
    dynamic_shared -= (shared + 15) / 16 * 16;
    for (unsigned z = 0; z < gridDim.z && !failed; z++)
        for (unsigned y = 0; y < gridDim.y && !failed; y++)
            for (unsigned x = 0; x < gridDim.x && !failed; x++) {
                blockIdx = {x, y, z};
                memset(fixed.base, 0xCB, fixed.size);
                memset(dynamic_shared, 0xCB, end - dynamic_shared);
                run_block(order & 1);
            }
    dynamic_shared = end;
}

static int launch(const char* name, void (*function)(void**), const unsigned* grid, const unsigned* block,
                  size_t shared, void** args, int order, char* text, size_t room, uint64_t* address) {
    kernel_name = name, entry = function, arguments = args, message = text, message_room = room;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    total = block[0] * block[1] * block[2];
    reset();
    for (int i = 0; i < total; i++)
        fibers[i].index = {i % block[0], i / block[0] % block[1], i / (block[0] * block[1])};
    static char signal_stack[64 << 10];
    stack_t own = {signal_stack, 0, sizeof signal_stack}, before;
    sigaltstack(&own, &before);
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction act = {}, old[4];
    act.sa_sigaction = on_fault;
    act.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; i++) sigaction(signals[i], &act, &old[i]);
    unsigned char* end = dynamic_shared;
    if (sigsetjmp(fault, 1) == 0) {
        run_grid(shared, order);
    } else {
        dynamic_shared = end;
        uint3 t = fibers[current].index;
        *address = (uint64_t)fault_address;
        snprintf(text, room, "%s, block (%u,%u,%u), thread (%u,%u,%u): %s", name, blockIdx.x, blockIdx.y,
                 blockIdx.z, t.x, t.y, t.z,
                 fault_signal == SIGILL ? "a misaligned access, an index outside an array or a trap"
                 : fault_signal == SIGFPE ? "an integer division by zero" : "an access outside memory");
        failed = true;
    }
    for (int i = 0; i < 4; i++) sigaction(signals[i], &old[i], nullptr);
    sigaltstack(&before, nullptr);
    return failed ? (*address ? 2 : 1) : 0;
}

// ---- parameters of kernels, as text: kind (i integer, f float, b bool, s struct, v void) and size; pr or
// ---- pw before it for a pointer that is read or written through

template <class T> struct Is { static constexpr const char kind = 's'; };
#define HOST_KIND(type, letter) template <> struct Is<type> { static constexpr const char kind = letter; }
HOST_KIND(bool, 'b'); HOST_KIND(char, 'i'); HOST_KIND(signed char, 'i'); HOST_KIND(unsigned char, 'i');
HOST_KIND(short, 'i'); HOST_KIND(unsigned short, 'i'); HOST_KIND(int, 'i'); HOST_KIND(unsigned, 'i');
HOST_KIND(long, 'i'); HOST_KIND(unsigned long, 'i'); HOST_KIND(long long, 'i');
HOST_KIND(unsigned long long, 'i'); HOST_KIND(float, 'f'); HOST_KIND(double, 'f');
template <class T> struct Is<const T> : Is<T> {};

template <class T> struct Shape {
    static int tell(char* out, size_t room) { return snprintf(out, room, "%c%zu,", Is<T>::kind, sizeof(T)); }
};
template <class T> struct Size { static constexpr const size_t bytes = sizeof(T); };
template <> struct Is<void> { static constexpr const char kind = 'v'; };
template <> struct Size<void> { static constexpr const size_t bytes = 0; };
template <> struct Size<const void> : Size<void> {};
template <class T> struct Shape<T*> {
    static int tell(char* out, size_t room) {
        return snprintf(out, room, "pw%c%zu,", Is<T>::kind, Size<T>::bytes);
    }
};
template <class T> struct Shape<const T*> {
    static int tell(char* out, size_t room) {
        return snprintf(out, room, "pr%c%zu,", Is<T>::kind, Size<T>::bytes);
    }
};

template <class T> struct Value { typedef T type; };
template <class T> struct Value<const T> { typedef T type; };

template <auto F> struct Call;
template <class... P, void (*F)(P...)> struct Call<F> {
    template <size_t... I> struct At {};
    static void run(void** args) { go(args, (At<>*)nullptr); }
    template <size_t... I> static void go(void** args, At<I...>*) {
        if constexpr (sizeof...(I) < sizeof...(P)) go(args, (At<I..., sizeof...(I)>*)nullptr);
        else F(*(typename Value<P>::type*)args[I]...);
    }
    static int tell(char* out, size_t room) {
        int used = 0;
        ((used += Shape<P>::tell(out + used, room - used)), ...);
        return used;
    }
};

}  // namespace host
