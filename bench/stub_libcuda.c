/* A CUDA driver without a GPU: the functions that Triton 3.6's host code calls, for bench/stub_driver.py.

   Contexts, modules and functions are numbers. cuLaunchKernelEx passes its arguments to the function given to stub_observe.
   cuTensorMapEncodeTiled applies the requirements in its documentation in cuda.h and writes its arguments into the map. */

#include "cuda.h"
#include <string.h>

#define REQUIRE(condition) do { if (!(condition)) return CUDA_ERROR_INVALID_VALUE; } while (0)
#define MAX_SHARED_BYTES (227 << 10)

/* A tensor map here; on a GPU the layout is secret. */
typedef struct {
  cuuint64_t address, sizes[5], strides[4];
  cuuint32_t box[5], steps[5];
  unsigned char data_type, rank, interleave, swizzle, promotion, fill, unused[2];
} Map;
_Static_assert(sizeof(Map) == sizeof(CUtensorMap), "a map is 128 bytes");

/* numbers: grid, block, bytes of shared memory, number of attributes */
typedef void (*Observer)(const cuuint32_t numbers[8], CUstream stream, CUfunction function, CUlaunchAttribute *attributes,
                         void **parameters);

static Observer observer;
static _Thread_local CUcontext current;
static cuuint64_t handles;

void stub_observe(Observer wanted) { observer = wanted; }

CUresult cuInit(unsigned int flags) { return CUDA_SUCCESS; }

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_SUCCESS ? "no error" : error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : "another error";
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  REQUIRE(ordinal == 0);
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) { /* of an H200 */
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = MAX_SHARED_BYTES; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = MAX_SHARED_BYTES + 1024; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 3201000; break;
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 6144; break;
  default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = current;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  current = context;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  REQUIRE(device == 0);
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
  REQUIRE(attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER);
  *(CUdeviceptr *)value = address;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  REQUIRE(image);
  *module = (CUmodule)++handles;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  REQUIRE(module && name);
  *function = (CUfunction)++handles;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  REQUIRE(function);
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  *clusters = 1;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  REQUIRE(observer && current && function && !extra);
  REQUIRE(config->gridDimX && config->gridDimY && config->gridDimZ);
  REQUIRE(config->gridDimX <= 0x7fffffff && config->gridDimY <= 65535 && config->gridDimZ <= 65535);
  REQUIRE(config->blockDimX && config->blockDimX <= 1024 && config->blockDimY == 1 && config->blockDimZ == 1);
  REQUIRE(config->sharedMemBytes <= MAX_SHARED_BYTES);
  cuuint32_t numbers[] = {config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX, config->blockDimY,
                          config->blockDimZ, config->sharedMemBytes, config->numAttrs};
  observer(numbers, config->hStream, function, config->attrs, parameters);
  return CUDA_SUCCESS;
}

static cuuint64_t element_bytes(CUtensorMapDataType type) {
  static const unsigned char bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  return (unsigned int)type < sizeof bytes ? bytes[type] : 0; /* 0 also for the packed types, which Triton 3.6 never names */
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *globalDim, const cuuint64_t *globalStrides, const cuuint32_t *boxDim,
                                const cuuint32_t *elementStrides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const cuuint64_t spans[] = {~0ull, 32, 64, 128, 128, 128, 128};
  cuuint64_t bytes = element_bytes(type);
  Map encoded;
  memset(&encoded, 0, sizeof encoded);
  REQUIRE((cuuint64_t)map % 64 == 0 && bytes && rank >= 1 && rank <= 5);
  REQUIRE((cuuint64_t)address && (cuuint64_t)address % 16 == 0);
  REQUIRE(interleave == CU_TENSOR_MAP_INTERLEAVE_NONE); /* Triton 3.6 passes no other */
  REQUIRE((unsigned int)swizzle < sizeof spans / sizeof *spans);
  REQUIRE((unsigned int)promotion <= CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
  for (cuuint32_t i = 0; i < rank; ++i) {
    REQUIRE(globalDim[i] && globalDim[i] <= 1ull << 32 && boxDim[i] && boxDim[i] <= 256);
    REQUIRE(i == 0 || (elementStrides[i] && elementStrides[i] <= 8));
    encoded.sizes[i] = globalDim[i], encoded.box[i] = boxDim[i], encoded.steps[i] = elementStrides[i];
  }
  /* A stride may be smaller than the dimension below it: windows that overlap. The documentation leaves this open. */
  for (cuuint32_t i = 0; i + 1 < rank; ++i) {
    REQUIRE(globalStrides[i] % 16 == 0 && globalStrides[i] < 1ull << 40);
    encoded.strides[i] = globalStrides[i];
  }
  REQUIRE(boxDim[0] * bytes % 16 == 0 && boxDim[0] * bytes <= spans[swizzle]);
  REQUIRE((unsigned int)fill <= CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA);
  REQUIRE(fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || type >= CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
  encoded.address = (cuuint64_t)address, encoded.data_type = type, encoded.rank = rank, encoded.interleave = interleave;
  encoded.swizzle = swizzle, encoded.promotion = promotion, encoded.fill = fill;
  memcpy(map, &encoded, sizeof encoded);
  return CUDA_SUCCESS;
}
