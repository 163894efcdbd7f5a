// CUDA's built-in functions and types as plain C++ (after fibers.hpp).

// ---- vectors ---------------------------------------------------------------------------------------

#define HOST_VECTORS(type, name, size2, size4)                              \
    struct name##1 { type x; };                                             \
    struct alignas(size2) name##2 { type x, y; };                           \
    struct name##3_ { type x, y, z; };                                      \
    struct alignas(size4) name##4 { type x, y, z, w; };                     \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
HOST_VECTORS(signed char, char, 2, 4)
HOST_VECTORS(unsigned char, uchar, 2, 4)
HOST_VECTORS(short, short, 4, 8)
HOST_VECTORS(unsigned short, ushort, 4, 8)
HOST_VECTORS(int, int, 8, 16)
HOST_VECTORS(unsigned, uint, 8, 16)
HOST_VECTORS(long long, longlong, 16, 16)
HOST_VECTORS(unsigned long long, ulonglong, 16, 16)
HOST_VECTORS(float, float, 8, 16)
HOST_VECTORS(double, double, 16, 16)
struct float3 { float x, y, z; };
struct int3 { int x, y, z; };
static inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
static inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// ---- bits ------------------------------------------------------------------------------------------

template <class To, class From> static inline To host_bits(From a) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To out;
    memcpy(&out, &a, sizeof out);
    return out;
}
static inline float __int_as_float(int a) { return host_bits<float>(a); }
static inline float __uint_as_float(unsigned a) { return host_bits<float>(a); }
static inline int __float_as_int(float a) { return host_bits<int>(a); }
static inline unsigned __float_as_uint(float a) { return host_bits<unsigned>(a); }
static inline double __longlong_as_double(long long a) { return host_bits<double>(a); }
static inline long long __double_as_longlong(double a) { return host_bits<long long>(a); }
static inline int __double2hiint(double a) { return (int)(host_bits<uint64_t>(a) >> 32); }
static inline int __double2loint(double a) { return (int)host_bits<uint64_t>(a); }
static inline double __hiloint2double(int h, int l) {
    return host_bits<double>((uint64_t)(unsigned)h << 32 | (unsigned)l);
}
static inline float host_half_to_float(unsigned short bits) { return (float)host_bits<_Float16>(bits); }
static inline unsigned short host_float_to_half(float a) { return host_bits<unsigned short>((_Float16)a); }

static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
static inline int __clz(int a) { return a ? __builtin_clz(a) : 32; }
static inline int __clzll(long long a) { return a ? __builtin_clzll(a) : 64; }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline int __ffsll(long long a) { return __builtin_ffsll(a); }
static inline unsigned __brev(unsigned a) {
    unsigned out = 0;
    for (int i = 0; i < 32; i++) out |= (a >> i & 1u) << (31 - i);
    return out;
}
static inline unsigned long long __brevll(unsigned long long a) {
    return (unsigned long long)__brev((unsigned)a) << 32 | __brev((unsigned)(a >> 32));
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> (4 * i) & 15, byte = both >> (8 * (s & 7)) & 255;
        out |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return out;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned by) {
    return (unsigned)((((uint64_t)hi << 32 | lo) << (by & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned by) {
    return (unsigned)(((uint64_t)hi << 32 | lo) >> (by & 31));
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
static inline int __mul24(int a, int b) { return a * b; }

// ---- numbers ---------------------------------------------------------------------------------------

#define HOST_MIN_MAX(type)                                               \
    static inline type min(type a, type b) { return b < a ? b : a; }     \
    static inline type max(type a, type b) { return a < b ? b : a; }
HOST_MIN_MAX(int) HOST_MIN_MAX(unsigned) HOST_MIN_MAX(long) HOST_MIN_MAX(unsigned long)
HOST_MIN_MAX(long long) HOST_MIN_MAX(unsigned long long)
// Of a NaN and a number, the number
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline long long llmin(long long a, long long b) { return min(a, b); }
static inline long long llmax(long long a, long long b) { return max(a, b); }

static inline float rsqrtf(float a) { return 1 / sqrtf(a); }
static inline double rsqrt(double a) { return 1 / sqrt(a); }
static inline float rsqrt(float a) { return rsqrtf(a); }
static inline float rcbrtf(float a) { return 1 / cbrtf(a); }
static inline float fdividef(float a, float b) { return a / b; }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf expf  // as macros: the C library has functions of these names
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __sincosf sincosf
static inline float __saturatef(float a) { return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f; }
static inline double sinpi(double a) { return sin(M_PI * fmod(a, 2)); }
static inline double cospi(double a) { return cos(M_PI * fmod(a, 2)); }
static inline float sinpif(float a) { return (float)sinpi(a); }
static inline float cospif(float a) { return (float)cospi(a); }
static inline void sincospif(float a, float* s, float* c) { *s = sinpif(a), *c = cospif(a); }
static inline void sincospi(double a, double* s, double* c) { *s = sinpi(a), *c = cospi(a); }
static inline double normcdf(double a) { return 0.5 * erfc(-a * M_SQRT1_2); }
static inline float normcdff(float a) { return 0.5f * erfcf(-a * (float)M_SQRT1_2); }
static inline float norm3df(float a, float b, float c) { return sqrtf(a * a + b * b + c * c); }

// Rounded by themselves: never part of a fused multiply-add.
#define HOST_EXACT __attribute__((noinline, optimize("fp-contract=off"))) static
HOST_EXACT float __fmul_rn(float a, float b) { return a * b; }
HOST_EXACT float __fadd_rn(float a, float b) { return a + b; }
HOST_EXACT float __fsub_rn(float a, float b) { return a - b; }
HOST_EXACT float __fdiv_rn(float a, float b) { return a / b; }
HOST_EXACT double __dmul_rn(double a, double b) { return a * b; }
HOST_EXACT double __dadd_rn(double a, double b) { return a + b; }
HOST_EXACT double __dsub_rn(double a, double b) { return a - b; }
HOST_EXACT double __ddiv_rn(double a, double b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1 / a; }
static inline float __frsqrt_rn(float a) { return 1 / sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline double __dsqrt_rn(double a) { return sqrt(a); }

// Conversions to integers end at the type's limits, as the GPU's; NaN is 0.
template <class I, class F> static inline I host_to_integer(F a) {
    const I low = (I)(-1) < 0 ? (I)((I)1 << (sizeof(I) * 8 - 1)) : (I)0, high = (I)~low;
    if (a != a) return 0;
    if (a <= (F)low) return low;
    if (a >= (F)high) return high;
    return (I)a;
}
#define HOST_TO_INTEGER(name, F, I)                                                     \
    static inline I name##_rn(F a) { return host_to_integer<I>(rint((double)a)); }      \
    static inline I name##_rz(F a) { return host_to_integer<I>(trunc((double)a)); }     \
    static inline I name##_rd(F a) { return host_to_integer<I>(floor((double)a)); }     \
    static inline I name##_ru(F a) { return host_to_integer<I>(ceil((double)a)); }
HOST_TO_INTEGER(__float2int, float, int)
HOST_TO_INTEGER(__float2uint, float, unsigned)
HOST_TO_INTEGER(__float2ll, float, long long)
HOST_TO_INTEGER(__float2ull, float, unsigned long long)
HOST_TO_INTEGER(__double2int, double, int)
HOST_TO_INTEGER(__double2uint, double, unsigned)
HOST_TO_INTEGER(__double2ll, double, long long)
HOST_TO_INTEGER(__double2ull, double, unsigned long long)
static inline float __int2float_rn(int a) { return (float)a; }
static inline float __uint2float_rn(unsigned a) { return (float)a; }
static inline float __ll2float_rn(long long a) { return (float)a; }
static inline float __ull2float_rn(unsigned long long a) { return (float)a; }
static inline double __ll2double_rn(long long a) { return (double)a; }
static inline double __ull2double_rn(unsigned long long a) { return (double)a; }
static inline double __int2double_rn(int a) { return (double)a; }
static inline double __uint2double_rn(unsigned a) { return (double)a; }
static inline float __double2float_rn(double a) { return (float)a; }

// ---- memory ----------------------------------------------------------------------------------------

#define HOST_LOAD(name) template <class T> static inline T name(const T* p) { return *p; }
#define HOST_STORE(name) template <class T> static inline void name(T* p, T v) { *p = v; }
HOST_LOAD(__ldg) HOST_LOAD(__ldcg) HOST_LOAD(__ldca) HOST_LOAD(__ldcs) HOST_LOAD(__ldlu) HOST_LOAD(__ldcv)
HOST_STORE(__stcg) HOST_STORE(__stcs) HOST_STORE(__stwb) HOST_STORE(__stwt)
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned) {}
static inline long long clock64() { return __builtin_ia32_rdtsc(); }
static inline void __trap() { host::fail("__trap()"); }
static inline void __prof_trigger(int) {}

// One block after another, one thread at a time: every operation is atomic.
template <class T> struct host_same { typedef T type; };  // converts to T, whatever was given
template <class T> using Same = typename host_same<T>::type;
#define HOST_ATOMIC(name, result) \
    template <class T> static inline T name(T* p, Same<T> v) { T old = *p; *p = result; return old; }
HOST_ATOMIC(atomicAdd, old + v)
HOST_ATOMIC(atomicSub, old - v)
HOST_ATOMIC(atomicExch, v)
HOST_ATOMIC(atomicMin, v < old ? v : old)
HOST_ATOMIC(atomicMax, old < v ? v : old)
HOST_ATOMIC(atomicAnd, old & v)
HOST_ATOMIC(atomicOr, old | v)
HOST_ATOMIC(atomicXor, old ^ v)
static inline unsigned atomicInc(unsigned* p, unsigned top) { unsigned o = *p; *p = o >= top ? 0 : o + 1; return o; }
static inline unsigned atomicDec(unsigned* p, unsigned top) {
    unsigned o = *p;
    *p = o == 0 || o > top ? top : o - 1;
    return o;
}
template <class T> static inline T atomicCAS(T* p, Same<T> seen, Same<T> v) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "atomicCAS takes 16, 32 or 64 bits");
    T old = *p;
    if (old == seen) *p = v;
    return old;
}

// ---- warps -----------------------------------------------------------------------------------------

namespace host {
template <class T> static inline T shuffle(int kind, unsigned mask, T v, int from, bool out_of_range, int line) {
    static_assert(sizeof(T) <= 8, "shuffles take numbers of 32 or 64 bits");
    Group* g = meet(kind, mask, &v, sizeof v, line);
    T got = v;
    if (!out_of_range) {
        if (!(mask >> from & 1)) fail("line %d: a shuffle reads lane %d, which the mask %08x lacks", line, from, mask);
        memcpy(&got, g->bytes[from], sizeof got);
    }
    leave(g);
    return got;
}
static inline unsigned ballot(int kind, unsigned mask, int predicate, int line) {
    unsigned char vote = predicate != 0;
    Group* g = meet(kind, mask, &vote, 1, line);
    unsigned out = 0;
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) && g->bytes[i][0]) out |= 1u << i;
    leave(g);
    return out;
}
}  // namespace host

#define HOST_LINE int line = __builtin_LINE()
template <class T> static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32, HOST_LINE) {
    int me = host::lane();
    return host::shuffle('i', mask, v, (me & ~(width - 1)) + (from & (width - 1)), false, line);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, HOST_LINE) {
    int me = host::lane(), from = me - (int)by;
    return host::shuffle('u', mask, v, from, from < (me & ~(width - 1)), line);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, HOST_LINE) {
    int me = host::lane(), from = me + (int)by;
    return host::shuffle('d', mask, v, from, from > (me | (width - 1)), line);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32, HOST_LINE) {
    int me = host::lane(), from = me ^ by;
    return host::shuffle('x', mask, v, from, from > (me | (width - 1)), line);
}
static inline unsigned __ballot_sync(unsigned mask, int p, HOST_LINE) { return host::ballot('b', mask, p, line); }
static inline int __any_sync(unsigned mask, int p, HOST_LINE) { return host::ballot('a', mask, p, line) != 0; }
static inline int __all_sync(unsigned mask, int p, HOST_LINE) { return host::ballot('l', mask, p, line) == mask; }
static inline unsigned __activemask() {
    unsigned out = 0;
    int first = host::current / 32 * 32;
    for (int i = 0; i < 32 && first + i < host::total; i++)
        if (host::fibers[first + i].state != host::GONE) out |= 1u << i;
    return out;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, HOST_LINE) {
    // A block's last warp may have fewer lanes; the default names them all
    mask = mask == 0xffffffffu ? host::warp_members() : mask;
    host::leave(host::meet('s', mask, nullptr, 0, line));
}
template <class T> static inline unsigned __match_any_sync(unsigned mask, T v, HOST_LINE) {
    host::Group* g = host::meet('m', mask, &v, sizeof v, line);
    unsigned out = 0;
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) && !memcmp(g->bytes[i], &v, sizeof v)) out |= 1u << i;
    host::leave(g);
    return out;
}
#define HOST_REDUCE(name, T, first, step)                                             \
    static inline T name(unsigned mask, T v, HOST_LINE) {                             \
        host::Group* g = host::meet('r', mask, &v, sizeof v, line);                   \
        T out = first;                                                                \
        for (int i = 0; i < 32; i++)                                                  \
            if (mask >> i & 1) { T b; memcpy(&b, g->bytes[i], sizeof b); out = step; } \
        host::leave(g);                                                               \
        return out;                                                                   \
    }
HOST_REDUCE(__reduce_add_sync, unsigned, 0, out + b)
HOST_REDUCE(__reduce_add_sync, int, 0, out + b)
HOST_REDUCE(__reduce_max_sync, unsigned, 0, max(out, b))
HOST_REDUCE(__reduce_min_sync, unsigned, ~0u, min(out, b))
HOST_REDUCE(__reduce_or_sync, unsigned, 0, out | b)
HOST_REDUCE(__reduce_and_sync, unsigned, ~0u, out & b)
