// Batch normalisation: moments per channel, normalising, and the backward pass.
//
// Two layouts: `rows` (channels last: R rows of C channels) and `planes` (N samples of C planes of L
// elements). A reduction has two stages: blocks (tile of channels, split of the rest) write partial
// results, [split][C], and one warp a channel joins them in a fixed order. Moments are joined by Chan's
// formula; within a thread they are sums of differences from the first value that the thread saw, so
// that a large mean costs no digits.
// variants: ELEMENT=float PARAM=float
// variants: ELEMENT=double PARAM=double
// variants: ELEMENT=half_t PARAM=float,half_t
// variants: ELEMENT=bf16_t PARAM=float,bf16_t
#include "common.cuh"

typedef ELEMENT T;
typedef PARAM P;
typedef Acc<T>::type A;

#define MANY (16 / (int)sizeof(T))
#define THREADS 256
#define DEEP 4  // rows that a thread loads before it computes with them

// ---- one pass over a thread's part of a channel ---------------------------------------------------

struct Moments {
    A count, mean, square;
};

__device__ __forceinline__ Moments join(Moments a, Moments b) {
    A count = a.count + b.count;
    if (count == 0) return a;
    A delta = b.mean - a.mean, part = b.count / count;
    Moments out;
    out.count = count;
    out.mean = a.mean + delta * part;
    out.square = a.square + b.square + delta * delta * a.count * part;
    return out;
}

struct Shifted {  // sums of differences from the first value
    A first, sum, square;
    __device__ __forceinline__ void begin(A value) { first = value, sum = 0, square = 0; }
    __device__ __forceinline__ void add(A value) {
        A d = value - first;
        sum += d;
        square += d * d;
    }
    __device__ __forceinline__ Moments moments(i64 count) const {
        Moments out = {(A)count, 0, 0};
        if (count) {
            out.mean = first + sum / (A)count;
            A rest = square - sum * (sum / (A)count);
            out.square = rest < 0 ? (A)0 : rest;
        }
        return out;
    }
};

struct Pair {
    A a, b;
};

__device__ __forceinline__ Pair join(Pair x, Pair y) {
    Pair out = {x.a + y.a, x.b + y.b};
    return out;
}

__device__ __forceinline__ Moments down_by(Moments v, int step) {
    Moments out = {__shfl_down_sync(FULL_WARP, v.count, step), __shfl_down_sync(FULL_WARP, v.mean, step),
                   __shfl_down_sync(FULL_WARP, v.square, step)};
    return out;
}

__device__ __forceinline__ Pair down_by(Pair v, int step) {
    Pair out = {__shfl_down_sync(FULL_WARP, v.a, step), __shfl_down_sync(FULL_WARP, v.b, step)};
    return out;
}

// The whole block's value in thread 0.
template <class V> __device__ V join_block(V value, V* scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int step = WARP / 2; step; step >>= 1) value = join(value, down_by(value, step));
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < warps; ++w) value = join(value, scratch[w]);
    }
    return value;
}

// ---- rows: thread (x, y) has N channels and every blockDim/width-th row ----------------------------

struct Tile {  // a thread's channels and rows
    i64 channel, row, step, end;
    int x, y, height;
};

template <int N> __device__ __forceinline__ Tile tile_of(i64 rows, i64 channels, i64 width) {
    Tile t;
    t.x = threadIdx.x % (int)width, t.y = threadIdx.x / (int)width, t.height = blockDim.x / (int)width;
    t.channel = (blockIdx.x * width + t.x) * N;
    i64 share = (rows + gridDim.y - 1) / gridDim.y, start = blockIdx.y * share;
    t.end = start + share < rows ? start + share : rows;
    t.row = start + t.y, t.step = t.height;
    if (t.channel >= channels) t.end = 0;
    return t;
}

template <int N> __device__ __forceinline__ Pack<T, N> load(const T* x, i64 row, i64 channels,
                                                            i64 channel) {
    return *reinterpret_cast<const Pack<T, N>*>(x + row * channels + channel);
}

// DEEP of a thread's rows from r on, of g and (if `both`) of x: all under way before one is used.
template <int N> __device__ __forceinline__ void load_deep(const T* g, bool both, const T* x, i64 r,
                                                           const Tile& t, i64 channels,
                                                           Pack<T, N> (&gs)[DEEP], Pack<T, N> (&xs)[DEEP]) {
#pragma unroll
    for (int d = 0; d < DEEP; ++d) {
        i64 row = r + d * t.step;
        if (row < t.end) gs[d] = load<N>(g, row, channels, t.channel);
        if (row < t.end && both) xs[d] = load<N>(x, row, channels, t.channel);
    }
}

template <int N> __device__ __forceinline__ void store(T* x, i64 row, i64 channels, i64 channel,
                                                       Pack<T, N> values) {
    *reinterpret_cast<Pack<T, N>*>(x + row * channels + channel) = values;
}

// Joins the values of the threads with the same x in thread y = 0; all threads of a block call it.
template <class V> __device__ __forceinline__ V join_column(V value, V* scratch, Tile t, int width) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    for (int half = t.height / 2; half; half >>= 1) {
        __syncthreads();
        if (t.y < half) scratch[threadIdx.x] = join(scratch[threadIdx.x],
                                                    scratch[threadIdx.x + half * width]);
    }
    return scratch[threadIdx.x];
}

template <int N> __device__ void moments_rows_(const T* __restrict__ x, A* __restrict__ partial,
                                               i64 rows, i64 channels, i64 width) {
    __shared__ Moments scratch[THREADS];
    Tile t = tile_of<N>(rows, channels, width);
    Shifted seen[N];
    i64 count = t.row < t.end ? (t.end - t.row + t.step - 1) / t.step : 0;
    if (count) {
        Pack<T, N> here = load<N>(x, t.row, channels, t.channel);
        for (int j = 0; j < N; ++j) seen[j].begin(up(here.v[j]));
    }
    for (i64 r = t.row; r < t.end; r += DEEP * t.step) {
        Pack<T, N> here[DEEP];
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (r + d * t.step < t.end) here[d] = load<N>(x, r + d * t.step, channels, t.channel);
        }
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (r + d * t.step >= t.end) continue;
            for (int j = 0; j < N; ++j) seen[j].add(up(here[d].v[j]));
        }
    }
    i64 all = (i64)gridDim.y * channels;
    for (int j = 0; j < N; ++j) {
        Moments whole = join_column(seen[j].moments(count), scratch, t, (int)width);
        if (t.y == 0 && t.channel < channels) {
            A* out = partial + blockIdx.y * channels + t.channel + j;
            out[0] = whole.count, out[all] = whole.mean, out[2 * all] = whole.square;
        }
    }
}

extern "C" __global__ void moments_rows(const T* x, A* partial, i64 rows, i64 channels, i64 width) {
    moments_rows_<1>(x, partial, rows, channels, width);
}
extern "C" __global__ void moments_rows_wide(const T* x, A* partial, i64 rows, i64 channels, i64 width) {
    moments_rows_<MANY>(x, partial, rows, channels, width);
}

// (Σ g, Σ g·(x − mean)); x may be null, then the second is 0.
template <int N> __device__ void sums_rows_(const T* __restrict__ g, const T* __restrict__ x,
                                            const A* __restrict__ mean, A* __restrict__ partial,
                                            i64 rows, i64 channels, i64 width) {
    __shared__ Pair scratch[THREADS];
    Tile t = tile_of<N>(rows, channels, width);
    Pair sums[N];
    A level[N];
    for (int j = 0; j < N; ++j) {
        sums[j].a = sums[j].b = 0;
        level[j] = x && t.channel < channels ? mean[t.channel + j] : (A)0;
    }
    for (i64 r = t.row; r < t.end; r += DEEP * t.step) {
        Pack<T, N> gs[DEEP], xs[DEEP];
        load_deep<N>(g, x, x, r, t, channels, gs, xs);
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (r + d * t.step >= t.end) continue;
            for (int j = 0; j < N; ++j) {
                A value = up(gs[d].v[j]);
                sums[j].a += value;
                if (x) sums[j].b += value * (up(xs[d].v[j]) - level[j]);
            }
        }
    }
    i64 all = (i64)gridDim.y * channels;
    for (int j = 0; j < N; ++j) {
        Pair whole = join_column(sums[j], scratch, t, (int)width);
        if (t.y == 0 && t.channel < channels) {
            A* out = partial + blockIdx.y * channels + t.channel + j;
            out[0] = whole.a, out[all] = whole.b;
        }
    }
}

extern "C" __global__ void sums_rows(const T* g, const T* x, const A* mean, A* partial, i64 rows,
                                     i64 channels, i64 width) {
    sums_rows_<1>(g, x, mean, partial, rows, channels, width);
}
extern "C" __global__ void sums_rows_wide(const T* g, const T* x, const A* mean, A* partial, i64 rows,
                                          i64 channels, i64 width) {
    sums_rows_<MANY>(g, x, mean, partial, rows, channels, width);
}

// out = (x − mean)·scale + shift, scale = weight/√(var + eps)
template <int N> __device__ void normal_rows_(const T* __restrict__ x, const P* __restrict__ weight,
                                              const P* __restrict__ bias, const A* __restrict__ mean,
                                              const A* __restrict__ var, T* __restrict__ out, A eps,
                                              i64 rows, i64 channels, i64 width) {
    Tile t = tile_of<N>(rows, channels, width);
    if (t.row >= t.end) return;
    A level[N], scale[N], shift[N];
    for (int j = 0; j < N; ++j) {
        i64 c = t.channel + j;
        level[j] = mean[c];
        scale[j] = (A)1 / sqrt(var[c] + eps);
        if (weight) scale[j] *= up(weight[c]);
        shift[j] = bias ? (A)up(bias[c]) : (A)0;
    }
    for (i64 r = t.row; r < t.end; r += DEEP * t.step) {
        Pack<T, N> here[DEEP];
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (r + d * t.step < t.end) here[d] = load<N>(x, r + d * t.step, channels, t.channel);
        }
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (r + d * t.step >= t.end) continue;
            for (int j = 0; j < N; ++j) {
                here[d].v[j] = down<T>((up(here[d].v[j]) - level[j]) * scale[j] + shift[j]);
            }
            store<N>(out, r + d * t.step, channels, t.channel, here[d]);
        }
    }
}

extern "C" __global__ void normal_rows(const T* x, const P* weight, const P* bias, const A* mean,
                                       const A* var, T* out, double eps, i64 rows, i64 channels,
                                       i64 width) {
    normal_rows_<1>(x, weight, bias, mean, var, out, (A)eps, rows, channels, width);
}
extern "C" __global__ void normal_rows_wide(const T* x, const P* weight, const P* bias, const A* mean,
                                            const A* var, T* out, double eps, i64 rows, i64 channels,
                                            i64 width) {
    normal_rows_<MANY>(x, weight, bias, mean, var, out, (A)eps, rows, channels, width);
}

// The gradient of x is g·scale + (x − mean)·along + level; sums (2×C of Σ g, Σ g·(x − mean)) are null
// where the statistics were constants.
struct Slope {
    A scale, along, level, mean;
};

__device__ __forceinline__ Slope slope_of(const P* weight, const A* mean, const A* var, const A* sums,
                                          A eps, A count, i64 channels, i64 c) {
    A inverse = (A)1 / sqrt(var[c] + eps);
    Slope s = {weight ? inverse * up(weight[c]) : inverse, 0, 0, mean[c]};
    if (sums) {
        s.along = -sums[channels + c] / count * inverse * inverse * s.scale;
        s.level = -sums[c] / count * s.scale;
    }
    return s;
}

template <int N> __device__ void grad_rows_(const T* __restrict__ g, const T* __restrict__ x,
                                            const P* __restrict__ weight, const A* __restrict__ mean,
                                            const A* __restrict__ var, const A* __restrict__ sums,
                                            T* __restrict__ out, A eps, i64 rows, i64 channels,
                                            i64 width) {
    Tile t = tile_of<N>(rows, channels, width);
    if (t.row >= t.end) return;
    Slope s[N];
    for (int j = 0; j < N; ++j) {
        s[j] = slope_of(weight, mean, var, sums, eps, (A)rows, channels, t.channel + j);
    }
    for (i64 r = t.row; r < t.end; r += DEEP * t.step) {
        Pack<T, N> gs[DEEP], xs[DEEP];
        load_deep<N>(g, sums, x, r, t, channels, gs, xs);
#pragma unroll
        for (int d = 0; d < DEEP; ++d) {
            if (r + d * t.step >= t.end) continue;
            for (int j = 0; j < N; ++j) {
                A value = up(gs[d].v[j]) * s[j].scale;
                if (sums) value += (up(xs[d].v[j]) - s[j].mean) * s[j].along + s[j].level;
                gs[d].v[j] = down<T>(value);
            }
            store<N>(out, r + d * t.step, channels, t.channel, gs[d]);
        }
    }
}

extern "C" __global__ void grad_rows(const T* g, const T* x, const P* weight, const A* mean,
                                     const A* var, const A* sums, T* out, double eps, i64 rows, i64 channels,
                                     i64 width) {
    grad_rows_<1>(g, x, weight, mean, var, sums, out, (A)eps, rows, channels, width);
}
extern "C" __global__ void grad_rows_wide(const T* g, const T* x, const P* weight, const A* mean,
                                          const A* var, const A* sums, T* out, double eps, i64 rows,
                                          i64 channels, i64 width) {
    grad_rows_<MANY>(g, x, weight, mean, var, sums, out, (A)eps, rows, channels, width);
}

// ---- planes: block (channel, split) of the elements of a channel, N at a time ----------------------

// Where the i-th group of N elements of channel c begins; `each` groups lie in one plane.
template <int N> __device__ __forceinline__ i64 place_of(i64 i, i64 c, i64 channels, i64 each) {
    i64 n = i / each;
    return ((n * channels + c) * each + (i - n * each)) * N;
}

template <int N> __device__ void moments_planes_(const T* __restrict__ x, A* __restrict__ partial,
                                                 i64 samples, i64 channels, i64 length) {
    __shared__ Moments scratch[WARP];
    i64 each = length / N, total = samples * each, share = (total + gridDim.y - 1) / gridDim.y;
    i64 start = blockIdx.y * share, end = start + share < total ? start + share : total, count = 0;
    i64 c = blockIdx.x;
    Shifted seen = {0, 0, 0};
    for (i64 i = start + threadIdx.x; i < end; i += blockDim.x, count += N) {
        Pack<T, N> here = *reinterpret_cast<const Pack<T, N>*>(x + place_of<N>(i, c, channels, each));
        if (count == 0) seen.begin(up(here.v[0]));
        for (int j = 0; j < N; ++j) seen.add(up(here.v[j]));
    }
    Moments whole = join_block(seen.moments(count), scratch);
    if (threadIdx.x == 0) {
        i64 all = (i64)gridDim.y * channels;
        A* out = partial + blockIdx.y * channels + c;
        out[0] = whole.count, out[all] = whole.mean, out[2 * all] = whole.square;
    }
}

extern "C" __global__ void moments_planes(const T* x, A* partial, i64 samples, i64 channels,
                                          i64 length) {
    moments_planes_<1>(x, partial, samples, channels, length);
}
extern "C" __global__ void moments_planes_wide(const T* x, A* partial, i64 samples, i64 channels,
                                               i64 length) {
    moments_planes_<MANY>(x, partial, samples, channels, length);
}

template <int N> __device__ void sums_planes_(const T* __restrict__ g, const T* __restrict__ x,
                                              const A* __restrict__ mean, A* __restrict__ partial,
                                              i64 samples, i64 channels, i64 length) {
    __shared__ Pair scratch[WARP];
    i64 each = length / N, total = samples * each, share = (total + gridDim.y - 1) / gridDim.y;
    i64 start = blockIdx.y * share, end = start + share < total ? start + share : total;
    i64 c = blockIdx.x;
    Pair sums = {0, 0};
    A level = x ? mean[c] : (A)0;
    for (i64 i = start + threadIdx.x; i < end; i += blockDim.x) {
        i64 at = place_of<N>(i, c, channels, each);
        Pack<T, N> gs = *reinterpret_cast<const Pack<T, N>*>(g + at), xs = gs;
        if (x) xs = *reinterpret_cast<const Pack<T, N>*>(x + at);
        for (int j = 0; j < N; ++j) {
            A value = up(gs.v[j]);
            sums.a += value;
            if (x) sums.b += value * (up(xs.v[j]) - level);
        }
    }
    Pair whole = join_block(sums, scratch);
    if (threadIdx.x == 0) {
        A* out = partial + blockIdx.y * channels + c;
        out[0] = whole.a, out[(i64)gridDim.y * channels] = whole.b;
    }
}

extern "C" __global__ void sums_planes(const T* g, const T* x, const A* mean, A* partial, i64 samples,
                                       i64 channels, i64 length) {
    sums_planes_<1>(g, x, mean, partial, samples, channels, length);
}
extern "C" __global__ void sums_planes_wide(const T* g, const T* x, const A* mean, A* partial,
                                            i64 samples, i64 channels, i64 length) {
    sums_planes_<MANY>(g, x, mean, partial, samples, channels, length);
}

template <int N> __device__ void normal_planes_(const T* __restrict__ x, const P* __restrict__ weight,
                                                const P* __restrict__ bias,
                                                const A* __restrict__ mean, const A* __restrict__ var,
                                                T* __restrict__ out, A eps, i64 samples, i64 channels,
                                                i64 length) {
    i64 each = length / N, total = samples * channels * each;
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < total; i += stride) {
        i64 c = i / each % channels;
        A level = mean[c], scale = (A)1 / sqrt(var[c] + eps), shift = bias ? (A)up(bias[c]) : (A)0;
        if (weight) scale *= up(weight[c]);
        Pack<T, N> here = reinterpret_cast<const Pack<T, N>*>(x)[i];
        for (int j = 0; j < N; ++j) here.v[j] = down<T>((up(here.v[j]) - level) * scale + shift);
        reinterpret_cast<Pack<T, N>*>(out)[i] = here;
    }
}

extern "C" __global__ void normal_planes(const T* x, const P* weight, const P* bias, const A* mean,
                                         const A* var, T* out, double eps, i64 samples, i64 channels,
                                         i64 length) {
    normal_planes_<1>(x, weight, bias, mean, var, out, (A)eps, samples, channels, length);
}
extern "C" __global__ void normal_planes_wide(const T* x, const P* weight, const P* bias, const A* mean,
                                              const A* var, T* out, double eps, i64 samples,
                                              i64 channels, i64 length) {
    normal_planes_<MANY>(x, weight, bias, mean, var, out, (A)eps, samples, channels, length);
}

template <int N> __device__ void grad_planes_(const T* __restrict__ g, const T* __restrict__ x,
                                              const P* __restrict__ weight,
                                              const A* __restrict__ mean, const A* __restrict__ var,
                                              const A* __restrict__ sums, T* __restrict__ out, A eps,
                                              i64 samples, i64 channels, i64 length) {
    i64 each = length / N, total = samples * channels * each;
    A count = (A)(samples * length);
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < total; i += stride) {
        Slope s = slope_of(weight, mean, var, sums, eps, count, channels, i / each % channels);
        Pack<T, N> gs = reinterpret_cast<const Pack<T, N>*>(g)[i];
        if (sums) {
            Pack<T, N> xs = reinterpret_cast<const Pack<T, N>*>(x)[i];
            for (int j = 0; j < N; ++j) {
                gs.v[j] = down<T>(up(gs.v[j]) * s.scale + (up(xs.v[j]) - s.mean) * s.along + s.level);
            }
        } else {
            for (int j = 0; j < N; ++j) gs.v[j] = down<T>(up(gs.v[j]) * s.scale);
        }
        reinterpret_cast<Pack<T, N>*>(out)[i] = gs;
    }
}

extern "C" __global__ void grad_planes(const T* g, const T* x, const P* weight, const A* mean,
                                       const A* var, const A* sums, T* out, double eps, i64 samples,
                                       i64 channels, i64 length) {
    grad_planes_<1>(g, x, weight, mean, var, sums, out, (A)eps, samples, channels, length);
}
extern "C" __global__ void grad_planes_wide(const T* g, const T* x, const P* weight, const A* mean,
                                            const A* var, const A* sums, T* out, double eps,
                                            i64 samples, i64 channels, i64 length) {
    grad_planes_<MANY>(g, x, weight, mean, var, sums, out, (A)eps, samples, channels, length);
}

// ---- the second stage: a warp a channel ------------------------------------------------------------

// mean, var (biased) of C channels; the running ones, where given, move towards them by `momentum`,
// the variance unbiased.
extern "C" __global__ void finish_moments(const A* partial, A* mean, A* var, P* running_mean,
                                          P* running_var, double momentum, i64 splits, i64 channels) {
    i64 c = blockIdx.x * (i64)(blockDim.x / WARP) + threadIdx.x / WARP, all = splits * channels;
    if (c >= channels) return;
    Moments m = {0, 0, 0};
    for (i64 s = threadIdx.x % WARP; s < splits; s += WARP) {
        const A* from = partial + s * channels + c;
        Moments other = {from[0], from[all], from[2 * all]};
        m = join(m, other);
    }
    for (int step = WARP / 2; step; step >>= 1) m = join(m, down_by(m, step));
    if (threadIdx.x % WARP) return;
    mean[c] = m.mean;
    var[c] = m.square / m.count;
    A move = (A)momentum, keep = (A)(1 - momentum);
    if (running_mean) running_mean[c] = down<P>(keep * up(running_mean[c]) + move * m.mean);
    if (running_var) {
        A rest = m.count > 1 ? m.count - 1 : (A)1;
        running_var[c] = down<P>(keep * up(running_var[c]) + move * (m.square / rest));
    }
}

// sums (2×C), and from them the gradients of weight and bias, where wanted.
extern "C" __global__ void finish_sums(const A* partial, A* sums, P* grad_weight, P* grad_bias,
                                       const A* var, double eps, i64 splits, i64 channels) {
    i64 c = blockIdx.x * (i64)(blockDim.x / WARP) + threadIdx.x / WARP, all = splits * channels;
    if (c >= channels) return;
    Pair p = {0, 0};
    for (i64 s = threadIdx.x % WARP; s < splits; s += WARP) {
        Pair other = {partial[s * channels + c], partial[all + s * channels + c]};
        p = join(p, other);
    }
    for (int step = WARP / 2; step; step >>= 1) p = join(p, down_by(p, step));
    if (threadIdx.x % WARP) return;
    if (sums) sums[c] = p.a, sums[channels + c] = p.b;
    if (grad_weight) grad_weight[c] = down<P>(p.b * ((A)1 / sqrt(var[c] + (A)eps)));
    if (grad_bias) grad_bias[c] = down<P>(p.a);
}
