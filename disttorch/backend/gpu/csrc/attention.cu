// Attention, forward: softmax(q·kᵀ·scale + mask)·v without the scores in memory.
//
// The softmax is made in one pass over the keys (Milakov & Gimelshein, arXiv:1805.02867), tile by tile
// (Dao et al., arXiv:2205.14135; Dao, arXiv:2307.08691): a row keeps its largest score so far, and what
// it has summed is scaled down when a larger one comes.
// variants: ELEMENT=bfloat16,float16 WIDTH=32,64,96,128 EXTRAS=0
// variants: ELEMENT=bfloat16 WIDTH=64 EXTRAS=1,2,3
// variants: ELEMENT=bfloat16 WIDTH=128 EXTRAS=3
#include "attention.cuh"

// Tile: 16·M queries a warp, KEYS keys. Up to 64 wide, the queries stay in registers. As large as fits
// without spilling; shared memory stays below the 99 KiB that GPUs other than the largest have.
#define M 2
#if WIDTH <= 64
#define KEYS 64
#elif WIDTH <= 96
#define KEYS 48
#else
#define KEYS 32
#endif
#define QUERIES (WARPS * 16 * M)
#define N (KEYS / 8)
#define SLACK 8.0f  // float16 holds 2^8, and small weights lose nothing

// From scores to weights that are relative to `top`; `o` and `sum` follow where that grows. `unit`: what a
// score is multiplied with to be an exponent of 2.
//
// `top` is the largest score of a row so far, or up to SLACK / unit less: weights may be as large as
// 2^SLACK, which costs no precision, and most tiles need not touch `o`. (With a mask all do: there are
// no registers left for the choice.)
__device__ __forceinline__ void weigh(float (&s)[M][N][4], float (&top)[M][2], float (&sum)[M][2],
                                      float (&o)[M][WIDTH / 8][4], float unit) {
    float high[M][2];
    bool grows = false;
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float most = MINUS_INFINITY;
#pragma unroll
            for (int j = 0; j < N; j++) most = fmaxf(most, fmaxf(s[i][j][2 * r], s[i][j][2 * r + 1]));
            most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
            high[i][r] = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
            grows |= (high[i][r] - top[i][r]) * unit > SLACK;  // not if both are -infinity
        }
    }
    if (MASKED || __any_sync(FULL_WARP, grows)) {
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float now = fmaxf(top[i][r], high[i][r]), base = now == MINUS_INFINITY ? 0.0f : now * unit;
                float shrink = power_of_2(top[i][r] * unit - base);
                top[i][r] = now;
                sum[i][r] *= shrink;
#pragma unroll
                for (int j = 0; j < WIDTH / 8; j++) {
                    o[i][j][2 * r] *= shrink;
                    o[i][j][2 * r + 1] *= shrink;
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float base = top[i][r] == MINUS_INFINITY ? 0.0f : top[i][r] * unit;
            float part = 0;
#pragma unroll
            for (int j = 0; j < N; j++) {
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    s[i][j][e] = power_of_2(s[i][j][e] * unit - base);
                    part += s[i][j][e];
                }
            }
            sum[i][r] += part;
        }
    }
}

#if DROPS
__device__ __forceinline__ void drop(float (&s)[M][N][4], const Extras& x, int row, int column) {
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            u32 key = x.row_key(row + i * 16 + r * 8);
#pragma unroll
            for (int j = 0; j < N; j++) {
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++)
                    if (!x.stays(key, column + j * 8 + e % 2)) s[i][j][e] = 0.0f;
            }
        }
    }
}
#endif

// out: B×H×L×V; logs: B×H×L, contiguous: the logarithm of each row's sum of exponentials, +∞ for a row
// that sees nothing (its out is 0). Grid: B·H·tiles of QUERIES. Key and value have heads/group heads.
extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
    const T* q, const T* k, const T* v, T* out, float* logs, i64 queries, i64 keys, i64 width,
    i64 value_width, i64 heads, i64 group, i64 q_batch, i64 q_head, i64 q_row, i64 k_batch, i64 k_head,
    i64 k_row, i64 v_batch, i64 v_head, i64 v_row, i64 out_batch, i64 out_head, i64 out_row, double scale,
    i64 causal EXTRA_PARAMETERS) {
    DYNAMIC_SHARED(T, shared);
    T *q_tile = shared, *k_tile = q_tile + QUERIES * ROW, *v_tile = k_tile + 2 * KEYS * ROW;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

    const int L = (int)queries, S = (int)keys, tiles = tiles_of(L, QUERIES);
    const Place place(tiles, (int)heads);
    const int first = (tiles - 1 - place.tile) * QUERIES;  // the tiles that see most go first
    const int own = first + warp * 16 * M;                 // this warp's first row
    q += place.batch * q_batch + place.head * q_head + first * q_row;
    k += place.batch * k_batch + place.head / (int)group * k_head;
    v += place.batch * v_batch + place.head / (int)group * v_head;
    int count = tiles_of(S, KEYS);
    if (causal) count = min(count, tiles_of(first + QUERIES, KEYS));
#if EXTRAS
    const Extras extras = EXTRAS_OF(place.batch, place.head, blockIdx.x / tiles);
#endif
    const float unit = MASKED ? LOG2E : (float)(scale * LOG2E);  // before a mask, scores are scaled

    load_tile<QUERIES>(q_tile, q, q_row, L - first, (int)width);
    load_tile<KEYS>(k_tile, k, k_row, S, (int)width);
    load_tile<KEYS>(v_tile, v, v_row, S, (int)value_width);
    float o[M][WIDTH / 8][4], top[M][2], sum[M][2];
    clear(o);
#pragma unroll
    for (int i = 0; i < M; i++) {
        top[i][0] = top[i][1] = MINUS_INFINITY;
        sum[i][0] = sum[i][1] = 0;
    }
#if WIDTH <= 64
    u32 q_rows[M][WIDTH / 16][4];
#else
    const T* q_rows = q_tile + warp * 16 * M * ROW;
#endif
    for (int n = 0; n < count; n++) {
        wait_for_copies();
        __syncthreads();  // this tile is there, and nobody reads the one before
        if (n + 1 < count) {
            int next = (n + 1) * KEYS, half = (n + 1) % 2 * KEYS * ROW;
            load_tile<KEYS>(k_tile + half, k + next * k_row, k_row, S - next, (int)width);
            load_tile<KEYS>(v_tile + half, v + next * v_row, v_row, S - next, (int)value_width);
        }
#if WIDTH <= 64
        if (n == 0) load_rows_of<T, WIDTH, ROW>(q_rows, q_tile + warp * 16 * M * ROW);
#endif
        const int column = n * KEYS;
        if (causal && column >= own + 16 * M) continue;  // all of it is later than this warp's rows
        float s[M][N][4];
        clear(s);
        add_product_of_rows<T, WIDTH, ROW>(s, q_rows, k_tile + n % 2 * KEYS * ROW);
#if MASKED
        put_mask<false>(s, extras, own + g, column + 2 * t, L, S, (float)scale);
#endif
        if (column + KEYS > S || (causal && column + KEYS - 1 > own))
            cover(s, own + g, column + 2 * t, S, causal, MINUS_INFINITY);
        weigh(s, top, sum, o, unit);
#if DROPS
        drop(s, extras, own + g, column + 2 * t);
#endif
        u32 p[M][N][2];
        rounded<T>(p, s);
        add_product<T, ROW>(o, p, v_tile + n % 2 * KEYS * ROW);
    }
    wait_for_copies();
    __syncthreads();
    logs += (i64)(blockIdx.x / tiles) * L;
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float all = sum[i][r];
            all += __shfl_xor_sync(FULL_WARP, all, 1);
            all += __shfl_xor_sync(FULL_WARP, all, 2);
            int row = own + i * 16 + r * 8 + g;
            float largest = MASKED ? top[i][r] : top[i][r] * (float)scale;
            if (t == 0 && row < L) logs[row] = all == 0.0f ? INFINITY_ : largest + logf(all);
#if DROPS
            sum[i][r] = all == 0.0f ? 0.0f : extras.kept / all;
#else
            sum[i][r] = all == 0.0f ? 0.0f : 1.0f / all;
#endif
        }
    }
    out += place.batch * out_batch + place.head * out_head + own * out_row;
    store_tile<M>(out, out_row, L - own, (int)value_width, q_tile + warp * 16 * M * ROW, o, sum);
}
