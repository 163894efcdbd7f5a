// Rows put together: many arrays into one, rows picked by their numbers, an array inside a frame of one
// value. Elements are moved bit by bit; UNIT is one access.
// variants: UNIT=u8,u16,u32,u64,u128
#include "common.cuh"
#include "places.cuh"

#define BLOCK 256
#define STEPS 4  // accesses under way in a thread

// ---- many arrays into one -----------------------------------------------------------------------------

// Rows of `width` accesses, `from_pitch` apart, to rows `to_pitch` apart.
struct Part {
    u64 from, to;
    i64 from_pitch, to_pitch;
    Divisor width;
    u32 count, first, pad;  // accesses; the first block
};

template <int MOST> struct Parts {
    Part part[MOST];
    i64 count;
};

template <int MOST> __device__ __forceinline__ void join(const Parts<MOST>& parts) {
    int low = 0, high = (int)parts.count;
    while (high - low > 1) {  // the last part whose first block is not after this one
        int middle = (low + high) / 2;
        if (parts.part[middle].first <= blockIdx.x) low = middle;
        else high = middle;
    }
    const Part& p = parts.part[low];
    const UNIT* __restrict__ from = (const UNIT*)p.from;
    UNIT* __restrict__ to = (UNIT*)p.to;
    u32 start = (blockIdx.x - p.first) * (BLOCK * STEPS) + threadIdx.x;
    UNIT got[STEPS];
    i64 places[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        u32 i = start + k * BLOCK;
        if (i < p.count) {
            u32 row = p.width.of(i), at = i - row * p.width.size;
            got[k] = from[row * p.from_pitch + at];
            places[k] = row * p.to_pitch + at;
        }
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (start + k * BLOCK < p.count) to[places[k]] = got[k];
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) join4(Parts<4> parts) { join<4>(parts); }
extern "C" __global__ void __launch_bounds__(BLOCK) join64(Parts<64> parts) { join<64>(parts); }

// ---- rows by their numbers ----------------------------------------------------------------------------

struct Taken {
    Divisor width, picks;  // accesses of a row; how many numbers
    i64 rows, count;
};

// EACH 0: out[o, i] = table[o, index[i]], each of `width` accesses; o counts blocks of `rows` rows in the
// table. EACH 1: out[o, i, n] = table[o, index[o, i, n], n], where `width` is how many n there are, `picks` how
// many i, `rows` how long the table's middle axis is.
template <class I, bool EACH>
__device__ __forceinline__ void take(const void* table, const I* __restrict__ index, void* out, const Taken& t) {
    const UNIT* __restrict__ from = (const UNIT*)table;
    UNIT* __restrict__ to = (UNIT*)out;
    u32 start = blockIdx.x * (BLOCK * STEPS) + threadIdx.x;
    UNIT got[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        u32 i = start + k * BLOCK;
        if (i < (u32)t.count) {
            u32 row = t.width.of(i), at = i - row * t.width.size;
            u32 o = t.picks.of(row);
            i64 n = index[EACH ? i : row - o * t.picks.size];
            if (n < 0) n += t.rows;
            if ((u64)n >= (u64)t.rows) n = (n % t.rows + t.rows) % t.rows;  // noted by the index check
            got[k] = from[((i64)o * t.rows + n) * t.width.size + at];
        }
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (start + k * BLOCK < (u32)t.count) to[start + k * BLOCK] = got[k];
    }
}

#define TAKE(name, I, EACH)                                                             \
    extern "C" __global__ void __launch_bounds__(BLOCK) name(                           \
        const void* table, const I* index, void* out, Taken t) { take<I, EACH>(table, index, out, t); }
TAKE(take_i64, i64, false) TAKE(take_i32, i32, false) TAKE(pick_i64, i64, true) TAKE(pick_i32, i32, true)

// ---- an array inside a frame --------------------------------------------------------------------------

struct Frame {
    u64 value[2];   // the bits of a full access outside
    i64 count;
    Divisor size[4];  // of the result, outermost first
    i32 low[4], high[4], pitch[4];  // where the array is; its strides, in accesses
};

extern "C" __global__ void __launch_bounds__(BLOCK) frame(const void* source, void* out, Frame f) {
    union { u64 bits[2]; UNIT unit; } outside;
    outside.bits[0] = f.value[0], outside.bits[1] = f.value[1];
    const UNIT* __restrict__ from = (const UNIT*)source;
    UNIT* __restrict__ to = (UNIT*)out;
    u32 start = blockIdx.x * (BLOCK * STEPS) + threadIdx.x;
    UNIT got[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        u32 i = start + k * BLOCK, left = i;
        bool inside = i < (u32)f.count;
        i64 place = 0;
#pragma unroll
        for (int d = 3; d >= 0; d--) {
            u32 rest = d ? f.size[d].of(left) : 0;
            i32 at = (i32)(left - rest * f.size[d].size);
            inside = inside && at >= f.low[d] && at < f.high[d];
            place += (i64)(at - f.low[d]) * f.pitch[d];
            left = rest;
        }
        got[k] = inside ? from[place] : outside.unit;
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (start + k * BLOCK < (u32)f.count) to[start + k * BLOCK] = got[k];
    }
}
