/* Counting float32 values by magnitude. calibrators/kernel.py has the same in numpy, bit for bit.
 *
 * A plain shared object without Python in it: ctypes loads it and lets go of the GIL while it runs, and no
 * header of the interpreter is needed to build it.
 */
#include "values.h"

enum { BLOCK = 4096, ZEROS = 8, CHUNK = 64 };
enum { BLOCKS_A_FLUSH = 31 }; /* of which a row of 16 bits counts half: 31 * 2048 values */

/* Two rows of counts of 16 bits, which are added to 32 bits before they can overflow. */
typedef struct {
    uint16_t *even, *odd;
    int32_t lowest, highest; /* the bins between which there are counts, but for zeros */
} Rows;

INLINE uint32_t take(Rows *rows, int32_t place)
{
    const uint32_t sum = (uint32_t)rows->even[place] + rows->odd[place];
    rows->even[place] = rows->odd[place] = 0;
    return sum;
}

/* Adds the rows to `counts`, and leaves zeros in them. */
INLINE void flush(Rows *rows, uint32_t *counts, int32_t num_bins)
{
    for (int32_t start = rows->lowest; start <= rows->highest; start += CHUNK) {
        const int32_t end = rows->highest - start < CHUNK ? rows->highest + 1 : start + CHUNK;
        uint32_t any = 0;
        for (int32_t i = start; i < end; i++)
            any |= rows->even[i] | rows->odd[i];
        if (!any) /* then the page of `counts` is not touched, which would take memory */
            continue;
        for (int32_t i = start; i < end; i++)
            counts[i] += take(rows, i);
    }
    for (int32_t i = 0; i < ZEROS; i++)
        counts[0] += take(rows, num_bins + 1 + i);
}

WIDEST
/* Adds n values, given as their bits, to `counts`, and their extremes to `extremes`.
 *
 * The bin of a value is (its bits without the sign >> shift) - first, at least 0 and at most num_bins, where
 * NaN and infinity are counted. `extremes` holds the smallest and the largest value as integers in the same
 * order: the bits of a positive value, and the bits with all but the sign inverted of a negative one.
 *
 * `counts` has num_bins + 1 elements. `place` holds two rows of num_bins + 1 + 8, zero before and after. To add 1
 * to the same number again has to wait for the last addition, so values side by side go to different rows, and
 * zeros, which come in long runs, to 8 places at the end. As the rows serve all tensors and have 16 bits, they
 * stay in the cache.
 */
void trtq_count_magnitudes(const uint32_t *values, size_t n, uint32_t *counts, uint16_t *place, int32_t *extremes,
                           int32_t shift, int32_t first, int32_t num_bins)
{
    int32_t bins[BLOCK];
    int32_t smallest = extremes[0], largest = extremes[1], num_blocks = 0;
    Rows rows = {place, place + num_bins + 1 + ZEROS, num_bins, 0};

    for (size_t start = 0; start < n; start += BLOCK) {
        const int32_t size = (int32_t)(n - start < BLOCK ? n - start : BLOCK);
        const uint32_t *block = values + start;
        for (int32_t i = 0; i < size; i++) { /* without branches, so that compilers make vectors of it */
            const int32_t bits = (int32_t)block[i];
            const int32_t ordered = bits < 0 ? bits ^ INT32_MAX : bits;
            smallest = ordered < smallest ? ordered : smallest;
            largest = ordered > largest ? ordered : largest;
            int32_t bin = ((bits & INT32_MAX) >> shift) - first;
            bin = bin > num_bins ? num_bins : bin;
            rows.highest = bin > rows.highest ? bin : rows.highest;
            bin = bin > 0 ? bin : num_bins + 1 + i % ZEROS;
            rows.lowest = bin < rows.lowest ? bin : rows.lowest;
            bins[i] = bin;
        }
#pragma GCC unroll 8
        for (int32_t i = 0; i + 1 < size; i += 2) { /* a third of the time goes into the loop itself otherwise */
            rows.even[bins[i]]++;
            rows.odd[bins[i + 1]]++;
        }
        if (size % 2)
            rows.even[bins[size - 1]]++;
        if (++num_blocks % BLOCKS_A_FLUSH == 0)
            flush(&rows, counts, num_bins);
    }
    flush(&rows, counts, num_bins);
    extremes[0] = smallest;
    extremes[1] = largest;
}
