// Batch normalisation of rows of channels (channels last): moments per channel, normalising, and the
// backward pass; and the second stage of the sums of either layout.
//
// A reduction has two stages: blocks (a tile of channels, a split of the rows) write partial results,
// [split][C], and blocks of one warp for each of 32 channels join them in a fixed order. Within a
// block, moments are sums of differences from the first value of the block's part, so that a large
// mean costs no digits and joining is adding.
// variants: ELEMENT=float PARAM=float
// variants: ELEMENT=double PARAM=double
// variants: ELEMENT=half_t PARAM=float,half_t
// variants: ELEMENT=bf16_t PARAM=float,bf16_t
#include "batchnorm.cuh"

#define DEEP 4  // rows that a thread loads before it computes with them

// ---- rows: thread (x, y) has N channels and every blockDim/width-th row ----------------------------

struct Tile {  // of a thread: its first channel and element, from row to row, and how many rows
    i64 channel, at, stride;
    int left, x, height;
    i64 split, splits;
    Part rows;
};

template <int N> __device__ __forceinline__ Tile tile_of(i64 rows, i64 channels, i64 width, i64 tiles) {
    Tile t;
    t.split = blockIdx.x / (u32)tiles, t.splits = gridDim.x / (u32)tiles;
    i64 tile = blockIdx.x - t.split * tiles;
    t.x = threadIdx.x % (u32)width, t.height = THREADS / (u32)width;
    int y = threadIdx.x / (u32)width;
    t.channel = (tile * width + t.x) * N;
    t.rows = part_of(rows, t.splits, t.split);
    t.left = t.channel < channels ? (int)(t.rows.end - t.rows.start) - y : 0;
    t.at = (t.rows.start + y) * channels + t.channel, t.stride = t.height * channels;
    return t;
}

// DEEP of a thread's rows, all under way before one is used: where there are fewer, the first again.
template <int N> __device__ __forceinline__ void load_deep(const T* from, const Tile& t,
                                                           Words<N> (&rows)[DEEP]) {
#pragma unroll
    for (int d = 0; d < DEEP; ++d) load<N>(rows[d], d * t.height < t.left ? from + d * t.stride : from);
}

template <int N> __device__ __forceinline__ void forget(Words<N> (&rows)[DEEP]) {
#pragma unroll
    for (int d = 0; d < DEEP; ++d) rows[d].forget();
}

__device__ __forceinline__ void go_on(Tile& t) { t.left -= DEEP * t.height, t.at += DEEP * t.stride; }

// Sums over the rows of the block's tile: threads i < width·N get those of the tile's i-th channel.
// All threads of a block call it.
template <int N> __device__ __forceinline__ Pair join_rows(Pair (&sums)[N], const Tile& t, int width) {
    __shared__ Pair scratch[WARPS][WARP * N];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int step = WARP / 2; step >= width; step >>= 1) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            sums[j].a += __shfl_down_sync(FULL_WARP, sums[j].a, step);
            sums[j].b += __shfl_down_sync(FULL_WARP, sums[j].b, step);
        }
    }
    if (lane < width) {
#pragma unroll
        for (int j = 0; j < N; ++j) scratch[warp][lane * N + j] = sums[j];
    }
    __syncthreads();
    Pair whole = {0, 0};
    if ((int)threadIdx.x < width * N) {
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            whole.a += scratch[w][threadIdx.x].a, whole.b += scratch[w][threadIdx.x].b;
        }
    }
    return whole;
}

// The channel whose sums a thread has after `join_rows`; `channels` or more: none.
template <int N> __device__ __forceinline__ i64 channel_of(const Tile& t, i64 channels, i64 width) {
    if (threadIdx.x >= (u32)(width * N)) return channels;
    return t.channel - t.x * N + threadIdx.x;
}

template <int N> __device__ void moments_rows_(const T* __restrict__ x, A* __restrict__ partial,
                                               i64 rows, i64 channels, i64 width, i64 tiles) {
    Tile t = tile_of<N>(rows, channels, width, tiles);
    const T* begin = x + t.rows.start * channels;
    i64 count = t.rows.end - t.rows.start;
    Words<N> origin;
    load<N>(origin, t.left > 0 ? begin + t.channel : x);
    Pair sums[N];
#pragma unroll
    for (int j = 0; j < N; ++j) sums[j].a = sums[j].b = 0;
    for (; t.left > 0; go_on(t)) {
        Words<N> here[DEEP];
        load_deep<N>(x + t.at, t, here);
        forget<N>(here);
        origin.forget();
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (d * t.height >= t.left) continue;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                A value = here[d].at(j) - origin.at(j);
                sums[j].a += value;
                sums[j].b += value * value;
            }
        }
    }
    Pair whole = join_rows<N>(sums, t, (int)width);
    i64 c = channel_of<N>(t, channels, width);
    if (c < channels) {
        A* out = partial + t.split * channels + c;
        whole = moments_of(whole, count ? (A)up(begin[c]) : (A)0, count);
        out[0] = whole.a, out[t.splits * channels] = whole.b;
    }
}

extern "C" __global__ void moments_rows(const T* x, A* partial, i64 rows, i64 channels, i64 width,
                                        i64 tiles) {
    moments_rows_<1>(x, partial, rows, channels, width, tiles);
}
extern "C" __global__ void moments_rows_wide(const T* x, A* partial, i64 rows, i64 channels, i64 width,
                                             i64 tiles) {
    moments_rows_<MANY>(x, partial, rows, channels, width, tiles);
}

// (Σ g, Σ g·(x − mean)), the second only if BOTH.
template <int N, bool BOTH> __device__ void sums_rows_(const T* __restrict__ g, const T* __restrict__ x,
                                            const A* __restrict__ mean, A* __restrict__ partial,
                                            i64 rows, i64 channels, i64 width, i64 tiles) {
    Tile t = tile_of<N>(rows, channels, width, tiles);
    Pair sums[N];
    A level[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        sums[j].a = sums[j].b = 0;
        level[j] = BOTH && t.channel < channels ? mean[t.channel + j] : (A)0;
    }
    for (; t.left > 0; go_on(t)) {
        Words<N> gs[DEEP], xs[DEEP];
        load_deep<N>(g + t.at, t, gs);
        if (BOTH) load_deep<N>(x + t.at, t, xs);
        forget<N>(gs);
        if (BOTH) forget<N>(xs);
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (d * t.height >= t.left) continue;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                A value = gs[d].at(j);
                sums[j].a += value;
                if (BOTH) sums[j].b += value * (xs[d].at(j) - level[j]);
            }
        }
    }
    Pair whole = join_rows<N>(sums, t, (int)width);
    i64 c = channel_of<N>(t, channels, width);
    if (c < channels) {
        A* out = partial + t.split * channels + c;
        out[0] = whole.a, out[t.splits * channels] = whole.b;
    }
}

// x may be null.
extern "C" __global__ void sums_rows(const T* g, const T* x, const A* mean, A* partial, i64 rows,
                                     i64 channels, i64 width, i64 tiles) {
    if (x) return sums_rows_<1, true>(g, x, mean, partial, rows, channels, width, tiles);
    sums_rows_<1, false>(g, x, mean, partial, rows, channels, width, tiles);
}
extern "C" __global__ void sums_rows_wide(const T* g, const T* x, const A* mean, A* partial, i64 rows,
                                          i64 channels, i64 width, i64 tiles) {
    if (x) return sums_rows_<MANY, true>(g, x, mean, partial, rows, channels, width, tiles);
    sums_rows_<MANY, false>(g, x, mean, partial, rows, channels, width, tiles);
}

// out = (x − mean)·scale + shift
template <int N> __device__ void normal_rows_(const T* __restrict__ x, const P* __restrict__ weight,
                                              const P* __restrict__ bias, const A* __restrict__ mean,
                                              const A* __restrict__ var, T* __restrict__ out, A eps,
                                              i64 rows, i64 channels, i64 width, i64 tiles) {
    Tile t = tile_of<N>(rows, channels, width, tiles);
    if (t.left <= 0) return;
    Words<N> here[DEEP];
    load_deep<N>(x + t.at, t, here);  // under way while the channels' numbers are computed
    Line l[N];
#pragma unroll
    for (int j = 0; j < N; ++j) l[j] = line_of(weight, bias, mean, var, eps, t.channel + j);
    for (;;) {
        forget<N>(here);
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (d * t.height >= t.left) continue;
            Words<N> made;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                made.pack.v[j] = down<T>((here[d].at(j) - l[j].level) * l[j].scale + l[j].shift);
            }
            store<N>(out + t.at + d * t.stride, made);
        }
        go_on(t);
        if (t.left <= 0) return;
        load_deep<N>(x + t.at, t, here);
    }
}

extern "C" __global__ void normal_rows(const T* x, const P* weight, const P* bias, const A* mean,
                                       const A* var, T* out, double eps, i64 rows, i64 channels,
                                       i64 width, i64 tiles) {
    normal_rows_<1>(x, weight, bias, mean, var, out, (A)eps, rows, channels, width, tiles);
}
extern "C" __global__ void normal_rows_wide(const T* x, const P* weight, const P* bias, const A* mean,
                                            const A* var, T* out, double eps, i64 rows, i64 channels,
                                            i64 width, i64 tiles) {
    normal_rows_<MANY>(x, weight, bias, mean, var, out, (A)eps, rows, channels, width, tiles);
}

// The gradient of x is g·scale + (x − mean)·along + level, of slopes [4][C]: mean, scale, along, level
// (see finish_sums); where the statistics were constants, not BOTH, it is g·scale.
template <int N, bool BOTH> __device__ void grad_rows_(const T* __restrict__ g, const T* __restrict__ x,
                                                       const A* __restrict__ slopes, T* __restrict__ out,
                                                       i64 rows, i64 channels, i64 width, i64 tiles) {
    Tile t = tile_of<N>(rows, channels, width, tiles);
    if (t.left <= 0) return;
    Words<N> gs[DEEP], xs[DEEP];
    load_deep<N>(g + t.at, t, gs);
    if (BOTH) load_deep<N>(x + t.at, t, xs);
    Pack<A, N> s[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        s[k] = *reinterpret_cast<const Pack<A, N>*>(slopes + k * channels + t.channel);
    }
    for (;;) {
        forget<N>(gs);
        if (BOTH) forget<N>(xs);
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (d * t.height >= t.left) continue;
            Words<N> made;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                A value = gs[d].at(j) * s[1].v[j];
                if (BOTH) value += (xs[d].at(j) - s[0].v[j]) * s[2].v[j] + s[3].v[j];
                made.pack.v[j] = down<T>(value);
            }
            store<N>(out + t.at + d * t.stride, made);
        }
        go_on(t);
        if (t.left <= 0) return;
        load_deep<N>(g + t.at, t, gs);
        if (BOTH) load_deep<N>(x + t.at, t, xs);
    }
}

// x may be null.
extern "C" __global__ void grad_rows(const T* g, const T* x, const A* slopes, T* out, i64 rows,
                                     i64 channels, i64 width, i64 tiles) {
    if (x) return grad_rows_<1, true>(g, x, slopes, out, rows, channels, width, tiles);
    grad_rows_<1, false>(g, x, slopes, out, rows, channels, width, tiles);
}
extern "C" __global__ void grad_rows_wide(const T* g, const T* x, const A* slopes, T* out, i64 rows,
                                          i64 channels, i64 width, i64 tiles) {
    if (x) return grad_rows_<MANY, true>(g, x, slopes, out, rows, channels, width, tiles);
    grad_rows_<MANY, false>(g, x, slopes, out, rows, channels, width, tiles);
}

// ---- the second stage: blocks of 32 × 32 threads, for 32 channels ----------------------------------

// Sums over the splits of what the threads of a column (a channel) have seen: all lanes of warp w get
// those of the block's channel w.
__device__ __forceinline__ void join_splits(A* sums, int many) {
    __shared__ A scratch[3][WARP][WARP + 1];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int k = 0; k < many; ++k) scratch[k][warp][lane] = sums[k];
    __syncthreads();
    for (int k = 0; k < many; ++k) sums[k] = warp_reduce(scratch[k][lane][warp], Add());
}

// mean, var (biased) of C channels; the running ones, where given, move towards them by `momentum`,
// the variance unbiased. `seen`, where given, counts batches. Parts are of `total` times `unit` values.
extern "C" __global__ void __launch_bounds__(WARP * WARP) finish_moments(
    const A* partial, A* mean, A* var, P* running_mean, P* running_var, i64* seen, double momentum,
    i64 splits, i64 channels, i64 total, i64 unit) {
    i64 c = blockIdx.x * (i64)WARP + threadIdx.x % WARP, all = splits * channels;
    A sums[3] = {0, 0, 0};  // Σ n·d, Σ n·d², Σ of squared deviations; d: means less the first one
    if (c < channels) {
        A origin = partial[c];
#pragma unroll 4
        for (i64 s = threadIdx.x / WARP; s < splits; s += WARP) {
            Part p = part_of(total, splits, s);
            A n = (A)((p.end - p.start) * unit), d = partial[s * channels + c] - origin;
            sums[0] += n * d;
            sums[1] += n * d * d;
            sums[2] += partial[all + s * channels + c];
        }
    }
    join_splits(sums, 3);
    c = blockIdx.x * (i64)WARP + threadIdx.x / WARP;
    if (threadIdx.x % WARP || c >= channels) return;
    if (c == 0 && seen) *seen += 1;
    A count = (A)(total * unit), part = sums[0] / count;
    A spread = sums[2] + (sums[1] - sums[0] * part), level = partial[c] + part;
    spread = spread < 0 ? (A)0 : spread;
    mean[c] = level;
    var[c] = spread / count;
    A move = (A)momentum, keep = (A)(1 - momentum);
    if (running_mean) running_mean[c] = down<P>(keep * up(running_mean[c]) + move * level);
    if (running_var) {
        A rest = count > 1 ? count - 1 : (A)1;
        running_var[c] = down<P>(keep * up(running_var[c]) + move * (spread / rest));
    }
}

// Of the partial sums (Σ g, Σ g·(x − mean)), where wanted: the sums [2][C], slopes [4][C] of grad_*,
// gradients of weight and bias. `count`: values of a channel where gradients flow through the
// statistics, else 0.
extern "C" __global__ void __launch_bounds__(WARP * WARP) finish_sums(
    const A* partial, A* sums, A* slopes, P* grad_weight, P* grad_bias, const P* weight, const A* mean,
    const A* var, double eps, double count, i64 splits, i64 channels) {
    i64 c = blockIdx.x * (i64)WARP + threadIdx.x % WARP, all = splits * channels;
    A own[2] = {0, 0};
    if (c < channels) {
#pragma unroll 4
        for (i64 s = threadIdx.x / WARP; s < splits; s += WARP) {
            own[0] += partial[s * channels + c];
            own[1] += partial[all + s * channels + c];
        }
    }
    join_splits(own, 2);
    c = blockIdx.x * (i64)WARP + threadIdx.x / WARP;
    if (threadIdx.x % WARP || c >= channels) return;
    if (sums) sums[c] = own[0], sums[channels + c] = own[1];
    if (grad_bias) grad_bias[c] = down<P>(own[0]);
    if (!slopes && !grad_weight) return;
    A inverse = (A)1 / sqrt(var[c] + (A)eps);
    if (grad_weight) grad_weight[c] = down<P>(own[1] * inverse);
    if (!slopes) return;
    A scale = weight ? inverse * up(weight[c]) : inverse;
    slopes[c] = mean[c], slopes[channels + c] = scale;
    slopes[2 * channels + c] = count > 0 ? -own[1] / (A)count * inverse * inverse * scale : (A)0;
    slopes[3 * channels + c] = count > 0 ? -own[0] / (A)count * scale : (A)0;
}
