// out[key] += rows[position], summed in the order of the sorted positions (see sort.cu): no atomics, so
// the same bits on every run. Sums are made in float (double) and rounded once.
//
// The sorted positions are cut into runs of a fixed length. What lies whole in a run is added at once; the
// parts of a key that reaches over the ends of runs are kept, and joined in order by a second kernel.
//
// Shapes: rows N x W, out V x W, keys and positions N, parts runs x 2 x W.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;

#define AHEAD 4  // rows that are loaded before the first is added; runs are a multiple

template <int N> struct Sum {
    A v[N];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = 0;
    }
    __device__ __forceinline__ void add(const Pack<T, N>& row) {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] += up(row.v[j]);
    }
    __device__ __forceinline__ void add_part(const A* part) {
#pragma unroll
        for (int j = 0; j < N; j++) v[j] += part[j];
    }
    __device__ __forceinline__ void keep(A* part) const {
#pragma unroll
        for (int j = 0; j < N; j++) part[j] = v[j];
    }
    __device__ __forceinline__ void add_to(T* out) const {
        Pack<T, N>& place = *reinterpret_cast<Pack<T, N>*>(out);
        Pack<T, N> sum = place;
#pragma unroll
        for (int j = 0; j < N; j++) sum.v[j] = down<T>(up(sum.v[j]) + v[j]);
        place = sum;
    }
};

// A thread has N columns of a run.
template <int N>
__device__ __forceinline__ void sum_runs(const u32* keys, const u32* positions, const T* rows, T* out,
                                         A* parts, i64 n, i64 width, i64 size, i64 length) {
    i64 packs = width / N, runs = (n + length - 1) / length;
    i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= packs * runs) return;
    i64 run = thread / packs, column = thread % packs * N;
    i64 begin = run * length, end = begin + length < n ? begin + length : n;
    rows += column;
    out += column;
    parts += run * 2 * width + column;

    Sum<N> sum;
    sum.clear();
    u32 key = keys[begin];
    bool from_before = begin > 0 && keys[begin - 1] == key;
    for (i64 i = begin; i < end; i += AHEAD) {
        Pack<T, N> row[AHEAD];
        u32 of[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (i + j < end) {
                of[j] = keys[i + j];
                row[j] = *reinterpret_cast<const Pack<T, N>*>(rows + (i64)positions[i + j] * width);
            }
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (i + j >= end) break;
            if (of[j] != key) {
                if (from_before) {
                    sum.keep(parts);
                } else if (key < size) {
                    sum.add_to(out + key * width);
                }
                key = of[j];
                from_before = false;
                sum.clear();
            }
            sum.add(row[j]);
        }
    }
    if (from_before) {
        sum.keep(parts);
    } else if (end < n && keys[end] == key) {
        sum.keep(parts + width);
    } else if (key < size) {
        sum.add_to(out + key * width);
    }
}

// Join the parts of a key that begins in a run and reaches into later ones.
template <int N>
__device__ __forceinline__ void join_runs(const u32* keys, T* out, const A* parts, i64 n, i64 width,
                                          i64 size, i64 length) {
    i64 packs = width / N, runs = (n + length - 1) / length;
    i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= packs * runs) return;
    i64 run = thread / packs, column = thread % packs * N;
    i64 begin = run * length, end = begin + length;
    if (end >= n || keys[end - 1] != keys[end]) return;
    u32 key = keys[end];
    if (key >= size || (begin > 0 && keys[begin - 1] == key)) return;  // it began in an earlier run
    parts += run * 2 * width + column;
    Sum<N> sum;
    sum.clear();
    sum.add_part(parts + width);
    do {
        parts += 2 * width;
        sum.add_part(parts);
        end += length;
    } while (end < n && keys[end] == key);
    sum.add_to(out + column + key * width);
}

static const int LANES = 16 / sizeof(T);

extern "C" __global__ void sum_sorted(const u32* keys, const u32* positions, const T* rows, T* out,
                                      A* parts, i64 n, i64 width, i64 size, i64 length, i64 packed) {
    if (packed) sum_runs<LANES>(keys, positions, rows, out, parts, n, width, size, length);
    else sum_runs<1>(keys, positions, rows, out, parts, n, width, size, length);
}

extern "C" __global__ void join_sorted(const u32* keys, T* out, const A* parts, i64 n, i64 width, i64 size,
                                       i64 length, i64 packed) {
    if (packed) join_runs<LANES>(keys, out, parts, n, width, size, length);
    else join_runs<1>(keys, out, parts, n, width, size, length);
}
