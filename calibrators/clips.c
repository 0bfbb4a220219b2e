/* The clips of INT4 blocks that lose least. pipeline/formats/clips.py has the same in numpy, bit for bit.
 *
 * A part of the library of kernel.c; values and blocks are laid out as in blocks.c.
 */
#include "values.h"

enum { LONGEST = 256, SIDE = 32, PARTS = 1024, LOWEST = -8, LARGEST = 7 };

/* Two steps of one block, in units of 1/1024, as one number: an even row in the low half. */
INLINE uint32_t pair(float even, float odd)
{
    const int32_t low = (int32_t)((even * (float)PARTS + MAGIC) - MAGIC);
    const int32_t high = (int32_t)((odd * (float)PARTS + MAGIC) - MAGIC);
    return ((uint32_t)low & 0xFFFF) | (uint32_t)high << 16;
}

/* Vectors of GCC and Clang: neither makes them of such loops by itself. */
enum { LANES = 8 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

/* Does what `trtq_search_clips` does for as many blocks as there are lanes. */
INLINE void search_any(const uint32_t (*pairs)[SIDE], size_t num_pairs, const int16_t *clips, size_t num_clips,
                       float *best)
{
    const integers lowest = (integers){0} + LOWEST, largest = (integers){0} + LARGEST;
    floats most = (floats){0} - 1.0f, found = (floats){0} + 1.0f;

    for (size_t c = 0; c < num_clips; c++) {
        integers product = {0}, square = {0};
        for (size_t b = 0; b < num_pairs; b++) {
            integers both;
            memcpy(&both, pairs[b], sizeof both);
            const integers parts[2] = {(both << 16) >> 16, both >> 16};
            for (size_t k = 0; k < 2; k++) {
                integers code = (parts[k] * clips[c] + (1 << 14)) >> 15;
                const integers below = code < lowest, above = code > largest;
                code = (code & ~(below | above)) | (lowest & below) | (largest & above);
                product += code * parts[k];
                square += code * code;
            }
        }
        for (size_t i = 0; i < LANES; i++) {
            const float sum = (float)product[i] / (float)PARTS;
            const float ratio = sum / (float)(square[i] > 1 ? square[i] : 1);
            if (ratio * sum > most[i]) {
                most[i] = ratio * sum;
                found[i] = ratio;
            }
        }
    }
    memcpy(best, &found, sizeof found);
}

#ifdef IS_X86
/* The same with 16 or 32 codes in a vector, whose products are added up in pairs: all sums are whole numbers. */
#define SEARCH(name, instructions, call, integers, floats)                                                    \
    __attribute__((target(instructions))) static void name(const uint32_t(*pairs)[SIDE], size_t num_pairs,    \
                                                           const int16_t *clips, size_t num_clips, float *best) \
    {                                                                                                         \
        const integers lowest = call(set1_epi16)(LOWEST), largest = call(set1_epi16)(LARGEST);                \
        const floats part = call(set1_ps)(1.0f / (float)PARTS);                                               \
        floats most = call(set1_ps)(-1.0f), found = call(set1_ps)(1.0f);                                      \
        for (size_t c = 0; c < num_clips; c++) {                                                              \
            const integers clip = call(set1_epi16)(clips[c]);                                                 \
            integers product = call(set1_epi16)(0), square = product;                                         \
            for (size_t b = 0; b < num_pairs; b++) {                                                          \
                integers steps, codes;                                                                        \
                memcpy(&steps, pairs[b], sizeof steps);                                                       \
                codes = call(mulhrs_epi16)(steps, clip);                                                      \
                codes = call(min_epi16)(call(max_epi16)(codes, lowest), largest);                             \
                product = call(add_epi32)(product, call(madd_epi16)(codes, steps));                           \
                square = call(add_epi32)(square, call(madd_epi16)(codes, codes));                             \
            }                                                                                                 \
            square = call(max_epi32)(square, call(set1_epi32)(1));                                            \
            const floats sum = call(mul_ps)(call(cvtepi32_ps)(product), part);                                \
            const floats ratio = call(div_ps)(sum, call(cvtepi32_ps)(square));                                \
            const floats explained = call(mul_ps)(ratio, sum);                                                \
            found = (floats)(((integers)ratio & (integers)(explained > most)) |                               \
                             ((integers)found & ~(integers)(explained > most)));                              \
            most = call(max_ps)(explained, most);                                                             \
        }                                                                                                     \
        memcpy(best, &found, sizeof found);                                                                   \
    }
#define CALL_256(function) _mm256_##function
#define CALL_512(function) _mm512_##function
SEARCH(search_by_avx2, "avx2", CALL_256, __m256i, __m256)
SEARCH(search_by_avx512, "avx512f,avx512bw", CALL_512, __m512i, __m512)
#endif

INLINE void search(const uint32_t (*pairs)[SIDE], size_t num_pairs, const int16_t *clips, size_t num_clips,
                   float *best)
{
#ifdef IS_X86
    if (__builtin_cpu_supports("avx512bw")) {
        for (size_t i = 0; i < SIDE; i += 16)
            search_by_avx512((const uint32_t(*)[SIDE])&pairs[0][i], num_pairs, clips, num_clips, best + i);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        for (size_t i = 0; i < SIDE; i += 8)
            search_by_avx2((const uint32_t(*)[SIDE])&pairs[0][i], num_pairs, clips, num_clips, best + i);
        return;
    }
#endif
    for (size_t i = 0; i < SIDE; i += LANES)
        search_any((const uint32_t(*)[SIDE])&pairs[0][i], num_pairs, clips, num_clips, best + i);
}

WIDEST
/* Finds, for each block of at most 256 values, the scale of least squared error of all clips.
 *
 * The values are multiplied with the block's number of `units`: steps of -7 to 7 of the scale that clips nothing.
 * A step counts as its nearest multiple of 1/1024, and one of `clips` is what these are multiplied with, in units
 * of 2**-15, before they are rounded half up. 256 steps times a code of 8 are less than 2**24 of these, so that
 * the sums are exact, and the same in any order.
 */
void trtq_search_clips(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                        size_t near, const float *units, const int16_t *clips, size_t num_clips, float *best)
{
    const int is_row = inner == 1 && near == 1;
    const size_t groups = is_row ? 1 : outer, members = is_row ? outer : inner, num_pairs = (length + 1) / 2;
    uint32_t pairs[LONGEST / 2][SIDE];
    float even[LONGEST + 1] = {0}, odd[SIDE] = {0};

    for (size_t o = 0; o < groups; o++)
        for (size_t start = 0; start < members; start += SIDE) { /* whole lines of the cache are read */
            const size_t width = members - start < SIDE ? members - start : SIDE;
            const size_t first = o * members + start;
            float own[SIDE] = {0}, found[SIDE];
            memcpy(own, units + first, width * sizeof *own);
            for (size_t i = 0; is_row && i < width; i++) {
                load(values, is_half, (start + i) * far, length, even);
                even[length] = 0.0f;
                for (size_t b = 0; b < num_pairs; b++)
                    pairs[b][i] = pair(even[2 * b] * own[i], even[2 * b + 1] * own[i]);
            }
            for (size_t b = 0; !is_row && b < num_pairs; b++) {
                load(values, is_half, o * far + 2 * b * near + start, width, even);
                if (2 * b + 1 < length)
                    load(values, is_half, o * far + (2 * b + 1) * near + start, width, odd);
                else
                    memset(odd, 0, sizeof odd);
                for (size_t i = 0; i < SIDE; i++) /* what is behind the width is not taken */
                    pairs[b][i] = pair(even[i] * own[i], odd[i] * own[i]);
            }
            for (size_t i = width; is_row && i < SIDE; i++)
                for (size_t b = 0; b < num_pairs; b++)
                    pairs[b][i] = 0;
            search((const uint32_t(*)[SIDE])pairs, num_pairs, clips, num_clips, found);
            memcpy(best + first, found, width * sizeof *found);
        }
}
