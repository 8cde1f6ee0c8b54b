// The dialect of the kernels: what OpenCL 1.2 and CUDA call differently. Every kernel is written in these names only.
#ifdef __OPENCL_VERSION__

#define KERNEL __kernel void
#define GLOBAL __global
#define LOCAL __local
#define FUNCTION static inline
#define GROUP(d) ((int)get_group_id(d))
#define ITEM(d) ((int)get_local_id(d))
#define ITEMS(d) ((int)get_local_size(d))
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE)
#define CONSTANT __constant
#define AS_INT(x) as_int(x)
#define AS_FLOAT(x) as_float(x)
#define HALF_AT(p, i) vload_half(i, (GLOBAL const half*)(p))
#define STORE_HALF(value, p, i) vstore_half(value, i, (GLOBAL half*)(p))
#define INFINITE INFINITY
#define EXP1M(x) expm1(x)
#define ERFC(x) erfc(x)
#define ROUND(x) rint(x)
#define FMAX(x, y) fmax(x, y)
#define FMIN(x, y) fmin(x, y)
// The sum of the products of four signed bytes each, and c.
FUNCTION int DOT4(uint a, uint b, int c) {
  const int4 products = convert_int4(as_char4(a)) * convert_int4(as_char4(b));
  return c + (products.x + products.y) + (products.z + products.w);
}

#else

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
#define KERNEL extern "C" __global__ void
#define GLOBAL
#define LOCAL __shared__
#define FUNCTION static __device__ __forceinline__
#define GROUP(d) ((int)(d == 0 ? blockIdx.x : d == 1 ? blockIdx.y : blockIdx.z))
#define ITEM(d) ((int)(d == 0 ? threadIdx.x : d == 1 ? threadIdx.y : threadIdx.z))
#define ITEMS(d) ((int)(d == 0 ? blockDim.x : d == 1 ? blockDim.y : blockDim.z))
#define BARRIER __syncthreads()
#define CONSTANT __constant__
#define AS_INT(x) __float_as_int(x)
#define AS_FLOAT(x) __int_as_float(x)
FUNCTION float HALF_AT(const void* p, long long i) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(((const ushort*)p)[i]));
  return value;
}
FUNCTION void STORE_HALF(float value, void* p, long long i) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(((ushort*)p)[i]) : "f"(value));
}
#define INFINITE __int_as_float(0x7f800000)
#define EXP1M(x) expm1f(x)
#define ERFC(x) erfcf(x)
#define ROUND(x) rintf(x)
#define FMAX(x, y) fmaxf(x, y)
#define FMIN(x, y) fminf(x, y)
FUNCTION int DOT4(uint a, uint b, int c) { return __dp4a((int)a, (int)b, c); }

#endif

FUNCTION float bf16_to_float(ushort value) { return AS_FLOAT((int)((uint)value << 16)); }
// Rounds to nearest, ties to even; NaN stays NaN.
FUNCTION ushort float_to_bf16(float value) {
  const uint bits = (uint)AS_INT(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (ushort)(bits >> 16 | 64);
  return (ushort)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Sums, or finds the maximum of, one value of each of n work items (a power of two) in `room`; all items get the result.
#define REDUCE(name, COMBINE)                                                                                          \
  FUNCTION float name(float value, LOCAL_POINTER room, int item, int n) {                                              \
    room[item] = value;                                                                                                \
    BARRIER;                                                                                                           \
    for (int half_ = n / 2; half_ > 0; half_ /= 2) {                                                                   \
      if (item < half_) room[item] = COMBINE(room[item], room[item + half_]);                                          \
      BARRIER;                                                                                                         \
    }                                                                                                                  \
    const float result = room[0];                                                                                      \
    BARRIER;                                                                                                           \
    return result;                                                                                                     \
  }
#ifdef __OPENCL_VERSION__
#define LOCAL_POINTER __local float*
#else
#define LOCAL_POINTER float*
#endif
#define PLUS(x, y) ((x) + (y))
REDUCE(sum_of_group, PLUS)
REDUCE(max_of_group, FMAX)
