/* From weights to codes: the extremes of blocks, the clips of INT4, rounding and packing.
 * pipeline/formats/rounding.py and pipeline/formats/clips.py have the same in numpy, bit for bit.
 *
 * A part of the library of kernel.c. Values are float32, or FP16 as their bits where `is_half` is set. They have
 * the shape (outer, length, inner), with `inner` side by side: values[o * far + b * near + i]. A block is all b
 * of one o and i, and what is known of blocks has the shape (outer, inner).
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_PAIRS
#include <immintrin.h>
#endif

/* On x86 with glibc the loader chooses the widest vectors that the processor has. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum { TILE = 256, LONGEST = 256, LEVELS = 16 };
static const float MAGIC = 12582912.0f; /* adding and taking 1.5 * 2**23 rounds half to even */

INLINE float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Without branches, and without a denormal float32, which processors take long over. */
INLINE float widen(uint16_t half)
{
    const int32_t rest = (half & 0x7FFF) << 13; /* vectors compare signed integers faster */
    const int32_t normal = rest + (112 << 23) + (rest >= (31 << 23) ? 112 << 23 : 0);
    const int32_t small = (int32_t)to_bits(from_bits((uint32_t)rest + (113u << 23)) - from_bits(113u << 23));
    return from_bits((uint32_t)(rest < (1 << 23) ? small : normal) | (uint32_t)(half & 0x8000) << 16);
}

INLINE void load(const void *values, int32_t is_half, size_t place, size_t count, float *loaded)
{
    if (is_half)
        for (size_t i = 0; i < count; i++)
            loaded[i] = widen(((const uint16_t *)values)[place + i]);
    else
        memcpy(loaded, (const float *)values + place, count * sizeof *loaded);
}

WIDEST
/* Finds the smallest value of each block, and its largest magnitude, which is NaN where a value is. */
void trtq_find_extremes(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                        size_t near, float *least, float *most)
{
    float loaded[TILE];
    int32_t largest[TILE];

    for (size_t o = 0; o < outer; o++)
        for (size_t start = 0; start < inner; start += TILE) {
            const size_t width = inner - start < TILE ? inner - start : TILE;
            float *smallest = least + o * inner + start;
            if (inner == 1 && near == 1) { /* a block lies side by side */
                float low = __builtin_inff();
                int32_t high = 0;
                for (size_t first = 0; first < length; first += TILE) {
                    const size_t count = length - first < TILE ? length - first : TILE;
                    load(values, is_half, o * far + first, count, loaded);
                    for (size_t i = 0; i < count; i++) {
                        const int32_t bits = (int32_t)(to_bits(loaded[i]) & 0x7FFFFFFF);
                        high = bits > high ? bits : high;
                        low = loaded[i] < low ? loaded[i] : low;
                    }
                }
                smallest[0] = low;
                most[o] = from_bits((uint32_t)high);
                continue;
            }
            for (size_t i = 0; i < width; i++) {
                smallest[i] = __builtin_inff();
                largest[i] = 0;
            }
            for (size_t b = 0; b < length; b++) {
                load(values, is_half, o * far + b * near + start, width, loaded);
                for (size_t i = 0; i < width; i++) {
                    const int32_t bits = (int32_t)(to_bits(loaded[i]) & 0x7FFFFFFF);
                    largest[i] = bits > largest[i] ? bits : largest[i];
                    smallest[i] = loaded[i] < smallest[i] ? loaded[i] : smallest[i];
                }
            }
            memcpy(most + o * inner + start, largest, width * sizeof *largest);
        }
}

INLINE int8_t round_step(float step, float lowest, float largest)
{
    step = step < lowest ? lowest : step; /* the ends are whole numbers */
    step = step > largest ? largest : step;
    return (int8_t)((step + MAGIC) - MAGIC);
}

WIDEST
/* Divides the values by the scales of their blocks, rounds half to even and holds them within the ends.
 *
 * Codes have the shape of the values, side by side.
 */
void trtq_round(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                size_t near, const float *scales, float lowest, float largest, int8_t *codes)
{
    float loaded[TILE];

    for (size_t o = 0; o < outer; o++) {
        if (inner == 1 && near == 1) {
            const float scale = scales[o];
            for (size_t first = 0; first < length; first += TILE) {
                const size_t count = length - first < TILE ? length - first : TILE;
                load(values, is_half, o * far + first, count, loaded);
                for (size_t i = 0; i < count; i++)
                    codes[o * length + first + i] = round_step(loaded[i] / scale, lowest, largest);
            }
            continue;
        }
        for (size_t b = 0; b < length; b++)
            for (size_t start = 0; start < inner; start += TILE) {
                const size_t width = inner - start < TILE ? inner - start : TILE;
                const float *own = scales + o * inner + start;
                int8_t *made = codes + (o * length + b) * inner + start;
                load(values, is_half, o * far + b * near + start, width, loaded);
                for (size_t i = 0; i < width; i++)
                    made[i] = round_step(loaded[i] / own[i], lowest, largest);
            }
    }
}

WIDEST
/* Counts, for each value times the inverse of its block's scale, how many of 15 bounds are lower. */
void trtq_count_bounds(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                       size_t near, const float *inverses, const float *bounds, uint8_t *codes)
{
    float loaded[TILE];

    for (size_t o = 0; o < outer; o++) {
        const int is_row = inner == 1 && near == 1;
        const size_t rows = is_row ? 1 : length, columns = is_row ? length : inner;
        for (size_t b = 0; b < rows; b++)
            for (size_t start = 0; start < columns; start += TILE) {
                const size_t width = columns - start < TILE ? columns - start : TILE;
                uint8_t *made = codes + (o * rows + b) * columns + start;
                load(values, is_half, o * far + b * near + start, width, loaded);
                if (is_row)
                    for (size_t i = 0; i < width; i++)
                        loaded[i] *= inverses[o];
                else
                    for (size_t i = 0; i < width; i++)
                        loaded[i] *= inverses[o * inner + start + i];
                for (size_t i = 0; i < width; i++) {
                    int32_t code = 0;
#pragma GCC unroll 16
                    for (int32_t k = 0; k < LEVELS - 1; k++)
                        code += loaded[i] > bounds[k];
                    made[i] = (uint8_t)code;
                }
            }
    }
}

WIDEST
/* Packs two codes of 4 bits a byte, the first in the low half, with the bits of `flip` turned over in each. */
void trtq_pack(const uint8_t *codes, size_t num_bytes, uint8_t flip, uint8_t *packed)
{
    for (size_t i = 0; i < num_bytes; i++)
        packed[i] = (uint8_t)(((codes[2 * i] ^ flip) & 0xF) | ((codes[2 * i + 1] ^ flip) << 4));
}

/* Vectors of GCC and Clang: neither makes them of the loop below by itself. */
enum { LANES = 8, SIDE = 32 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

INLINE void keep_better(const float *products, const float *squares, float *most, float *best)
{
    for (size_t i = 0; i < LANES; i++) {
        const float sum = products[i] / 1024.0f;
        const float ratio = sum / (squares[i] > 0.0f ? squares[i] : 1.0f);
        if (ratio * sum > most[i]) {
            most[i] = ratio * sum;
            best[i] = ratio;
        }
    }
}

/* Does what `trtq_search_blocks` does for as many blocks as there are lanes. */
INLINE void search(const float *values, size_t length, const float *units, const float *inverses, size_t num_clips,
                   float *best)
{
    const floats magic = (floats){0} + MAGIC, lowest = (floats){0} - 8.0f, largest = (floats){0} + 7.0f;
    floats block[LONGEST], counted[LONGEST], unit;
    float most[LANES];

    memcpy(&unit, units, sizeof unit);
    for (size_t b = 0; b < length; b++) {
        memcpy(&block[b], values + b * SIDE, sizeof block[b]);
        block[b] *= unit;
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
        keep_better((const float *)&product, (const float *)&square, most, best);
    }
}

#ifdef HAS_PAIRS
/* Does the same with the codes of two rows as pairs of 16 bits, whose products are added up at once: the sums are
 * whole numbers, and exact in either way. */
__attribute__((target("avx2"))) static void search_pairs(const float *values, size_t length, const float *units,
                                                         const float *inverses, size_t num_clips, float *best)
{
    const __m256i lowest = _mm256_set1_epi16(-8), largest = _mm256_set1_epi16(7);
    const __m256 unit = _mm256_loadu_ps(units), parts = _mm256_set1_ps(1024.0f);
    __m256 block[LONGEST];
    __m256i counted[LONGEST / 2];
    float most[LANES];

    for (size_t b = 0; b < length; b++)
        block[b] = _mm256_mul_ps(_mm256_loadu_ps(values + b * SIDE), unit);
    for (size_t b = 0; b < length; b += 2) {
        const __m256i even = _mm256_cvtps_epi32(_mm256_mul_ps(block[b], parts));
        const __m256i odd = _mm256_cvtps_epi32(_mm256_mul_ps(block[b + 1], parts));
        counted[b / 2] = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA);
    }
    for (size_t i = 0; i < LANES; i++)
        most[i] = -1.0f;
    for (size_t c = 0; c < num_clips; c++) {
        const __m256 inverse = _mm256_set1_ps(inverses[c]);
        __m256i product = _mm256_setzero_si256(), square = _mm256_setzero_si256();
        float products[LANES], squares[LANES];
        for (size_t b = 0; b < length; b += 2) {
            const __m256i even = _mm256_cvtps_epi32(_mm256_mul_ps(block[b], inverse));
            const __m256i odd = _mm256_cvtps_epi32(_mm256_mul_ps(block[b + 1], inverse));
            __m256i codes = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA);
            codes = _mm256_min_epi16(_mm256_max_epi16(codes, lowest), largest);
            product = _mm256_add_epi32(product, _mm256_madd_epi16(codes, counted[b / 2]));
            square = _mm256_add_epi32(square, _mm256_madd_epi16(codes, codes));
        }
        _mm256_storeu_ps(products, _mm256_cvtepi32_ps(product));
        _mm256_storeu_ps(squares, _mm256_cvtepi32_ps(square));
        keep_better(products, squares, most, best);
    }
}
#endif

WIDEST
/* Finds, for each block of at most 256 values, the scale of least squared error of all clips.
 *
 * The values are multiplied with the block's number of `units`: steps of -7 to 7 of the scale that clips nothing.
 * `inverses` holds the numbers that steps are multiplied with before they are rounded, one a clip. A step counts
 * as its nearest multiple of 1/1024: 256 of these times a code of 8 are less than 2**24, so that the sums are
 * exact, and the same in any order.
 */
void trtq_search_blocks(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                        size_t near, const float *units, const float *inverses, size_t num_clips, float *best)
{
    const int is_row = inner == 1 && near == 1;
    const size_t groups = is_row ? 1 : outer, members = is_row ? outer : inner;
    float tile[LONGEST][SIDE], loaded[LONGEST];
#ifdef HAS_PAIRS
    const int in_pairs = length % 2 == 0 && __builtin_cpu_supports("avx2");
#endif

    for (size_t o = 0; o < groups; o++)
        for (size_t start = 0; start < members; start += SIDE) { /* whole lines of the cache are read */
            const size_t width = members - start < SIDE ? members - start : SIDE;
            const size_t first = o * members + start;
            float own[SIDE] = {0}, found[SIDE];
            memcpy(own, units + first, width * sizeof *own);
            if (width < SIDE)
                memset(tile, 0, sizeof tile);
            for (size_t i = 0; is_row && i < width; i++) {
                load(values, is_half, (start + i) * far, length, loaded);
                for (size_t b = 0; b < length; b++)
                    tile[b][i] = loaded[b];
            }
            for (size_t b = 0; !is_row && b < length; b++)
                load(values, is_half, o * far + b * near + start, width, tile[b]);
#ifdef HAS_PAIRS
            if (in_pairs) {
                for (size_t i = 0; i < width; i += LANES)
                    search_pairs(&tile[0][i], length, own + i, inverses, num_clips, found + i);
                memcpy(best + first, found, width * sizeof *found);
                continue;
            }
#endif
            for (size_t i = 0; i < width; i += LANES)
                search(&tile[0][i], length, own + i, inverses, num_clips, found + i);
            memcpy(best + first, found, width * sizeof *found);
        }
}
