// Indices: are they in range, and the stable order of them, by radix sort in digits of 8 bits. Equal keys
// keep their order, so sums over the sorted positions have one order on every run and every GPU.
// variants: INDEX=i32,i64
#include "common.cuh"

#define DIGITS 256  // and as many threads a block
#define WARPS (DIGITS / WARP)

// What is wrong with indices: found (1 or 0), the index, the least and the first too large. In memory of
// the host that the GPU can write, so that nobody has to wait for it.
__device__ __forceinline__ void tell_outside(i64* flag, i64 value, i64 low, i64 high) {
    flag[1] = value;
    flag[2] = low;
    flag[3] = high;
    __threadfence_system();
    flag[0] = 1;
}

extern "C" __global__ void check_index(const INDEX* index, i64 n, i64 low, i64 high, i64* flag) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
        i64 value = index[i];
        if (value < low || value >= high) tell_outside(flag, value, low, high);
    }
}

// Keys to sort by: the index; `size` for one out of range, which belongs to no place.
extern "C" __global__ void index_keys(const INDEX* index, u32* keys, i64 n, i64 size) {
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
        i64 value = index[i];
        keys[i] = (u32)(value < 0 || value >= size ? size : value);
    }
}

// A block has the keys from `tile` times its number, `tile` (a multiple of its threads) of them; a warp
// an eighth of these.

// counts[block][digit]: how often a digit is in each block's keys.
extern "C" __global__ void sort_count(const u32* keys, u32* counts, i64 n, i64 tile, i64 shift) {
    __shared__ u32 here[DIGITS];
    here[threadIdx.x] = 0;
    __syncthreads();
    i64 begin = blockIdx.x * tile, end = begin + tile < n ? begin + tile : n;
    for (i64 i = begin + threadIdx.x; i < end; i += DIGITS) atomicAdd(&here[keys[i] >> shift & 255u], 1u);
    __syncthreads();
    counts[blockIdx.x * DIGITS + threadIdx.x] = here[threadIdx.x];
}

// The exclusive sum over the threads of a block.
__device__ __forceinline__ u32 sum_before(u32 value, u32* scratch) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = value;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        u32 below = __shfl_up_sync(FULL_WARP, sum, step);
        if (lane >= (u32)step) sum += below;
    }
    if (lane == WARP - 1) scratch[warp] = sum;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) sum += scratch[w];
    return sum - value;
}

// Move every key, and its position (its place in `keys` where `positions` is null), to where the digit
// puts it: after all smaller digits, after the same digit of blocks, warps and lanes before.
extern "C" __global__ void sort_move(const u32* keys, const u32* positions, u32* out_keys,
                                     u32* out_positions, const u32* counts, i64 n, i64 tile, i64 shift) {
    __shared__ u32 next[WARPS][DIGITS], scratch[WARPS];
    u32 digit = threadIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 all = 0, before = 0;
    for (u32 b = 0; b < gridDim.x; b++) {
        u32 count = counts[(i64)b * DIGITS + digit];
        if (b < blockIdx.x) before += count;
        all += count;
    }
    u32 place = sum_before(all, scratch) + before;
#pragma unroll
    for (int w = 0; w < WARPS; w++) next[w][digit] = 0;
    __syncthreads();

    i64 part = tile / WARPS, begin = blockIdx.x * tile + warp * part;
    i64 end = begin + part < n ? begin + part : n;
    for (i64 i = begin + lane; i < end; i += WARP) atomicAdd(&next[warp][keys[i] >> shift & 255u], 1u);
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        u32 count = next[w][digit];
        next[w][digit] = place;
        place += count;
    }
    __syncthreads();

    for (i64 i = begin + lane; i - lane < end; i += WARP) {
        bool real = i < end;
        u32 key = real ? keys[i] : 0, mine = real ? key >> shift & 255u : DIGITS;
        u32 like = __match_any_sync(FULL_WARP, mine), earlier = like & ((1u << lane) - 1);
        u32 to = real ? next[warp][mine] + __popc(earlier) : 0;
        __syncwarp();
        if (real && earlier == 0) next[warp][mine] += __popc(like);
        __syncwarp();
        if (real) {
            out_keys[to] = key;
            out_positions[to] = positions ? positions[i] : (u32)i;
        }
    }
}
