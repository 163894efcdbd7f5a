// Philox4x32-10: 128 random bits from a counter of 128 bits and a key of 64 (Salmon, Moraes, Dror and
// Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// A stream is a key (the seed) and a place (the offset, a number of counters used so far). Element i of a
// call takes its bits from the counter `offset + i / elements per counter`, whatever thread computes it.
// Include common.cuh first.

struct Words { u32 v[4]; };

__device__ __forceinline__ Words philox(Words c, u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)0xD2511F53u * c.v[0], b = (u64)0xCD9E8D57u * c.v[2];
        Words next = {{(u32)(b >> 32) ^ c.v[1] ^ k0, (u32)b, (u32)(a >> 32) ^ c.v[3] ^ k1, (u32)a}};
        c = next;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// What a launch draws from. `state`: null; or, in a graph, (seed, offset) as they are when it runs, and
// `offset` counts from there.
struct Stream {
    u64 seed, offset;

    __device__ __forceinline__ Stream(u64 seed_, u64 offset_, const u64* state)
        : seed(state ? state[0] : seed_), offset(state ? state[1] + offset_ : offset_) {}

    __device__ __forceinline__ Words draw(u64 number) const {
        u64 at = offset + number;
        Words c = {{(u32)at, (u32)(at >> 32), 0, 0}};
        return philox(c, (u32)seed, (u32)(seed >> 32));
    }
};

// The 16-bit pieces of one draw: j from 0 to 7.
__device__ __forceinline__ u32 piece16(const Words& w, int j) { return w.v[j / 2] >> (j % 2 * 16) & 0xffffu; }

// The high word of a 64-bit product.
__device__ __forceinline__ u64 times_high(u64 a, u64 b) {
#ifdef DISTTORCH_HOST
    return (u64)((unsigned __int128)a * b >> 64);
#else
    return __umul64hi(a, b);
#endif
}
