/* A CUDA driver that launches nothing.
 *
 * Triton's launcher calls these functions instead of NVIDIA's. Modules are accepted, launches are counted, and what a
 * card would refuse is refused by the rules of the CUDA driver API: sizes of grids and blocks, shared memory, and tensor
 * maps. The text of an error names the rule. Only the functions that Triton 3.6 to 3.9 calls are here.
 */
#include <stdio.h>
#include <string.h>

#include "cuda.h"

/* Properties of the card, which the program sets before the first launch. */
int absent_major = 9, absent_minor = 0, absent_processors = 132;
unsigned absent_shared = 232448;

/* What was asked of the card so far. */
long absent_launches = 0, absent_maps = 0;
unsigned absent_largest_grid = 0, absent_largest_shared = 0;

static char reason[256] = "no error";
static char context, module_, function_; /* Their addresses stand for handles. */

static CUresult refuse(const char *rule, unsigned long long value) {
  snprintf(reason, sizeof reason, "the card that is not there refuses %s: %llu", rule, value);
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_SUCCESS ? "no error" : reason;
  return CUDA_SUCCESS;
}

/* Devices and contexts. */

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
    *value = (int)absent_shared;
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
    *value = (int)absent_shared + 1024; /* One kilobyte is the system's. */
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    *value = 65536;
    break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
    *value = absent_processors;
    break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
    *value = 32;
    break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
    *value = absent_major;
    break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
    *value = absent_minor;
    break;
  default:
    *value = 1; /* Clocks and widths of buses, which Triton reads and does not use. */
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *result, CUdevice device) {
  *result = (CUcontext)&context;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *result) { return cuDevicePrimaryCtxRetain(result, 0); }

CUresult cuCtxSetCurrent(CUcontext given) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device) { return cuDeviceGet(device, 0); }

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

/* Pointers: every address is one of the card. */

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **values, CUdeviceptr pointer) {
  for (unsigned i = 0; i < count; i++)
    if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
      *(CUdeviceptr *)values[i] = pointer;
  return CUDA_SUCCESS;
}

/* Modules and functions. */

CUresult cuModuleLoadData(CUmodule *result, const void *image) {
  *result = (CUmodule)&module_;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule given) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *result, CUmodule given, const char *name) {
  *result = (CUfunction)&function_;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction given) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction given, CUfunction_attribute attribute, int value) {
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && (unsigned)value > absent_shared)
    return refuse("bytes of shared memory of a function", (unsigned)value);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction given, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction given, const CUlaunchConfig *config) {
  *clusters = 1;
  return CUDA_SUCCESS;
}

/* Launches. */

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction given, void **arguments, void **extra) {
  unsigned long long threads = (unsigned long long)config->blockDimX * config->blockDimY * config->blockDimZ;
  if (config->gridDimX == 0 || config->gridDimX > 2147483647u)
    return refuse("a grid of so many programs in x", config->gridDimX);
  if (config->gridDimY == 0 || config->gridDimY > 65535)
    return refuse("a grid of so many programs in y", config->gridDimY);
  if (config->gridDimZ == 0 || config->gridDimZ > 65535)
    return refuse("a grid of so many programs in z", config->gridDimZ);
  if (threads == 0 || threads > 1024)
    return refuse("so many threads of a program", threads);
  if (config->sharedMemBytes > absent_shared)
    return refuse("bytes of shared memory of a launch", config->sharedMemBytes);
  if (given == NULL)
    return refuse("a launch without a function", 0);
  absent_launches++;
  if (config->gridDimX > absent_largest_grid)
    absent_largest_grid = config->gridDimX;
  if (config->sharedMemBytes > absent_largest_shared)
    absent_largest_shared = config->sharedMemBytes;
  return CUDA_SUCCESS;
}

/* Tensor maps: the rules of cuTensorMapEncodeTiled. */

static unsigned bytes_of(CUtensorMapDataType type) {
  switch (type) {
  case CU_TENSOR_MAP_DATA_TYPE_UINT8:
    return 1;
  case CU_TENSOR_MAP_DATA_TYPE_UINT16:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
  case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
    return 2;
  case CU_TENSOR_MAP_DATA_TYPE_UINT64:
  case CU_TENSOR_MAP_DATA_TYPE_INT64:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
    return 8;
  default:
    return 4;
  }
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  memset(map, 0, sizeof *map);
  if (rank < 1 || rank > 5)
    return refuse("a tensor map of so many axes", rank);
  if ((unsigned long long)address % 16)
    return refuse("a tensor map at an address that is no multiple of 16", (unsigned long long)address);
  for (unsigned axis = 0; axis < rank; axis++) {
    if (sizes[axis] == 0 || sizes[axis] > 1ull << 32)
      return refuse("a tensor map with so many numbers along an axis", sizes[axis]);
    if (box[axis] == 0 || box[axis] > 256)
      return refuse("a tensor map whose blocks have so many numbers along an axis", box[axis]);
    if (steps[axis] == 0 || steps[axis] > 8)
      return refuse("a tensor map with steps of so many numbers", steps[axis]);
    if (axis + 1 < rank && (strides[axis] % 16 || strides[axis] >= 1ull << 40))
      return refuse("a tensor map whose rows are so many bytes apart", strides[axis]);
  }
  unsigned row = box[0] * bytes_of(type);
  unsigned widest = swizzle == CU_TENSOR_MAP_SWIZZLE_32B    ? 32
                    : swizzle == CU_TENSOR_MAP_SWIZZLE_64B  ? 64
                    : swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 128
                                                            : row;
  if (row % 16 || row > widest)
    return refuse("a tensor map whose blocks have rows of so many bytes", row);
  absent_maps++;
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeIm2col(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                 const cuuint64_t *sizes, const cuuint64_t *strides, const int *lower, const int *upper,
                                 cuuint32_t channels, cuuint32_t pixels, const cuuint32_t *steps,
                                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                 CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  return refuse("tensor maps of patches, which no kernel of nntk uses", rank);
}
