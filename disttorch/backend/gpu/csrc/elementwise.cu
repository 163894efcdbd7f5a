// One expression over the elements of up to three operands, in one pass.
//
// EXPR (and EXPR1, if there is a second result) is C over a, b, c: the operands' elements as type VALUE,
// and p, q: numbers of the launch, of type VALUE, too. An operand lies in memory as FIRST, SECOND,
// THIRD, or is one of the numbers (SECOND_IS=p). RESULT is the results' type. NDIM=1: arrays alike,
// contiguous; else operands by strides, which are 0 along axes that they are repeated over.
// (What follows "variants" has no commas inside a value: there they mean several.)
// variants: VALUE=float FIRST=float,half_t,bf16_t RESULT=float EXPR=tanh_(a) NDIM=1
// variants: VALUE=float FIRST=bf16_t SECOND=bf16_t THIRD=bool RESULT=bf16_t NUMBERS=1 EXPR=c?a+b:p EXPR1=a/b NDIM=1,2
// variants: VALUE=float FIRST=half_t SECOND=half_t RESULT=half_t EXPR=a*(normal_cdf(b)+b*normal_density(b)) EXPR1=gelu_tanh_slope(b)
// variants: VALUE=double FIRST=double SECOND_IS=p NUMBERS=2 RESULT=double EXPR=a*b+q NDIM=3
// variants: VALUE=i64 FIRST=i64 SECOND=i64 RESULT=bool EXPR=a<b NDIM=1
// variants: VALUE=i32 FIRST=i8 SECOND_IS=p NUMBERS=1 RESULT=u8 EXPR=a/b NDIM=6 INDEX=i64
#include "common.cuh"
#include "elementwise.cuh"

#define BLOCK 256
#define STEPS 2  // accesses of each operand under way in a thread
#ifndef NDIM
#define NDIM 1
#endif
#ifndef NUMBERS
#define NUMBERS 0
#endif
#ifndef INDEX
#define INDEX u32
#endif

// FOR_x(f) is f where operand x lies in memory; what follows is left out elsewhere.
#ifdef FIRST
#define FOR_A(...) __VA_ARGS__
#else
#define FOR_A(...)
#endif
#ifdef SECOND
#define FOR_B(...) __VA_ARGS__
#else
#define FOR_B(...)
#endif
#ifdef THIRD
#define FOR_C(...) __VA_ARGS__
#else
#define FOR_C(...)
#endif
#ifdef EXPR1
#define FOR_1(...) __VA_ARGS__
#else
#define FOR_1(...)
#endif

template <class T> struct Number { typedef i64 type; };
template <> struct Number<float> { typedef double type; };
template <> struct Number<double> { typedef double type; };
typedef Number<VALUE>::type P;

// Elements of one access: 16 bytes of the widest type.
__device__ constexpr int widest() {
    int size = sizeof(RESULT);
    FOR_A(size = size > (int)sizeof(FIRST) ? size : (int)sizeof(FIRST);)
    FOR_B(size = size > (int)sizeof(SECOND) ? size : (int)sizeof(SECOND);)
    FOR_C(size = size > (int)sizeof(THIRD) ? size : (int)sizeof(THIRD);)
    return size;
}
#define WIDTH (16 / widest())

#if NUMBERS == 0
#define NUMBER_PARAMETERS
#define TAKE_NUMBERS
#elif NUMBERS == 1
#define NUMBER_PARAMETERS , P p_
#define TAKE_NUMBERS const VALUE p = (VALUE)p_;
#else
#define NUMBER_PARAMETERS , P p_, P q_
#define TAKE_NUMBERS const VALUE p = (VALUE)p_, q = (VALUE)q_;
#endif

// The operands that are numbers
#ifdef FIRST_IS
#define TAKE_A const VALUE a = FIRST_IS;
#else
#define TAKE_A
#endif
#ifdef SECOND_IS
#define TAKE_B const VALUE b = SECOND_IS;
#else
#define TAKE_B
#endif
#ifdef THIRD_IS
#define TAKE_C const VALUE c = THIRD_IS;
#else
#define TAKE_C
#endif

// One element: a_[..] etc. are what was loaded.
#define COMPUTE(at_a, at_b, at_c, to, to1)       \
    {                                            \
        FOR_A(const VALUE a = get<VALUE>(at_a);)         \
        FOR_B(const VALUE b = get<VALUE>(at_b);)         \
        FOR_C(const VALUE c = get<VALUE>(at_c);)         \
        TAKE_A TAKE_B TAKE_C                     \
        to = Put<RESULT>::from(EXPR);                 \
        FOR_1(to1 = Put<RESULT>::from(EXPR1);)        \
    }

#if NDIM == 1

extern "C" __global__ void __launch_bounds__(BLOCK) elementwise(
    FOR_A(const FIRST* a_, ) FOR_B(const SECOND* b_, ) FOR_C(const THIRD* c_, ) RESULT* out, FOR_1(RESULT* out1, )
    i64 n NUMBER_PARAMETERS) {
    const int V = WIDTH;
    TAKE_NUMBERS
    // Addresses of views may be any multiple of the element's size.
    bool aligned = (u64)out % (V * sizeof(RESULT)) == 0;
    FOR_A(aligned = aligned && (u64)a_ % (V * sizeof(FIRST)) == 0;)
    FOR_B(aligned = aligned && (u64)b_ % (V * sizeof(SECOND)) == 0;)
    FOR_C(aligned = aligned && (u64)c_ % (V * sizeof(THIRD)) == 0;)
    FOR_1(aligned = aligned && (u64)out1 % (V * sizeof(RESULT)) == 0;)
    i64 start = (i64)blockIdx.x * (BLOCK * STEPS * V);
    if (!aligned) {
        for (int k = 0; k < STEPS * V; k++) {
            i64 i = start + k * BLOCK + threadIdx.x;
            if (i < n) COMPUTE(a_[i], b_[i], c_[i], out[i], out1[i])
        }
        return;
    }
    FOR_A(Pack<FIRST, WIDTH> pa[STEPS];)
    FOR_B(Pack<SECOND, WIDTH> pb[STEPS];)
    FOR_C(Pack<THIRD, WIDTH> pc[STEPS];)
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        i64 i = start + (i64)(k * BLOCK + threadIdx.x) * V;
        if (i + V <= n) {
            FOR_A(pa[k] = *(const Pack<FIRST, WIDTH>*)(a_ + i);)
            FOR_B(pb[k] = *(const Pack<SECOND, WIDTH>*)(b_ + i);)
            FOR_C(pc[k] = *(const Pack<THIRD, WIDTH>*)(c_ + i);)
        }
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        i64 i = start + (i64)(k * BLOCK + threadIdx.x) * V;
        if (i + V <= n) {
            Pack<RESULT, WIDTH> po;
            FOR_1(Pack<RESULT, WIDTH> po1;)
#pragma unroll
            for (int v = 0; v < V; v++)
                COMPUTE(pa[k].v[v], pb[k].v[v], pc[k].v[v], po.v[v], po1.v[v])
            *(Pack<RESULT, WIDTH>*)(out + i) = po;
            FOR_1(*(Pack<RESULT, WIDTH>*)(out1 + i) = po1;)
        } else {
            for (; i < n; i++) COMPUTE(a_[i], b_[i], c_[i], out[i], out1[i])
        }
    }
}

#else  // by strides

// Sizes of the axes but the first, outermost first; strides in elements.
#if NDIM == 2
#define SIZES i64 s1
#define SIZE_LIST {0, (INDEX)s1}
#define STRIDES(x) , i64 x##0, i64 x##1
#define STRIDE_LIST(x) {x##0, x##1}
#elif NDIM == 3
#define SIZES i64 s1, i64 s2
#define SIZE_LIST {0, (INDEX)s1, (INDEX)s2}
#define STRIDES(x) , i64 x##0, i64 x##1, i64 x##2
#define STRIDE_LIST(x) {x##0, x##1, x##2}
#else
#define SIZES i64 s1, i64 s2, i64 s3, i64 s4, i64 s5
#define SIZE_LIST {0, (INDEX)s1, (INDEX)s2, (INDEX)s3, (INDEX)s4, (INDEX)s5}
#define STRIDES(x) , i64 x##0, i64 x##1, i64 x##2, i64 x##3, i64 x##4, i64 x##5
#define STRIDE_LIST(x) {x##0, x##1, x##2, x##3, x##4, x##5}
#endif

// V elements that are `step` apart, in one access where they lie side by side.
template <class T, int V> __device__ __forceinline__ Pack<T, V> load(const T* from, i64 step) {
    Pack<T, V> out;
    if (V > 1 && step == 1 && (u64)from % (V * sizeof(T)) == 0) {
        out = *(const Pack<T, V>*)from;
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) out.v[v] = from[v * step];
    }
    return out;
}

template <class T, int V> __device__ __forceinline__ void store(T* to, i64 step, const Pack<T, V>& x) {
    if (V > 1 && step == 1 && (u64)to % (V * sizeof(T)) == 0) {
        *(Pack<T, V>*)to = x;
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) to[v * step] = x.v[v];
    }
}

#define PARAMETERS                                                                             \
    FOR_A(const FIRST *a_, ) FOR_B(const SECOND *b_, ) FOR_C(const THIRD *c_, ) RESULT *out, FOR_1(RESULT *out1, ) \
    i64 n, SIZES STRIDES(o) FOR_A(STRIDES(ta)) FOR_B(STRIDES(tb)) FOR_C(STRIDES(tc)) NUMBER_PARAMETERS

// A thread computes V neighbours along the last axis, whose size V divides.
#define BODY(V)                                                                                \
    TAKE_NUMBERS                                                                               \
    const INDEX sizes[NDIM] = SIZE_LIST;                                                       \
    const i64 so[NDIM] = STRIDE_LIST(o);                                                       \
    FOR_A(const i64 sa[NDIM] = STRIDE_LIST(ta);)                                               \
    FOR_B(const i64 sb[NDIM] = STRIDE_LIST(tb);)                                               \
    FOR_C(const i64 sc[NDIM] = STRIDE_LIST(tc);)                                               \
    i64 first = ((i64)blockIdx.x * BLOCK + threadIdx.x) * V;                                   \
    if (first >= n) return;                                                                    \
    INDEX left = (INDEX)first;                                                                 \
    i64 at_o = 0;                                                                              \
    FOR_A(i64 at_a = 0;)                                                                       \
    FOR_B(i64 at_b = 0;)                                                                       \
    FOR_C(i64 at_c = 0;)                                                                       \
    _Pragma("unroll") for (int d = NDIM - 1; d >= 0; d--) {                                    \
        INDEX rows = d ? left / sizes[d] : 0;                                                  \
        i64 i = (i64)(d ? left - rows * sizes[d] : left);                                      \
        at_o += i * so[d];                                                                     \
        FOR_A(at_a += i * sa[d];)                                                              \
        FOR_B(at_b += i * sb[d];)                                                              \
        FOR_C(at_c += i * sc[d];)                                                              \
        left = rows;                                                                           \
    }                                                                                          \
    FOR_A(Pack<FIRST, V> pa = load<FIRST, V>(a_ + at_a, sa[NDIM - 1]);)                              \
    FOR_B(Pack<SECOND, V> pb = load<SECOND, V>(b_ + at_b, sb[NDIM - 1]);)                              \
    FOR_C(Pack<THIRD, V> pc = load<THIRD, V>(c_ + at_c, sc[NDIM - 1]);)                              \
    Pack<RESULT, V> po;                                                                             \
    FOR_1(Pack<RESULT, V> po1;)                                                                     \
    _Pragma("unroll") for (int v = 0; v < V; v++)                                              \
        COMPUTE(pa.v[v], pb.v[v], pc.v[v], po.v[v], po1.v[v])                                  \
    store<RESULT, V>(out + at_o, so[NDIM - 1], po);                                                 \
    FOR_1(store<RESULT, V>(out1 + at_o, so[NDIM - 1], po1);)

extern "C" __global__ void __launch_bounds__(BLOCK) elementwise(PARAMETERS) { BODY(WIDTH) }
extern "C" __global__ void __launch_bounds__(BLOCK) elementwise_single(PARAMETERS) { BODY(1) }

#endif
