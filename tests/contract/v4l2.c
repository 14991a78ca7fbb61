/* Preloaded by a test: V4L2 as a driver shows it (linux/videodev2.h) at the path $V4L2_DEVICE, for who opens it.
 *
 * YUYV, 320x240 or 640x480, 50 frames a second; picture n has the luma 16 + 10 n throughout. $V4L2_FAULT: busy (another program
 * streams), silent (no frame comes), gone (unplugged after 5 frames), fixed (320x240 only), automatic (no exposure control),
 * metadata (no pictures: a camera's second device).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define BUFFERS 8
#define PERIOD_NS 20000000
#define GONE_AFTER 5

static int device = -1, width = 640, height = 480, exposure_mode = 3, exposure = 100, streaming;
static unsigned queued[BUFFERS], first, waiting, frames;
static void *memory[BUFFERS];

static int fault(const char *name) { const char *is = getenv("V4L2_FAULT"); return is && !strcmp(is, name); }
static int refuse(int why) { errno = why; return -1; }
static size_t bytes(void) { return (size_t)width * height * 2; }

static int opened(void)
{
    if (device >= 0)
        return refuse(EBUSY);
    return device = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        static int (*real)(const char *, int, ...); \
        const char *ours = getenv("V4L2_DEVICE"); \
        va_list more; \
        mode_t mode; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
        if (ours && !strcmp(path, ours)) \
            return opened(); \
        if (!real) \
            real = dlsym(RTLD_NEXT, #name); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int close(int fd)
{
    static int (*real)(int);
    if (!real)
        real = dlsym(RTLD_NEXT, "close");
    if (fd == device && fd >= 0)
        device = -1, streaming = 0, waiting = 0;
    return real(fd);
}

static void *mapped(int fd, size_t length, int64_t at)
{
    unsigned index = (unsigned)(at / 4096);
    if (index >= BUFFERS || length != bytes())
        return MAP_FAILED;
    (void)fd;
    return memory[index];
}

#define MMAP(name) \
    void *name(void *address, size_t length, int rights, int flags, int fd, int64_t at) \
    { \
        static void *(*real)(void *, size_t, int, int, int, int64_t); \
        if (fd >= 0 && fd == device) \
            return mapped(fd, length, at); \
        if (!real) \
            real = dlsym(RTLD_NEXT, #name); \
        return real(address, length, rights, flags, fd, at); \
    }
MMAP(mmap)
MMAP(mmap64)

int munmap(void *address, size_t length)
{
    static int (*real)(void *, size_t);
    for (unsigned index = 0; index < BUFFERS; index++)
        if (address == memory[index] && address)
            return 0; /* kept until the next VIDIOC_REQBUFS */
    if (!real)
        real = dlsym(RTLD_NEXT, "munmap");
    return real(address, length);
}

static int format(struct v4l2_format *is, int set)
{
    struct v4l2_pix_format *pix = &is->fmt.pix;
    if (is->type != V4L2_BUF_TYPE_VIDEO_CAPTURE)
        return refuse(EINVAL);
    if (set) {
        if (streaming)
            return refuse(EBUSY);
        int small = fault("fixed") || pix->width < 480;
        width = small ? 320 : 640, height = small ? 240 : 480; /* the nearest it has, as the API wants it */
    }
    memset(pix, 0, sizeof *pix);
    pix->width = width, pix->height = height, pix->pixelformat = V4L2_PIX_FMT_YUYV;
    pix->field = V4L2_FIELD_NONE, pix->bytesperline = 2 * width, pix->sizeimage = (unsigned)bytes();
    return 0;
}

static int requested(struct v4l2_requestbuffers *wanted)
{
    if (fault("busy"))
        return refuse(EBUSY);
    if (wanted->count > BUFFERS)
        wanted->count = BUFFERS;
    waiting = 0;
    for (unsigned index = 0; index < BUFFERS; index++) {
        free(memory[index]);
        memory[index] = index < wanted->count ? aligned_alloc(4096, (bytes() + 4095) / 4096 * 4096) : NULL;
    }
    return 0;
}

static int control(struct v4l2_control *is, int set)
{
    int *value = is->id == V4L2_CID_EXPOSURE_AUTO ? &exposure_mode : is->id == V4L2_CID_EXPOSURE_ABSOLUTE ? &exposure : NULL;
    if (!value || fault("automatic"))
        return refuse(EINVAL);
    if (set)
        *value = is->value;
    is->value = *value;
    return 0;
}

static int described(struct v4l2_queryctrl *is)
{
    unsigned id = is->id;
    struct v4l2_control known = {.id = id};
    if (control(&known, 0))
        return -1;
    memset(is, 0, sizeof *is);
    is->id = id, is->step = 1, is->default_value = known.value;
    is->type = id == V4L2_CID_EXPOSURE_AUTO ? V4L2_CTRL_TYPE_MENU : V4L2_CTRL_TYPE_INTEGER;
    is->maximum = id == V4L2_CID_EXPOSURE_AUTO ? 3 : 5000;
    return 0;
}

static int fetched(struct v4l2_buffer *filled)
{
    uint64_t ticks;
    if (fault("gone") && frames >= GONE_AFTER)
        return refuse(ENODEV);
    if (!streaming || !waiting || read(device, &ticks, sizeof ticks) != sizeof ticks)
        return refuse(EAGAIN);
    filled->index = queued[first];
    first = (first + 1) % BUFFERS, waiting--, frames++;
    uint8_t *pixels = memory[filled->index];
    for (size_t at = 0; at < bytes(); at += 2)
        pixels[at] = (uint8_t)(16 + 10 * frames), pixels[at + 1] = 128;
    filled->bytesused = filled->length = (unsigned)bytes(), filled->sequence = frames;
    filled->flags = V4L2_BUF_FLAG_MAPPED | V4L2_BUF_FLAG_DONE;
    return 0;
}

static int asked(unsigned long what, void *with)
{
    switch (what) {
    case VIDIOC_QUERYCAP: {
        struct v4l2_capability *is = with;
        memset(is, 0, sizeof *is);
        strcpy((char *)is->driver, "edgeqc-test");
        strcpy((char *)is->card, "edgeqc test camera");
        is->device_caps = (fault("metadata") ? V4L2_CAP_META_CAPTURE : V4L2_CAP_VIDEO_CAPTURE) | V4L2_CAP_STREAMING;
        is->capabilities = is->device_caps | V4L2_CAP_DEVICE_CAPS;
        return 0;
    }
    case VIDIOC_G_FMT: return format(with, 0);
    case VIDIOC_S_FMT: return format(with, 1);
    case VIDIOC_G_INPUT: *(int *)with = 0; return 0;
    case VIDIOC_S_INPUT: return *(int *)with ? refuse(EINVAL) : 0;
    case VIDIOC_ENUMINPUT: {
        struct v4l2_input *is = with;
        if (is->index)
            return refuse(EINVAL);
        is->type = V4L2_INPUT_TYPE_CAMERA;
        return 0;
    }
    case VIDIOC_REQBUFS: return requested(with);
    case VIDIOC_QUERYBUF: {
        struct v4l2_buffer *is = with;
        is->length = (unsigned)bytes(), is->m.offset = is->index * 4096;
        return 0;
    }
    case VIDIOC_QBUF: queued[(first + waiting++) % BUFFERS] = ((struct v4l2_buffer *)with)->index; return 0;
    case VIDIOC_DQBUF: return fetched(with);
    case VIDIOC_STREAMON: {
        struct itimerspec often = {{0, PERIOD_NS}, {0, PERIOD_NS}};
        streaming = 1;
        return fault("silent") ? 0 : timerfd_settime(device, 0, &often, NULL);
    }
    case VIDIOC_STREAMOFF: streaming = 0, waiting = 0; return 0;
    case VIDIOC_QUERYCTRL: return described(with);
    case VIDIOC_G_CTRL: return control(with, 0);
    case VIDIOC_S_CTRL: return control(with, 1);
    default: return refuse(ENOTTY);
    }
}

int ioctl(int fd, unsigned long what, ...)
{
    static int (*real)(int, unsigned long, ...);
    va_list more;
    void *with;
    va_start(more, what);
    with = va_arg(more, void *);
    va_end(more);
    if (!real)
        real = dlsym(RTLD_NEXT, "ioctl");
    return fd >= 0 && fd == device ? asked(what & 0xFFFFFFFF, with) : real(fd, what, with);
}
