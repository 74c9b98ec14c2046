/* Sub-blocks of 8x8x8 uint64 labels, compared eight at a time. Rows may lie at any address. */

#ifndef DICED_LABELS_H
#define DICED_LABELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#define DICED_SSE2 1
#define diced_stream_end() _mm_sfence()
/* Into the second level: the sub-blocks of a slab of rows would not stay in the first. */
#define diced_prefetch(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)
#else
#define diced_stream_end() ((void)0)
#if defined(__GNUC__)
#define diced_prefetch(p) __builtin_prefetch((p), 0, 2)
#else
#define diced_prefetch(p) ((void)(p))
#endif
#endif

static inline uint64_t diced_label(const char *p)
{
    uint64_t label;
    memcpy(&label, p, 8);
    return label;
}

/* The place of the first voxel whose bit is set. Bits lie as voxels do: the first is the top bit of
   the first byte. `word` is not 0. */
static inline int diced_first(uint64_t word)
{
#if defined(__GNUC__)
    return __builtin_clzll(__builtin_bswap64(word));
#else
    int byte = 0, bit = 0;
    while (!(word >> (8 * byte) & 255))
        byte++;
    while (!(word >> (8 * byte) & (128 >> bit)))
        bit++;
    return 8 * byte + bit;
#endif
}

static inline int diced_population(uint64_t word)
{
    word -= word >> 1 & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
    return (int)(word * 0x0101010101010101u >> 56);
}

#if DICED_SSE2

/* Whether all voxels of a plane of 8 rows are `label`. */
static inline int diced_plane_is(const char *plane, ptrdiff_t sy, uint64_t label)
{
    __m128i wanted = _mm_set1_epi64x((long long)label), seen = _mm_setzero_si128();
    for (int y = 0; y < 8; y++, plane += sy) {
        const __m128i *row = (const __m128i *)plane;
        __m128i a = _mm_xor_si128(_mm_loadu_si128(row), wanted);
        __m128i b = _mm_xor_si128(_mm_loadu_si128(row + 1), wanted);
        __m128i c = _mm_xor_si128(_mm_loadu_si128(row + 2), wanted);
        __m128i d = _mm_xor_si128(_mm_loadu_si128(row + 3), wanted);
        seen = _mm_or_si128(seen, _mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d)));
    }
    return _mm_movemask_epi8(_mm_cmpeq_epi8(seen, _mm_setzero_si128())) == 0xFFFF;
}

/* Words of 0 or -1, the last voxel first. */
static inline __m128i diced_row_equal(const char *p, __m128i label)
{
    const __m128i *row = (const __m128i *)p;
    __m128 a = _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_loadu_si128(row), label));
    __m128 b = _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_loadu_si128(row + 1), label));
    __m128 c = _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_loadu_si128(row + 2), label));
    __m128 d = _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_loadu_si128(row + 3), label));
    __m128 first = _mm_and_ps(_mm_shuffle_ps(b, a, _MM_SHUFFLE(0, 2, 0, 2)),
                              _mm_shuffle_ps(b, a, _MM_SHUFFLE(1, 3, 1, 3)));
    __m128 last = _mm_and_ps(_mm_shuffle_ps(d, c, _MM_SHUFFLE(0, 2, 0, 2)),
                             _mm_shuffle_ps(d, c, _MM_SHUFFLE(1, 3, 1, 3)));
    return _mm_packs_epi32(_mm_castps_si128(last), _mm_castps_si128(first));
}

/* A bit for each of the 64 voxels of a plane: is it `label`? */
static inline uint64_t diced_plane_bits(const char *plane, ptrdiff_t sy, uint64_t label)
{
    __m128i wanted = _mm_set1_epi64x((long long)label);
    uint64_t bits = 0;
    for (int y = 0; y < 8; y += 2, plane += 2 * sy) {
        __m128i two = _mm_packs_epi16(diced_row_equal(plane, wanted),
                                      diced_row_equal(plane + sy, wanted));
        bits |= (uint64_t)_mm_movemask_epi8(two) << (8 * y);
    }
    return bits;
}

/* Copy one cache line to `p`, which begins one, past the caches. */
static inline void diced_stream_line(char *p, const char *from)
{
    for (int i = 0; i < 64; i += 16)
        _mm_stream_si128((__m128i *)(p + i), _mm_loadu_si128((const __m128i *)(from + i)));
}

#else

static inline int diced_plane_is(const char *plane, ptrdiff_t sy, uint64_t label)
{
    uint64_t seen = 0;
    for (int y = 0; y < 8; y++, plane += sy)
        for (int x = 0; x < 8; x++)
            seen |= diced_label(plane + 8 * x) ^ label;
    return seen == 0;
}

static inline uint64_t diced_plane_bits(const char *plane, ptrdiff_t sy, uint64_t label)
{
    uint64_t bits = 0;
    for (int y = 0; y < 8; y++, plane += sy) {
        unsigned int row = 0;
        for (int x = 0; x < 8; x++)
            row = 2 * row + (diced_label(plane + 8 * x) == label);
        bits |= (uint64_t)row << (8 * y);
    }
    return bits;
}

static inline void diced_stream_line(char *p, const char *from)
{
    memcpy(p, from, 64);
}

#endif

/* Of little-endian uint16 counts of labels: their sum, the bits of all their positions; returns
   whether one is above 512. */
static inline int diced_sum_counts(const unsigned char *counts, int64_t n, int64_t *labels,
                                   int64_t *bits)
{
    int64_t sum = 0, widths = 0, i = 0;
    int over = 0;
#if DICED_SSE2
    if (n >= 8) {
        const __m128i one = _mm_set1_epi16(1);
        __m128i sums = _mm_setzero_si128(), steps = sums, above = sums;
        int32_t four[4];
        for (; i + 8 <= n; i += 8) {
            __m128i count = _mm_loadu_si128((const __m128i *)(counts + 2 * i));
            __m128i wide = _mm_cmpgt_epi16(count, one);
            for (int bit = 1; bit < 9; bit++)
                wide = _mm_add_epi16(wide,
                                     _mm_cmpgt_epi16(count, _mm_set1_epi16((short)(1 << bit))));
            above = _mm_or_si128(above, _mm_subs_epu16(count, _mm_set1_epi16(512)));
            sums = _mm_add_epi32(sums, _mm_madd_epi16(count, one));
            steps = _mm_sub_epi32(steps, _mm_madd_epi16(wide, one));
        }
        _mm_storeu_si128((__m128i *)four, sums);
        sum = (int64_t)four[0] + four[1] + four[2] + four[3];
        _mm_storeu_si128((__m128i *)four, steps);
        widths = (int64_t)four[0] + four[1] + four[2] + four[3];
        over = _mm_movemask_epi8(_mm_cmpeq_epi8(above, _mm_setzero_si128())) != 0xFFFF;
    }
#endif
    for (; i < n; i++) {
        int count = counts[2 * i] | counts[2 * i + 1] << 8, width = count > 1;
        for (int bit = 1; bit < 9; bit++)
            width += count > 1 << bit;
        over |= count > 512;
        sum += count;
        widths += width;
    }
    *labels = sum;
    *bits = widths;
    return over;
}

#endif
