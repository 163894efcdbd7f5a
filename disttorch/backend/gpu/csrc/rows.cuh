// Rows of a contiguous R×C array: who works on one, and how it is read and written.
//
// A row is read in packs of 16 aligned bytes wherever it starts: `phase` elements of its first pack
// lie before it. Elements of a pack that are not the row's are a neutral value, so that what follows
// needs no bounds.

#include "common.cuh"

#define PACK(T) (16 / (int)sizeof(T))

// How many elements before p the 16 bytes that hold it begin.
template <class T> __device__ __forceinline__ int phase_of(const T* p) {
    return (int)(((u64)p & 15) / sizeof(T));
}

// A team works on one row: LANES neighbouring lanes of a warp, or a whole block (LANES = 0). Where there
// is no row left for lanes whose warp works on others, `there` is false.
#define BLOCK 0
template <int LANES> struct Team {
    i64 row;
    int lane, size;
    bool there;
    __device__ __forceinline__ Team(i64 rows) {
        row = blockIdx.x;
        lane = threadIdx.x;
        size = blockDim.x;
        if (LANES) {
            row = row * (blockDim.x / (LANES ? LANES : 1)) + lane / (LANES ? LANES : 1);
            lane %= LANES ? LANES : 1;
            size = LANES;
        }
        there = row < rows;
        if (!there) row = 0;
    }
    // Every thread of the team gets the same value. `scratch`: 32 values in shared memory that no other
    // reduction of the kernel uses, so that one barrier is enough.
    template <class A, class F> __device__ __forceinline__ A reduce(A value, F combine, A* scratch,
                                                                    A neutral) const {
#pragma unroll
        for (int step = (LANES ? LANES : WARP) / 2; step; step >>= 1) {
            value = combine(value, __shfl_xor_sync(FULL_WARP, value, step));
        }
        if (LANES || blockDim.x == WARP) return value;
        int place = threadIdx.x % WARP, warps = blockDim.x / WARP;
        if (place == 0) scratch[threadIdx.x / WARP] = value;
        __syncthreads();
        return warp_reduce(place < warps ? scratch[place] : neutral, combine);
    }
};

// The larger value; NaN wins.
struct Top {
    __device__ __forceinline__ float operator()(float a, float b) const {
#ifdef DISTTORCH_HOST
        return Max()(a, b);
#else
        float out;
        asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
        return out;
#endif
    }
    __device__ __forceinline__ double operator()(double a, double b) const { return Max()(a, b); }
};

// 16 bytes of a row as they lie in memory, whose elements are converted where they are used. The words
// are loaded without a branch around each load: a branch in which a compiler takes the elements out
// would wait for its load before the next one is issued.
template <class T> union Words {
    Pack<u32, 4> raw;
    Pack<T, PACK(T)> pack;
    __device__ __forceinline__ Words() {}
    __device__ __forceinline__ typename Acc<T>::type at(int j) const { return up(pack.v[j]); }
    __device__ __forceinline__ void put(int j, typename Acc<T>::type a) { pack.v[j] = down<T>(a); }
    __device__ __forceinline__ void clear() { raw.v[0] = raw.v[1] = raw.v[2] = raw.v[3] = 0; }
    // Convert anew from here on: elements kept converted need two registers for one.
    __device__ __forceinline__ void forget() {
#ifndef DISTTORCH_HOST
        asm volatile("" : "+r"(raw.v[0]), "+r"(raw.v[1]), "+r"(raw.v[2]), "+r"(raw.v[3]));
#endif
    }
};

// 16 bytes to memory as one access, whatever they are made from.
__device__ __forceinline__ void store_16(void* to, const Pack<u32, 4>& raw) {
#ifdef DISTTORCH_HOST
    *reinterpret_cast<Pack<u32, 4>*>(to) = raw;
#else
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 : : "l"(to), "r"(raw.v[0]), "r"(raw.v[1]), "r"(raw.v[2]), "r"(raw.v[3]) : "memory");
#endif
}

// Where the packs of a row lie. The first begins `phase` elements before the row, the last may end behind
// it: those two are the only ones that need bounds, and the elements of the last are read one by one.
template <class T, class I> struct Span {
    I width, tail;  // the last pack's place if it is not whole, else one where none is
    int phase;
    __device__ __forceinline__ Span(const T* row, i64 width_) : width((I)width_), phase(phase_of(row)) {
        int rest = (int)((width + phase) % PACK(T));
        tail = rest ? width - rest : (I)(-2 * PACK(T));
    }
    __device__ __forceinline__ bool holds(I i) const { return i >= 0 && i < width; }

    // K packs from `first` on, `step` elements apart; elements outside the row are `neutral`. All loads
    // come before the first use of any: `mend` is for after them.
    template <int K>
    __device__ __forceinline__ void load(Words<T> (&held)[K], const T* __restrict__ row, I first, I step,
                                         T neutral) const {
        Words<T> blank;
#pragma unroll
        for (int j = 0; j < PACK(T); j++) blank.pack.v[j] = neutral;
#pragma unroll
        for (int k = 0; k < K; k++) {
            I at = first + k * step;
            held[k].raw = blank.raw;
            if (at + PACK(T) <= width) held[k].raw = *reinterpret_cast<const Pack<u32, 4>*>(row + at);
        }
    }
    template <int K>
    __device__ __forceinline__ void mend(Words<T> (&held)[K], const T* __restrict__ row, I first, I step,
                                         T neutral) const {
        if (first < 0) {
#pragma unroll
            for (int j = 0; j < PACK(T); j++) held[0].pack.v[j] = first + j < 0 ? neutral : held[0].pack.v[j];
        }
        if (ends<K>(first, step)) {
            Words<T> last;
#pragma unroll
            for (int j = 0; j < PACK(T); j++) last.pack.v[j] = holds(tail + j) ? row[tail + j] : neutral;
#pragma unroll
            for (int k = 0; k < K; k++) {
                if (first + k * step == tail) held[k].raw = last.raw;
            }
        }
    }
    // Whether one of K packs is the row's last and not whole.
    template <int K> __device__ __forceinline__ bool ends(I first, I step) const {
        bool found = false;
#pragma unroll
        for (int k = 0; k < K; k++) found |= first + k * step == tail;
        return found;
    }
    template <int K>
    __device__ __forceinline__ void store(T* row, I first, I step, const Words<T> (&held)[K]) const {
#pragma unroll
        for (int k = 0; k < K; k++) {
            I at = first + k * step;
            if (at >= 0 && at + PACK(T) <= width) store_16(row + at, held[k].raw);
        }
        if (first < 0) store_some(row, first, held[0]);
        if (ends<K>(first, step) && tail >= 0) {
            Words<T> last = held[0];
#pragma unroll
            for (int k = 1; k < K; k++) {
                if (first + k * step == tail) last.raw = held[k].raw;
            }
            store_some(row, tail, last);
        }
    }
    __device__ __forceinline__ void store_some(T* row, I first, const Words<T>& words) const {
#pragma unroll
        for (int j = 0; j < PACK(T); j++) {
            if (holds(first + j)) row[first + j] = words.pack.v[j];
        }
    }
};

// N values of another type beside N elements of a row: the weights of a norm. `aligned`: p lies on 16
// bytes. Indices outside [0, width) give 0.
template <int N, class W>
__device__ __forceinline__ void load_beside(const W* p, i64 first, i64 width, bool aligned,
                                            typename Acc<W>::type* values) {
    const int V = PACK(W) < N ? PACK(W) : N;
    if (aligned && first >= 0 && first + N <= width) {
#pragma unroll
        for (int part = 0; part < N / V; part++) {
            Pack<W, V> pack = *reinterpret_cast<const Pack<W, V>*>(p + first + part * V);
#pragma unroll
            for (int j = 0; j < V; j++) values[part * V + j] = up(pack.v[j]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) {
            i64 i = first + j;
            values[j] = i >= 0 && i < width ? up(p[i]) : (typename Acc<W>::type)0;
        }
    }
}

// ---- e to a power -----------------------------------------------------------------------------------

#define LOG2_E 1.4426950408889634f

// 2 to the power x, by the hardware (2 units in the last place).
__device__ __forceinline__ float two_to_the(float x) {
#ifdef DISTTORCH_HOST
    return exp2f(x);
#else
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#endif
}

// Each has e to the power of (x − top) as of(x, from(top)).
struct Exact {
    template <class A> static __device__ __forceinline__ A from(A top) { return top; }
    template <class A> static __device__ __forceinline__ A of(A x, A top) { return exp(x - top); }
};
// For what follows a sum of many.
struct Quick {
    static __device__ __forceinline__ float from(float top) { return top; }
    static __device__ __forceinline__ float of(float x, float top) { return two_to_the((x - top) * LOG2_E); }
};
// For what is rounded to 16 bits: one operation and the power. The rounding of `from` is the same factor
// for all elements of a row, so that a softmax does not feel it.
struct Folded {
    static __device__ __forceinline__ float from(float top) { return top * LOG2_E; }
    static __device__ __forceinline__ float of(float x, float start) {
        return two_to_the(__fmaf_rn(x, LOG2_E, -start));
    }
};

// The largest element so far and the sum of exp(element − it).
template <class A, class E> struct Running {
    A top, sum;
    __device__ __forceinline__ Running() : top(-INFINITY_), sum(0) {}
    // exp(−inf − (−inf)) would be NaN where nothing was seen
    static __device__ __forceinline__ A start(A top) {
        return E::from(top == (A)-INFINITY_ ? (A)0 : top);
    }
    __device__ __forceinline__ void rise(A to) {
        if (to != top) {
            sum *= E::of(top, start(to));
            top = to;
        }
    }
    template <class T, int K> __device__ __forceinline__ void see(Words<T> (&held)[K]) {
        A to = top;
#pragma unroll
        for (int k = 0; k < K; k++) {
#pragma unroll
            for (int j = 0; j < PACK(T); j++) to = Top()(to, held[k].at(j));
        }
        rise(to);
        A from = start(to);
#pragma unroll
        for (int k = 0; k < K; k++) {
            held[k].forget();
#pragma unroll
            for (int j = 0; j < PACK(T); j++) sum += E::of(held[k].at(j), from);
        }
    }
};
