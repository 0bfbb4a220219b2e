/* What takes long over float32 values: counting them by magnitude, and the search for the clips of INT4.
 * calibrators/kernel.py and pipeline/formats/clips.py have the same in numpy, bit for bit.
 *
 * A plain shared object without Python in it: ctypes loads it and lets go of the GIL while it runs, and no
 * header of the interpreter is needed to build it.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* On x86 with glibc the loader chooses between baseline code and AVX2, which is up to twice as fast. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FASTEST __attribute__((target_clones("avx2", "default")))
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FASTEST
#define WIDEST
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

/* Vectors of GCC and Clang: neither makes them of the loop below by itself. */
enum { LANES = 16 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

/* Finds, for each of n blocks, the scale of least squared error of all clips.
 *
 * A block is `length` values, at most 256: values[block + i * stride], or values[block * length + i] where the
 * stride is 1. They are divided by the scale that clips nothing: -7 to 7. `inverses` holds the numbers that they
 * are multiplied with before they are rounded, one a clip. A value counts as its nearest multiple of 1/1024: 256
 * of these times a code of 8 are less than 2**24, so that the sums are exact, and the same in any order.
 */
WIDEST
void trtq_search_clips(const float *values, size_t n, size_t length, size_t stride, const float *inverses,
                       size_t num_clips, float *best)
{
    const floats magic = (floats){0} + 12582912.0f; /* adding and taking 1.5 * 2**23 rounds half to even */
    const floats lowest = (floats){0} - 8.0f, largest = (floats){0} + 7.0f;
    floats block[256], counted[256];

    for (size_t start = 0; start < n; start += LANES) {
        const size_t width = n - start < LANES ? n - start : LANES;
        float most[LANES];
        for (size_t b = 0; b < length; b++) {
            if (stride > 1 && width == LANES)
                memcpy(&block[b], values + b * stride + start, sizeof block[b]);
            else
                for (size_t i = 0; i < LANES; i++) {
                    const size_t place = i < width ? start + i : start;
                    block[b][i] = stride == 1 ? values[place * length + b] : values[b * stride + place];
                }
            counted[b] = (block[b] * 1024.0f + magic) - magic;
        }
        for (size_t i = 0; i < LANES; i++)
            most[i] = -1.0f;
        for (size_t c = 0; c < num_clips; c++) {
            const floats inverse = (floats){0} + inverses[c];
            floats product = {0}, square = {0};
            for (size_t b = 0; b < length; b++) {
                floats code = (block[b] * inverse + magic) - magic;
                const integers below = code < lowest, above = code > largest;
                code = (floats)(((integers)code & ~below) | ((integers)lowest & below));
                code = (floats)(((integers)code & ~above) | ((integers)largest & above));
                product += code * counted[b];
                square += code * code;
            }
            for (size_t i = 0; i < width; i++) {
                const float sum = product[i] / 1024.0f;
                const float ratio = sum / (square[i] > 0.0f ? square[i] : 1.0f);
                if (ratio * sum > most[i]) {
                    most[i] = ratio * sum;
                    best[start + i] = ratio;
                }
            }
        }
    }
}
