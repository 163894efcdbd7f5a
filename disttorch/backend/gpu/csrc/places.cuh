// Where things lie: division by numbers that the host knows, and axes of different strides.
// Include common.cuh first.

// Elements of 16 bytes, and four numbers' worth of any access.
struct alignas(16) u128 { u64 low, high; };

// x / size for x < 2³¹ by a multiplication: magic = ⌊2³²·(2^shift − size)/size⌋ + 1, shift = ⌈log₂ size⌉
// (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994).
struct Divisor {
    u32 size, magic, shift;

    __device__ __forceinline__ u32 of(u32 x) const { return (__umulhi(x, magic) + x) >> shift; }
};

// One axis: its size, and the distance of neighbours in source and target, in units of an access.
struct Axis {
    Divisor along;
    i32 from, to, pad;
};

// Places of an access in source and target; the last axis runs fastest. `from` and `to` are where the
// first lies, in bytes.
template <int N> struct Axes {
    i64 from, to;
    i64 count;  // accesses in all
    Axis axis[N];

    // The distance of access i from the first, in units.
    __device__ __forceinline__ void find(u32 i, i64& from_here, i64& to_here) const {
        i64 f = 0, t = 0;
#pragma unroll
        for (int d = N - 1; d > 0; d--) {
            u32 rest = axis[d].along.of(i), at = i - rest * axis[d].along.size;
            f += (i64)(i32)at * axis[d].from;
            t += (i64)(i32)at * axis[d].to;
            i = rest;
        }
        from_here = f + (i64)(i32)i * axis[0].from;
        to_here = t + (i64)(i32)i * axis[0].to;
    }
};

template <class T> __device__ __forceinline__ const T* shifted(const void* base, i64 bytes) {
    return reinterpret_cast<const T*>((const u8*)base + bytes);
}
template <class T> __device__ __forceinline__ T* shifted(void* base, i64 bytes) {
    return reinterpret_cast<T*>((u8*)base + bytes);
}
