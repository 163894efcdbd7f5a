// What the forward and the backward kernels of attention share: tiles, masks, dropout.
//
// One block of 4 warps works on one tile of rows of one head and walks over tiles of the other side;
// the scores never leave its registers. Matrices are 16-bit, their last dimension is contiguous, rows
// and base are multiples of 8 elements, WIDTH is the padded width (zeros in shared memory). Sizes: L
// queries, S keys, E width of queries and keys, V of values; all strides in elements.
#include "mma.cuh"

typedef ELEMENT T;

#define WARPS 4
#define THREADS (WARPS * WARP)
#define ROW (WIDTH + 8)  // elements from row to row in shared memory: see add_product_of_rows
#define LOG2E 1.4426950408889634f
#define MINUS_INFINITY (-INFINITY_)

// Where a block works: its tile, batch and head. Tiles of one head follow each other, so that blocks
// that run at the same time read the same keys.
struct Place {
    int tile, batch, head;
    __device__ __forceinline__ Place(int tiles, int heads) {
        int both = blockIdx.x / tiles;
        tile = blockIdx.x % tiles;
        batch = both / heads;
        head = both % heads;
    }
};

__device__ __forceinline__ int tiles_of(int rows, int size) { return (rows + size - 1) / size; }

// Start copying ROWS rows into shared memory; what lies outside of `rows`×`columns` becomes 0.
template <int ROWS>
__device__ __forceinline__ void load_tile(T* to, const T* from, i64 stride, int rows, int columns) {
    const int PARTS = WIDTH / 8, ALL = ROWS * PARTS;  // of 16 bytes
    const int AT_ONCE = THREADS / PARTS * PARTS, DOWN = THREADS / PARTS;
    if (AT_ONCE < THREADS && threadIdx.x >= AT_ONCE) return;
    const int row = threadIdx.x / PARTS, column = threadIdx.x % PARTS * 8;
    from += row * stride + column;
    to += row * ROW + column;
#pragma unroll
    for (int n = 0; n < (ALL + AT_ONCE - 1) / AT_ONCE; n++) {
        if (ROWS % DOWN && row + n * DOWN >= ROWS) break;
        copy_16(to + n * DOWN * ROW, from, row + n * DOWN < rows && column < columns);
        from += DOWN * stride;
    }
}

// Write a warp's own 16·M rows, c times `factor[row]`, through its own rows of shared memory.
template <int M>
__device__ __forceinline__ void store_tile(T* to, i64 stride, int rows, int columns, T* own,
                                           const float (&c)[M][WIDTH / 8][4], const float (&factor)[M][2]) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            T* at = own + (i * 16 + r * 8 + g) * ROW + 2 * t;
#pragma unroll
            for (int j = 0; j < WIDTH / 8; j++)
                *(u32*)(at + j * 8) = Tensor<T>::pair(c[i][j][2 * r] * factor[i][r],
                                                      c[i][j][2 * r + 1] * factor[i][r]);
        }
    }
    __syncwarp();
    for (int n = lane; n < 16 * M * (WIDTH / 8); n += WARP) {
        int row = n / (WIDTH / 8), column = n % (WIDTH / 8) * 8;
        if (row < rows && column < columns)
            *(Pack<T, 8>*)(to + row * stride + column) = *(const Pack<T, 8>*)(own + row * ROW + column);
    }
}

// ---- masks and dropout: only where the kernel is compiled with EXTRAS -----------------------------
#define MASKED (EXTRAS & 1)
#define DROPS (EXTRAS >> 1)

// Mixes 32 bits well: every bit of the result depends on all of them.
__device__ __forceinline__ u32 mixed(u32 x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

struct Extras {
    const char* mask;  // of this head. bool (true takes part), or T, added to the scaled scores
    bool additive;
    i64 mask_row;      // bytes
    int mask_column;   // bytes
    u32 key;           // of this head's dropout
    u32 below;         // a weight stays if its 32 random bits are below this
    float kept;        // factor of those that stay

    __device__ __forceinline__ u32 row_key(int query) const { return mixed(key ^ (u32)query); }
    // The random bits hang on the seed, the head, the query and the key alone.
    __device__ __forceinline__ bool stays(u32 row, int column) const {
        return mixed(row ^ (u32)column * 0x9e3779b9u) < below;
    }
};

// What a mask makes of scores: a tile as multiply makes it, its element 0 at `query` and `key`. Rows are
// queries and columns keys, or TURNED the other way round. Outside of the matrix the mask's last row and
// column stand in: what they give there is never used.
template <bool TURNED, bool ADDITIVE, bool SAME, int M, int N>
__device__ __forceinline__ void put_values(float (&s)[M][N][4], const Extras& x, int query, int key,
                                           int queries, int keys, float scale) {
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int row = i * 16 + e / 2 * 8, column = j * 8 + e % 2;
                const char* at = x.mask + min(key + (TURNED ? row : column), keys - 1) * x.mask_column;
                if (!SAME) at += min(query + (TURNED ? column : row), queries - 1) * x.mask_row;
                float score = s[i][j][e] * scale;
                if (ADDITIVE) s[i][j][e] = score + up(*(const T*)at);
                else s[i][j][e] = *(const u8*)at ? score : MINUS_INFINITY;
            }
        }
    }
}

template <bool TURNED, int M, int N>
__device__ __forceinline__ void put_mask(float (&s)[M][N][4], const Extras& x, int query, int key,
                                         int queries, int keys, float scale) {
    const bool same = x.mask_row == 0;  // for all queries: read once
    if (x.additive && same) put_values<TURNED, true, true>(s, x, query, key, queries, keys, scale);
    else if (x.additive) put_values<TURNED, true, false>(s, x, query, key, queries, keys, scale);
    else if (same) put_values<TURNED, false, true>(s, x, query, key, queries, keys, scale);
    else put_values<TURNED, false, false>(s, x, query, key, queries, keys, scale);
}

#if EXTRAS
#define EXTRA_PARAMETERS                                                                          \
    , const void *mask, i64 mask_is_added, i64 mask_batch, i64 mask_head, i64 mask_row,           \
        i64 mask_column, double dropped, u64 seed, u64 offset, const u64 *state
#define EXTRAS_OF(batch, head, number)                                                            \
    extras_of(mask, mask_is_added, (batch) * mask_batch + (head) * mask_head, mask_row, mask_column, \
              dropped, seed, offset, state, number)
#else
#define EXTRA_PARAMETERS
#endif

// `seed`, `offset`, `state`: what a generator has reserved for this call (see philox.cuh), used if
// `dropped` > 0; `number`: which head it is of all. Strides of the mask in elements.
__device__ __forceinline__ Extras extras_of(const void* mask, i64 additive, i64 place, i64 row, i64 column,
                                            double dropped, u64 seed, u64 offset, const u64* state,
                                            u32 number) {
    Extras x;
    const int size = additive ? sizeof(T) : 1;
    x.additive = additive;
    x.mask = (const char*)mask + place * size;
    x.mask_row = row * size;
    x.mask_column = (int)column * size;
    if (state) {
        seed = state[0];
        offset += state[1];
    }
    u32 key = mixed((u32)seed);
    key = mixed(key ^ (u32)(seed >> 32));
    key = mixed(key ^ (u32)offset);
    key = mixed(key ^ (u32)(offset >> 32));
    x.key = mixed(key ^ number);
    x.below = (u32)fmin((1.0 - dropped) * 4294967296.0, 4294967295.0);
    x.kept = dropped < 1.0 ? (float)(1.0 / (1.0 - dropped)) : 0.0f;
    return x;
}

// Elements of a tile (M×N fragments; rows are queries, columns keys, from `row` and `column` on) that lie
// outside of the matrix, or whose key is later than their query, become `value`.
template <int M, int N>
__device__ __forceinline__ void cover(float (&tile)[M][N][4], int row, int column, int keys, bool causal,
                                      float value) {
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int c = column + j * 8 + e % 2, r = row + i * 16 + e / 2 * 8;
                if (c >= keys || (causal && c > r)) tile[i][j][e] = value;
            }
        }
    }
}
