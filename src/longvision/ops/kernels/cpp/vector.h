// One vector of channels, and the functions that the kernels take of it. The compiler's vector extension makes it
// AVX-512, AVX2, NEON or anything else; only two clamps name an instruction.
#pragma once
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")  // it loads so early that registers do not suffice
#endif
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

// REAL is what is computed in. IO is what tensors are stored in: REAL too, or bfloat16 (STORED_BF16).
#ifdef REAL_DOUBLE
typedef double Real;
typedef int64_t Bits;
#else
typedef float Real;
typedef int32_t Bits;
#endif
constexpr int LANES = BYTES / sizeof(Real);
constexpr int64_t LINE = 64;  // bytes of the cache that come together
typedef Real Vec __attribute__((vector_size(BYTES)));
typedef Bits VecBits __attribute__((vector_size(BYTES)));

static inline Vec splat(Real value) { return value - Vec{}; }

// Channels beyond the last are read as zero and never written.

static inline Vec load_real(const Real* from, int lanes) {
  Vec v{};
  if (lanes == LANES) std::memcpy(&v, from, sizeof v);
  else std::memcpy(&v, from, lanes * sizeof(Real));
  return v;
}

static inline void store_real(Real* to, Vec v, int lanes) {
  if (lanes == LANES) std::memcpy(to, &v, sizeof v);
  else std::memcpy(to, &v, lanes * sizeof(Real));
}

#ifdef STORED_BF16
typedef uint16_t IO;
typedef uint16_t VecIO __attribute__((vector_size(LANES * 2)));
typedef uint32_t VecWide __attribute__((vector_size(BYTES)));

static inline Vec load(const IO* from, int lanes) {
  VecIO half{};
  if (lanes == LANES) std::memcpy(&half, from, sizeof half);
  else std::memcpy(&half, from, lanes * sizeof(IO));
  return (Vec)(__builtin_convertvector(half, VecWide) << 16);
}

static inline Real read(const IO* from) {
  uint32_t bits = uint32_t(*from) << 16;
  Real value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline VecWide as_bits(Vec v) {  // of bfloat16, to nearest, ties to even
  VecWide bits = (VecWide)v;
  VecWide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  VecWide number = (VecWide)(v == v);
  return (rounded & number) | (0x7fc0 & ~number);
}

static inline Vec as_stored(Vec v) { return (Vec)(as_bits(v) << 16); }

static inline void store(IO* to, Vec v, int lanes) {
  VecIO half = __builtin_convertvector(as_bits(v), VecIO);
  if (lanes == LANES) std::memcpy(to, &half, sizeof half);
  else std::memcpy(to, &half, lanes * sizeof(IO));
}

static inline Vec load(const Real* from, int lanes) { return load_real(from, lanes); }
static inline void store(Real* to, Vec v, int lanes) { store_real(to, v, lanes); }
#else
typedef Real IO;
static inline Vec load(const IO* from, int lanes) { return load_real(from, lanes); }
static inline void store(IO* to, Vec v, int lanes) { store_real(to, v, lanes); }
static inline Real read(const IO* from) { return *from; }
#endif

constexpr Real LOG2E = Real(1.4426950408889634074);
constexpr Real LN2 = Real(0.69314718055994530942);

// NaN stays NaN. Compilers make of the comparison two instructions where the machine has one.
#if defined(__AVX512F__) && !defined(REAL_DOUBLE)
static inline Vec at_least(Real least, Vec x) { return (Vec)_mm512_max_ps((__m512)splat(least), (__m512)x); }
static inline Vec at_most(Real most, Vec x) { return (Vec)_mm512_min_ps((__m512)splat(most), (__m512)x); }
#elif defined(__AVX__) && !defined(REAL_DOUBLE)
static inline Vec at_least(Real least, Vec x) { return (Vec)_mm256_max_ps((__m256)splat(least), (__m256)x); }
static inline Vec at_most(Real most, Vec x) { return (Vec)_mm256_min_ps((__m256)splat(most), (__m256)x); }
#elif defined(__ARM_NEON) && !defined(REAL_DOUBLE)
static inline Vec at_least(Real least, Vec x) { return (Vec)vmaxq_f32((float32x4_t)splat(least), (float32x4_t)x); }
static inline Vec at_most(Real most, Vec x) { return (Vec)vminq_f32((float32x4_t)splat(most), (float32x4_t)x); }
#else
static inline Vec at_least(Real least, Vec x) { return x < least ? splat(least) : x; }
static inline Vec at_most(Real most, Vec x) { return x > most ? splat(most) : x; }
#endif

// Whether every lane is; NaN is not.
static inline bool all_at_least(Vec v, Real least) {
  VecBits is = v >= least;
  Bits all = -1;
#pragma GCC unroll 16
  for (int lane = 0; lane < LANES; lane++) all &= is[lane];
  return all != 0;
}

// Powers are 2^k 2^r with k a whole number and r in [-1/2, 1/2]. Adding and taking away MAGIC rounds to k and leaves it
// in the low bits, from where a shift makes it an exponent. 2^r = 1 + r q(r) is exact at 0, because decays are close to
// 1 and their errors multiply along the sequence.
#ifdef REAL_DOUBLE
constexpr Real MAGIC = 6755399441055744.0, LEAST = -1023, MOST = 1024;  // 1.5 * 2^52
constexpr int MANTISSA = 52;
constexpr Real LOG2E_LOW = 2.0355273740931033e-17;
constexpr Real LN2_HIGH = 6.93145751953125e-1, LN2_LOW = 1.42860682030941723212e-6;  // k * LN2_HIGH is exact
// Taylor's series of (2^r - 1) / r, ln2^(k+1) / (k+1)!: the term left out is below 4e-18.
constexpr Real FINE[] = {0.6931471805599453,     0.2402265069591007,     0.05550410866482158,    0.009618129107628477,
                         0.0013333558146428443,  0.0001540353039338161,  1.5252733804059841e-05, 1.321548679014431e-06,
                         1.01780860092396997e-07, 7.054911620801123e-09, 4.445538271870812e-10,  2.5678435993488206e-11,
                         1.3691488853904128e-12};
constexpr auto& QUICK = FINE;
#else
constexpr Real MAGIC = 12582912.0f, LEAST = -127, MOST = 128;  // 1.5 * 2^23
constexpr int MANTISSA = 23;
constexpr Real LOG2E_LOW = 1.925963033500e-8f;
constexpr Real LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
// The polynomials of degree 5 and 4 nearest to (2^r - 1) / r in their largest error, 7.5e-9 and 3.0e-7 (Remez).
constexpr Real FINE[] = {0.6931471880f, 0.2402265108f, 0.0555035711f, 0.0096180308f, 0.0013390867f, 0.0001546973f};
constexpr Real QUICK[] = {0.6931471955f, 0.2402234895f, 0.0555033318f, 0.0096663730f, 0.0013400437f};
#endif

// 2^(k + r), with `shifted` = k + MAGIC.
template <size_t COUNT>
static inline Vec power(Vec r, Vec shifted, const Real (&coefficients)[COUNT]) {
  Vec q = splat(coefficients[COUNT - 1]);
#pragma GCC unroll 16
  for (int k = int(COUNT) - 2; k >= 0; k--) q = q * r + coefficients[k];
  return (Vec)((VecBits)(q * r + Real(1)) + ((VecBits)shifted << MANTISSA));
}

// Clang rounds a product that is used twice, unless it is told to fuse it (as Clang 17 can be); GCC fuses it into both.
#if defined(__clang__) && (defined(__FMA__) || defined(__ARM_FEATURE_FMA))
#if __has_builtin(__builtin_elementwise_fma)
#define HAS_TO_BE_TOLD
static inline Vec fused(Vec a, Vec b, Vec c) { return __builtin_elementwise_fma(a, b, c); }
#endif
#endif

// 2^(s a), for decays, where that is known to be inside the range. Its error is greatest where decays soon end, near
// r = 1/2, and no more than rounding's where they last; the product is fused into both sums.
static inline Vec exp2_inside(Vec s, Vec a) {
#ifdef HAS_TO_BE_TOLD
  Vec shifted = fused(s, a, splat(MAGIC));
  return power(fused(s, a, MAGIC - shifted), shifted, QUICK);
#else
  Vec shifted = s * a + MAGIC;
#if defined(__ARM_NEON)
  return power(s * a + (MAGIC - shifted), shifted, QUICK);  // its instructions only add a product, or subtract it
#else
  return power(s * a - (shifted - MAGIC), shifted, QUICK);
#endif
#endif
}

// The same, to the bit, and below the range 0, above it infinity.
static inline Vec exp2(Vec s, Vec a) {
  Vec x = s * a, inside = exp2_inside(s, a);
  inside = x < LEAST + 1 ? Vec{} : inside;
  return x >= MOST ? splat(INFINITY) : inside;
}

// e^x, to the last bits, for OUTERMOST >= x >= -OUTERMOST.
constexpr Real OUTERMOST = -(LEAST + 1) * LN2;

static inline Vec exp_inside(Vec x) {
#ifdef HAS_TO_BE_TOLD
  Vec shifted = fused(x, splat(LOG2E), splat(MAGIC));
  return power(fused(x, splat(LOG2E_LOW), fused(x, splat(LOG2E), MAGIC - shifted)), shifted, FINE);
#else
  Vec shifted = x * LOG2E + MAGIC, k = shifted - MAGIC;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return power(x * LOG2E_LOW + (x * LOG2E - k), shifted, FINE);  // the product is not rounded
#else
  return power((x - k * LN2_HIGH - k * LN2_LOW) * LOG2E, shifted, FINE);  // x - k ln(2) is exact before it is scaled
#endif
#endif
}

// It saturates at the outermost powers of two.
static inline Vec exp(Vec x) { return exp_inside(at_most(OUTERMOST, at_least(-OUTERMOST, x))); }

// 1 + e^-x: infinite where e^-x is beyond the range, so that its inverse is 0.
static inline Vec one_and_exp_of_minus(Vec x) {
  Vec sum = Real(1) + exp_inside(at_least(-OUTERMOST, -x));
  return x < -OUTERMOST ? splat(INFINITY) : sum;
}

static inline Vec sigmoid(Vec x) { return Real(1) / one_and_exp_of_minus(x); }

static inline Vec silu(Vec x) { return x / one_and_exp_of_minus(x); }

// d silu / dx, from x and its sigmoid.
static inline Vec silu_slope(Vec x, Vec gate) { return gate * (Real(1) + x * (Real(1) - gate)); }

// log(1 + e) for e in [0, 1], of the same relative accuracy down to the smallest.
static inline Vec log1p(Vec e) {
#ifdef REAL_DOUBLE
  // 2 artanh(s) with s = e / (2 + e) <= 1/3, as its series in s^2.
  constexpr int TERMS = 17;
  Vec s = e / (Real(2) + e), square = s * s;
  Vec series = splat(Real(1) / (2 * TERMS - 1));
#pragma GCC unroll 16
  for (int k = TERMS - 2; k >= 0; k--) series = series * square + Real(1) / (2 * k + 1);
  return Real(2) * s * series;
#else
  // The polynomial of degree 8 nearest to log(1 + e) / e in its largest relative error, 3.0e-8 (Remez).
  constexpr Real P[] = {0.9999999699f,  -0.4999949314f, 0.3331909681f,   -0.2484298222f, 0.1910600677f,
                        -0.1366324581f, 0.07822595212f, -0.02950523893f, 0.005232694303f};
  Vec p = splat(P[8]);
#pragma GCC unroll 8
  for (int k = 7; k >= 0; k--) p = p * e + P[k];
  return e * p;
#endif
}

// e^-|x|: neither overflows nor takes infinity from infinity.
static inline Vec exp_of_minus_abs(Vec x) {
  Vec negative = (Vec)((VecBits)x | (VecBits)splat(Real(-0.0)));
  return exp_inside(at_least(-OUTERMOST, negative));
}

// max(x, 0) + log(1 + e^-|x|), which does not lose the small ones.
static inline Vec softplus(Vec x) { return at_least(Real(0), x) + log1p(exp_of_minus_abs(x)); }

// And its slope, the sigmoid, from the same exponential.
static inline Vec softplus(Vec x, Vec& slope) {
  Vec e = exp_of_minus_abs(x);
  Vec share = Real(1) / (Real(1) + e);
  slope = x < Real(0) ? e * share : share;
  return at_least(Real(0), x) + log1p(e);
}
