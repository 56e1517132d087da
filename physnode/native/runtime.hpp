// Vectors of trajectories, the functions of mathematics on them, and products with matrices that all trajectories share.
//
// One vector holds one number of LANES trajectories. Masks are vectors of 64-bit integers, -1 or 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <pthread.h>
#include <vector>

#if PN_STATE_IS_FLOAT
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef double D __attribute__((vector_size(8 * LANES)));
typedef int64_t M __attribute__((vector_size(8 * LANES)));
typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
#if PN_STATE_IS_FLOAT
typedef F S;
typedef float Scalar;
#else
typedef D S;
typedef double Scalar;
#endif
#define PN_INLINE static inline __attribute__((always_inline))
#define PN_ALIGNED alignas(64)

PN_INLINE D bD(double x) { return x - D{}; }
PN_INLINE F bF(float x) { return x - F{}; }
PN_INLINE M bM(int64_t x) { return x - M{}; }

PN_INLINE M lt(D a, D b) { return a < b; }
PN_INLINE M le(D a, D b) { return a <= b; }
PN_INLINE M gt(D a, D b) { return a > b; }
PN_INLINE M ge(D a, D b) { return a >= b; }
PN_INLINE M eq(D a, D b) { return a == b; }
PN_INLINE M ne(D a, D b) { return a != b; }
PN_INLINE M lt(M a, M b) { return a < b; }
PN_INLINE M le(M a, M b) { return a <= b; }
PN_INLINE M gt(M a, M b) { return a > b; }
PN_INLINE M ge(M a, M b) { return a >= b; }
PN_INLINE M eq(M a, M b) { return a == b; }
PN_INLINE M ne(M a, M b) { return a != b; }
PN_INLINE M wide(I a) { return __builtin_convertvector(a, M); }
PN_INLINE M lt(F a, F b) { return wide(a < b); }
PN_INLINE M le(F a, F b) { return wide(a <= b); }
PN_INLINE M gt(F a, F b) { return wide(a > b); }
PN_INLINE M ge(F a, F b) { return wide(a >= b); }
PN_INLINE M eq(F a, F b) { return wide(a == b); }
PN_INLINE M ne(F a, F b) { return wide(a != b); }
PN_INLINE D sel(M m, D a, D b) { return m ? a : b; }
PN_INLINE M sel(M m, M a, M b) { return m ? a : b; }
PN_INLINE F sel(M m, F a, F b) { I i = __builtin_convertvector(m, I); return i ? a : b; }

PN_INLINE F double_to_float(D a) { return __builtin_convertvector(a, F); }
PN_INLINE D float_to_double(F a) { return __builtin_convertvector(a, D); }
PN_INLINE D int_to_double(M a) { return __builtin_convertvector(a, D); }
PN_INLINE F int_to_float(M a) { return __builtin_convertvector(a, F); }
PN_INLINE M double_to_int(D a) { return __builtin_convertvector(a, M); }
PN_INLINE M float_to_int(F a) { return __builtin_convertvector(a, M); }
PN_INLINE M mask_to_int(M a) { return -a; }
PN_INLINE D mask_to_double(M a) { return int_to_double(-a); }
PN_INLINE F mask_to_float(M a) { return int_to_float(-a); }
PN_INLINE M int_to_mask(M a) { return a != 0; }
PN_INLINE M double_to_mask(D a) { return a != 0; }
PN_INLINE M float_to_mask(F a) { return ne(a, F{}); }

// a NaN on either side is handed on
PN_INLINE D v_maximum(D a, D b) { return ((a > b) | (a != a)) ? a : b; }
PN_INLINE D v_minimum(D a, D b) { return ((a < b) | (a != a)) ? a : b; }
PN_INLINE F v_maximum(F a, F b) { return ((a > b) | (a != a)) ? a : b; }
PN_INLINE F v_minimum(F a, F b) { return ((a < b) | (a != a)) ? a : b; }
PN_INLINE M v_maximum(M a, M b) { return a > b ? a : b; }
PN_INLINE M v_minimum(M a, M b) { return a < b ? a : b; }
PN_INLINE M v_isfinite(D a) { return (a - a) == 0; }
PN_INLINE M v_isfinite(F a) { return wide((a - a) == 0); }
PN_INLINE D v_abs(D a) { return (D)((M)a & INT64_MAX); }
PN_INLINE F v_abs(F a) { return (F)((I)a & INT32_MAX); }
PN_INLINE M v_abs(M a) { return a < 0 ? -a : a; }

// The GNU C library has vector forms of these functions, of all since 2.35; the attribute lets a loop over the lanes call them.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GLIBC__ > 2 || __GLIBC_MINOR__ >= 35
#define PN_SIMD __attribute__((const, nothrow, simd("notinbranch")))
#endif
#endif
#ifndef PN_SIMD
#define PN_SIMD __attribute__((const, nothrow))
#endif
#define PN_DECLARE1(name) extern "C" PN_SIMD double name(double); extern "C" PN_SIMD float name##f(float);
#define PN_DECLARE2(name) extern "C" PN_SIMD double name(double, double); extern "C" PN_SIMD float name##f(float, float);
#define PN_LANES1(name) \
  PN_INLINE D v_##name(D a) { D r; for (int l = 0; l < LANES; ++l) r[l] = ::name(a[l]); return r; } \
  PN_INLINE F v_##name(F a) { F r; for (int l = 0; l < LANES; ++l) r[l] = ::name##f(a[l]); return r; } \
  PN_INLINE double s_##name(double a) { return ::name(a); } \
  PN_INLINE float s_##name(float a) { return ::name##f(a); }
#define PN_LANES2(name) \
  PN_INLINE D v_##name(D a, D b) { D r; for (int l = 0; l < LANES; ++l) r[l] = ::name(a[l], b[l]); return r; } \
  PN_INLINE F v_##name(F a, F b) { F r; for (int l = 0; l < LANES; ++l) r[l] = ::name##f(a[l], b[l]); return r; } \
  PN_INLINE double s_##name(double a, double b) { return ::name(a, b); } \
  PN_INLINE float s_##name(float a, float b) { return ::name##f(a, b); }
#define PN_FUNCTION1(name) PN_DECLARE1(name) PN_LANES1(name)
#define PN_FUNCTION2(name) PN_DECLARE2(name) PN_LANES2(name)
PN_FUNCTION1(sin) PN_FUNCTION1(cos) PN_FUNCTION1(tan) PN_FUNCTION1(exp) PN_FUNCTION1(log)
PN_FUNCTION1(asin) PN_FUNCTION1(acos) PN_FUNCTION1(atan) PN_FUNCTION1(sinh) PN_FUNCTION1(cosh)
PN_FUNCTION1(asinh) PN_FUNCTION1(acosh) PN_FUNCTION1(atanh) PN_FUNCTION1(log1p) PN_FUNCTION1(expm1)
PN_FUNCTION1(erf) PN_FUNCTION1(log2) PN_FUNCTION1(log10) PN_FUNCTION1(exp2)
PN_FUNCTION2(pow) PN_FUNCTION2(atan2) PN_FUNCTION2(hypot)
PN_LANES1(sqrt) PN_LANES1(floor) PN_LANES1(ceil)
PN_INLINE D v_sigmoid(D a) { return 1.0 / (1.0 + v_exp(-a)); }
PN_INLINE F v_sigmoid(F a) { return 1.0f / (1.0f + v_exp(-a)); }
PN_INLINE double s_sigmoid(double a) { return 1.0 / (1.0 + std::exp(-a)); }
PN_INLINE float s_sigmoid(float a) { return 1.0f / (1.0f + std::exp(-a)); }
PN_INLINE double s_tanh(double a) { return std::tanh(a); }
PN_INLINE float s_tanh(float a) { return std::tanh(a); }
PN_INLINE double s_abs(double a) { return std::fabs(a); }
PN_INLINE float s_abs(float a) { return std::fabs(a); }
template <class T> PN_INLINE T s_maximum(T a, T b) { return a > b || a != a ? a : b; }
template <class T> PN_INLINE T s_minimum(T a, T b) { return a < b || a != a ? a : b; }
template <class T> PN_INLINE int64_t s_isfinite(T a) { return -(int64_t)((a - a) == 0); }

// tanh |x| = e / (e + 2) with e = exp(2 |x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1), |r| <= ln(2) / 2: to 2 units in the last place,
// also of small arguments, and faster than the C library's.
PN_INLINE D v_tanh(D x) {
  const M sign = (M)x & INT64_MIN;
  D a = (D)((M)x ^ sign);
  a = a + a;
  a = a < 44.0 ? a : bD(44.0);
  const D shift = bD(0x1.8p52), shifted = a * 0x1.71547652b82fep0 + shift, n = shifted - shift;
  const D r = (a - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  D p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = r + (r * r) * p;
  const D two_n = (D)(((M)shifted << 52) + (M)bD(1.0));
  const D e = two_n * p + (two_n - 1.0);
  const D t = e / (e + 2.0);
  return (D)((M)(x != x ? x : t) ^ sign);
}
PN_INLINE F v_tanh(F x) {
  const I sign = (I)x & INT32_MIN;
  F a = (F)((I)x ^ sign);
  a = a + a;
  a = a < 20.0f ? a : bF(20.0f);
  const F shift = bF(0x1.8p23f), shifted = a * 0x1.715476p0f + shift, n = shifted - shift;
  const F r = (a - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  F p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = r + (r * r) * p;
  const F two_n = (F)(((I)shifted << 23) + (I)bF(1.0f));
  const F e = two_n * p + (two_n - 1.0f);
  const F t = e / (e + 2.0f);
  return (F)((I)(x != x ? x : t) ^ sign);
}

// y = W x for a matrix packed by blocks of BLOCK outputs: within a block, the weights of one input lie side by side.
constexpr int BLOCK = 8;
template <class V, class T, int COUNT>
PN_INLINE void block_product(const T* __restrict w, const V* __restrict x, V* __restrict y, int inputs) {
  V sums[COUNT];
#pragma GCC unroll 8
  for (int b = 0; b < COUNT; ++b) sums[b] = V{};
  for (int i = 0; i < inputs; ++i) {
    const V value = x[i];
#pragma GCC unroll 8
    for (int b = 0; b < COUNT; ++b) sums[b] += value * w[i * COUNT + b];
  }
#pragma GCC unroll 8
  for (int b = 0; b < COUNT; ++b) y[b] = sums[b];
}
template <class V, class T, int OUT, int IN>
static void product(const T* __restrict w, const V* __restrict x, V* __restrict y) {
  int o = 0;
  for (; o + BLOCK <= OUT; o += BLOCK) block_product<V, T, BLOCK>(w + o * IN, x, y + o, IN);
  if constexpr (OUT % BLOCK != 0) block_product<V, T, OUT % BLOCK>(w + o * IN, x, y + o, IN);
}
template <class T, int OUT, int IN, class Entry>
static void pack(T* w, Entry entry) {
  for (int o = 0; o < OUT; o += BLOCK) {
    const int count = OUT - o < BLOCK ? OUT - o : BLOCK;
    for (int i = 0; i < IN; ++i)
      for (int b = 0; b < count; ++b) w[o * IN + i * count + b] = (T)entry(o + b, i);
  }
}

PN_INLINE D mixed(D a, D b, M places) { return __builtin_shuffle(a, b, places); }
PN_INLINE F mixed(F a, F b, M places) { return __builtin_shuffle(a, b, __builtin_convertvector(places, I)); }
template <class V>
PN_INLINE void transpose(V* __restrict rows) {  // LANES rows of LANES numbers
#pragma GCC unroll 4
  for (int s = 1; s < LANES; s *= 2) {
    M low, high;
    for (int l = 0; l < LANES; ++l) {
      low[l] = l & s ? LANES + l - s : l;
      high[l] = l & s ? LANES + l : l + s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
      if (!(i & s)) {
        const V a = rows[i], b = rows[i + s];
        rows[i] = mixed(a, b, low);
        rows[i + s] = mixed(a, b, high);
      }
  }
}
// dW += g xᵀ, added up over the lanes; rows of dW are padded to whole vectors.
template <class V, class T, int OUT, int IN>
static void add_outer(const V* __restrict g, const V* __restrict x, V* __restrict total) {
  constexpr int WIDTH = (IN + LANES - 1) / LANES;
  for (int block = 0; block < WIDTH; ++block) {
    V turned[LANES];
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l) turned[l] = block * LANES + l < IN ? x[block * LANES + l] : V{};
    transpose(turned);
    for (int o = 0; o < OUT; ++o) {
      V sum = total[o * WIDTH + block];
      const T* row = (const T*)(g + o);
#pragma GCC unroll 16
      for (int l = 0; l < LANES; ++l) sum += turned[l] * row[l];
      total[o * WIDTH + block] = sum;
    }
  }
}
