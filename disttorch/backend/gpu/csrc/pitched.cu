// Rows copied between matrices whose rows lie at different distances and may begin anywhere: a row of
// 50,257 16-bit numbers begins at any even address. What a target row has beyond the source's is zero.
//
// A thread writes 16 aligned bytes; the 16 bytes that belong there lie in two neighbouring aligned
// stretches of the source, of which each is read once from memory (the second comes from the cache) and
// the pair shifted in registers. Accesses that would leave the source's row are made element by element.
// variants: UNIT=u16,u32
#include "common.cuh"

#define BLOCK 256
#define STEPS 2  // accesses under way in a thread
#define WIDE (16 / (int)sizeof(UNIT))

struct alignas(16) Words { u32 w[4]; };

// The 16 bytes that begin `bytes` (a multiple of UNIT's size, below 16) after the first of 32.
__device__ __forceinline__ Words from_pair(const Words& low, const Words& high, u32 bytes) {
    u32 w[8];
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = low.w[i], w[4 + i] = high.w[i];
#pragma unroll
    for (int i = 0; i < 6; i++) w[i] = bytes & 8 ? w[i + 2] : w[i];
#pragma unroll
    for (int i = 0; i < 5; i++) w[i] = bytes & 4 ? w[i + 1] : w[i];
    Words out;
#pragma unroll
    for (int i = 0; i < 4; i++) out.w[i] = bytes & 2 ? (w[i] >> 16) | (w[i + 1] << 16) : w[i];
    return out;
}

// The aligned pair that holds the 16 bytes of a row from element `at`: put under way by `ask`, where it lies
// inside the row, and made those 16 bytes by `take`. Two steps, so that a thread asks for all of its pairs
// before it waits for one.
struct Pair {
    Words low, high;
    u32 bytes;
    bool inside;

    __device__ __forceinline__ void ask(const UNIT* __restrict__ row, i64 width, i64 at) {
        const u64 begin = (u64)row, place = (u64)(row + at), first = place & ~(u64)15;
        bytes = (u32)(place & 15);
        const u64 second = bytes ? first + 16 : first;
        inside = first >= begin && second + 16 <= (u64)(row + width);
        const char* bytewise = (const char*)row;  // an address made of a number would be of no known space
        if (inside) {
            low = *(const Words*)(bytewise + (i64)(first - begin));
            high = *(const Words*)(bytewise + (i64)(second - begin));
        }
    }

    __device__ __forceinline__ Words take(const UNIT* __restrict__ row, i64 width, i64 at) const {
        if (inside) return from_pair(low, high, bytes);
        union { Words words; UNIT units[WIDE]; } out;
#pragma unroll
        for (int v = 0; v < WIDE; v++) out.units[v] = at + v < width ? row[at + v] : UNIT(0);
        return out.words;
    }
};

// source: matrices of rows × width, `step` elements apart, their rows `from` elements apart; target: matrices
// of `per` rows × whole, one after another, their rows `to` elements apart. A row is the business of `tiles`
// neighbouring blocks.
extern "C" __global__ void __launch_bounds__(BLOCK) copy_rows(
        const UNIT* source, UNIT* target, i64 rows, i64 width, i64 from, i64 step, i64 per, i64 whole,
        i64 to, i64 tiles) {
    const u32 row = blockIdx.x / (u32)tiles, tile = blockIdx.x - row * (u32)tiles;
    const u32 matrix = row / (u32)per, r = row - matrix * (u32)per;
    const UNIT* __restrict__ s = source + matrix * step + r * from;
    UNIT* __restrict__ t = target + row * to;
    const i64 here = r < rows ? width : 0;
    i64 head = (i64)((0 - (u64)t) % 16 / sizeof(UNIT));  // elements before the first aligned access
    head = head < whole ? head : whole;
    const i64 accesses = (whole - head) / WIDE, first = (i64)tile * (BLOCK * STEPS) + threadIdx.x;
    Pair got[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        const i64 i = first + k * BLOCK;
        if (i < accesses) got[k].ask(s, here, head + i * WIDE);
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        const i64 i = first + k * BLOCK;
        if (i < accesses) *(Words*)(t + head + i * WIDE) = got[k].take(s, here, head + i * WIDE);
    }
    if (tile == 0 && threadIdx.x < 2 * WIDE) {  // what is left at both ends, fewer than WIDE each
        const i64 i = threadIdx.x < WIDE ? threadIdx.x : head + accesses * WIDE + threadIdx.x - WIDE;
        if (i < (threadIdx.x < WIDE ? head : whole)) t[i] = i < here ? s[i] : UNIT(0);
    }
}
