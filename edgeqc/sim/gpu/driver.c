/* A stand-in for the CUDA driver library (libcuda.so.1) with one pretended device, for NVIDIA's own bindings to talk to.
 *
 * Real about it: addresses of the device cannot be touched by the CPU (reading one is a SIGSEGV) and differ from the
 * CPU's for the same memory; every stream is a thread, so that copies and runs really happen later; events really pend;
 * each copy is checked against the bounds of what was allocated, at the time it runs; a thread without a current context
 * gets an error; an error of the device stays until the process ends; fresh memory is 0xCD, never a convenient zero.
 * Not real: coherency and caches, kernels, time, memory pressure.
 *
 * The prototypes are written out here, after NVIDIA's reference of the driver API, so that any C compiler builds it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { /* CUresult */
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901
};
typedef int Result;
typedef uint64_t Address;

/* --- what a test may set and ask ------------------------------------------------------------------------------- */
static struct {
    long integrated, copy_delay_us, limit_bytes, no_device, maps, registers, version;
} settings = {0, 0, 8L << 30, 0, 1, 1, 13000};
static Result sticky;
static size_t used;
static long alive[6]; /* allocations, registrations, streams, events, graphs, contexts */
enum { ALLOCATIONS, REGISTRATIONS, STREAMS, EVENTS, GRAPHS, CONTEXTS };
static long pageable_copies;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_open = PTHREAD_COND_INITIALIZER;
static int held;

int fake_set(const char *name, long value) {
    struct { const char *name; long *place; } all[] = {
        {"integrated", &settings.integrated}, {"copy_delay_us", &settings.copy_delay_us},
        {"limit_bytes", &settings.limit_bytes}, {"no_device", &settings.no_device}, {"maps", &settings.maps},
        {"registers", &settings.registers}, {"version", &settings.version}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, name)) { *all[i].place = value; return 0; }
    return -1;
}
static int queued; /* steps on all streams, those that run included */
void fake_settle(void) { /* until all streams are empty; a second at most, for one that is held */
    for (int i = 0; i < 10000 && __atomic_load_n(&queued, __ATOMIC_SEQ_CST); i++) usleep(100);
}
void fake_fail(int code) { /* as after a fault of the device: every later call says so; 0 mends it */
    if (!code) fake_settle(); /* what was queued before is not carried out on a mended one */
    sticky = code;
}
void fake_hold(int hold) { /* while held, no stream does anything: what is submitted stays pending */
    pthread_mutex_lock(&gate_lock);
    held = hold;
    pthread_cond_broadcast(&gate_open);
    pthread_mutex_unlock(&gate_lock);
}
size_t fake_used(void) { return used; }
long fake_alive(int kind) { return alive[kind]; }
long fake_pageable_copies(void) { return pageable_copies; }
void fake_forget(void); /* everything that is left, as when a process ends */
static void count(int kind, long step) { __atomic_add_fetch(&alive[kind], step, __ATOMIC_SEQ_CST); }

/* --- memory ---------------------------------------------------------------------------------------------------- */
typedef struct Memory {
    char *device, *host; /* what the device would use: inaccessible; and where the bytes are */
    size_t size;
    enum { DEVICE, PINNED, FOREIGN } kind;
    struct Memory *next;
} Memory;
static Memory *memories;
/* Memory that was freed while a step ran: a step that began before may still go there, as on a real device, and must
 * find wrong bytes, not the end of this process. A step that begins later finds its memory gone. */
static Memory *freed;
static int running; /* steps, on all streams */
static size_t pages(size_t size) { return (size + 4095) & ~(size_t)4095; }

static Memory *find_device(Address at, size_t size) {
    for (Memory *m = memories; m; m = m->next)
        if ((char *)at >= m->device && (char *)at + size <= m->device + m->size) return m;
    return NULL;
}
static Memory *find_host(const void *at, size_t size) {
    for (Memory *m = memories; m; m = m->next)
        if (m->kind != DEVICE && (char *)at >= m->host && (char *)at + size <= m->host + m->size) return m;
    return NULL;
}
/* Where the bytes behind a device address are, or NULL: for the pretended kernels. */
void *fake_bytes(Address at, size_t size) {
    pthread_mutex_lock(&lock);
    Memory *m = find_device(at, size);
    void *bytes = m ? m->host + ((char *)at - m->device) : NULL;
    pthread_mutex_unlock(&lock);
    return bytes;
}
int fake_is_mapped(Address at) {
    pthread_mutex_lock(&lock);
    Memory *m = find_device(at, 1);
    pthread_mutex_unlock(&lock);
    return m && m->kind != DEVICE;
}
static Result add(size_t size, int kind, void *host, Memory **made) {
    if (!size) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int full = kind != FOREIGN && (long)(used + size) > settings.limit_bytes;
    int known = kind == FOREIGN && find_host(host, 1) != NULL;
    pthread_mutex_unlock(&lock);
    if (full) return OUT_OF_MEMORY;
    if (known) return ALREADY_REGISTERED;
    Memory *m = calloc(1, sizeof *m);
    m->size = size;
    m->kind = kind;
    m->device = mmap(NULL, pages(size), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    m->host = host ? host : mmap(NULL, pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!host) memset(m->host, 0xCD, size);
    pthread_mutex_lock(&lock);
    m->next = memories;
    memories = m;
    if (kind != FOREIGN) used += size;
    pthread_mutex_unlock(&lock);
    count(kind == FOREIGN ? REGISTRATIONS : ALLOCATIONS, 1);
    *made = m;
    return OK;
}
static Result take(const void *at, int kind) {
    pthread_mutex_lock(&lock);
    Memory **link = &memories, *m;
    while ((m = *link) && !(m->kind == (unsigned)kind && (kind == DEVICE ? m->device : m->host) == at)) link = &m->next;
    if (m) {
        *link = m->next;
        if (kind != FOREIGN) used -= m->size;
        m->next = freed;
        freed = m;
    }
    Memory *gone = NULL;
    if (!__atomic_load_n(&running, __ATOMIC_SEQ_CST)) {
        gone = freed;
        freed = NULL;
    }
    pthread_mutex_unlock(&lock);
    for (Memory *next; gone; gone = next) {
        next = gone->next;
        munmap(gone->device, pages(gone->size));
        if (gone->kind != FOREIGN) munmap(gone->host, pages(gone->size));
        free(gone);
    }
    if (!m) return kind == FOREIGN ? NOT_REGISTERED : INVALID_VALUE;
    count(kind == FOREIGN ? REGISTRATIONS : ALLOCATIONS, -1);
    return OK;
}

void fake_forget(void) {
    memories = NULL;
    used = 0;
    memset(alive, 0, sizeof alive);
}

/* --- streams, events, graphs ----------------------------------------------------------------------------------- */
typedef void (*HostFunction)(void *);
typedef struct Event { unsigned long wanted, done; } Event;
typedef struct Step {
    enum { COPY_IN, COPY_OUT, COPY_WITHIN, SET, RECORD, CALL } what;
    Address to, from;
    size_t size;
    unsigned char value;
    HostFunction call;
    void *data;
    Event *event;
    unsigned long number;
    struct Step *next;
} Step;
typedef struct Steps { Step *first, *last; } Steps;
typedef struct Graph { Steps steps; } Graph;
typedef struct Stream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    Steps steps;
    int busy, ending;
    Graph *capture;
    int broken; /* the capture */
} Stream;
static pthread_mutex_t event_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t event_moved = PTHREAD_COND_INITIALIZER;
static int global_captures;
static __thread Stream *own_capture;

int fake_is_capturing(void) { return own_capture != NULL; } /* this thread */

static void append(Steps *steps, Step step) {
    Step *s = malloc(sizeof *s);
    *s = step;
    s->next = NULL;
    if (steps->last) steps->last->next = s; else steps->first = s;
    steps->last = s;
}
static void carry_out(Step *s) { /* addresses are looked up now, so that memory freed too early shows */
    void *to = NULL, *from = NULL;
    if (s->what == COPY_IN || s->what == COPY_WITHIN || s->what == SET) {
        if (!(to = fake_bytes(s->to, s->size))) { sticky = ILLEGAL_ADDRESS; return; }
    } else to = (void *)s->to;
    if (s->what == COPY_OUT || s->what == COPY_WITHIN) {
        if (!(from = fake_bytes(s->from, s->size))) { sticky = ILLEGAL_ADDRESS; return; }
    } else from = (void *)s->from;
    switch (s->what) {
    case COPY_IN: case COPY_OUT: case COPY_WITHIN:
        if (settings.copy_delay_us) usleep((useconds_t)settings.copy_delay_us);
        memcpy(to, from, s->size);
        break;
    case SET: memset(to, s->value, s->size); break;
    case CALL: s->call(s->data); break;
    case RECORD:
        pthread_mutex_lock(&event_lock);
        if (s->event->done < s->number) s->event->done = s->number;
        pthread_cond_broadcast(&event_moved);
        pthread_mutex_unlock(&event_lock);
    }
}
static void *work(void *arg) {
    Stream *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->steps.first && !s->ending) pthread_cond_wait(&s->moved, &s->lock);
        Step *step = s->steps.first;
        if (!step) break;
        s->steps.first = step->next;
        if (!s->steps.first) s->steps.last = NULL;
        s->busy = 1;
        pthread_mutex_unlock(&s->lock);
        pthread_mutex_lock(&gate_lock);
        while (held) pthread_cond_wait(&gate_open, &gate_lock);
        pthread_mutex_unlock(&gate_lock);
        __atomic_add_fetch(&running, 1, __ATOMIC_SEQ_CST);
        if (!sticky || step->what == RECORD) carry_out(step);
        __atomic_add_fetch(&running, -1, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&queued, -1, __ATOMIC_SEQ_CST);
        free(step);
        pthread_mutex_lock(&s->lock);
        s->busy = 0;
        pthread_cond_broadcast(&s->moved);
    }
    pthread_mutex_unlock(&s->lock);
    free(s);
    return NULL;
}
static Stream *make_stream(void) {
    Stream *s = calloc(1, sizeof *s);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->moved, NULL);
    pthread_create(&s->thread, NULL, work, s);
    return s;
}
static Stream *the_default;
static Stream *stream_of(Stream *s) {
    if (s) return s;
    if (!the_default) the_default = make_stream();
    return the_default;
}
static Result enqueue(Stream *stream, Step step) {
    Stream *s = stream_of(stream);
    pthread_mutex_lock(&s->lock);
    if (!s->capture) __atomic_add_fetch(&queued, 1, __ATOMIC_SEQ_CST);
    append(s->capture ? &s->capture->steps : &s->steps, step);
    pthread_cond_broadcast(&s->moved);
    pthread_mutex_unlock(&s->lock);
    return OK;
}
static void clear(Steps *steps) {
    for (Step *s = steps->first, *next; s; s = next) { next = s->next; free(s); }
    steps->first = steps->last = NULL;
}

/* --- contexts -------------------------------------------------------------------------------------------------- */
static int started;
static char the_context;
static __thread void *current;
static __thread void *stack[16];
static __thread int depth;
#define STARTED if (!started) return NOT_INITIALIZED
#define CONTEXT STARTED; if (sticky) return sticky; if (!current) return INVALID_CONTEXT
/* What a capture forbids: to the capturing thread, or, in the global mode, to every thread. */
#define UNSAFE CONTEXT; if (own_capture || global_captures) { spoil(); return CAPTURE_UNSUPPORTED; }
static void spoil(void) { if (own_capture) own_capture->broken = 1; }

Result cuInit(unsigned flags) { (void)flags; if (settings.no_device) return NO_DEVICE; started = 1; return OK; }
Result cuDriverGetVersion(int *v) { *v = (int)settings.version; return OK; }
Result cuDeviceGetCount(int *n) { STARTED; *n = 1; return OK; }
Result cuDeviceGet(int *d, int i) { STARTED; if (i) return INVALID_DEVICE; *d = 0; return OK; }
Result cuDeviceGetName(char *n, int size, int d) { STARTED; (void)d; snprintf(n, (size_t)size, "pretended GPU"); return OK; }
Result cuDeviceTotalMem_v2(size_t *n, int d) { STARTED; (void)d; *n = (size_t)settings.limit_bytes; return OK; }
Result cuDeviceGetAttribute(int *v, int which, int d) {
    STARTED;
    (void)d;
    switch (which) { /* CUdevice_attribute */
    case 18: *v = (int)settings.integrated; break;
    case 19: *v = (int)settings.maps; break;
    case 41: *v = 1; break; /* unified addressing */
    case 75: *v = 8; break;
    case 76: *v = 7; break;
    case 99: *v = (int)settings.registers; break;
    default: *v = 0;
    }
    return OK;
}
Result cuDeviceComputeCapability(int *a, int *b, int d) { STARTED; (void)d; *a = 8; *b = 7; return OK; }
Result cuDevicePrimaryCtxRetain(void **c, int d) { STARTED; (void)d; *c = &the_context; count(CONTEXTS, 1); return sticky; }
Result cuDevicePrimaryCtxRelease_v2(int d) {
    STARTED;
    (void)d;
    if (!alive[CONTEXTS]) return INVALID_CONTEXT;
    count(CONTEXTS, -1);
    return OK;
}
Result cuCtxSetCurrent(void *c) { STARTED; current = c; return sticky; }
Result cuCtxGetCurrent(void **c) { STARTED; *c = current; return OK; }
Result cuCtxPushCurrent_v2(void *c) { STARTED; if (depth == 16) return INVALID_VALUE; stack[depth++] = current; current = c; return OK; }
Result cuCtxPopCurrent_v2(void **c) {
    STARTED;
    if (!current) return INVALID_CONTEXT;
    if (c) *c = current;
    current = depth ? stack[--depth] : NULL;
    return OK;
}
Result cuCtxGetDevice(int *d) { STARTED; if (!current) return INVALID_CONTEXT; *d = 0; return OK; }
Result cuCtxGetApiVersion(void *c, unsigned *v) { (void)c; *v = 13000; return OK; }
Result cuCtxGetFlags(unsigned *f) { *f = 0; return OK; }

/* --- the calls about memory ------------------------------------------------------------------------------------ */
Result cuMemGetInfo_v2(size_t *left, size_t *total) { CONTEXT; *total = (size_t)settings.limit_bytes; *left = *total - used; return OK; }
Result cuMemAlloc_v2(Address *at, size_t size) { UNSAFE; Memory *m; Result r = add(size, DEVICE, NULL, &m); if (!r) *at = (Address)m->device; return r; }
Result cuMemFree_v2(Address at) { UNSAFE; return take((void *)at, DEVICE); }
Result cuMemHostAlloc(void **at, size_t size, unsigned flags) {
    UNSAFE;
    (void)flags;
    Memory *m;
    Result r = add(size, PINNED, NULL, &m);
    if (!r) *at = m->host;
    return r;
}
Result cuMemFreeHost(void *at) { UNSAFE; return take(at, PINNED); }
Result cuMemHostRegister_v2(void *at, size_t size, unsigned flags) {
    UNSAFE;
    (void)flags;
    Memory *m;
    return settings.registers ? add(size, FOREIGN, at, &m) : NOT_SUPPORTED;
}
Result cuMemHostUnregister(void *at) { UNSAFE; return take(at, FOREIGN); }
Result cuMemHostGetDevicePointer_v2(Address *d, void *at, unsigned flags) {
    CONTEXT;
    (void)flags;
    pthread_mutex_lock(&lock);
    Memory *m = find_host(at, 1);
    if (m) *d = (Address)(m->device + ((char *)at - m->host));
    pthread_mutex_unlock(&lock);
    return m ? OK : INVALID_VALUE;
}
static Result copy(int what, Address to, Address from, size_t size, Stream *s) {
    pthread_mutex_lock(&lock);
    int bad = (what != COPY_OUT && !find_device(to, size)) || (what != COPY_IN && !find_device(from, size));
    const void *host = what == COPY_IN ? (void *)from : (void *)to;
    if (what != COPY_WITHIN) {
        bad |= find_device((Address)host, 1) != NULL; /* a device's address where the CPU's is asked for */
        if (!bad && !find_host(host, size)) pageable_copies++;
    }
    pthread_mutex_unlock(&lock);
    return bad ? INVALID_VALUE : enqueue(s, (Step){.what = what, .to = to, .from = from, .size = size});
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t n, Stream *s) { CONTEXT; return copy(COPY_IN, to, (Address)from, n, s); }
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t n, Stream *s) { CONTEXT; return copy(COPY_OUT, (Address)to, from, n, s); }
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, Stream *s) { CONTEXT; return copy(COPY_WITHIN, to, from, n, s); }
Result cuMemsetD8Async(Address to, unsigned char value, size_t n, Stream *s) {
    CONTEXT;
    if (!fake_bytes(to, n)) return INVALID_VALUE;
    return enqueue(s, (Step){.what = SET, .to = to, .size = n, .value = value});
}

/* --- the calls about streams, events and graphs ---------------------------------------------------------------- */
Result cuStreamCreate(Stream **s, unsigned flags) { CONTEXT; (void)flags; *s = make_stream(); count(STREAMS, 1); return OK; }
Result cuStreamCreateWithPriority(Stream **s, unsigned flags, int p) { (void)p; return cuStreamCreate(s, flags); }
Result cuStreamSynchronize(Stream *stream) {
    CONTEXT;
    Stream *s = stream_of(stream);
    if (s->capture) { s->broken = 1; return CAPTURE_UNSUPPORTED; }
    pthread_mutex_lock(&s->lock);
    while (s->steps.first || s->busy) pthread_cond_wait(&s->moved, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return sticky;
}
Result cuStreamQuery(Stream *stream) {
    CONTEXT;
    Stream *s = stream_of(stream);
    if (s->capture) { s->broken = 1; return CAPTURE_UNSUPPORTED; }
    pthread_mutex_lock(&s->lock);
    int busy = s->steps.first || s->busy;
    pthread_mutex_unlock(&s->lock);
    return sticky ? sticky : busy ? NOT_READY : OK;
}
Result cuCtxSynchronize(void) { return cuStreamSynchronize(NULL); }
Result cuStreamDestroy_v2(Stream *s) {
    STARTED;
    if (!current) return INVALID_CONTEXT;
    pthread_detach(s->thread); /* returns at once; what is queued still runs, then the stream ends itself */
    pthread_mutex_lock(&s->lock);
    s->ending = 1;
    pthread_cond_broadcast(&s->moved);
    pthread_mutex_unlock(&s->lock);
    count(STREAMS, -1);
    return sticky;
}
Result cuStreamWaitEvent(Stream *s, Event *e, unsigned f) { CONTEXT; (void)s; (void)e; (void)f; return NOT_SUPPORTED; }
Result cuLaunchHostFunc(Stream *s, HostFunction call, void *data) { CONTEXT; return enqueue(s, (Step){.what = CALL, .call = call, .data = data}); }
Result cuEventCreate(Event **e, unsigned flags) { CONTEXT; (void)flags; *e = calloc(1, sizeof **e); count(EVENTS, 1); return OK; }
Result cuEventRecord(Event *e, Stream *s) {
    CONTEXT;
    pthread_mutex_lock(&event_lock);
    unsigned long number = ++e->wanted;
    pthread_mutex_unlock(&event_lock);
    return enqueue(s, (Step){.what = RECORD, .event = e, .number = number});
}
Result cuEventQuery(Event *e) {
    CONTEXT;
    pthread_mutex_lock(&event_lock);
    int pending = e->done < e->wanted;
    pthread_mutex_unlock(&event_lock);
    return sticky ? sticky : pending ? NOT_READY : OK;
}
Result cuEventSynchronize(Event *e) {
    CONTEXT;
    pthread_mutex_lock(&event_lock);
    while (e->done < e->wanted) pthread_cond_wait(&event_moved, &event_lock);
    pthread_mutex_unlock(&event_lock);
    return sticky;
}
Result cuEventElapsedTime_v2(float *ms, Event *a, Event *b) { (void)a; (void)b; *ms = 0; return NOT_SUPPORTED; }
Result cuEventDestroy_v2(Event *e) { STARTED; if (!current) return INVALID_CONTEXT; free(e); count(EVENTS, -1); return sticky; }
Result cuStreamBeginCapture_v2(Stream *s, int mode) {
    CONTEXT;
    if (!s) return CAPTURE_UNSUPPORTED;
    s->capture = calloc(1, sizeof *s->capture);
    s->broken = 0;
    own_capture = s;
    if (mode == 0) __atomic_add_fetch(&global_captures, 1, __ATOMIC_SEQ_CST);
    return OK;
}
Result cuStreamEndCapture(Stream *s, Graph **graph) {
    CONTEXT;
    if (!s->capture) return ILLEGAL_STATE;
    Graph *g = s->capture;
    s->capture = NULL;
    own_capture = NULL;
    if (global_captures) __atomic_add_fetch(&global_captures, -1, __ATOMIC_SEQ_CST);
    if (s->broken) { clear(&g->steps); free(g); *graph = NULL; return CAPTURE_INVALIDATED; }
    count(GRAPHS, 1);
    *graph = g;
    return OK;
}
Result cuGraphInstantiateWithFlags(Graph **made, Graph *g, unsigned long long flags) {
    CONTEXT;
    (void)flags;
    Graph *copy = calloc(1, sizeof *copy);
    for (Step *s = g->steps.first; s; s = s->next) append(&copy->steps, *s);
    count(GRAPHS, 1);
    *made = copy;
    return OK;
}
Result cuGraphLaunch(Graph *g, Stream *stream) {
    CONTEXT;
    for (Step *s = g->steps.first; s; s = s->next) enqueue(stream, *s);
    return OK;
}
static Result destroy(Graph *g) { if (!g) return INVALID_VALUE; clear(&g->steps); free(g); count(GRAPHS, -1); return sticky; }
Result cuGraphExecDestroy(Graph *g) { STARTED; return destroy(g); }
Result cuGraphDestroy(Graph *g) { STARTED; return destroy(g); }

/* --- what PyCUDA wants to find when it is loaded, and nobody here calls ------------------------------------------- */
#define ABSENT(name) Result name(void) { return NOT_SUPPORTED; }
ABSENT(cuArray3DCreate_v2) ABSENT(cuArray3DGetDescriptor_v2) ABSENT(cuArrayCreate_v2) ABSENT(cuArrayDestroy)
ABSENT(cuArrayGetDescriptor_v2) ABSENT(cuCtxAttach) ABSENT(cuCtxCreate_v4) ABSENT(cuCtxDetach)
ABSENT(cuCtxDisablePeerAccess) ABSENT(cuCtxEnablePeerAccess) ABSENT(cuCtxGetCacheConfig) ABSENT(cuCtxGetLimit)
ABSENT(cuCtxGetSharedMemConfig) ABSENT(cuCtxSetCacheConfig) ABSENT(cuCtxSetLimit) ABSENT(cuCtxSetSharedMemConfig)
ABSENT(cuDeviceCanAccessPeer) ABSENT(cuDeviceGetByPCIBusId) ABSENT(cuDeviceGetPCIBusId) ABSENT(cuFuncGetAttribute)
ABSENT(cuFuncSetAttribute) ABSENT(cuFuncSetBlockShape) ABSENT(cuFuncSetCacheConfig) ABSENT(cuFuncSetSharedSize)
ABSENT(cuIpcCloseMemHandle) ABSENT(cuIpcGetEventHandle) ABSENT(cuIpcGetMemHandle) ABSENT(cuIpcOpenEventHandle)
ABSENT(cuIpcOpenMemHandle_v2) ABSENT(cuLaunch) ABSENT(cuLaunchGrid) ABSENT(cuLaunchGridAsync) ABSENT(cuLaunchKernel)
ABSENT(cuLinkAddData_v2) ABSENT(cuLinkAddFile_v2) ABSENT(cuLinkComplete) ABSENT(cuLinkCreate_v2) ABSENT(cuLinkDestroy)
ABSENT(cuMemAllocManaged) ABSENT(cuMemAllocPitch_v2) ABSENT(cuMemGetAddressRange_v2) ABSENT(cuMemHostGetFlags)
ABSENT(cuMemcpy2DAsync_v2) ABSENT(cuMemcpy2DUnaligned_v2) ABSENT(cuMemcpy2D_v2) ABSENT(cuMemcpy3DAsync_v2)
ABSENT(cuMemcpy3DPeer) ABSENT(cuMemcpy3DPeerAsync) ABSENT(cuMemcpy3D_v2) ABSENT(cuMemcpyAtoA_v2)
ABSENT(cuMemcpyAtoD_v2) ABSENT(cuMemcpyAtoH_v2) ABSENT(cuMemcpyDtoA_v2) ABSENT(cuMemcpyDtoD_v2)
ABSENT(cuMemcpyDtoH_v2) ABSENT(cuMemcpyHtoA_v2) ABSENT(cuMemcpyHtoD_v2) ABSENT(cuMemcpyPeer) ABSENT(cuMemcpyPeerAsync)
ABSENT(cuMemsetD16Async) ABSENT(cuMemsetD16_v2) ABSENT(cuMemsetD2D16Async) ABSENT(cuMemsetD2D16_v2)
ABSENT(cuMemsetD2D32Async) ABSENT(cuMemsetD2D32_v2) ABSENT(cuMemsetD2D8Async) ABSENT(cuMemsetD2D8_v2)
ABSENT(cuMemsetD32Async) ABSENT(cuMemsetD32_v2) ABSENT(cuMemsetD8_v2) ABSENT(cuModuleGetFunction)
ABSENT(cuModuleGetGlobal_v2) ABSENT(cuModuleGetSurfRef) ABSENT(cuModuleGetTexRef) ABSENT(cuModuleLoad)
ABSENT(cuModuleLoadData) ABSENT(cuModuleLoadDataEx) ABSENT(cuModuleUnload) ABSENT(cuParamSetSize)
ABSENT(cuParamSetTexRef) ABSENT(cuParamSetf) ABSENT(cuParamSeti) ABSENT(cuParamSetv) ABSENT(cuProfilerInitialize)
ABSENT(cuProfilerStart) ABSENT(cuProfilerStop) ABSENT(cuStreamAttachMemAsync) ABSENT(cuSurfRefGetArray)
ABSENT(cuSurfRefSetArray) ABSENT(cuTexRefCreate) ABSENT(cuTexRefDestroy) ABSENT(cuTexRefGetAddressMode)
ABSENT(cuTexRefGetAddress_v2) ABSENT(cuTexRefGetArray) ABSENT(cuTexRefGetFilterMode) ABSENT(cuTexRefGetFlags)
ABSENT(cuTexRefGetFormat) ABSENT(cuTexRefSetAddress2D_v3) ABSENT(cuTexRefSetAddressMode) ABSENT(cuTexRefSetAddress_v2)
ABSENT(cuTexRefSetArray) ABSENT(cuTexRefSetFilterMode) ABSENT(cuTexRefSetFlags) ABSENT(cuTexRefSetFormat)

/* --- errors, and how libraries find all this ------------------------------------------------------------------- */
Result cuGetErrorString(Result code, const char **text) {
    static __thread char told[48];
    snprintf(told, sizeof told, "pretended error %d", code);
    *text = told;
    return OK;
}
Result cuGetErrorName(Result code, const char **text) { return cuGetErrorString(code, text); }
Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    (void)version; (void)flags;
    static const char *endings[] = {"_v2", "", "WithFlags"};
    static void *self;
    if (!self) self = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
    *function = NULL;
    for (size_t i = 0; i < 3 && !*function; i++) {
        char full[160];
        snprintf(full, sizeof full, "%s%s", name, endings[i]);
        *function = dlsym(self, full);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
