/* Counting float32 values by magnitude. calibrators/kernel.py has the same in numpy, bit for bit.
 *
 * A plain shared object without Python in it: ctypes loads it and lets go of the GIL while it runs, and no
 * header of the interpreter is needed to build it.
 */
#include <stddef.h>
#include <stdint.h>

/* On x86 with glibc the loader chooses between baseline code and AVX2, which is up to twice as fast. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FASTEST __attribute__((target_clones("avx2", "default")))
#else
#define FASTEST
#endif

FASTEST
/* Adds n values, given as their bits, to `counts`, and their extremes to `extremes`.
 *
 * The bin of a value is (its bits without the sign >> shift) - first, at least 0 and at most num_bins, where
 * NaN and infinity are counted. `extremes` holds the smallest and the largest value as integers in the same
 * order: the bits of a positive value, and the bits with all but the sign inverted of a negative one.
 *
 * `counts` has num_bins + 1 + 8 elements. The last 8 are scratch, zero before and after: zeros come in long
 * runs, and adding 1 to one number again and again has to wait for the last addition.
 */
void trtq_count(const uint32_t *values, size_t n, uint32_t *counts, int32_t *extremes, int32_t shift,
                int32_t first, int32_t num_bins)
{
    enum { BLOCK = 4096, ZEROS = 8 };
    int32_t bins[BLOCK];
    int32_t smallest = extremes[0], largest = extremes[1];
    uint32_t *zeros = counts + num_bins + 1;

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
            bins[i] = bin > 0 ? bin : num_bins + 1 + i % ZEROS;
        }
#pragma GCC unroll 16
        for (int32_t i = 0; i < size; i++) /* a third of the time goes into the loop itself otherwise */
            counts[bins[i]]++;
    }
    for (int32_t i = 0; i < ZEROS; i++) {
        counts[0] += zeros[i];
        zeros[i] = 0;
    }
    extremes[0] = smallest;
    extremes[1] = largest;
}
