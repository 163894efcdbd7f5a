// Batch normalisation of N samples of C planes of L elements: moments per channel, normalising, and the
// backward pass. Their sums have the second stage of `batchnorm.cu`.
// variants: ELEMENT=float PARAM=float
// variants: ELEMENT=double PARAM=double
// variants: ELEMENT=half_t PARAM=float,half_t
// variants: ELEMENT=bf16_t PARAM=float,bf16_t
#include "batchnorm.cuh"

// ---- planes: block (channel, split) of the elements of a channel, N at a time ----------------------

// i / by, by a division of 32 bits where that will do: a fraction of the time.
__device__ __forceinline__ i64 divided(i64 i, i64 by) {
    return (i | by) >> 31 ? i / by : (i64)((u32)i / (u32)by);
}

// Where the i-th group of N elements of channel c begins; `each` groups lie in one plane.
template <int N> __device__ __forceinline__ i64 place_of(i64 i, i64 c, i64 channels, i64 each) {
    i64 n = divided(i, each);
    return ((n * channels + c) * each + (i - n * each)) * N;
}

struct Lane {  // a block's channel and part of its groups
    i64 channel, split, splits, each;
    Part groups;
};

template <int N> __device__ __forceinline__ Lane lane_of(i64 samples, i64 channels, i64 length) {
    Lane l;
    l.split = blockIdx.x / (u32)channels, l.splits = gridDim.x / (u32)channels;
    l.channel = blockIdx.x - l.split * channels, l.each = length / N;
    l.groups = part_of(samples * l.each, l.splits, l.split);
    return l;
}

// The whole block's sums in thread 0.
__device__ __forceinline__ Pair join_block(Pair value) {
    __shared__ Pair scratch[WARPS];
    value.a = warp_reduce(value.a, Add()), value.b = warp_reduce(value.b, Add());
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < WARPS; ++w) value.a += scratch[w].a, value.b += scratch[w].b;
    }
    return value;
}

template <int N> __device__ void moments_planes_(const T* __restrict__ x, A* __restrict__ partial,
                                                 i64 samples, i64 channels, i64 length) {
    Lane l = lane_of<N>(samples, channels, length);
    i64 count = (l.groups.end - l.groups.start) * N;
    A first = count ? (A)up(x[place_of<N>(l.groups.start, l.channel, channels, l.each)]) : (A)0;
    Pair sums = {0, 0};
#pragma unroll 4
    for (i64 i = l.groups.start + threadIdx.x; i < l.groups.end; i += THREADS) {
        Words<N> here;
        load<N>(here, x + place_of<N>(i, l.channel, channels, l.each));
        for (int j = 0; j < N; ++j) {
            A value = here.at(j) - first;
            sums.a += value;
            sums.b += value * value;
        }
    }
    Pair whole = join_block(sums);
    if (threadIdx.x == 0) {
        A* out = partial + l.split * channels + l.channel;
        whole = moments_of(whole, first, count);
        out[0] = whole.a, out[l.splits * channels] = whole.b;
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
    Lane l = lane_of<N>(samples, channels, length);
    Pair sums = {0, 0};
    A level = x ? mean[l.channel] : (A)0;
#pragma unroll 4
    for (i64 i = l.groups.start + threadIdx.x; i < l.groups.end; i += THREADS) {
        i64 at = place_of<N>(i, l.channel, channels, l.each);
        Words<N> gs, xs;
        load<N>(gs, g + at);
        load<N>(xs, (x ? x : g) + at);
        for (int j = 0; j < N; ++j) {
            A value = gs.at(j);
            sums.a += value;
            if (x) sums.b += value * (xs.at(j) - level);
        }
    }
    Pair whole = join_block(sums);
    if (threadIdx.x == 0) {
        A* out = partial + l.split * channels + l.channel;
        out[0] = whole.a, out[l.splits * channels] = whole.b;
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
        i64 plane = divided(i, each), c = plane - divided(plane, channels) * channels;
        Words<N> here, made;
        load<N>(here, x + i * N);
        Line l = line_of(weight, bias, mean, var, eps, c);
        for (int j = 0; j < N; ++j) {
            made.pack.v[j] = down<T>((here.at(j) - l.level) * l.scale + l.shift);
        }
        store<N>(out + i * N, made);
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
                                              const A* __restrict__ slopes, T* __restrict__ out,
                                              i64 samples, i64 channels, i64 length) {
    i64 each = length / N, total = samples * channels * each;
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < total; i += stride) {
        i64 plane = divided(i, each), c = plane - divided(plane, channels) * channels;
        Words<N> gs, xs, made;
        load<N>(gs, g + i * N);
        load<N>(xs, (x ? x : g) + i * N);
        A level = slopes[c], scale = slopes[channels + c];
        A along = slopes[2 * channels + c], rest = slopes[3 * channels + c];
        for (int j = 0; j < N; ++j) {
            A value = gs.at(j) * scale;
            if (x) value += (xs.at(j) - level) * along + rest;
            made.pack.v[j] = down<T>(value);
        }
        store<N>(out + i * N, made);
    }
}

extern "C" __global__ void grad_planes(const T* g, const T* x, const A* slopes, T* out, i64 samples,
                                       i64 channels, i64 length) {
    grad_planes_<1>(g, x, slopes, out, samples, channels, length);
}
extern "C" __global__ void grad_planes_wide(const T* g, const T* x, const A* slopes, T* out,
                                            i64 samples, i64 channels, i64 length) {
    grad_planes_<MANY>(g, x, slopes, out, samples, channels, length);
}

