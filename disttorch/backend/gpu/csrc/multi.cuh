// Many tensors in one launch. A table with their addresses and sizes comes by value, as an argument, so
// nothing is uploaded and a captured launch keeps it. Every block has one chunk of one tensor.
// Include common.cuh first.

#define CHUNK 32768  // small enough that the last blocks of a launch keep no multiprocessor waiting long

// LISTS arrays for each of `count` tensors: all of one size, dense, in one order of their elements.
template <int LISTS> struct Table {
    static const int MOST = 3832 / (8 * LISTS + 12) / 2 * 2;  // under 4 KiB with the other arguments
    u64 at[LISTS][MOST];  // addresses; 0 for an array that is not there
    i64 size[MOST];
    i32 first[MOST];      // the number of a tensor's first chunk
    i64 count;

    template <class T> __device__ __forceinline__ T* get(int list, int tensor) const {
        return reinterpret_cast<T*>(at[list][tensor]);
    }
};

// The elements of a tensor that a block has.
struct Piece {
    int tensor;
    i64 begin, end;

    template <int LISTS> __device__ __forceinline__ Piece(const Table<LISTS>& table) {
        int low = 0, high = (int)table.count;
        while (high - low > 1) {  // the last tensor whose first chunk is not after this block
            int middle = (low + high) / 2;
            if (table.first[middle] <= (i32)blockIdx.x) low = middle;
            else high = middle;
        }
        tensor = low;
        begin = (i64)((i32)blockIdx.x - table.first[low]) * CHUNK;
        end = begin + CHUNK < table.size[low] ? begin + CHUNK : table.size[low];
    }
};

// N neighbouring elements in one access, computed with as A.
template <int N, class T, class A> __device__ __forceinline__ void load_pack(const T* from, A* values) {
    Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int j = 0; j < N; j++) values[j] = up(pack.v[j]);
}

template <int N, class T, class A> __device__ __forceinline__ void store_pack(T* to, const A* values) {
    Pack<T, N> pack;
#pragma unroll
    for (int j = 0; j < N; j++) pack.v[j] = down<T>(values[j]);
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Go over `size` elements with a block of THREADS threads: `f.run<V, N>(i, stride)` is to do V packs of N
// elements, the first at i, the others `stride` apart. What is aligned and whole comes as two packs of
// LANES, so that a thread has all loads of both under way before it computes; the rest by elements.
template <int THREADS, int LANES, class F>
__device__ __forceinline__ void over_packs(int size, bool aligned, F& f) {
    const int PACKS = THREADS * LANES;
    int done = 0;
    if (aligned) {
        int i = threadIdx.x * LANES;
        for (; i + PACKS + LANES <= size; i += 2 * PACKS) f.template run<2, LANES>(i, PACKS);
        if (i + LANES <= size) f.template run<1, LANES>(i, PACKS);
        done = size / LANES * LANES;
    }
    int i = done + threadIdx.x;
    for (; i + 3 * THREADS < size; i += 4 * THREADS) f.template run<4, 1>(i, THREADS);
    for (; i < size; i += THREADS) f.template run<1, 1>(i, THREADS);
}

// Arithmetic rounded operation by operation: a compiler that fuses products and sums would give other
// bits than the formulas over whole arrays (optim_kernels.py).
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fadd_rn(a, -b); }
__device__ __forceinline__ float root(float a) { return sqrtf(a); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dadd_rn(a, -b); }
__device__ __forceinline__ double root(double a) { return sqrt(a); }
