// From logits to the next tokens: the steps of src/rollout/sampler.rs, a row of logits to a block.
//
// Nothing is sorted. The limits of top-k and top-p are found by their keys, eight bits at a time, with sums of integers over
// the tokens of each digit: exact, so that the order of the additions doesn't matter. The draw, and the last token that stays
// of equals, are found by running sums in id order, in f64 over a partition of the ids that the vocabulary alone decides.
// So a row's token depends on nothing but the row. Without top-k and top-p the logits are read twice, and nothing is stored.
#include "common.cuh"
#include "philox.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr uint32_t ALL = 0xffffffffu;

// What a row of the table of draws holds.
enum { SEED_LOW, SEED_HIGH, PROMPT, COMPLETION, POSITION, SEQUENCE, WORDS_OF_DRAW };
// Word 1 of a draw's counter: Purpose::Sample of src/rng.rs.
constexpr uint32_t PURPOSE = 1;

// What the host reads in the place of a token (src/rollout/sampler/cuda.rs). -2 and below: the logit of token (-2 - code) / 2
// is +inf or, where code is odd, NaN.
constexpr int32_t NOTHING_LEFT = -1;

// This thread's packs of a row: body(i, pack) for each, with the pack's first element i; beyond the row a pack holds 0. Several
// packs are asked for before the first is needed: one at a time, a block would wait for memory most of its time.
template <int STRIDE, class Body>
__device__ __forceinline__ void for_row(const float* row, int32_t first, int32_t end, Body body) {
    constexpr int AT_ONCE = 4;
    for (int32_t i = first; i < end; i += AT_ONCE * STRIDE) {
        Pack<float> packs[AT_ONCE];
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) packs[p] = load_pack(row + i + p * STRIDE, end - i - p * STRIDE);
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) {
            if (i + p * STRIDE < end) body(i + p * STRIDE, packs[p]);
        }
    }
}

// The same of a row that the whole block shares.
template <class Body>
__device__ __forceinline__ void for_row(const float* row, int32_t vocab, Body body) {
    for_row<THREADS * PACK<float>>(row, threadIdx.x * PACK<float>, vocab, body);
}

// The tokens of a set from token i on, in the lowest bits. A pack's tokens share a word.
static __device__ __forceinline__ uint32_t bits_from(const uint32_t* set, int32_t i) { return set ? set[i / 32] >> (i % 32) : 0; }

// Greater for the greater score, and the same for 0 and -0.
static __device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
// Its inverse.
static __device__ __forceinline__ float unordered(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// A token as one number: the greatest score first, of equals the lowest id. A logit that is none stands before all others.
struct Ranked {
    static constexpr uint32_t NO_LOGIT = 0xffffffffu;
    uint64_t rank;

    static __device__ __forceinline__ uint64_t of(uint32_t key, int32_t id) { return (uint64_t)key << 32 | ~(uint32_t)id; }
    __device__ __forceinline__ uint32_t key() const { return (uint32_t)(rank >> 32); }
    __device__ __forceinline__ int32_t id() const { return (int32_t)~(uint32_t)rank; }
    __device__ __forceinline__ bool can_be_chosen() const { return key() != NO_LOGIT && key() > ordered(-INFINITY); }
};

// The greatest over the block, in every thread. All threads call, once in a kernel.
static __device__ __forceinline__ uint64_t block_max(uint64_t x) {
    __shared__ uint64_t of_warp[WARPS];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = max(x, __shfl_xor_sync(ALL, x, distance));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) x = max(x, of_warp[warp]);
    return x;
}

// What is done to a row's logits before any is left out: steps 1 to 4.
struct Rules {
    const uint32_t* blocked;  // set of the tokens that may not come
    const uint32_t* seen;     // set of those that have their penalty, or null
    float penalty, temperature;

    // The scores of the tokens from i on.
    __device__ __forceinline__ Pack<float> scores(Pack<float> logits, int32_t i) const {
        const uint32_t is_blocked = bits_from(blocked, i), is_seen = bits_from(seen, i);
#pragma unroll
        for (int j = 0; j < PACK<float>; j++) {
            float x = logits.at[j];
            if (is_seen >> j & 1) x = x < 0.0f ? x * penalty : x / penalty;
            if (is_blocked >> j & 1) x = -INFINITY;
            if (temperature != 1.0f) x = x / temperature;
            logits.at[j] = x;
        }
        return logits;
    }
};

// The first of the best scores, which are stored unless `scores` is null.
static __device__ __forceinline__ Ranked score_row(const float* logits, float* scores, int32_t vocab, const Rules& rules) {
    uint32_t best = 0;
    int32_t first = 0;
    for_row(logits, vocab, [&](int32_t i, const Pack<float>& pack) {
        const Pack<float> scored = rules.scores(pack, i);
#pragma unroll
        for (int j = 0; j < PACK<float>; j++) {
            const uint32_t key = pack.at[j] < INFINITY ? ordered(scored.at[j]) : Ranked::NO_LOGIT;
            if (i + j < vocab && key > best) {
                best = key;
                first = i + j;
            }
        }
        if (scores) store_pack(scores + i, vocab - i, scored);
    });
    return {block_max(Ranked::of(best, first))};
}

// e^x for x below 0: exp_of_negative of src/rollout/sampler.rs, operation by operation.
static __device__ __forceinline__ float exp_of_negative(float x) {
    if (x < -87.0f) return 0.0f;
    const float n = rintf(x * 1.44269504f);
    const float r = fmaf(n, -1.4286068e-6f, fmaf(n, -0.69314575f, x));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    const float of_r = fmaf(p, r * r, r) + 1.0f;
    return of_r * __uint_as_float((uint32_t)((int32_t)n + 127) << 23);
}

// Unnormalised probability of a score, the best having 1. A tiny temperature may make scores infinite, whose difference is no
// number.
static __device__ __forceinline__ float weight(float score, float best) { return score == best ? 1.0f : exp_of_negative(score - best); }

// Why there is no token.
static __device__ __forceinline__ int32_t reason(const float* logits, Ranked best) {
    if (best.key() != Ranked::NO_LOGIT) return NOTHING_LEFT;
    const float logit = logits[best.id()];
    return -2 - 2 * best.id() - (logit != logit);
}

// Where a running sum crosses.
struct Crossing {
    int32_t at;            // the amount that makes it cross
    double below, amount;  // the sum before it, and how much it is
};

// Of the amounts 0 to 32 * N - 1, the first with which `below` and their running sum cross; if none does, which only rounding
// brings about or the caller wants, the last that isn't 0. The first warp adds: each lane has N neighbours, from `first` on by
// amounts_of(first, amounts), and the lanes' sums are scanned. All threads call, and may have written what it reads just before.
template <int N, class Amounts, class Crosses>
__device__ __forceinline__ Crossing first_crossing(double below, Amounts amounts_of, Crosses crosses) {
    // Not a structure, whose gaps nobody writes.
    __shared__ int32_t found_at;
    __shared__ double found_below, found_amount;
    __syncthreads();
    if (threadIdx.x < 32) {
        const int32_t lane = threadIdx.x;
        double amounts[N], sum = 0.0;
        amounts_of(lane * N, amounts);
#pragma unroll
        for (int j = 0; j < N; j++) sum += amounts[j];
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const double earlier = __shfl_up_sync(ALL, sum, distance);
            if (lane >= distance) sum += earlier;
        }
        const double earlier = __shfl_up_sync(ALL, sum, 1);
        double running = lane > 0 ? below + earlier : below;
        Crossing own = {-1, 0.0, 0.0};
        bool has_crossed = false;
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (!has_crossed && amounts[j] > 0.0) {
                own = {lane * N + j, running, amounts[j]};
                running += amounts[j];
                has_crossed = crosses(running);
            }
        }
        const uint32_t crossing = __ballot_sync(ALL, has_crossed), holding = __ballot_sync(ALL, own.at >= 0);
        const int32_t winner = crossing ? __ffs(crossing) - 1 : 31 - __clz(holding);
        if (lane == winner) {
            found_at = own.at;
            found_below = own.below;
            found_amount = own.amount;
        }
    }
    __syncthreads();
    return {found_at, found_below, found_amount};
}

// The least key for which the amounts of all tokens with this key or a lesser one, and `below`, cross.
struct Limit {
    uint32_t key;
    double below, amount;  // the sum over lesser keys, and over this one
};

// Finds the limit digit by digit. Of a token that row[id] = x, key_of(x) is its key and amount_of(x) an integer below 2^24, or 0
// to leave it out; worth(key, sum) is what amounts of sum `sum` are worth, of keys that have their first digit in common.
// A row is at most 2^20 tokens, so that sums of half an amount, 12 bits, stay below 2^32.
template <class Key, class Amount, class Worth, class Crosses>
__device__ __forceinline__ Limit find_limit(const float* row, int32_t vocab, double below, Key key_of, Amount amount_of,
                                            Worth worth, Crosses crosses) {
    // Most keys have few first digits: with several counters for each, fewer threads wait for each other.
    constexpr int DIGITS = 256, COPIES = 8;
    __shared__ uint32_t low[DIGITS * COPIES], high[DIGITS * COPIES];
    __shared__ double worths[DIGITS];
    Limit limit = {0, below, 0.0};
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < DIGITS * COPIES; i += THREADS) low[i] = high[i] = 0;
        __syncthreads();
        for_row(row, vocab, [&](int32_t i, const Pack<float>& pack) {
#pragma unroll
            for (int j = 0; j < PACK<float>; j++) {
                const uint32_t key = key_of(pack.at[j]), amount = i + j < vocab ? amount_of(pack.at[j]) : 0;
                if (amount > 0 && (uint64_t)key >> (shift + 8) == limit.key) {
                    const uint32_t counter = (key >> shift) % DIGITS * COPIES + threadIdx.x % COPIES;
                    atomicAdd(&low[counter], amount % 4096);
                    if (amount >= 4096) atomicAdd(&high[counter], amount / 4096);
                }
            }
        });
        __syncthreads();
        if (threadIdx.x < DIGITS) {
            uint64_t sum = 0;
#pragma unroll
            for (int copy = 0; copy < COPIES; copy++) {
                const int counter = threadIdx.x * COPIES + copy;
                sum += low[counter] + (uint64_t)high[counter] * 4096;
            }
            worths[threadIdx.x] = worth((limit.key * DIGITS + threadIdx.x) << shift, sum);
        }
        constexpr int N = DIGITS / 32;
        const auto worths_of = [&](int32_t digit, double (&amounts)[N]) {
#pragma unroll
            for (int j = 0; j < N; j++) amounts[j] = worths[digit + j];
        };
        const Crossing digit = first_crossing<N>(limit.below, worths_of, crosses);
        limit = {limit.key * DIGITS + digit.at, digit.below, digit.amount};
    }
    return limit;
}

// The first token with which the running sum of amounts in id order exceeds limit_of(their total); if none does, the last that
// has an amount. amounts_of(id, pack) turns the pack of `row` from token id on into amounts. A warp has a span of neighbouring
// ids; then the span that matters is divided among the warps, and so on until a warp can look at all that is left.
template <class Amounts, class LimitOf>
__device__ __forceinline__ int32_t locate(const float* row, int32_t vocab, Amounts amounts_of, LimitOf limit_of) {
    constexpr int N = PACK<float>, TILE = 32 * N;
    __shared__ double of_warp[WARPS];
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t first = 0, end = vocab;
    double below = 0.0, limit = 0.0;
    const auto crosses = [&](double sum) { return sum > limit; };
    for (bool is_whole = true; is_whole || end - first > TILE; is_whole = false) {
        const int32_t span = (end - first + WARPS * TILE - 1) / (WARPS * TILE) * TILE;
        const int32_t from = first + warp * span, to = min(from + span, end);
        double sum = 0.0;
        for_row<TILE>(row, from + lane * N, to, [&](int32_t i, const Pack<float>& pack) {
            const Pack<float> amounts = amounts_of(i, pack);
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (i + j < to) sum += amounts.at[j];
            }
        });
        sum = warp_sum(sum);
        if (lane == 0) of_warp[warp] = sum;
        if (is_whole) {
            __syncthreads();
            double total = 0.0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) total += of_warp[w];
            limit = limit_of(total);
        }
        const auto of_spans = [&](int32_t w, double (&amounts)[1]) { amounts[0] = w < WARPS ? of_warp[w] : 0.0; };
        const Crossing there = first_crossing<1>(below, of_spans, crosses);
        first += there.at * span;
        end = min(first + span, end);
        below = there.below;
    }
    const auto of_tile = [&](int32_t i, double (&amounts)[N]) {
        Pack<float> pack = {};
        if (first + i < end) pack = amounts_of(first + i, load_pack(row + first + i, end - first - i));
#pragma unroll
        for (int j = 0; j < N; j++) amounts[j] = first + i + j < end ? pack.at[j] : 0.0;
    };
    return first + first_crossing<N>(below, of_tile, crosses).at;
}

// The mantissa of a normal number as an integer.
static __device__ __forceinline__ uint32_t mantissa(float x) { return (__float_as_uint(x) & 0x7fffffu) | 0x800000u; }

// Which tokens step 6 leaves: those whose weight is above `least`, and those of just this weight up to token `last`.
struct Kept {
    float least;
    int32_t last;
};

// Step 6, top-p: from the least weight on tokens go while the sum of the gone is at most `tail` of the total, of equals the
// highest id first. Weights below `rare` (a normal number), whose sum is `below` and can't reach that, are not looked at.
static __device__ __forceinline__ Kept keep_top_p(const float* weights, int32_t vocab, double total, double below, float rare,
                                                  float tail) {
    const auto crosses = [&](double sum) { return (float)(sum / total) > tail; };
    // Keys begin with the exponent, which says what the mantissas are worth.
    const Limit limit = find_limit(
        weights, vocab, below, [](float w) { return __float_as_uint(w) << 1; },
        [&](float w) { return w < rare ? 0u : mantissa(w); },
        [](uint32_t key, uint64_t sum) { return ldexp((double)sum, (int)(key >> 24) - 150); }, crosses);
    const float least = __uint_as_float(limit.key >> 1);
    const int32_t equals = (int32_t)(limit.amount / least);
    // When `gone` of the equals are, the sum doesn't cross; when `too_many` are, it does or nothing would be left.
    int32_t gone = 0, too_many = equals;
    while (too_many - gone > 1) {
        const int32_t middle = (gone + too_many) / 2;
        (crosses(limit.below + (double)middle * least) ? too_many : gone) = middle;
    }
    if (gone == 0) return {least, vocab};
    const auto equal = [&](int32_t, Pack<float> pack) {
#pragma unroll
        for (int j = 0; j < PACK<float>; j++) pack.at[j] = pack.at[j] == least ? 1.0f : 0.0f;
        return pack;
    };
    return {least, locate(weights, vocab, equal, [&](double) { return (double)(equals - gone - 1); })};
}

// Steps 5 to 7 and the draw by `unit`, a number in [0, 1): `row` holds the scores, of which the best can be chosen, and is written.
static __device__ __forceinline__ int32_t draw_truncated(float* row, int32_t vocab, float best, double unit, int32_t top_k,
                                                         float tail, float rare, float min_p) {
    float least_score = -INFINITY;
    if (top_k > 0) {
        // The k-th from above has vocab - k below it.
        const Limit limit = find_limit(
            row, vocab, 0.0, [](float x) { return ordered(x); }, [](float) { return 1u; },
            [](uint32_t, uint64_t sum) { return (double)sum; }, [&](double sum) { return sum > (double)(vocab - top_k); });
        least_score = unordered(limit.key);
    }
    double sums[2] = {};
    for_row(row, vocab, [&](int32_t i, Pack<float> pack) {
#pragma unroll
        for (int j = 0; j < PACK<float>; j++) {
            const float w = pack.at[j] >= least_score ? weight(pack.at[j], best) : 0.0f;
            pack.at[j] = w;
            if (i + j < vocab) {
                sums[0] += w;
                if (w < rare) sums[1] += w;
            }
        }
        store_pack(row + i, vocab - i, pack);
    });
    // Also lets every thread read what all have written.
    block_sums<THREADS>(sums);
    Kept kept = {0.0f, vocab};
    if (tail > 0.0f) kept = keep_top_p(row, vocab, sums[0], sums[1], rare, tail);
    const auto weights = [&](int32_t i, Pack<float> pack) {
#pragma unroll
        for (int j = 0; j < PACK<float>; j++) {
            const float w = pack.at[j];
            const bool stays = w > kept.least || (w == kept.least && i + j <= kept.last);
            pack.at[j] = stays && w >= min_p ? w : 0.0f;
        }
        return pack;
    };
    return locate(row, vocab, weights, [&](double total) { return unit * total; });
}

// Step 7 and the draw, from the logits.
static __device__ __forceinline__ int32_t draw(const float* logits, int32_t vocab, const Rules& rules, float best, double unit,
                                               float min_p) {
    const auto weights = [&](int32_t i, const Pack<float>& raw) {
        Pack<float> pack = rules.scores(raw, i);
#pragma unroll
        for (int j = 0; j < PACK<float>; j++) {
            const float w = weight(pack.at[j], best);
            pack.at[j] = w >= min_p ? w : 0.0f;
        }
        return pack;
    };
    return locate(logits, vocab, weights, [&](double total) { return unit * total; });
}

// What a block works on. draws [B, WORDS_OF_DRAW]; blocked [2, words], a bit for each token, first what may not come, then with
// what may not come among the first min_new_tokens; seen [sequences, words], null without a penalty.
struct Task {
    const float* logits;
    const uint32_t* of_draw;
    uint32_t* seen;
    Rules rules;

    __device__ __forceinline__ Task(const float* logits_bv, const uint32_t* draws, const uint32_t* blocked, uint32_t* seen_sw,
                                    int32_t vocab, uint32_t min_new_tokens, float penalty, float temperature)
        : logits(row_of(logits_bv, blockIdx.x, vocab)), of_draw(row_of(draws, blockIdx.x, WORDS_OF_DRAW)) {
        const int32_t words = (vocab + 31) / 32;
        const bool is_early = of_draw[POSITION] < min_new_tokens;
        seen = seen_sw ? row_of(seen_sw, of_draw[SEQUENCE], words) : nullptr;
        rules = {row_of(blocked, is_early, words), seen, penalty, temperature};
    }

    // DrawKey::unit.
    __device__ __forceinline__ double unit() const {
        const uint4 counter = make_uint4(of_draw[POSITION], PURPOSE, of_draw[PROMPT], of_draw[COMPLETION]);
        const uint4 random = philox(of_draw[SEED_LOW], of_draw[SEED_HIGH], counter);
        return (double)((uint64_t)(random.x >> 5) << 26 | random.y >> 6) * (1.0 / 9007199254740992.0);
    }

    // The first thread hands the token out, and marks it as seen by its sequence.
    __device__ __forceinline__ void finish(int32_t token, int32_t* tokens) const {
        if (!is_first_thread()) return;
        tokens[blockIdx.x] = token;
        if (seen && token >= 0) seen[token / 32] |= 1u << (token % 32);
    }
};

// tokens [B] for logits [B, vocab], by sampling without top-k and top-p. min_p is 0 where it is off. See Task.
extern "C" __global__ void __launch_bounds__(512)
sample_forward_f32(const float* logits, const uint32_t* draws, const uint32_t* blocked, uint32_t* seen, int32_t* tokens,
                   int32_t vocab, uint32_t min_new_tokens, float penalty, float temperature, float min_p) {
    const Task task(logits, draws, blocked, seen, vocab, min_new_tokens, penalty, temperature);
    const Ranked best = score_row(task.logits, nullptr, vocab, task.rules);
    int32_t token;
    if (best.can_be_chosen()) {
        token = draw(task.logits, vocab, task.rules, unordered(best.key()), task.unit(), min_p);
    } else {
        token = reason(task.logits, best);
    }
    task.finish(token, tokens);
}

// The same with top-k and top-p. scratch [B, vocab]; top_k, tail (the share of the total that top-p lets go) and min_p are 0
// where they are off.
extern "C" __global__ void __launch_bounds__(512)
sample_truncated_forward_f32(const float* logits, const uint32_t* draws, const uint32_t* blocked, uint32_t* seen,
                             float* scratch, int32_t* tokens, int32_t vocab, uint32_t min_new_tokens, float penalty,
                             float temperature, int32_t top_k, float tail, float rare, float min_p) {
    const Task task(logits, draws, blocked, seen, vocab, min_new_tokens, penalty, temperature);
    float* row = row_of(scratch, blockIdx.x, vocab);
    const Ranked best = score_row(task.logits, row, vocab, task.rules);
    int32_t token;
    if (best.can_be_chosen()) {
        token = draw_truncated(row, vocab, unordered(best.key()), task.unit(), top_k, tail, rare, min_p);
    } else {
        token = reason(task.logits, best);
    }
    task.finish(token, tokens);
}

// The same, greedy: the first of the best after step 3.
extern "C" __global__ void __launch_bounds__(512)
sample_greedy_forward_f32(const float* logits, const uint32_t* draws, const uint32_t* blocked, uint32_t* seen, int32_t* tokens,
                          int32_t vocab, uint32_t min_new_tokens, float penalty) {
    const Task task(logits, draws, blocked, seen, vocab, min_new_tokens, penalty, 1.0f);
    const Ranked best = score_row(task.logits, nullptr, vocab, task.rules);
    task.finish(best.can_be_chosen() ? best.id() : reason(task.logits, best), tokens);
}
