// Maxima and sums over windows of one to three dims, and their gradients, one thread an element; of
// channels-last data (`…_wide`) one thread 16 bytes of channels.
//
// Shape legend: rows of `channels` (1 where the data is row-major) × s input places × p windows; s and p
// have three dims, 1 where there are fewer. Inputs are given by strides in elements: of rows, channels
// and the three dims; results are dense, channels innermost if `last`. Gradients are gathered in a
// fixed order: no atomics.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;

struct Place {
    i64 row, channel, at0, at1, at2;
};

template <class I> __device__ __forceinline__ Place taken_apart(I i, I channels, I n0, I n1, I n2,
                                                                bool last) {
    Place p;
    I next;
    p.channel = 0;
    if (last) next = i / channels, p.channel = i - next * channels, i = next;
    next = i / n2, p.at2 = i - next * n2, i = next;
    next = i / n1, p.at1 = i - next * n1, i = next;
    next = i / n0, p.at0 = i - next * n0, i = next;
    if (!last) next = i / channels, p.channel = i - next * channels, i = next;
    p.row = i;
    return p;
}

// The element i of a dense array rows × channels × n0 × n1 × n2, or rows × n0 × n1 × n2 × channels.
__device__ __forceinline__ Place place_of(i64 i, i64 channels, i64 n0, i64 n1, i64 n2, i64 last) {
    if (i >> 31) return taken_apart<i64>(i, channels, n0, n1, n2, last != 0);
    // divisions of 32 bits take a fraction of the time
    return taken_apart<u32>((u32)i, (u32)channels, (u32)n0, (u32)n1, (u32)n2, last != 0);
}

// Tables say where windows are: places of window p are w[p·k .. p·k + k), the last one repeated.
extern "C" __global__ void max_pool(const T* x, const i32* w0, const i32* w1, const i32* w2, T* out,
                                    i64* found, i64 count, i64 channels, i64 s1, i64 s2,
                                    i64 p0, i64 p1, i64 p2, i64 k0, i64 k1, i64 k2,
                                    i64 xr, i64 xc, i64 x0, i64 x1, i64 x2, i64 last) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += stride) {
        Place p = place_of(i, channels, p0, p1, p2, last);
        const T* from = x + p.row * xr + p.channel * xc;
        const i32 *rows = w0 + p.at0 * k0, *lines = w1 + p.at1 * k1, *columns = w2 + p.at2 * k2;
        i64 where = ((i64)rows[0] * s1 + lines[0]) * s2 + columns[0];
        T kept = from[rows[0] * x0 + lines[0] * x1 + columns[0] * x2];
        A best = up(kept);
        for (i64 i0 = 0; i0 < k0; ++i0) {
            for (i64 i1 = 0; i1 < k1; ++i1) {
                for (i64 i2 = 0; i2 < k2; ++i2) {
                    i64 a0 = rows[i0], a1 = lines[i1], a2 = columns[i2];
                    T value = from[a0 * x0 + a1 * x1 + a2 * x2];
                    A v = up(value);
                    if (v > best || v != v) best = v, kept = value, where = (a0 * s1 + a1) * s2 + a2;
                }
            }
        }
        out[i] = kept;
        found[i] = where;
    }
}

#define MANY (16 / (int)sizeof(T))

// The same of dense channels-last arrays, `count` groups of MANY channels; s0·s1·s2 < 2³¹.
extern "C" __global__ void max_pool_wide(const T* x, const i32* w0, const i32* w1, const i32* w2, T* out,
                                         i64* found, i64 count, i64 channels, i64 s1, i64 s2,
                                         i64 p0, i64 p1, i64 p2, i64 k0, i64 k1, i64 k2, i64 xr) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += stride) {
        Place p = place_of(i, channels / MANY, p0, p1, p2, 1);
        const T* from = x + p.row * xr + p.channel * MANY;
        const i32 *rows = w0 + p.at0 * k0, *lines = w1 + p.at1 * k1, *columns = w2 + p.at2 * k2;
        i32 first = (rows[0] * (i32)s1 + lines[0]) * (i32)s2 + columns[0], where[MANY];
        Pack<T, MANY> kept = *reinterpret_cast<const Pack<T, MANY>*>(from + first * channels);
        A best[MANY];
#pragma unroll
        for (int j = 0; j < MANY; ++j) best[j] = up(kept.v[j]), where[j] = first;
        for (int i0 = 0; i0 < (int)k0; ++i0) {
            for (int i1 = 0; i1 < (int)k1; ++i1) {
                i32 line = (rows[i0] * (i32)s1 + lines[i1]) * (i32)s2;
                for (int i2 = 0; i2 < (int)k2; ++i2) {
                    i32 place = line + columns[i2];
                    Pack<T, MANY> here = *reinterpret_cast<const Pack<T, MANY>*>(from + place * channels);
#pragma unroll
                    for (int j = 0; j < MANY; ++j) {
                        A v = up(here.v[j]);
                        if (v > best[j] || v != v) best[j] = v, where[j] = place;
                    }
                }
            }
        }
#pragma unroll
        for (int j = 0; j < MANY; ++j) kept.v[j] = down<T>(best[j]);
        reinterpret_cast<Pack<T, MANY>*>(out)[i] = kept;
#pragma unroll
        for (int j = 0; j < MANY; j += 2) {
            Pack<i64, 2> two = {where[j], where[j + 1]};
            reinterpret_cast<Pack<i64, 2>*>(found + i * MANY)[j / 2] = two;
        }
    }
}

// The gradient of each input: those of the windows whose maximum it is. r[0][s] .. r[1][s]: the windows
// that may hold place s.
extern "C" __global__ void max_pool_grad(const T* grad, const i64* found, const i32* r0, const i32* r1,
                                         const i32* r2, T* out, i64 count, i64 channels,
                                         i64 s0, i64 s1, i64 s2, i64 gr, i64 gc, i64 g0, i64 g1, i64 g2,
                                         i64 fr, i64 fc, i64 f0, i64 f1, i64 f2, i64 last) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += stride) {
        Place p = place_of(i, channels, s0, s1, s2, last);
        i64 mine = (p.at0 * s1 + p.at1) * s2 + p.at2;
        const T* from = grad + p.row * gr + p.channel * gc;
        const i64* at = found + p.row * fr + p.channel * fc;
        A sum = 0;
        for (i64 q0 = r0[p.at0]; q0 < r0[s0 + p.at0]; ++q0) {
            for (i64 q1 = r1[p.at1]; q1 < r1[s1 + p.at1]; ++q1) {
                for (i64 q2 = r2[p.at2]; q2 < r2[s2 + p.at2]; ++q2) {
                    if (at[q0 * f0 + q1 * f1 + q2 * f2] == mine) {
                        sum += up(from[q0 * g0 + q1 * g1 + q2 * g2]);
                    }
                }
            }
        }
        out[i] = down<T>(sum);
    }
}

// The same of dense channels-last arrays, `count` groups of MANY channels. Windows of one line follow each
// other, and threads of a block are neighbours on a line: what they read they mostly share.
extern "C" __global__ void max_pool_grad_wide(const T* grad, const i64* found, const i32* r0,
                                              const i32* r1, const i32* r2, T* out, i64 count,
                                              i64 channels, i64 s0, i64 s1, i64 s2, i64 p0, i64 p1,
                                              i64 p2) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += stride) {
        Place p = place_of(i, channels / MANY, s0, s1, s2, 1);
        i64 mine = (p.at0 * s1 + p.at1) * s2 + p.at2;
        i64 begin = p.row * p0 * p1 * p2 * channels + p.channel * MANY;
        int e0 = r0[s0 + p.at0], e1 = r1[s1 + p.at1], b2 = r2[p.at2], e2 = r2[s2 + p.at2];
        A sums[MANY];
#pragma unroll
        for (int j = 0; j < MANY; ++j) sums[j] = 0;
        for (int q0 = r0[p.at0]; q0 < e0; ++q0) {
            for (int q1 = r1[p.at1]; q1 < e1; ++q1) {
                i64 line = begin + (q0 * p1 + q1) * p2 * channels;
                for (int q2 = b2; q2 < e2; ++q2) {
                    i64 at = line + q2 * channels;
                    Pack<i64, 2> places[MANY / 2];
                    Pack<T, MANY> here = *reinterpret_cast<const Pack<T, MANY>*>(grad + at);
#pragma unroll
                    for (int j = 0; j < MANY / 2; ++j) {
                        places[j] = reinterpret_cast<const Pack<i64, 2>*>(found + at)[j];
                    }
#pragma unroll
                    for (int j = 0; j < MANY; ++j) {
                        if (places[j / 2].v[j % 2] == mine) sums[j] += up(here.v[j]);
                    }
                }
            }
        }
        Pack<T, MANY> made;
#pragma unroll
        for (int j = 0; j < MANY; ++j) made.v[j] = down<T>(sums[j]);
        reinterpret_cast<Pack<T, MANY>*>(out)[i] = made;
    }
}

__device__ __forceinline__ i64 least(i64 a, i64 b) { return a < b ? a : b; }
__device__ __forceinline__ i64 most(i64 a, i64 b) { return a > b ? a : b; }

// Sums over windows that begin at p·step − pad, nothing outside the input.
extern "C" __global__ void pooled_sum(const T* x, T* out, i64 count, i64 channels,
                                      i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2,
                                      i64 k0, i64 k1, i64 k2, i64 step0, i64 step1, i64 step2,
                                      i64 pad0, i64 pad1, i64 pad2,
                                      i64 xr, i64 xc, i64 x0, i64 x1, i64 x2, i64 last) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += stride) {
        Place p = place_of(i, channels, p0, p1, p2, last);
        const T* from = x + p.row * xr + p.channel * xc;
        i64 b0 = p.at0 * step0 - pad0, b1 = p.at1 * step1 - pad1, b2 = p.at2 * step2 - pad2;
        A sum = 0;
        for (i64 a0 = most(b0, 0); a0 < least(b0 + k0, s0); ++a0) {
            for (i64 a1 = most(b1, 0); a1 < least(b1 + k1, s1); ++a1) {
                for (i64 a2 = most(b2, 0); a2 < least(b2 + k2, s2); ++a2) {
                    sum += up(from[a0 * x0 + a1 * x1 + a2 * x2]);
                }
            }
        }
        out[i] = down<T>(sum);
    }
}

// The first window, and the one after the last, that holds place a; windows begin at p·step − pad.
__device__ __forceinline__ i64 first_window(i64 a, i64 pad, i64 size, i64 step) {
    i64 before = a + pad - size + 1;
    return before > 0 ? (before + step - 1) / step : 0;
}
__device__ __forceinline__ i64 end_window(i64 a, i64 pad, i64 step, i64 windows) {
    return least((a + pad) / step + 1, windows);
}

// The adjoint of pooled_sum: each input place gets the sum over the windows that hold it.
extern "C" __global__ void spread_sum(const T* grad, T* out, i64 count, i64 channels,
                                      i64 s0, i64 s1, i64 s2, i64 p0, i64 p1, i64 p2,
                                      i64 k0, i64 k1, i64 k2, i64 step0, i64 step1, i64 step2,
                                      i64 pad0, i64 pad1, i64 pad2,
                                      i64 gr, i64 gc, i64 g0, i64 g1, i64 g2, i64 last) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += stride) {
        Place p = place_of(i, channels, s0, s1, s2, last);
        const T* from = grad + p.row * gr + p.channel * gc;
        i64 e0 = end_window(p.at0, pad0, step0, p0), e1 = end_window(p.at1, pad1, step1, p1);
        i64 e2 = end_window(p.at2, pad2, step2, p2);
        A sum = 0;
        for (i64 q0 = first_window(p.at0, pad0, k0, step0); q0 < e0; ++q0) {
            for (i64 q1 = first_window(p.at1, pad1, k1, step1); q1 < e1; ++q1) {
                for (i64 q2 = first_window(p.at2, pad2, k2, step2); q2 < e2; ++q2) {
                    sum += up(from[q0 * g0 + q1 * g1 + q2 * g2]);
                }
            }
        }
        out[i] = down<T>(sum);
    }
}
