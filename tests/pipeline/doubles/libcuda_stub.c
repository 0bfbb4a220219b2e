/* The calls of CUDA's driver that trtq makes, without a GPU: its memory is the host's, its events read the clock.
   The call that is named in `failing` answers with error 999. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

char failing[64];
int capturing, launches, records, freed;

static int answer(const char *name) { return strcmp(name, failing) ? 0 : 999; }

int cuInit(unsigned flags) { return answer("cuInit"); }
int cuDeviceGet(int *device, int index) { *device = index; return answer("cuDeviceGet"); }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &failing; return answer("cuDevicePrimaryCtxRetain"); }
int cuCtxSetCurrent(void *context) { return context == &failing ? answer("cuCtxSetCurrent") : 201; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = &launches; return flags == 1 ? answer("cuStreamCreate") : 1; }
int cuMemAlloc_v2(void **memory, size_t size) { *memory = calloc(1, size); return answer("cuMemAlloc_v2"); }
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) {
  memcpy(to, from, size);
  return stream == &launches ? answer("cuMemcpyHtoDAsync_v2") : 1;
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *stream) {
  memcpy(to, from, size);
  return stream == &launches ? answer("cuMemcpyDtoHAsync_v2") : 1;
}
int cuMemFree_v2(void *memory) { free(memory); freed++; return answer("cuMemFree_v2"); }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 3000000 - 100 * records; *total = 10000000; return 0; }
int cuStreamSynchronize(void *stream) { return answer("cuStreamSynchronize"); }

int cuStreamBeginCapture_v2(void *stream, int mode) { capturing = 1; return mode == 2 ? answer("cuStreamBeginCapture_v2") : 1; }
int cuStreamEndCapture(void *stream, void **graph) { capturing = 0; *graph = &records; return answer("cuStreamEndCapture"); }
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  *executable = &capturing;
  return graph == &records && !flags ? answer("cuGraphInstantiateWithFlags") : 1;
}
int cuGraphLaunch(void *executable, void *stream) { launches++; return executable == &capturing ? answer("cuGraphLaunch") : 1; }

int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(struct timespec)); return answer("cuEventCreate"); }
int cuEventRecord(void *event, void *stream) { records++; clock_gettime(CLOCK_MONOTONIC, event); return answer("cuEventRecord"); }
int cuEventElapsedTime(float *ms, struct timespec *start, struct timespec *stop) {
  *ms = 1e3f * (stop->tv_sec - start->tv_sec) + 1e-6f * (stop->tv_nsec - start->tv_nsec);
  return answer("cuEventElapsedTime");
}

int cuGetErrorName(int status, const char **text) { *text = status == 999 ? "CUDA_ERROR_UNKNOWN" : 0; return 0; }
