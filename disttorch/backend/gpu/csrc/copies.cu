// Copies between memory of different strides. Elements are moved bit by bit, so that their size is all a
// kernel knows of them: UNIT is one access of `strided`, and an element elsewhere.
//
// All keep several accesses under way in a thread, divide by multiplication (places.cuh) and write whole
// accesses side by side; backend/gpu/copies.py chooses. Sizes are below 2³¹ accesses.
// variants: UNIT=u8,u16,u32,u64,u128
#include "common.cuh"
#include "places.cuh"

#define BLOCK 256
#define STEPS 4              // accesses under way in a thread
#define SIZE ((int)sizeof(UNIT))
#define WIDE (16 / SIZE)     // elements of a full access

// ---- the last axes of source and target are both contiguous, or neither is ---------------------------
// Neighbouring threads have neighbouring accesses.
template <int N> __device__ __forceinline__ void strided(const void* source, void* target, const Axes<N>& at) {
    const UNIT* __restrict__ from = shifted<UNIT>(source, at.from);
    UNIT* __restrict__ to = shifted<UNIT>(target, at.to);
    u32 first = blockIdx.x * (BLOCK * STEPS) + threadIdx.x;
    UNIT got[STEPS];
    i64 places[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        u32 i = first + k * BLOCK;
        if (i < (u32)at.count) {
            i64 place;
            at.find(i, place, places[k]);
            got[k] = from[place];
        }
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (first + k * BLOCK < (u32)at.count) to[places[k]] = got[k];
    }
}

#define STRIDED(N)                                                                          \
    extern "C" __global__ void __launch_bounds__(BLOCK) strided##N(                         \
        const void* source, void* target, Axes<N> at) { strided<N>(source, target, at); }
STRIDED(2) STRIDED(3) STRIDED(4) STRIDED(8)

// ---- the target's last axis is contiguous, the source's is not (or not aligned) -----------------------
// A thread collects WIDE elements, `step` apart (0: repeated, negative: reversed), and writes them at
// once. Units of the last axis are whole accesses in `to`, and WIDE elements in `from`.
template <int N> __device__ __forceinline__ void gather(const void* source, void* target, const Axes<N>& at,
                                                        i64 step) {
    typedef Pack<UNIT, WIDE> Full;
    const UNIT* __restrict__ from = shifted<UNIT>(source, at.from);
    Full* __restrict__ to = shifted<Full>(target, at.to);
    const int FEW = 2;
    u32 first = blockIdx.x * (BLOCK * FEW) + threadIdx.x;
    Full got[FEW];
    i64 places[FEW];
#pragma unroll
    for (int k = 0; k < FEW; k++) {
        u32 i = first + k * BLOCK;
        if (i < (u32)at.count) {
            i64 place;
            at.find(i, place, places[k]);
            if (step == 0) {
                UNIT one = from[place];
#pragma unroll
                for (int v = 0; v < WIDE; v++) got[k].v[v] = one;
            } else {
#pragma unroll
                for (int v = 0; v < WIDE; v++) got[k].v[v] = from[place + v * step];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < FEW; k++) {
        if (first + k * BLOCK < (u32)at.count) to[places[k]] = got[k];
    }
}

#define GATHER(N)                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK) gather##N(                                \
        const void* source, void* target, Axes<N> at, i64 step) { gather<N>(source, target, at, step); }
GATHER(2) GATHER(4) GATHER(8)

// ---- the target has no gap at all, but its rows are no whole number of 16 bytes -------------------------
// A thread writes the next WIDE elements of the target, which may end one row and begin another (rows have
// WIDE elements or more). `at` counts elements; what it says of the target is not used.
// M elements written at once: 16 bytes put together in registers (the compiler would store a Pack that was
// filled behind conditions by elements), or a single element.
template <class T, int M> struct Together {
    static __device__ __forceinline__ void store(T* to, const T* x) {
        u64 words[2] = {0, 0};
#pragma unroll
        for (int v = 0; v < M; v++) words[v * 2 / M] |= (u64)x[v] << (v % (M / 2) * 8 * sizeof(T) % 64);
#ifdef DISTTORCH_HOST
        u128 whole = {words[0], words[1]};
        *(u128*)to = whole;
#else
        asm volatile("st.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(words[0]), "l"(words[1]) : "memory");
#endif
    }
};
template <class T> struct Together<T, 1> {
    static __device__ __forceinline__ void store(T* to, const T* x) { *to = *x; }
};

template <int N> __device__ __forceinline__ void flow(const void* source, void* target, const Axes<N>& at) {
    const UNIT* __restrict__ from = shifted<UNIT>(source, at.from);
    UNIT* __restrict__ to = shifted<UNIT>(target, at.to);
    const int FEW = 2;
    const u32 count = (u32)at.count;
    const i64 step = at.axis[N - 1].from;
    UNIT got[FEW][WIDE];
#pragma unroll
    for (int k = 0; k < FEW; k++) {
        u32 e = (blockIdx.x * (BLOCK * FEW) + k * BLOCK + threadIdx.x) * WIDE;
        if (e < count) {
            const Divisor& row = at.axis[N - 1].along;
            u32 left = row.size - (e - row.of(e) * row.size);
            i64 place, next = 0, unused;
            at.find(e, place, unused);
            if (left < WIDE && e + left < count) at.find(e + left, next, unused);
#pragma unroll
            for (int v = 0; v < WIDE; v++) {
                i64 here = v < (int)left ? place + v * step : next + (v - (int)left) * step;
                got[k][v] = e + v < count ? from[here] : UNIT();
            }
        }
    }
#pragma unroll
    for (int k = 0; k < FEW; k++) {
        u32 e = (blockIdx.x * (BLOCK * FEW) + k * BLOCK + threadIdx.x) * WIDE;
        if (e + WIDE <= count) {
            Together<UNIT, WIDE>::store(to + e, got[k]);
        } else {
#pragma unroll
            for (int v = 0; v < WIDE; v++) {
                if (e + v < count) to[e + v] = got[k][v];
            }
        }
    }
}

#define FLOW(N)                                                                           \
    extern "C" __global__ void __launch_bounds__(BLOCK) flow##N(                          \
        const void* source, void* target, Axes<N> at) { flow<N>(source, target, at); }
FLOW(2) FLOW(4) FLOW(8)

// ---- transposes: the fastest axis of the source is b, that of the target is a -------------------------
// Other axes are batches.

struct Plane {
    Axes<6> tiles;   // the batches, then the numbers of tiles along a and along b (without strides)
    i64 from_a;      // source: the distance of neighbours along a
    i64 to_b;        // target: the distance of neighbours along b
    i64 size_a, size_b;
};

// The tile that a block has: where it begins, and how much of the plane is left there.
struct Tile {
    const UNIT* from;
    UNIT* to;
    i32 left_a, left_b;

    __device__ __forceinline__ Tile(const void* source, void* target, const Plane& p, int edge) {
        i64 f, t;
        p.tiles.find(blockIdx.x, f, t);
        u32 rest = p.tiles.axis[5].along.of(blockIdx.x);
        i64 b = (i64)(blockIdx.x - rest * p.tiles.axis[5].along.size) * edge;
        i64 a = (i64)(rest - p.tiles.axis[4].along.of(rest) * p.tiles.axis[4].along.size) * edge;
        from = shifted<UNIT>(source, p.tiles.from) + f + a * p.from_a + b;
        to = shifted<UNIT>(target, p.tiles.to) + t + a + b * p.to_b;
        left_a = (i32)(p.size_a - a);
        left_b = (i32)(p.size_b - b);
    }
};

#define EDGE (SIZE == 16 ? 16 : SIZE == 8 ? 32 : 64)  // elements along both sides of a tile

// Shared memory of a tile or of planes: the same for all kernels here.
#define ROOM (SIZE < 4 ? 4096 : 16384 / SIZE)  // elements of planes in a tile
__device__ __forceinline__ void* shared_room() {
    const int TILE = EDGE * (EDGE + 4) * SIZE, PLANES = ROOM * SIZE + 512;
    __shared__ __align__(16) u8 room[TILE > PLANES ? TILE : PLANES];
    return room;
}

// Accesses of M elements on both sides: a thread turns M×M elements in registers. In shared memory lie
// packs of M neighbours along a; a row of packs for every b, ordered so that neither the writes (b runs
// with the lanes) nor the reads (a does) meet in a bank.
template <int M> __device__ __forceinline__ void transpose(const void* source, void* target, const Plane& p) {
    typedef Pack<UNIT, M> Few;
    const int ROW = EDGE / M, PAD = M * SIZE < 4 ? 4 / (M * SIZE) : 1, MINE = ROW * ROW / BLOCK;
    Few* packs = (Few*)shared_room();
    Tile tile(source, target, p, EDGE);
    const UNIT* __restrict__ from = tile.from;
    UNIT* __restrict__ to = tile.to;
    Few rows[MINE][M];
#pragma unroll
    for (int k = 0; k < MINE; k++) {
        int i = k * BLOCK + threadIdx.x, b = i % ROW * M, a = i / ROW * M;
#pragma unroll
        for (int m = 0; m < M; m++) {
            if (b < tile.left_b && a + m < tile.left_a) {
                rows[k][m] = *(const Few*)(from + (a + m) * p.from_a + b);
            } else {
#pragma unroll
                for (int v = 0; v < M; v++) rows[k][m].v[v] = UNIT();
            }
        }
    }
#pragma unroll
    for (int k = 0; k < MINE; k++) {
        int i = k * BLOCK + threadIdx.x, b = i % ROW, a = i / ROW;
#pragma unroll
        for (int v = 0; v < M; v++) {
            Few turned;
#pragma unroll
            for (int m = 0; m < M; m++) turned.v[m] = rows[k][m].v[v];
            packs[(v * ROW + b) * (ROW + PAD) + a] = turned;  // of row b·M + v
        }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < MINE * M; k++) {
        int i = k * BLOCK + threadIdx.x, a = i % ROW, row = i / ROW, b = row % ROW * M + row / ROW;
        if (b < tile.left_b && a * M < tile.left_a) {
            *(Few*)(to + b * p.to_b + a * M) = packs[row * (ROW + PAD) + a];
        }
    }
}

// Registers for as many blocks as keep 32 to 128 KB of loads under way on a multiprocessor
#define TRANSPOSE(M)                                                                        \
    extern "C" __global__ void __launch_bounds__(BLOCK, M == 1 ? 4 : M == 2 ? 6 : 8)        \
    transpose##M(const void* source, void* target, Plane p) {                               \
        transpose<(M < WIDE ? M : WIDE)>(source, target, p); }
TRANSPOSE(1) TRANSPOSE(2) TRANSPOSE(4)

// ---- few planes to elements side by side, and back (channels-first and channels-last images) ----------
// One side has `few` planes (2 to 32), the other their elements in turn, without a gap. A tile is `high`
// elements of every plane, as planes in shared memory (`high` is a multiple of WIDE; few·high ≤ ROOM).
struct Planes {
    Axes<6> tiles;  // the batches, then the number of tiles (without strides)
    i64 pitch;      // the distance of planes
    i64 length;     // elements of a plane
    i64 high;       // elements of a plane in a tile
    Divisor few, rows;  // planes; accesses of a plane in a tile
};

template <int M, bool JOIN> __device__ __forceinline__ void planes(const void* source, void* target, const Planes& p) {
    typedef Pack<UNIT, M> Few;
    const int MOST = ROOM / M / BLOCK;
    UNIT* room = (UNIT*)shared_room();
    int few = (int)p.few.size, pitch = (int)p.high + WIDE;
    i64 f, t, first = (i64)(blockIdx.x - p.tiles.axis[5].along.of(blockIdx.x) * p.tiles.axis[5].along.size) * p.high;
    p.tiles.find(blockIdx.x, f, t);
    const UNIT* __restrict__ from = shifted<UNIT>(source, p.tiles.from) + f + first * (JOIN ? 1 : few);
    UNIT* __restrict__ to = shifted<UNIT>(target, p.tiles.to) + t + first * (JOIN ? few : 1);
    int here = (int)(p.length - first < p.high ? p.length - first : p.high);
    Few got[MOST];
#pragma unroll
    for (int k = 0; k < MOST; k++) {
        int i = k * BLOCK + threadIdx.x, c = (int)p.rows.of(i), b = (i - c * (int)p.rows.size) * M;
        if (JOIN ? c < few && b < here : i * M < few * here) {
            got[k] = *(const Few*)(from + (JOIN ? c * p.pitch + b : (i64)i * M));
        }
    }
#pragma unroll
    for (int k = 0; k < MOST; k++) {
        int i = k * BLOCK + threadIdx.x;
        if (JOIN) {
            int c = (int)p.rows.of(i), b = (i - c * (int)p.rows.size) * M;
            if (c < few && b < here) *(Few*)(room + c * pitch + b) = got[k];
        } else if (i * M < few * here) {
            int b = (int)p.few.of(i * M), c = i * M - b * few;
#pragma unroll
            for (int v = 0; v < M; v++) {
                room[c * pitch + b] = got[k].v[v];
                if (++c == few) c = 0, b++;
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < MOST; k++) {
        int i = k * BLOCK + threadIdx.x;
        if (!JOIN) {
            int c = (int)p.rows.of(i), b = (i - c * (int)p.rows.size) * M;
            if (c < few && b < here) *(Few*)(to + c * p.pitch + b) = *(const Few*)(room + c * pitch + b);
        } else if (i * M < few * here) {
            int b = (int)p.few.of(i * M), c = i * M - b * few;
            UNIT out[M];
#pragma unroll
            for (int v = 0; v < M; v++) {
                out[v] = room[c * pitch + b];
                if (++c == few) c = 0, b++;
            }
            Together<UNIT, M>::store(to + (i64)i * M, out);
        }
    }
}

#define PLANES(name, M, JOIN)                                                                     \
    extern "C" __global__ void __launch_bounds__(BLOCK) name(const void* source, void* target, Planes p) { \
        planes<M, JOIN>(source, target, p); }
PLANES(join_planes, WIDE, true) PLANES(part_planes, WIDE, false)
PLANES(join_planes1, 1, true) PLANES(part_planes1, 1, false)
