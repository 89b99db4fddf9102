// What the attention kernels share: which query rows a block has, which keys those see, and in which order.
//
// Queries are taken packed: token by token, and under a token the query heads that share its key head. So one tile of rows
// meets one tile of keys for all heads of the group, and a single token (decoding) fills a tile as many tokens do.
//
// Keys are taken in tiles of 64: those of the shared prefix, then the segment's own, each range cut from its own start. A
// row's sums run over its tiles in this order, whichever kernel computes it. Keys that a row doesn't see have weight 0 and
// leave its sums as they are, so it doesn't matter to a row how far the others of its block look.
#pragma once
#include "common.cuh"

// Keys of a tile; tokens of a page of the cache.
constexpr int KEYS = 64;

// Numbers in the work lists (src/ops/attention/plan.rs): of a segment its first row, its rows, and the same of its prefix.
constexpr int SEGMENT = 4;

// The rows of a segment under one key head. Rows of q have `heads` heads, `per_key` of them for each key head.
struct Queries {
    int first, tokens, heads, per_key, key_head;

    __device__ __forceinline__ int count() const { return tokens * per_key; }
    __device__ __forceinline__ int token(int packed) const { return packed / per_key; }
    __device__ __forceinline__ int head(int packed) const { return key_head * per_key + packed % per_key; }

    // Where the row stands in q and o, [rows, heads, dim].
    __device__ __forceinline__ int64_t vector(int packed, int dim) const {
        return ((int64_t)(first + token(packed)) * heads + head(packed)) * dim;
    }

    // Where it stands in statistics, [heads, rows].
    __device__ __forceinline__ int64_t statistic(int packed, int rows) const {
        return (int64_t)head(packed) * rows + first + token(packed);
    }
};

// A tile of keys: its first row in k and v, and how many keys the range has from there on.
struct KeyTile {
    int row, count;
    bool is_own;

    // How many keys from the tile's start on a row sees from which the last `hidden` own keys are hidden.
    __device__ __forceinline__ int visible(int hidden) const { return is_own ? count - hidden : count; }
};

// Keys of a packed batch: rows from the start of each range on.
struct PackedPlace {
    int prefix, own;
    __device__ __forceinline__ int row(bool is_own, int tile) const { return (is_own ? own : prefix) + tile * KEYS; }
};

// Keys of a cache: a tile is a page, and each range has the numbers of its pages.
struct PagedPlace {
    const int32_t *prefix, *own;
    __device__ __forceinline__ int row(bool is_own, int tile) const { return (is_own ? own : prefix)[tile] * KEYS; }
};

// What a segment's rows see: `prefix` keys, then those of their own `own` keys that are not hidden. Causally, of as many
// tokens as own keys token i sees the first i + 1.
template <class Place>
struct Sight {
    int prefix, own;
    bool causal;
    Place place;

    __device__ __forceinline__ int hidden(int token) const { return causal ? own - 1 - token : 0; }

    __device__ __forceinline__ int prefix_tiles() const { return (prefix + KEYS - 1) / KEYS; }

    // The tiles that hold what `token` sees: the first ones.
    __device__ __forceinline__ int tiles(int token) const {
        return prefix_tiles() + (own - hidden(token) + KEYS - 1) / KEYS;
    }

    __device__ __forceinline__ KeyTile tile(int i) const {
        const bool is_own = i >= prefix_tiles();
        const int in_range = is_own ? i - prefix_tiles() : i;
        return {place.row(is_own, in_range), (is_own ? own : prefix) - in_range * KEYS, is_own};
    }
};

// Segment number `index` of the list under this block's key head (blockIdx.y).
static __device__ __forceinline__ Queries segment_queries(const int32_t* segments, int index, int heads, int key_heads) {
    const int32_t* segment = segments + index * SEGMENT;
    return {segment[0], segment[1], heads, heads / key_heads, (int)blockIdx.y};
}

static __device__ __forceinline__ Sight<PackedPlace> segment_sight(const int32_t* segments, int index, bool causal) {
    const int32_t* segment = segments + index * SEGMENT;
    return {segment[3], segment[1], causal, {segment[2], segment[0]}};
}
