/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) by tables, SSE4.2 or ARMv8 instructions.
 *
 * The instruction has a latency of three cycles and a throughput of one, so three independent
 * streams run side by side and are joined afterwards: appending n zero bytes to a message maps its
 * CRC linearly, and a table of that map for the stream length makes the join four lookups.
 */
#ifndef DICED_CRC32C_H
#define DICED_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <nmmintrin.h>
#define DICED_CRC_HARDWARE 1
#define DICED_CRC_TARGET __attribute__((target("sse4.2")))
#define DICED_CRC_WORD(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define DICED_CRC_BYTE(crc, byte) _mm_crc32_u8((crc), (byte))
#define DICED_CRC_NAME "sse4.2"
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define DICED_CRC_HARDWARE 1
#define DICED_CRC_TARGET
#define DICED_CRC_WORD(crc, word) __crc32cd((crc), (word))
#define DICED_CRC_BYTE(crc, byte) __crc32cb((crc), (byte))
#define DICED_CRC_NAME "armv8"
#else
#define DICED_CRC_HARDWARE 0
#define DICED_CRC_NAME "tables"
#endif

#define DICED_CRC_POLYNOMIAL 0x82F63B78u
/* Stream lengths in bytes: the long one makes joins rare, the short one serves small blocks. */
#define DICED_CRC_LONG 4096
#define DICED_CRC_SHORT 256

static uint32_t diced_crc_table[8][256];
static uint32_t diced_crc_long[4][256];
static uint32_t diced_crc_short[4][256];

static inline uint32_t diced_crc_append(const uint32_t table[4][256], uint32_t crc)
{
    return table[0][crc & 255] ^ table[1][(crc >> 8) & 255] ^ table[2][(crc >> 16) & 255] ^
           table[3][crc >> 24];
}

/* What each CRC becomes when zero bytes follow, given what each of its bits becomes. */
static void diced_crc_make_zeros(uint32_t table[4][256], const uint32_t image[32])
{
    for (int part = 0; part < 4; part++) {
        table[part][0] = 0;
        for (int value = 1; value < 256; value++) {
            int low = 0;
            while (!((value >> low) & 1))
                low++;
            table[part][value] = table[part][value & (value - 1)] ^ image[8 * part + low];
        }
    }
}

static void diced_crc_make_tables(void)
{
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) ? DICED_CRC_POLYNOMIAL : 0);
        diced_crc_table[0][value] = crc;
    }
    for (int part = 1; part < 8; part++)
        for (int value = 0; value < 256; value++) {
            uint32_t crc = diced_crc_table[part - 1][value];
            diced_crc_table[part][value] = (crc >> 8) ^ diced_crc_table[0][crc & 255];
        }
}

/* Slicing by eight: works on every machine, little- or big-endian. */
static uint32_t diced_crc_tables(uint32_t crc, const unsigned char *data, size_t size)
{
    crc = ~crc;
    for (; size >= 8; size -= 8, data += 8) {
        crc ^= (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
               (uint32_t)data[3] << 24;
        crc = diced_crc_table[7][crc & 255] ^ diced_crc_table[6][(crc >> 8) & 255] ^
              diced_crc_table[5][(crc >> 16) & 255] ^ diced_crc_table[4][crc >> 24] ^
              diced_crc_table[3][data[4]] ^ diced_crc_table[2][data[5]] ^
              diced_crc_table[1][data[6]] ^ diced_crc_table[0][data[7]];
    }
    for (; size; size--, data++)
        crc = (crc >> 8) ^ diced_crc_table[0][(crc ^ *data) & 255];
    return ~crc;
}

#if DICED_CRC_HARDWARE

static inline uint64_t diced_crc_load(const unsigned char *data)
{
    uint64_t word;
    memcpy(&word, data, 8);
    return word;
}

DICED_CRC_TARGET static inline uint32_t diced_crc_three(
    uint32_t crc, const unsigned char *data, size_t length, const uint32_t table[4][256])
{
    uint32_t second = 0, third = 0;
    for (size_t i = 0; i < length; i += 8) {
        crc = DICED_CRC_WORD(crc, diced_crc_load(data + i));
        second = DICED_CRC_WORD(second, diced_crc_load(data + length + i));
        third = DICED_CRC_WORD(third, diced_crc_load(data + 2 * length + i));
    }
    crc = diced_crc_append(table, crc) ^ second;
    return diced_crc_append(table, crc) ^ third;
}

DICED_CRC_TARGET static uint32_t diced_crc_instructions(
    uint32_t crc, const unsigned char *data, size_t size)
{
    crc = ~crc;
    for (; size >= 3 * DICED_CRC_LONG; size -= 3 * DICED_CRC_LONG, data += 3 * DICED_CRC_LONG)
        crc = diced_crc_three(crc, data, DICED_CRC_LONG, diced_crc_long);
    for (; size >= 3 * DICED_CRC_SHORT; size -= 3 * DICED_CRC_SHORT, data += 3 * DICED_CRC_SHORT)
        crc = diced_crc_three(crc, data, DICED_CRC_SHORT, diced_crc_short);
    for (; size >= 8; size -= 8, data += 8)
        crc = DICED_CRC_WORD(crc, diced_crc_load(data));
    for (; size; size--, data++)
        crc = DICED_CRC_BYTE(crc, *data);
    return ~crc;
}

static int diced_crc_has_instructions(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") != 0;
#else
    return 1;
#endif
}

#else

static uint32_t diced_crc_instructions(uint32_t crc, const unsigned char *data, size_t size)
{
    return diced_crc_tables(crc, data, size);
}

static int diced_crc_has_instructions(void)
{
    return 0;
}

#endif

static void diced_crc_setup(void)
{
    uint32_t image[32];
    diced_crc_make_tables();
    for (int bit = 0; bit < 32; bit++) {
        image[bit] = (uint32_t)1 << bit;
        for (int i = 0; i < DICED_CRC_SHORT; i++)
            image[bit] = (image[bit] >> 8) ^ diced_crc_table[0][image[bit] & 255];
    }
    diced_crc_make_zeros(diced_crc_short, image);
    for (int bit = 0; bit < 32; bit++)
        for (int i = DICED_CRC_SHORT; i < DICED_CRC_LONG; i += DICED_CRC_SHORT)
            image[bit] = diced_crc_append(diced_crc_short, image[bit]);
    diced_crc_make_zeros(diced_crc_long, image);
}

#endif
