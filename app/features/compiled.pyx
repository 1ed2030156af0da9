# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The loops of a request, compiled: each does what a numpy version beside its caller does, up to rounding.

One call does what takes ten and more of numpy, each of which costs more than its arithmetic on a few hundred candidates.
Arrays are C-contiguous. They, and all numbers of rows, are checked before anything is read by them. The interpreter's lock is
held throughout.
"""

from libc.math cimport exp2, floor, fmax, log, log1p, log2, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <string.h>
    #if defined(_MSC_VER)
    #include <intrin.h>
    static int lowest_bit(unsigned long long mask) { unsigned long place; _BitScanForward64(&place, mask); return place; }
    static void prefetch_line(const void* place) {}
    #else
    static inline int lowest_bit(unsigned long long mask) { return __builtin_ctzll(mask); }
    static inline void prefetch_line(const void* place) { __builtin_prefetch(place); }
    #endif

    /* GCC makes both, and which one is called is decided when the module is loaded; other compilers make what all processors can. */
    #if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
    #define FOR_THIS_PROCESSOR __attribute__((target_clones("avx2", "default")))
    #else
    #define FOR_THIS_PROCESSOR
    #endif

    /* In C, because Cython has no words for arrays that lie apart, without which these loops are not vectorized. */
    FOR_THIS_PROCESSOR
    static void and_into(void* __restrict target, const void* __restrict source, Py_ssize_t size)
    {
        unsigned char* __restrict t = (unsigned char*) target;
        const unsigned char* __restrict s = (const unsigned char*) source;
        Py_ssize_t i;
        for (i = 0; i < size; i++) t[i] &= s[i];
    }

    FOR_THIS_PROCESSOR
    static void add_multiple(float* __restrict target, const float* __restrict source, float factor, Py_ssize_t count)
    {
        Py_ssize_t i;
        for (i = 0; i < count; i++) target[i] += factor * source[i];
    }

    /* In eight sums, because a sum has to be added up in the order in which it is written. */
    FOR_THIS_PROCESSOR
    static float dot(const float* __restrict left, const float* __restrict right, Py_ssize_t count)
    {
        float sums[8] = {0}, rest = 0;
        Py_ssize_t i, k;
        for (i = 0; i + 8 <= count; i += 8)
            for (k = 0; k < 8; k++) sums[k] += left[i + k] * right[i + k];
        for (; i < count; i++) rest += left[i] * right[i];
        return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7])) + rest;
    }
    """
    int lowest_bit(uint64_t mask) noexcept nogil
    void prefetch_line(const void* place) noexcept nogil
    void and_into(void* target, const void* source, Py_ssize_t size) noexcept nogil
    void add_multiple(float* target, const float* source, float factor, Py_ssize_t count) noexcept nogil
    float dot(const float* left, const float* right, Py_ssize_t count) noexcept nogil

ctypedef fused mask_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t


def intervals(
    const float[:, ::1] block,
    const Py_ssize_t[::1] positions,
    const int64_t[::1] offsets,
    const Py_ssize_t[:, ::1] ranges,
    const int64_t[::1] cuts,
    Py_ssize_t[:, ::1] found,
):
    """Writes into `found` (k, n) how many `cuts` each value of `block` (n, columns) at the `positions` (k,) has passed.

    `ranges` (k, 2): where the cuts of each column begin and end.
    """
    cdef Py_ssize_t column, row, passed, left, half
    cdef int64_t key
    _check_rows(positions, block.shape[1])
    if found.shape[0] != positions.shape[0] or found.shape[1] != block.shape[0] or not (
        len(offsets) == len(ranges) == len(positions) and ranges.shape[1] == 2
    ):
        raise ValueError("the arrays do not fit together")
    for column in range(positions.shape[0]):
        if not 0 <= ranges[column, 0] <= ranges[column, 1] <= cuts.shape[0]:
            raise IndexError(f"cuts {ranges[column, 0]} to {ranges[column, 1]} of {len(cuts)}")
        for row in range(block.shape[0]):
            key = offsets[column] + _ordered(block[row, positions[column]])
            passed, left = ranges[column, 0], ranges[column, 1] - ranges[column, 0]
            while left > 0:
                half = (left + 1) >> 1
                # Without a branch, which no processor could foresee.
                passed += half & -<Py_ssize_t> (cuts[passed + half - 1] <= key)
                left -= half
            found[column, row] = passed


cdef inline int32_t _ordered(float value) noexcept nogil:
    cdef int32_t bits
    memcpy(&bits, &value, sizeof(bits))
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def joined_masks(const mask_t[:, ::1] table, const Py_ssize_t[:, ::1] rows, mask_t[:, ::1] masks):
    """Writes into `masks` (n, trees) the AND of those rows of `table` that `rows` (k, n) names, k > 0."""
    cdef Py_ssize_t part, row
    cdef Py_ssize_t size = table.shape[1] * sizeof(mask_t)
    if masks.shape[0] != rows.shape[1] or masks.shape[1] != table.shape[1] or not rows.shape[0]:
        raise ValueError("the arrays do not fit together")
    for part in range(rows.shape[0]):
        _check_rows(rows[part], table.shape[0])
    if not table.shape[1]:
        return
    for row in range(rows.shape[1]):
        memcpy(&masks[row, 0], &table[rows[0, row], 0], size)
        for part in range(1, rows.shape[0]):
            and_into(&masks[row, 0], &table[rows[part, row], 0], size)


# Rows whose masks are on their way into the processor's cache: candidates lie anywhere in what is kept of them.
cdef enum:
    FETCHED_AHEAD = 2
    CACHE_LINE_BYTES = 64


cdef struct Pool:
    const void* masks
    const Py_ssize_t* rows


def gathered_sums(const mask_t[::1] shared, list pools, const float[::1] leaves, double[::1] sums):
    """Writes into `sums` (n,) the values of the leaves that n rows fall into, summed over their trees.

    A row's mask is the AND of `shared` (trees,) and of one from each of the `pools`, which are pairs of masks (m, trees) and
    of which of them belongs to which row, intp (n,). `leaves` holds as many values per tree as a mask has bits.
    """
    cdef Py_ssize_t row, tree, number
    cdef Py_ssize_t tree_count = shared.shape[0], bits = 8 * sizeof(mask_t), pool_count = len(pools)
    cdef Py_ssize_t size = tree_count * sizeof(mask_t)
    cdef const mask_t[:, ::1] masks
    cdef const Py_ssize_t[::1] rows
    cdef mask_t* mask
    cdef Pool* sources
    cdef double even, odd
    cdef const float* leaf
    if len(leaves) != tree_count * bits:
        raise ValueError("the arrays do not fit together")
    sums[:] = 0.0
    if not tree_count or not len(sums):
        return
    mask = <mask_t*> calloc(tree_count, sizeof(mask_t))
    sources = <Pool*> calloc(pool_count + 1, sizeof(Pool))
    try:
        if mask is NULL or sources is NULL:
            raise MemoryError
        # The pools keep alive what the pointers point to.
        for number, (masks, rows) in enumerate(pools):
            if masks.shape[1] != tree_count or len(rows) != len(sums):
                raise ValueError("the arrays do not fit together")
            _check_rows(rows, masks.shape[0])
            sources[number].masks = &masks[0, 0]
            sources[number].rows = &rows[0]
        for row in range(sums.shape[0]):
            if row + FETCHED_AHEAD < sums.shape[0]:
                for number in range(pool_count):
                    _prefetch_masks(
                        <const mask_t*> sources[number].masks
                        + sources[number].rows[row + FETCHED_AHEAD] * tree_count,
                        tree_count,
                    )
            memcpy(mask, &shared[0], size)
            for number in range(pool_count):
                and_into(mask, <const mask_t*> sources[number].masks + sources[number].rows[row] * tree_count, size)
            # Two sums, because an addition waits for the one before.
            even = odd = 0.0
            leaf = &leaves[0]
            for tree in range(0, tree_count - 1, 2):
                # Of each tree a leaf is left; the highest bit only keeps what is read within the array.
                even += leaf[lowest_bit(<uint64_t> mask[tree] | (<uint64_t> 1 << (bits - 1)))]
                odd += leaf[bits + lowest_bit(<uint64_t> mask[tree + 1] | (<uint64_t> 1 << (bits - 1)))]
                leaf += 2 * bits
            if tree_count % 2:
                even += leaf[lowest_bit(<uint64_t> mask[tree_count - 1] | (<uint64_t> 1 << (bits - 1)))]
            sums[row] = even + odd
    finally:
        free(sources)
        free(mask)


cdef inline void _prefetch_masks(const mask_t* masks, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t number = 0
    while number < count:
        prefetch_line(masks + number)
        number += CACHE_LINE_BYTES // <Py_ssize_t> sizeof(mask_t)


cdef int _check_rows(const Py_ssize_t[:] rows, Py_ssize_t count) except -1:
    cdef Py_ssize_t number, least = 0, most = -1
    for number in range(rows.shape[0]):
        least = min(least, rows[number])
        most = max(most, rows[number])
    if least < 0 or most >= count:
        raise IndexError(f"rows {least} to {most} of {count}")
    return 0


cdef struct Items:
    # The traits of a proposition, `count` codes from `codes` on, and 1 / sqrt(count): the length of its vector of traits.
    const int32_t* codes
    Py_ssize_t count
    double unit


def pair_columns(
    tuple blocks,
    const int64_t[::1] starts,
    const int32_t[::1] lengths,
    int32_t[::1] numbers,
    const int64_t[::1] rows,
    const double[::1] shown,
    const double[::1] clicks,
    const float[:, ::1] nearness,
    double rate,
    double trait_strength,
    double noise,
    double smallest,
    int steps,
    float[:, ::1] columns,
):
    """Writes the trait affinity and the likeness, see `affinity`, into `columns` (n, 2) of n candidates.

    `blocks`, `starts` and `lengths` are the codes of traits (a `RaggedColumn`), `rows` (h + n,) of them the h of the history and
    then the candidates, `shown` > 0 and `clicks` (h,) of the history. `numbers`, as many as there are codes, has to be all -1, which
    is not checked, and is so again afterwards. `nearness` (h + n, h) is the part of the numbers.
    """
    cdef Py_ssize_t seen_count = shown.shape[0], row_count = rows.shape[0]
    cdef Py_ssize_t row, item, step, most = 0, distinct = 0
    cdef int32_t code
    cdef double variance = sqrt(max(rate * (1.0 - rate), smallest)), prior = trait_strength * rate
    cdef double size, before, along, length, affinity, in_common
    cdef Items* items = NULL
    cdef double* vectors = NULL
    cdef double* scale
    cdef double* solution
    cdef double* rest
    cdef double* direction
    cdef double* image
    cdef double* scaled
    cdef float* narrow
    cdef double* traits = NULL
    cdef double* of_affinity
    cdef double* of_likeness
    cdef int32_t* seen_codes = NULL
    cdef bint is_written = False
    if not (len(clicks) == nearness.shape[1] == seen_count <= row_count == nearness.shape[0]) or (
        columns.shape[0] != row_count - seen_count or columns.shape[1] != 2 or len(starts) != len(lengths)
    ):
        raise ValueError("the arrays do not fit together")
    try:
        items = <Items*> calloc(row_count + 1, sizeof(Items))
        vectors = <double*> calloc(7 * seen_count + 1, sizeof(double))
        if items is NULL or vectors is NULL:
            raise MemoryError
        _find_items(blocks, starts, lengths, rows, len(numbers), items)
        for row in range(seen_count):
            most += items[row].count
        traits = <double*> calloc(2 * most + 1, sizeof(double))
        seen_codes = <int32_t*> calloc(most + 1, sizeof(int32_t))
        if traits is NULL or seen_codes is NULL:
            raise MemoryError
        of_affinity, of_likeness = traits, traits + most
        scale, solution, rest = vectors, vectors + seen_count, vectors + 2 * seen_count
        direction, image, scaled = vectors + 3 * seen_count, vectors + 4 * seen_count, vectors + 5 * seen_count
        narrow = <float*> (vectors + 6 * seen_count)  # as `scaled`

        # Traits of the history are numbered as they come; how often each was shown and clicked.
        is_written = True
        for row in range(seen_count):
            for item in range(items[row].count):
                code = items[row].codes[item]
                if numbers[code] < 0:
                    numbers[code] = <int32_t> distinct
                    seen_codes[distinct] = code
                    distinct += 1
                of_affinity[numbers[code]] += clicks[row]
                of_likeness[numbers[code]] += shown[row]
        for item in range(distinct):
            of_affinity[item] = log((of_affinity[item] + prior) / (rate * of_likeness[item] + prior))

        # Conjugate gradients.
        size = 0.0
        for row in range(seen_count):
            scale[row] = sqrt(shown[row] / noise)
            rest[row] = direction[row] = scale[row] * (clicks[row] / shown[row] - rate) / variance
            size += rest[row] * rest[row]
        for step in range(steps):
            if size < smallest:
                break
            along = 0.0
            for row in range(seen_count):
                scaled[row] = scale[row] * direction[row]
                narrow[row] = <float> scaled[row]
            _sum_by_trait(items, seen_count, numbers, scaled, of_likeness, distinct)
            for row in range(seen_count):
                in_common = _sum_of_traits(&items[row], numbers, of_likeness)
                image[row] = direction[row] + scale[row] * (in_common + dot(&nearness[row, 0], narrow, seen_count))
                along += direction[row] * image[row]
            length = size / along
            before, size = size, 0.0
            for row in range(seen_count):
                solution[row] += length * direction[row]
                rest[row] -= length * image[row]
                size += rest[row] * rest[row]
            for row in range(seen_count):
                direction[row] = rest[row] + size / before * direction[row]

        for row in range(seen_count):
            scaled[row] = scale[row] * solution[row]
            narrow[row] = <float> scaled[row]
        _sum_by_trait(items, seen_count, numbers, scaled, of_likeness, distinct)
        for row in range(seen_count, row_count):
            affinity = in_common = 0.0
            for item in range(items[row].count):
                code = numbers[items[row].codes[item]]
                if code >= 0:
                    affinity += of_affinity[code]
                    in_common += of_likeness[code]
            columns[row - seen_count, 0] = <float> affinity
            columns[row - seen_count, 1] = <float> (
                in_common * items[row].unit + (dot(&nearness[row, 0], narrow, seen_count) if seen_count else 0.0)
            )
    finally:
        if is_written:
            for item in range(distinct):
                numbers[seen_codes[item]] = -1
        free(seen_codes)
        free(traits)
        free(vectors)
        free(items)


cdef int _find_items(
    tuple blocks,
    const int64_t[::1] starts,
    const int32_t[::1] lengths,
    const int64_t[::1] rows,
    Py_ssize_t code_count,
    Items* items,
) except -1:
    # `blocks` keeps alive what the pointers point to.
    cdef Py_ssize_t row, item, start, place, first = 0
    cdef const int32_t[::1] block
    for row in range(rows.shape[0]):
        if not 0 <= rows[row] < starts.shape[0]:
            raise IndexError(f"row {rows[row]} of {len(starts)}")
        items[row].count = 0
        items[row].unit = 1.0
    for block in blocks:
        for row in range(rows.shape[0]):
            start = starts[rows[row]] - first
            if lengths[rows[row]] <= 0 or not 0 <= start <= block.shape[0] - lengths[rows[row]]:
                continue
            items[row].codes = &block[start]
            items[row].count = lengths[rows[row]]
            items[row].unit = 1.0 / sqrt(items[row].count)
            for item in range(items[row].count):
                if not 0 <= items[row].codes[item] < code_count:
                    raise IndexError(f"trait {items[row].codes[item]} of {code_count}")
        first += block.shape[0]
    return 0


cdef inline void _sum_by_trait(
    const Items* items, Py_ssize_t count, const int32_t[::1] numbers, const double* values, double* sums, Py_ssize_t distinct
) noexcept:
    # By trait, the values of those that have it, each times its unit.
    cdef Py_ssize_t row, item
    for item in range(distinct):
        sums[item] = 0.0
    for row in range(count):
        for item in range(items[row].count):
            sums[numbers[items[row].codes[item]]] += items[row].unit * values[row]


cdef inline double _sum_of_traits(const Items* items, const int32_t[::1] numbers, const double* sums) noexcept:
    cdef double total = 0.0
    cdef Py_ssize_t item
    for item in range(items.count):
        total += sums[numbers[items.codes[item]]]
    return total * items.unit


def exponents(
    const float[:, ::1] ranks,
    const float[::1] half_squares,
    const uint8_t[::1] is_ranked,
    const int64_t[::1] rows,
    float most,
    float[:, ::1] found,
):
    """Writes `most` minus half the squared distances of `rows` (n,) of `ranks` from the first h of them into `found` (n, h).

    Returns False, and has not written all of them, if one of the rows is not ranked.
    """
    cdef Py_ssize_t row, seen, number
    cdef Py_ssize_t seen_count = found.shape[1]
    cdef float base
    cdef float* ranks_of_seen
    cdef float* found_of_row
    if found.shape[0] != len(rows) or seen_count > len(rows) or not (
        len(half_squares) == len(is_ranked) == ranks.shape[0]
    ):
        raise ValueError("the arrays do not fit together")
    for row in range(rows.shape[0]):
        if not 0 <= rows[row] < ranks.shape[0]:
            raise IndexError(f"row {rows[row]} of {len(ranks)}")
        if not is_ranked[rows[row]]:
            return False
    # Number after number, so that the innermost loop runs along memory.
    ranks_of_seen = <float*> calloc((ranks.shape[1] + 1) * seen_count + 1, sizeof(float))
    if ranks_of_seen is NULL:
        raise MemoryError
    for seen in range(seen_count):
        ranks_of_seen[seen] = half_squares[rows[seen]]
        for number in range(ranks.shape[1]):
            ranks_of_seen[(number + 1) * seen_count + seen] = ranks[rows[seen], number]
    for row in range(found.shape[0]):
        found_of_row = &found[row, 0]
        base = most - half_squares[rows[row]]
        for seen in range(seen_count):
            found_of_row[seen] = base - ranks_of_seen[seen]
        for number in range(ranks.shape[1]):
            add_multiple(found_of_row, ranks_of_seen + (number + 1) * seen_count, ranks[rows[row], number], seen_count)
    free(ranks_of_seen)
    return True


def union(list lists, const uint8_t[::1] tags, Py_ssize_t[::1] places, int64_t[::1] positions, uint8_t[::1] tags_of):
    """Writes the distinct positions of int32 `lists` in the order of their first occurrence, and returns how many.

    `tags_of` gets the tags, joined as bits, of all lists that a position is in. Both have room for all items. `places` has an
    element per position that there can be: what it holds before means nothing, afterwards where a position that was found stands.
    """
    cdef const int32_t[::1] items
    cdef Py_ssize_t number, item, place, found = 0
    cdef int32_t position
    if len(tags) != len(lists) or len(tags_of) != len(positions):
        raise ValueError("the arrays do not fit together")
    for number, items in enumerate(lists):
        if found + len(items) > len(positions):
            raise ValueError("there is no room for all items")
        for item in range(items.shape[0]):
            position = items[item]
            if not 0 <= position < places.shape[0]:
                raise IndexError(f"position {position} of {len(places)}")
            place = places[position]
            if 0 <= place < found and positions[place] == position:
                tags_of[place] |= tags[number]
            else:
                places[position] = found
                positions[found] = position
                tags_of[found] = tags[number]
                found += 1
    return found


def counter_columns(
    const double[:, :, :] counts,
    const double[:] as_of_s,
    const double[::1] now_s,
    const double[::1] half_lives_s,
    const double[:, :, :] priors,
    const double[:] strengths,
    Py_ssize_t trials,
    Py_ssize_t successes,
    float[:, :] block,
    double[:, :, ::1] rates,
):
    """Writes the columns of a counter view into `block` (n, columns), see `assembly`, and its rates (n, rates, half-lives).

    `counts` (n, event types, half-lives) were so at `as_of_s` (n,); `now_s` has one moment, or n, and `priors` (one or n,
    rates, half-lives) as well. `trials` is the event type of these, `successes` the first of as many as there are rates.
    """
    cdef Py_ssize_t row, rate, life, place
    cdef Py_ssize_t life_count = len(half_lives_s), rate_count = len(strengths)
    cdef Py_ssize_t now_step = len(now_s) > 1, prior_step = len(priors) > 1
    cdef double now, age_s, decay, tried, found
    if not (
        len(counts) == len(as_of_s) == len(block) == len(rates)
        and (len(now_s) == 1 or len(now_s) == len(counts))
        and (len(priors) == 1 or len(priors) == len(counts))
        and counts.shape[2] == priors.shape[2] == rates.shape[2] == life_count > 0
        and priors.shape[1] == rates.shape[1] == rate_count > 0
        and 0 <= trials < counts.shape[1]
        and 0 <= successes <= counts.shape[1] - rate_count
        and block.shape[1] >= 2 * life_count + rate_count + 1
    ):
        raise ValueError("the arrays do not fit together")
    for row in range(counts.shape[0]):
        now = now_s[row * now_step]
        age_s = fmax(now - as_of_s[row], 0.0)
        for life in range(life_count):
            decay = exp2(-age_s / half_lives_s[life])
            tried = counts[row, trials, life] * decay
            block[row, 2 * life] = <float> log1p(tried)
            for rate in range(rate_count):
                found = strengths[rate]
                found = (counts[row, successes + rate, life] * decay + found * priors[row * prior_step, rate, life]) / (
                    tried + found
                )
                rates[row, rate, life] = found
            block[row, 2 * life + 1] = <float> rates[row, 0, life]
        place = 2 * life_count
        for rate in range(1, rate_count):
            block[row, place] = <float> rates[row, rate, life_count - 1]
            place += 1
        block[row, place] = <float> log(rates[row, 0, 0] / rates[row, 0, life_count - 1])
        # As `assembly.recency`.
        block[row, place + 1] = <float> floor(log2(1.0 + age_s / 3600.0) + 0.0 * as_of_s[row])
