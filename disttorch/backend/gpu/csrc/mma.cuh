// Matrix products of one warp on the tensor cores, and copies into shared memory beside them.
//
// Every instruction stands in a function of its own with what it does on a host below it: the layouts
// are those of the PTX ISA ("Matrix fragments for mma.m16n8k16", "ldmatrix", "cp.async"; sm_80 and
// later), so that kernels made of these functions can be tested whole without a GPU.
//
// Lane 4g + t of a warp holds, of a 16×8 tile c: c[0], c[1] at row g, columns 2t and 2t + 1, and c[2],
// c[3] in row g + 8; of a 16×16 operand a: pairs of columns 2t, 2t + 1 in rows g and g + 8 (a[0], a[1]),
// then of columns 2t + 8, 2t + 9 (a[2], a[3]); of a 16×8 operand b: pairs of rows 2t, 2t + 1 (b[0]) and
// 2t + 8, 2t + 9 (b[1]) of column g. The first of a pair is in the lower 16 bits.
#include "common.cuh"

#ifdef DISTTORCH_HOST
namespace host {

struct Copy { void* to; const void* from; int size, given; };
static Copy copies[1024][128];  // of each thread, not done before it waits for them
static int copy_count[1024];

static void copy_later(void* to, const void* from, int size, bool given) {
    int& count = copy_count[threadIdx.x];
    if ((uintptr_t)to % size || (given && (uintptr_t)from % size)) fail("cp.async: a misaligned address");
    if (count == 128) fail("cp.async: more than 128 copies of one thread at once");
    memset(to, 0xCB, size);  // whoever reads it too early sees this
    copies[threadIdx.x][count++] = {to, from, size, given};
}

static void copy_now() {
    for (int i = 0; i < copy_count[threadIdx.x]; i++) {
        Copy& c = copies[threadIdx.x][i];
        if (c.given) memcpy(c.to, c.from, c.size);
        else memset(c.to, 0, c.size);
    }
    copy_count[threadIdx.x] = 0;
}

}  // namespace host
#else
__device__ __forceinline__ u32 shared_address(const void* at) {
    return (u32)__cvta_generic_to_shared(at);
}
#endif

// ---- copies --------------------------------------------------------------------------------------

// 16 bytes from global to shared memory without registers; zeros where not `given` (then nothing is
// read). Both addresses are multiples of 16. They are there after `wait_for_copies` and a barrier.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool given) {
#ifdef DISTTORCH_HOST
    host::copy_later(to, from, 16, given);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(given ? 16 : 0) : "memory");
#endif
}

__device__ __forceinline__ void copy_4(void* to, const void* from, bool given) {
#ifdef DISTTORCH_HOST
    host::copy_later(to, from, 4, given);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(given ? 4 : 0) : "memory");
#endif
}

// Wait until this thread's copies are done; a barrier makes those of the others visible.
__device__ __forceinline__ void wait_for_copies() {
#ifdef DISTTORCH_HOST
    host::copy_now();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// ---- fragments -----------------------------------------------------------------------------------

// Four 8×8 matrices of 16-bit elements. Lane i's `row` is row i % 8 of matrix i / 8: 16 bytes in shared
// memory. Lane 4g + t gets columns 2t, 2t + 1 of row g of each; TRANSPOSED: rows 2t, 2t + 1 of column g.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(u32 (&out)[4], const void* row) {
#ifdef DISTTORCH_HOST
    const unsigned char* rows[32];
    if ((uintptr_t)row % 16) host::fail("ldmatrix: a misaligned address");
    host::warp_exchange(&row, sizeof row, rows);
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % WARP % 4;
    for (int m = 0; m < 4; m++) {
        u16 pair[2];
        for (int i = 0; i < 2; i++) {
            int r = TRANSPOSED ? 2 * t + i : g, c = TRANSPOSED ? g : 2 * t + i;
            memcpy(&pair[i], rows[8 * m + r] + 2 * c, 2);
        }
        out[m] = pair[0] | (u32)pair[1] << 16;
    }
#else
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)));
    }
#endif
}

template <class T> struct Tensor;  // what differs between the two 16-bit types

#ifdef DISTTORCH_HOST
// c += a·b for one warp: every lane shows the others its operands.
template <class T> inline void host_multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1}, all[32][6];
    host::warp_exchange(mine, sizeof mine, all);
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % WARP % 4;
    for (int e = 0; e < 4; e++) {
        int row = g + e / 2 * 8, column = 2 * t + e % 2;
        float sum = c[e];
        for (int k = 0; k < 16; k++) {
            int lane_a = row % 8 * 4 + k % 8 / 2, lane_b = column * 4 + k % 8 / 2;
            T x, y;
            x.bits = (u16)(all[lane_a][row / 8 + k / 8 * 2] >> k % 2 * 16);
            y.bits = (u16)(all[lane_b][4 + k / 8] >> k % 2 * 16);
            sum += up(x) * up(y);
        }
        c[e] = sum;
    }
}
#endif

#ifdef DISTTORCH_HOST
#define TENSOR(type, ptx)                                                                          \
    template <> struct Tensor<type> {                                                              \
        static void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {                   \
            host_multiply<type>(c, a, b0, b1);                                                     \
        }                                                                                          \
        static u32 pair(float low, float high) {                                                   \
            return down<type>(low).bits | (u32)down<type>(high).bits << 16;                        \
        }                                                                                          \
    };
#else
#define TENSOR(type, ptx)                                                                          \
    template <> struct Tensor<type> {                                                              \
        static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0,  \
                                                        u32 b1) {                                  \
            asm("mma.sync.aligned.m16n8k16.row.col.f32." ptx "." ptx                               \
                ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"             \
                : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                   \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                   \
        }                                                                                          \
        static __device__ __forceinline__ u32 pair(float low, float high) {                        \
            u32 out;                                                                               \
            asm("cvt.rn." ptx "x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));             \
            return out;                                                                            \
        }                                                                                          \
    };
#endif
TENSOR(half_t, "f16")
TENSOR(bf16_t, "bf16")

// 2^x, to about 2 units in the last place; 0 for x = -inf.
__device__ __forceinline__ float power_of_2(float x) {
#ifdef DISTTORCH_HOST
    return exp2f(x);
#else
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#endif
}

// ---- products of tiles ---------------------------------------------------------------------------

// c += a·bᵀ. c: 16·M × 8·N. a: the warp's rows, b: N·8 rows, both K wide, in shared memory, rows STRIDE
// apart (a multiple of 8 elements, and an odd one of 16 bytes: no two of 8 rows share a bank).
template <class T, int K, int STRIDE, int M, int N>
__device__ __forceinline__ void add_product_of_rows(float (&c)[M][N][4], const T* a, const T* b) {
    int lane = threadIdx.x % WARP;
    a += lane % 16 * STRIDE + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        u32 left[M][4];
#pragma unroll
        for (int i = 0; i < M; i++) load_matrices<false>(left[i], a + i * 16 * STRIDE + k);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            u32 right[4];
            load_matrices<false>(right, b + j * 8 * STRIDE + k);
#pragma unroll
            for (int i = 0; i < M; i++) {
                Tensor<T>::multiply(c[i][j], left[i], right[0], right[1]);
                Tensor<T>::multiply(c[i][j + 1], left[i], right[2], right[3]);
            }
        }
    }
}

// The same with a in registers, as `load_rows_of` fills them.
template <class T, int K, int STRIDE, int M, int N>
__device__ __forceinline__ void add_product_of_rows(float (&c)[M][N][4], const u32 (&a)[M][K / 16][4],
                                                    const T* b) {
    int lane = threadIdx.x % WARP;
    b += (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            u32 right[4];
            load_matrices<false>(right, b + j * 8 * STRIDE + k * 16);
#pragma unroll
            for (int i = 0; i < M; i++) {
                Tensor<T>::multiply(c[i][j], a[i][k], right[0], right[1]);
                Tensor<T>::multiply(c[i][j + 1], a[i][k], right[2], right[3]);
            }
        }
    }
}

template <class T, int K, int STRIDE, int M>
__device__ __forceinline__ void load_rows_of(u32 (&out)[M][K / 16][4], const T* a) {
    int lane = threadIdx.x % WARP;
    a += lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int k = 0; k < K / 16; k++) load_matrices<false>(out[i][k], a + i * 16 * STRIDE + k * 16);
    }
}

// c += p·b. c: 16·M × 8·N; p: 16·M × 8·K, rounded from tiles like c (`rounded`); b: 8·K rows in shared
// memory, STRIDE apart.
template <class T, int STRIDE, int M, int K, int N>
__device__ __forceinline__ void add_product(float (&c)[M][N][4], const u32 (&p)[M][K][2], const T* b) {
    int lane = threadIdx.x % WARP;
    b += lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 2) {
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            u32 right[4];
            load_matrices<true>(right, b + k * 8 * STRIDE + j * 8);
#pragma unroll
            for (int i = 0; i < M; i++) {
                u32 left[4] = {p[i][k][0], p[i][k][1], p[i][k + 1][0], p[i][k + 1][1]};
                Tensor<T>::multiply(c[i][j], left, right[0], right[1]);
                Tensor<T>::multiply(c[i][j + 1], left, right[2], right[3]);
            }
        }
    }
}

template <class T, int M, int N>
__device__ __forceinline__ void rounded(u32 (&out)[M][N][2], const float (&c)[M][N][4]) {
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            out[i][j][0] = Tensor<T>::pair(c[i][j][0], c[i][j][1]);
            out[i][j][1] = Tensor<T>::pair(c[i][j][2], c[i][j][3]);
        }
    }
}

template <int M, int N> __device__ __forceinline__ void clear(float (&c)[M][N][4]) {
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) c[i][j][e] = 0;
        }
    }
}
