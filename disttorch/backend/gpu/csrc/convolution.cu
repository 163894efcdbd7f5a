// Windows of a convolution as rows of a matrix and back, and convolutions of single channels.
//
// Shape legend: n samples, c channels (of one group), s input places, k window places, p output
// places; s, k and p have three dims each (1 where there are fewer), written 0, 1, 2. Arrays other
// than `cols` and `w` are given by the strides of their dims, in elements. Every element of a result
// is gathered by one thread in a fixed order: no atomics.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;

#define RUN (16 / (int)sizeof(T))  // elements that move together where they lie side by side
typedef Pack<T, RUN> Several;

// cols[g][n][p][k][c] = x[n][g·channels + c][p·step + k·dilation − pad], 0 outside.
// `count` threads' worth of work: each moves `run` (1 or RUN) channels, RUN only where they are
// neighbours in x and 16-byte aligned.
extern "C" __global__ void im2col(const T* x, T* cols, i64 count, i64 run, i64 samples, i64 channels,
                                  i64 s0, i64 s1, i64 s2, i64 k0, i64 k1, i64 k2, i64 p0, i64 p1, i64 p2,
                                  i64 step0, i64 step1, i64 step2, i64 pad0, i64 pad1, i64 pad2,
                                  i64 d0, i64 d1, i64 d2, i64 xn, i64 xc, i64 x0, i64 x1, i64 x2) {
    u32 runs = (u32)(channels / run), window = (u32)(k0 * k1 * k2), places = (u32)(p0 * p1 * p2);
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
        i64 high = i / runs;
        i64 c = (i - high * runs) * run;
        i64 row = high / window;
        u32 k = (u32)(high - row * window);
        i64 all = row / places;
        u32 p = (u32)(row - all * places);
        i64 g = all / samples, n = all - g * samples;
        i64 a2 = (i64)(p % (u32)p2) * step2 - pad2 + (i64)(k % (u32)k2) * d2;
        p /= (u32)p2, k /= (u32)k2;
        i64 a1 = (i64)(p % (u32)p1) * step1 - pad1 + (i64)(k % (u32)k1) * d1;
        i64 a0 = (i64)(p / (u32)p1) * step0 - pad0 + (i64)(k / (u32)k1) * d0;
        bool inside = a0 >= 0 && a0 < s0 && a1 >= 0 && a1 < s1 && a2 >= 0 && a2 < s2;
        const T* from = x + n * xn + (g * channels + c) * xc + a0 * x0 + a1 * x1 + a2 * x2;
        if (run == RUN) {
            Several values;
            for (int j = 0; j < RUN; ++j) values.v[j] = down<T>((A)0);
            if (inside) values = *reinterpret_cast<const Several*>(from);
            reinterpret_cast<Several*>(cols)[i] = values;
        } else {
            cols[i] = inside ? *from : down<T>((A)0);
        }
    }
}

// i / by of numbers that are not negative, by a division of 32 bits where that will do.
__device__ __forceinline__ i64 divided(i64 i, i64 by) {
    return (i | by) >> 31 ? i / by : (i64)((u32)i / (u32)by);
}

struct Windows {  // of three dims: sizes, how many, steps, padding, dilation
    i64 k0, k1, k2, p0, p1, p2, step0, step1, step2, pad0, pad1, pad2, d0, d1, d2;

    // visit(q0, q1, q2, k) for each window q that holds place a, as its element k; in a fixed order.
    template <class F> __device__ __forceinline__ void each(i64 a0, i64 a1, i64 a2, F visit) const {
        for (i64 i0 = 0; i0 < k0; ++i0) {
            i64 q0;
            if (!find(a0 + pad0 - i0 * d0, step0, p0, q0)) continue;
            for (i64 i1 = 0; i1 < k1; ++i1) {
                i64 q1;
                if (!find(a1 + pad1 - i1 * d1, step1, p1, q1)) continue;
                for (i64 i2 = 0; i2 < k2; ++i2) {
                    i64 q2;
                    if (!find(a2 + pad2 - i2 * d2, step2, p2, q2)) continue;
                    visit(q0, q1, q2, (i0 * k1 + i1) * k2 + i2);
                }
            }
        }
    }

    // Whether a window begins `at` (less the padding), and its number.
    static __device__ __forceinline__ bool find(i64 at, i64 step, i64 many, i64& number) {
        if (at < 0) return false;
        number = divided(at, step);
        return number * step == at && number < many;
    }
};

// out[n][c][s] = Σ over the windows that hold the place of cols[g][n][p][k][c]; c over all groups.
extern "C" __global__ void col2im(const T* cols, T* out, i64 count, i64 samples, i64 groups, i64 channels,
                                  i64 s0, i64 s1, i64 s2, i64 k0, i64 k1, i64 k2, i64 p0, i64 p1, i64 p2,
                                  i64 step0, i64 step1, i64 step2, i64 pad0, i64 pad1, i64 pad2,
                                  i64 d0, i64 d1, i64 d2, i64 on, i64 oc, i64 o0, i64 o1, i64 o2) {
    i64 all = groups * channels, window = k0 * k1 * k2;
    Windows windows = {k0, k1, k2, p0, p1, p2, step0, step1, step2, pad0, pad1, pad2, d0, d1, d2};
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
        i64 place = divided(i, all), channel = i - place * all;
        i64 g = divided(channel, channels), c = channel - g * channels;
        i64 line = divided(place, s2), a2 = place - line * s2;
        i64 plane = divided(line, s1), a1 = line - plane * s1;
        i64 n = divided(plane, s0), a0 = plane - n * s0;
        const T* from = cols + (g * samples + n) * p0 * p1 * p2 * window * channels + c;
        A sum = 0;
        windows.each(a0, a1, a2, [&](i64 q0, i64 q1, i64 q2, i64 k) {
            sum += up(from[(((q0 * p1 + q1) * p2 + q2) * window + k) * channels]);
        });
        out[n * on + channel * oc + a0 * o0 + a1 * o1 + a2 * o2] = down<T>(sum);
    }
}

// ---- one channel a group: `many` outputs for each input channel; w[o][k] -------------------------

extern "C" __global__ void depthwise(const T* x, const T* w, T* out, i64 count, i64 outputs, i64 many,
                                     i64 s0, i64 s1, i64 s2, i64 k0, i64 k1, i64 k2,
                                     i64 p0, i64 p1, i64 p2, i64 step0, i64 step1, i64 step2,
                                     i64 pad0, i64 pad1, i64 pad2, i64 d0, i64 d1, i64 d2,
                                     i64 xn, i64 xc, i64 x0, i64 x1, i64 x2,
                                     i64 on, i64 oc, i64 o0, i64 o1, i64 o2, i64 last) {
    i64 places = p0 * p1 * p2;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
        i64 o, p, n;
        if (last) {  // in the order of the output's memory
            o = i % outputs, p = i / outputs % places, n = i / outputs / places;
        } else {
            p = i % places, o = i / places % outputs, n = i / places / outputs;
        }
        i64 q2 = p % p2, q1 = p / p2 % p1, q0 = p / p2 / p1;
        const T* from = x + n * xn + o / many * xc;
        const T* weight = w + o * k0 * k1 * k2;
        A sum = 0;
        for (i64 i0 = 0; i0 < k0; ++i0) {
            i64 a0 = q0 * step0 - pad0 + i0 * d0;
            if (a0 < 0 || a0 >= s0) continue;
            for (i64 i1 = 0; i1 < k1; ++i1) {
                i64 a1 = q1 * step1 - pad1 + i1 * d1;
                if (a1 < 0 || a1 >= s1) continue;
                for (i64 i2 = 0; i2 < k2; ++i2) {
                    i64 a2 = q2 * step2 - pad2 + i2 * d2;
                    if (a2 < 0 || a2 >= s2) continue;
                    sum += up(from[a0 * x0 + a1 * x1 + a2 * x2]) * up(weight[(i0 * k1 + i1) * k2 + i2]);
                }
            }
        }
        out[n * on + o * oc + q0 * o0 + q1 * o1 + q2 * o2] = down<T>(sum);
    }
}

extern "C" __global__ void depthwise_input_grad(const T* grad, const T* w, T* out, i64 count, i64 channels,
                                                i64 many, i64 s0, i64 s1, i64 s2, i64 k0, i64 k1, i64 k2,
                                                i64 p0, i64 p1, i64 p2, i64 step0, i64 step1, i64 step2,
                                                i64 pad0, i64 pad1, i64 pad2, i64 d0, i64 d1, i64 d2,
                                                i64 gn, i64 gc, i64 g0, i64 g1, i64 g2,
                                                i64 on, i64 oc, i64 o0, i64 o1, i64 o2, i64 last) {
    i64 places = s0 * s1 * s2, window = k0 * k1 * k2;
    Windows windows = {k0, k1, k2, p0, p1, p2, step0, step1, step2, pad0, pad1, pad2, d0, d1, d2};
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
        i64 c, s, n;
        if (last) {
            c = i % channels, s = i / channels % places, n = i / channels / places;
        } else {
            s = i % places, c = i / places % channels, n = i / places / channels;
        }
        i64 a2 = s % s2, a1 = s / s2 % s1, a0 = s / s2 / s1;
        A sum = 0;
        for (i64 o = c * many; o < (c + 1) * many; ++o) {
            const T *from = grad + n * gn + o * gc, *weight = w + o * window;
            windows.each(a0, a1, a2, [&](i64 q0, i64 q1, i64 q2, i64 k) {
                sum += up(from[q0 * g0 + q1 * g1 + q2 * g2]) * up(weight[k]);
            });
        }
        out[n * on + c * oc + a0 * o0 + a1 * o1 + a2 * o2] = down<T>(sum);
    }
}

// One block for each weight: block b holds output channel b / window, window place b % window.
extern "C" __global__ void depthwise_weight_grad(const T* x, const T* grad, T* out, i64 samples, i64 many,
                                                 i64 s0, i64 s1, i64 s2, i64 k0, i64 k1, i64 k2,
                                                 i64 p0, i64 p1, i64 p2, i64 step0, i64 step1, i64 step2,
                                                 i64 pad0, i64 pad1, i64 pad2, i64 d0, i64 d1, i64 d2,
                                                 i64 xn, i64 xc, i64 x0, i64 x1, i64 x2,
                                                 i64 gn, i64 gc, i64 g0, i64 g1, i64 g2) {
    __shared__ A scratch[WARP];
    i64 window = k0 * k1 * k2, places = p0 * p1 * p2;
    i64 o = blockIdx.x / window, k = blockIdx.x % window;
    i64 b2 = k % k2 * d2 - pad2, b1 = k / k2 % k1 * d1 - pad1, b0 = k / k2 / k1 * d0 - pad0;
    A sum = 0;
    for (i64 i = threadIdx.x; i < samples * places; i += blockDim.x) {
        i64 n = i / places, p = i % places;
        i64 q2 = p % p2, q1 = p / p2 % p1, q0 = p / p2 / p1;
        i64 a2 = q2 * step2 + b2, a1 = q1 * step1 + b1, a0 = q0 * step0 + b0;
        if (a0 < 0 || a0 >= s0 || a1 < 0 || a1 >= s1 || a2 < 0 || a2 >= s2) continue;
        sum += up(x[n * xn + o / many * xc + a0 * x0 + a1 * x1 + a2 * x2]) *
               up(grad[n * gn + o * gc + q0 * g0 + q1 * g1 + q2 * g2]);
    }
    sum = block_reduce(sum, Add(), scratch, (A)0);
    if (threadIdx.x == 0) out[blockIdx.x] = down<T>(sum);
}

// ---- bias -----------------------------------------------------------------------------------------

// out[i] += bias[channel of i], in place: the channel is i / inner % channels.
extern "C" __global__ void add_bias(T* out, const T* bias, i64 count, i64 channels, i64 inner) {
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
        i64 line = divided(i, inner);
        out[i] = down<T>(up(out[i]) + up(bias[line - divided(line, channels) * channels]));
    }
}

// The same of `count` runs of elements: of one channel, or (inner = 1) of neighbouring ones.
extern "C" __global__ void add_bias_wide(T* out, const T* bias, i64 count, i64 channels, i64 inner) {
    i64 step = inner == 1;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
        Several values = reinterpret_cast<const Several*>(out)[i], made;
        i64 line = divided(i * RUN, inner);
        const T* from = bias + (line - divided(line, channels) * channels);
#pragma unroll
        for (int j = 0; j < RUN; ++j) made.v[j] = down<T>(up(values.v[j]) + up(from[j * step]));
        reinterpret_cast<Several*>(out)[i] = made;
    }
}
