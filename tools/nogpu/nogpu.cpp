// A GPU that does nothing: the entry points of the CUDA runtime, the driver and cuBLAS that torch and Triton call.
//
// Device memory is address space without pages, kernel launches and copies are written down and not done. What is read
// back from the device is zero. What stays real: torch's dispatch and argument checks, its caching allocator, autograd,
// inductor, Triton and ptxas. README.md says what that proves, and what not.
//
// Settings from the environment: NOGPU_DEVICES (1), NOGPU_GIB (139.8), NOGPU_NAME ("NVIDIA H200"), NOGPU_SIZES (0).
#define CUDA_API_PER_THREAD_DEFAULT_STREAM_OFF
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>
#undef cudaGetDeviceProperties
static std::recursive_mutex M;
static std::unordered_map<const void*, std::string> kernels;  // host function -> name
static std::map<char*, size_t> device_memory;
static size_t used = 0, peak = 0;
static std::map<char*, size_t> pinned;
static std::map<std::string, long> counts;
static std::vector<std::string> trace_;
static bool tracing = false;
static thread_local int current = 0;
static std::set<int> contexts;
static int devices() {
  const char* e = getenv("NOGPU_DEVICES");
  return e ? atoi(e) : 1;
}
static size_t total() {
  const char* e = getenv("NOGPU_GIB");
  return size_t((e ? atof(e) : 139.8) * (1ull << 30));
}
static void note(const std::string& what) {
  std::lock_guard<std::recursive_mutex> g(M);
  counts[what]++;
  if (tracing) trace_.push_back(what);
}
#define X extern "C" __attribute__((visibility("default")))
X void nogpu_trace(int on) {
  std::lock_guard<std::recursive_mutex> g(M);
  tracing = on;
  trace_.clear();
  counts.clear();
  peak = used;
}
X void nogpu_dump(const char* path) {
  std::lock_guard<std::recursive_mutex> g(M);
  FILE* f = fopen(path, "w");
  for (auto& s : trace_) fprintf(f, "%s\n", s.c_str());
  fclose(f);
}
X size_t nogpu_used() { return used; }
X size_t nogpu_peak() { return peak; }
static bool on_device(const void* p) {
  auto it = device_memory.upper_bound((char*)p);
  if (it == device_memory.begin()) return false;
  --it;
  return (char*)p < it->first + it->second;
}
static bool in_pinned(const void* p) {
  auto it = pinned.upper_bound((char*)p);
  if (it == pinned.begin()) return false;
  --it;
  return (char*)p < it->first + it->second;
}
// ---- registration
X void** __cudaRegisterFatBinary(void*) { return (void**)malloc(8); }
X void __cudaRegisterFatBinaryEnd(void**) {}
X void __cudaUnregisterFatBinary(void**) {}
X void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                              int*) {
  std::lock_guard<std::recursive_mutex> g(M);
  kernels[host] = name;
}
X void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
X char __cudaInitModule(void**) { return 1; }
struct Conf {
  dim3 g, b;
  size_t s;
  void* st;
};
static thread_local Conf conf;
X unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, void* st) {
  conf = {g, b, s, st};
  return 0;
}
X cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void* st) {
  *g = conf.g;
  *b = conf.b;
  *s = conf.s;
  *(void**)st = conf.st;
  return cudaSuccess;
}
X cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) {
  *k = (cudaKernel_t)f;
  return cudaSuccess;
}
static std::string name_of(const void* f) {
  std::string n;
  {
    std::lock_guard<std::recursive_mutex> g(M);
    auto it = kernels.find(f);
    n = it == kernels.end() ? "?" : it->second;
  }
  int st;
  char* d = abi::__cxa_demangle(n.c_str(), 0, 0, &st);
  if (d) {
    n = d;
    free(d);
  }
  return n;
}
// with NOGPU_SIZES=1 launches are noted with grid, threads, stream and, for ATen's elementwise kernels, their
// element count
static bool sizes() {
  static int on = -1;
  if (on < 0) {
    const char* e = getenv("NOGPU_SIZES");
    on = e && *e == '1';
  }
  return on;
}
static std::string shape(unsigned gx, unsigned gy, unsigned gz, unsigned threads, const void* st) {
  if (!sizes()) return "";
  char t[128];
  snprintf(t, 128, "\tg%ux%ux%u t%u s%lx", gx, gy, gz, threads, (unsigned long)st & 0xffffff);
  return t;
}
static void note_launch(const void* f, dim3 g, dim3 b, void** args, const void* st) {
  std::string n = "K " + name_of(f) + shape(g.x, g.y, g.z, b.x * b.y * b.z, st);
  if (sizes() && args && n.find("elementwise_kernel") != std::string::npos) {
    char t[32];
    snprintf(t, 32, " n%d", *(int*)args[0]);
    n += t;
  }
  note(n);
}
X cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** a, size_t, cudaStream_t s) {
  note_launch(k, g, b, a, s);
  return cudaSuccess;
}
X cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t, cudaStream_t s) {
  note_launch(f, g, b, a, s);
  return cudaSuccess;
}
X cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* f, void**) {
  note("K " + name_of(f));
  return cudaSuccess;
}
X cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3, dim3, void**, size_t, cudaStream_t) {
  note("K " + name_of(f));
  return cudaSuccess;
}
// ---- devices
X cudaError_t cudaGetDeviceCount(int* n) {
  *n = devices();
  return cudaSuccess;
}
X cudaError_t cudaGetDevice(int* d) {
  *d = current;
  return cudaSuccess;
}
X cudaError_t cudaSetDevice(int d) {
  if (d != current) {
    char t[64];
    snprintf(t, 64, "SETDEVICE %d", d);
    note(t);
  }
  if (contexts.insert(d).second) {
    char t[64];
    snprintf(t, 64, "CONTEXT MADE ON %d", d);
    note(t);
    fprintf(stderr, "%s\n", t);
  }
  current = d;
  return cudaSuccess;
}
X cudaError_t cudaDeviceSynchronize() {
  note("SYNC device");
  return cudaSuccess;
}
X cudaError_t cudaDriverGetVersion(int* v) {
  *v = 13000;
  return cudaSuccess;
}
X cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = 13000;
  return cudaSuccess;
}
static int attribute(int a) {
  switch (a) {
    case 1:
      return 1024;
    case 2:
    case 3:
      return 1024;
    case 4:
      return 64;
    case 5:
      return 2147483647;
    case 6:
    case 7:
      return 65535;
    case 8:
      return 49152;
    case 9:
      return 65536;
    case 10:
      return 32;
    case 12:
      return 65536;
    case 13:
      return 1980000;
    case 16:
      return 132;
    case 36:
      return 3201000;
    case 37:
      return 6144;
    case 38:
      return 60 << 20;
    case 39:
      return 2048;
    case 75:
      return 9;
    case 76:
      return 0;
    case 81:
      return 233472;
    case 82:
      return 65536;
    case 97:
      return 232448;
    case 95:
    case 96:
      return 1;
    case 41:
      return 1;
    case 106:
      return 32;
    case 111:
      return 1024;
    case 120:
      return 1;
    default:
      return 0;
  }
}
X cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  *v = attribute((int)a);
  return cudaSuccess;
}
X cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, getenv("NOGPU_NAME") ? getenv("NOGPU_NAME") : "NVIDIA H200");
  p->major = 9;
  p->minor = 0;
  p->totalGlobalMem = total();
  p->multiProcessorCount = 132;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = 65536;
  p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->l2CacheSize = 60 << 20;
  p->memoryBusWidth = 6144;
  p->unifiedAddressing = 1;
  p->totalConstMem = 65536;
  p->maxBlocksPerMultiProcessor = 32;
  p->textureAlignment = 512;
  p->cooperativeLaunch = 1;
  p->concurrentKernels = 1;
  p->ECCEnabled = 1;
  return cudaSuccess;
}
X cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int d) {
  snprintf(s, n, "0000:%02x:00.0", d + 1);
  return cudaSuccess;
}
X cudaError_t cudaDeviceCanAccessPeer(int* c, int, int) {
  *c = 1;
  return cudaSuccess;
}
X cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
X cudaError_t cudaDeviceGetStreamPriorityRange(int* l, int* h) {
  *l = 0;
  *h = -5;
  return cudaSuccess;
}
X cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int) {
  *p = (cudaMemPool_t)1;
  return cudaSuccess;
}
X cudaError_t cudaGetLastError() { return cudaSuccess; }
X cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
X const char* cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : "nogpu"; }
X const char* cudaGetErrorName(cudaError_t) { return "nogpu"; }
// ---- memory
X cudaError_t cudaMalloc(void** p, size_t n) {
  std::lock_guard<std::recursive_mutex> g(M);
  if (used + n > total()) return cudaErrorMemoryAllocation;
  void* m = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) return cudaErrorMemoryAllocation;
  device_memory[(char*)m] = n;
  used += n;
  if (used > peak) peak = used;
  *p = m;
  return cudaSuccess;
}
X cudaError_t cudaFree(void* p) {
  std::lock_guard<std::recursive_mutex> g(M);
  auto it = device_memory.find((char*)p);
  if (it != device_memory.end()) {
    munmap(p, it->second);
    used -= it->second;
    device_memory.erase(it);
  }
  return cudaSuccess;
}
X cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
X cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
X cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  *t = total();
  *f = *t - used;
  return cudaSuccess;
}
X cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  std::lock_guard<std::recursive_mutex> g(M);
  *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
  pinned[(char*)*p] = n;
  return cudaSuccess;
}
X cudaError_t cudaFreeHost(void* p) {
  std::lock_guard<std::recursive_mutex> g(M);
  pinned.erase((char*)p);
  free(p);
  return cudaSuccess;
}
X cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  std::lock_guard<std::recursive_mutex> g(M);
  pinned[(char*)p] = n;
  return cudaSuccess;
}
X cudaError_t cudaHostUnregister(void* p) {
  std::lock_guard<std::recursive_mutex> g(M);
  pinned.erase((char*)p);
  return cudaSuccess;
}
X cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  a->type = on_device(p) ? cudaMemoryTypeDevice : in_pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->devicePointer = (void*)p;
  a->hostPointer = (void*)p;
  return cudaSuccess;
}
static void copy(void* d, const void* s, size_t n, const char* how) {
  bool dd = on_device(d), sd = on_device(s);
  char t[96];
  snprintf(t, 96, "COPY %s %s%s %zu", how, sd ? "D" : in_pinned(s) ? "P" : "H", dd ? "D" : in_pinned(d) ? "P" : "H", n);
  note(t);
  if (!dd) {
    if (sd) memset(d, 0, n);
    else
      memcpy(d, s, n);
  }
}
X cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) {
  copy(d, s, n, "SYNC");
  return cudaSuccess;
}
X cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind, cudaStream_t) {
  copy(d, s, n, "async");
  return cudaSuccess;
}
X cudaError_t cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, cudaStream_t) {
  copy(d, s, n, "peer");
  return cudaSuccess;
}
X cudaError_t cudaMemcpy2DAsync(void* d, size_t, const void* s, size_t, size_t w, size_t h, cudaMemcpyKind,
                                cudaStream_t) {
  note("COPY 2D");
  return cudaSuccess;
}
X cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
X cudaError_t cudaMemset(void*, int, size_t n) {
  note("MEMSET");
  return cudaSuccess;
}
X cudaError_t cudaMemsetAsync(void*, int, size_t n, cudaStream_t) {
  note("MEMSET");
  return cudaSuccess;
}
X cudaError_t cudaGetSymbolAddress(void** p, const void*) {
  *p = malloc(4096);
  return cudaSuccess;
}
X cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* v) {
  *(size_t*)v = 0;
  return cudaSuccess;
}
X cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
X cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) { return cudaSuccess; }
X cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
// ---- streams and events
X cudaError_t cudaStreamCreate(cudaStream_t* s) {
  *s = (cudaStream_t)malloc(8);
  return cudaSuccess;
}
X cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
  *s = (cudaStream_t)malloc(8);
  return cudaSuccess;
}
X cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
X cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
X cudaError_t cudaStreamSynchronize(cudaStream_t) {
  note("SYNC stream");
  return cudaSuccess;
}
X cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  note("WAITEVENT");
  return cudaSuccess;
}
X cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) {
  *p = 0;
  return cudaSuccess;
}
X cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* s) {
  *s = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
X cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* s, unsigned long long* i, cudaGraph_t* g,
                                       const cudaGraphNode_t** d, const cudaGraphEdgeData** e, size_t* n) {
  *s = cudaStreamCaptureStatusNone;
  if (i) *i = 0;
  if (n) *n = 0;
  return cudaSuccess;
}
X cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
X cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* u, unsigned) {
  f(s, cudaSuccess, u);
  return cudaSuccess;
}
X cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* u) {
  f(u);
  return cudaSuccess;
}
X cudaError_t cudaEventCreate(cudaEvent_t* e) {
  *e = (cudaEvent_t)malloc(8);
  return cudaSuccess;
}
X cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  *e = (cudaEvent_t)malloc(8);
  return cudaSuccess;
}
X cudaError_t cudaEventDestroy(cudaEvent_t e) {
  free(e);
  return cudaSuccess;
}
X cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
X cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
X cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
X cudaError_t cudaEventSynchronize(cudaEvent_t) {
  note("SYNC event");
  return cudaSuccess;
}
X cudaError_t cudaEventElapsedTime(float* t, cudaEvent_t, cudaEvent_t) {
  *t = 0.01f;
  return cudaSuccess;
}
// ---- functions
X cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 64;
  a->binaryVersion = 90;
  a->ptxVersion = 90;
  a->maxDynamicSharedSizeBytes = 232448;
  return cudaSuccess;
}
X cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
X cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int, size_t) {
  *n = 2;
  return cudaSuccess;
}
X cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) {
  *n = 2;
  return cudaSuccess;
}
X cudaError_t cudaProfilerStart() { return cudaSuccess; }
X cudaError_t cudaProfilerStop() { return cudaSuccess; }
X cudaError_t cudaGetDriverEntryPointByVersion(const char* s, void** f, unsigned, unsigned long long,
                                               cudaDriverEntryPointQueryResult* r) {
  *f = dlsym(RTLD_DEFAULT, s);
  if (r) *r = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  if (!*f) {
    char t[96];
    snprintf(t, 96, "NOENTRY %s", s);
    note(t);
  }
  return cudaSuccess;
}
// ---- driver
static std::unordered_map<void*, std::string>* functions() {
  static auto* f = new std::unordered_map<void*, std::string>;
  return f;
}
X CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
X CUresult cuDriverGetVersion(int* v) {
  *v = 13000;
  return CUDA_SUCCESS;
}
X CUresult cuDeviceGetCount(int* n) {
  *n = devices();
  return CUDA_SUCCESS;
}
X CUresult cuDeviceGet(CUdevice* d, int i) {
  *d = i;
  return CUDA_SUCCESS;
}
X CUresult cuDeviceGetName(char* s, int n, CUdevice) {
  snprintf(s, n, "NVIDIA H200");
  return CUDA_SUCCESS;
}
X CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) {
  *v = attribute((int)a);
  return CUDA_SUCCESS;
}
#undef cuDevicePrimaryCtxRelease
X CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned* f, int* a) {
  *f = 0;
  *a = contexts.count(d);
  return CUDA_SUCCESS;
}
X CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) {
  *c = (CUcontext)1;
  return CUDA_SUCCESS;
}
X CUresult cuCtxGetCurrent(CUcontext* c) {
  *c = (CUcontext)1;
  return CUDA_SUCCESS;
}
X CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
X CUresult cuCtxGetDevice(CUdevice* d) {
  *d = current;
  return CUDA_SUCCESS;
}
X CUresult cuCtxGetLimit(size_t* v, CUlimit) {
  *v = 1 << 20;
  return CUDA_SUCCESS;
}
X CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
X CUresult cuGetErrorString(CUresult, const char** s) {
  *s = "nogpu";
  return CUDA_SUCCESS;
}
X CUresult cuGetErrorName(CUresult, const char** s) {
  *s = "nogpu";
  return CUDA_SUCCESS;
}
X CUresult cuModuleLoadData(CUmodule* m, const void*) {
  *m = (CUmodule)malloc(8);
  return CUDA_SUCCESS;
}
X CUresult cuModuleLoadDataEx(CUmodule* m, const void*, unsigned, CUjit_option*, void**) {
  *m = (CUmodule)malloc(8);
  return CUDA_SUCCESS;
}
X CUresult cuModuleLoad(CUmodule* m, const char*) {
  *m = (CUmodule)malloc(8);
  return CUDA_SUCCESS;
}
X CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
X CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char* n) {
  std::lock_guard<std::recursive_mutex> g(M);
  *f = (CUfunction)malloc(8);
  (*functions())[*f] = n;
  return CUDA_SUCCESS;
}
X CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction) {
  *v = a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
X CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
X CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
static void launch(CUfunction f, const std::string& how = "") {
  std::string n;
  {
    std::lock_guard<std::recursive_mutex> g(M);
    n = (*functions())[f];
  }
  note("T " + n + how);
}
X CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c,
                          unsigned, CUstream s, void**, void**) {
  launch(f, shape(x, y, z, a * b * c, s));
  return CUDA_SUCCESS;
}
X CUresult cuLaunchKernelEx(const CUlaunchConfig* l, CUfunction f, void**, void**) {
  launch(f, shape(l->gridDimX, l->gridDimY, l->gridDimZ, l->blockDimX * l->blockDimY * l->blockDimZ, l->hStream));
  return CUDA_SUCCESS;
}
X CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                     CUstream, void**) {
  launch(f);
  return CUDA_SUCCESS;
}
X CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) {
  *n = 2;
  return CUDA_SUCCESS;
}
X CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) {
  *n = 8;
  return CUDA_SUCCESS;
}
X CUresult cuPointerGetAttribute(void* v, CUpointer_attribute a, CUdeviceptr p) {
  if (a == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr*)v = p;
  else
    *(int*)v = on_device((void*)p) ? 2 : 1;
  return on_device((void*)p) || in_pinned((void*)p) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
X CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                  const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                  CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_SUCCESS;
}
// ---- cuBLAS
#define B(n)                      \
  X int n(...) {                  \
    note(std::string("B ") + #n); \
    return 0;                     \
  }
#define Q(n) \
  X int n(...) { return 0; }
X int cublasCreate_v2(void** h) {
  *h = malloc(64);
  return 0;
}
X int cublasGetMathMode(void*, int* m) {
  *m = 0;
  return 0;
}
X int cublasGetPointerMode_v2(void*, int* m) {
  *m = 0;
  return 0;
}
Q(cublasDestroy_v2)
Q(cublasSetStream_v2) Q(cublasSetWorkspace_v2) Q(cublasSetMathMode) Q(cublasSetPointerMode_v2) X
    int cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void*, const void*, int at, int, const void*,
                     int, int, const void*, void*, int ct, int, int, int) {
  char t[128];
  snprintf(t, 128, "B gemm %c%c m%d n%d k%d a%d c%d", ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, at, ct);
  note(t);
  return 0;
}
X int cublasSgemm_v2(void*, int ta, int tb, int m, int n, int k, ...) {
  char t[128];
  snprintf(t, 128, "B sgemm %c%c m%d n%d k%d", ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k);
  note(t);
  return 0;
}
B(cublasGemmStridedBatchedEx)
B(cublasSgemmStridedBatched) B(cublasSgemv_v2) B(cublasDotEx) B(cublasSdot_v2) B(cublasDgemm_v2) X size_t
    cublasLtGetVersion() {
  return 130100;
}
X int cublasLtMatmulDescCreate(void** d, int, int) {
  *d = malloc(256);
  return 0;
}
X int cublasLtMatrixLayoutCreate(void** d, int, unsigned long r, unsigned long c, long) {
  *d = malloc(256);
  ((unsigned long*)*d)[0] = r;
  ((unsigned long*)*d)[1] = c;
  return 0;
}
X int cublasLtMatmulPreferenceCreate(void** d) {
  *d = malloc(256);
  return 0;
}
Q(cublasLtMatmulDescDestroy)
Q(cublasLtMatrixLayoutDestroy) Q(cublasLtMatmulPreferenceDestroy) Q(cublasLtMatmulDescSetAttribute)
    Q(cublasLtMatrixLayoutSetAttribute) Q(cublasLtMatmulPreferenceSetAttribute) X
    int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int* n) {
  *n = 1;
  return 0;
}
X int cublasLtMatmul(void*, void*, const void*, const void*, const unsigned long* a, const void*,
                     const unsigned long* b, ...) {
  char t[128];
  snprintf(t, 128, "B lt a%lux%lu b%lux%lu", a[0], a[1], b[0], b[1]);
  note(t);
  return 0;
}
