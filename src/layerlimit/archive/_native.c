/* The plain entries of a layer tar, made without the interpreter.
 *
 * extract() takes the entries of an archive's chunk for as long as each is an ordinary header of a new regular
 * file, symbolic link or directory or a whiteout of overlayfs, in a directory that is open already. It stops at
 * the first that is anything else, and wherever a system call fails, and decides nothing: the Python code takes
 * that entry again from its header, and refuses it or replaces what lies there by its own rules and with its own
 * words. So it opens no path, follows no link, replaces or removes no name: there is one component, made anew
 * (O_EXCL, symlink, mknod, mkdir) below a descriptor that the kernel has resolved for contain.py.
 *
 * set_times() sets the times of directories once all is there. It resolves paths as extract.py does, with
 * RESOLVE_IN_ROOT and no link at the end, and stops as well at what it cannot do.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(time_t) == 8, "times have 33 bits");

/* The header of POSIX.1-2017 pax, "ustar Interchange Format". */
enum {
    BLOCK = 512,
    NAME_SIZE = 100,
    MODE_AT = 100,
    UID_AT = 108,
    GID_AT = 116,
    SIZE_AT = 124,
    MTIME_AT = 136,
    CHECKSUM_AT = 148,
    TYPE_AT = 156,
    LINK_AT = 157,
    LINK_SIZE = 100,
    MAGIC_AT = 257,
    MAGIC_SIZE = 8,
    PREFIX_AT = 345,
    PREFIX_SIZE = 155,
    STAR_AT = 508,
    STAR_SIZE = 4,
    SHORT_NUMBER = 8,
    LONG_NUMBER = 12,
    LONGEST_NAME = PREFIX_SIZE + 1 + NAME_SIZE,
};
enum { NANOSECONDS = 1000000000 }; /* in a second */

struct entry {
    enum { FILE_ENTRY = '0', SYMLINK_ENTRY = '2', DIRECTORY_ENTRY = '5', WHITEOUT_ENTRY = 0 } kind;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    uint64_t size;
    uint64_t mtime;             /* at most 11 octal digits: in nanoseconds it is below 2**63 */
    char name[LONGEST_NAME];    /* as the archive has it; not terminated */
    size_t name_length;
    const char *path;           /* the part of it that is clean; not terminated */
    size_t path_length;
    size_t head_length;         /* of the path, the directory */
    char base[LONGEST_NAME + 1]; /* of the path, the last component; terminated */
    char target[LINK_SIZE + 1];  /* of a symbolic link; terminated */
};

/* What is to be set on a directory at the end: extract.py's _WAITING, and the path and the ACL behind it. */
struct waiting {
    uint32_t path_length, acl_length;
    int64_t atime, mtime; /* nanoseconds */
};
_Static_assert(sizeof(struct waiting) == 24, "without padding, as Python packs it");

/* An open directory to make entries in: kept by Python, or made here. */
struct directory {
    size_t length;
    int fd;
    bool made; /* here; Python does not know of it yet */
    mode_t mode;
    uint64_t mtime;
    char path[LONGEST_NAME]; /* not terminated */
};

struct work {
    const unsigned char *chunk;
    size_t at, end;       /* what is still to do */
    size_t most, longest; /* entries to make, bytes of a name */
    size_t room;          /* directories that may be made */
    uid_t uid;            /* whatever this process makes is theirs */
    gid_t gid;
    mode_t fix;           /* mode bits that making a file does not set: set-ids and those of the umask */
    bool whiteouts;       /* marks of deletions are devices 0:0 */
    size_t count;
    size_t last;          /* where the header of the last one made lies */
    uint64_t bytes;
    PyObject *kept;       /* Python's open directories by their paths */
    PyThreadState *state; /* with which to have the interpreter lock again */
    struct directory *directories; /* those used in this call, the newest last */
    size_t used, size;
};

/* Octal digits with at least one NUL or space behind them and nothing else. */
static bool octal(const unsigned char *field, size_t width, uint64_t *value)
{
    size_t at = 0;

    for (*value = 0; at < width && field[at] >= '0' && field[at] <= '7'; at++)
        *value = *value << 3 | (uint64_t)(field[at] - '0');
    if (at == 0 || at == width)
        return false;
    for (; at < width; at++)
        if (field[at] != 0 && field[at] != ' ')
            return false;
    return true;
}

static bool checksum_fits(const unsigned char *block)
{
    uint64_t given;
    unsigned sum = 0;

    if (!octal(block + CHECKSUM_AT, SHORT_NUMBER, &given))
        return false;
    for (size_t at = 0; at < BLOCK; at++)
        sum += block[at];
    for (size_t at = CHECKSUM_AT; at < CHECKSUM_AT + SHORT_NUMBER; at++)
        sum = sum - block[at] + ' ';
    return sum == given;
}

/* Take the name apart. False if it may be more than a name: one to clean, another mark, too long for the limits. */
static bool parse_name(const struct work *work, const unsigned char *block, struct entry *entry)
{
    size_t length = 0, part, slash;

    if (memcmp(block + MAGIC_AT, "ustar\00000", MAGIC_SIZE) == 0) {
        if (block[PREFIX_AT]) {
            if (memcmp(block + STAR_AT, "tar", STAR_SIZE) == 0)
                return false; /* star's own form has times at the end of the prefix */
            length = strnlen((const char *)block + PREFIX_AT, PREFIX_SIZE);
            memcpy(entry->name, block + PREFIX_AT, length);
            entry->name[length++] = '/';
        }
    } else if (memcmp(block + MAGIC_AT, "ustar  ", MAGIC_SIZE) != 0) {
        return false;
    }
    part = strnlen((const char *)block, NAME_SIZE);
    memcpy(entry->name + length, block, part);
    entry->name_length = length += part;
    if (length > work->longest)
        return false;

    entry->path = entry->name;
    if (length >= 2 && memcmp(entry->name, "./", 2) == 0) { /* as "tar -C directory -c ." writes names */
        entry->path += 2;
        length -= 2;
    }
    if (entry->kind == DIRECTORY_ENTRY && length && entry->path[length - 1] == '/')
        length--;
    for (slash = length; slash && entry->path[slash - 1] != '/';)
        slash--;
    part = length - slash;
    entry->path_length = length;
    entry->head_length = slash ? slash - 1 : 0;
    if (part > 4 && memcmp(entry->path + slash, ".wh.", 4) == 0) {
        if (!work->whiteouts || entry->kind != FILE_ENTRY)
            return false;
        entry->kind = WHITEOUT_ENTRY;
        slash += 4;
        part -= 4;
    }
    memcpy(entry->base, entry->path + slash, part);
    entry->base[part] = 0;
    return part && entry->path[0] != '/' && strcmp(entry->base, ".") != 0 && strcmp(entry->base, "..") != 0
        && strncmp(entry->base, ".wh.", 4) != 0;
}

/* False for every header that is not the plainest spelling of a regular file or a directory. */
static bool parse(const struct work *work, const unsigned char *block, struct entry *entry)
{
    uint64_t mode, uid, gid;

    entry->kind = block[TYPE_AT];
    if (entry->kind != FILE_ENTRY && entry->kind != SYMLINK_ENTRY && entry->kind != DIRECTORY_ENTRY)
        return false;
    if (!octal(block + MODE_AT, SHORT_NUMBER, &mode) || !octal(block + UID_AT, SHORT_NUMBER, &uid)
        || !octal(block + GID_AT, SHORT_NUMBER, &gid) || !octal(block + SIZE_AT, LONG_NUMBER, &entry->size)
        || !octal(block + MTIME_AT, LONG_NUMBER, &entry->mtime) || !checksum_fits(block))
        return false;
    entry->mode = (mode_t)mode & 07777;
    entry->uid = (uid_t)uid;
    entry->gid = (gid_t)gid;
    if (entry->kind == SYMLINK_ENTRY) {
        memcpy(entry->target, block + LINK_AT, LINK_SIZE);
        entry->target[LINK_SIZE] = 0;
        if (!entry->target[0])
            return false;
    }
    return (entry->kind == FILE_ENTRY || entry->size == 0) && parse_name(work, block, entry);
}

/* Bytes of the content and its padding; a size has 33 bits at most. */
static uint64_t stored(const struct entry *entry)
{
    return (entry->size + BLOCK - 1) / BLOCK * BLOCK;
}

/* Read the entry that comes next; false if it is not for us, not whole in the chunk, or one too many. */
static bool next(const struct work *work, struct entry *entry)
{
    return work->count < work->most && work->end - work->at >= BLOCK
        && parse(work, work->chunk + work->at, entry)
        && stored(entry) <= work->end - work->at - BLOCK;
}

static void made(struct work *work, const struct entry *entry)
{
    work->last = work->at;
    work->at += BLOCK + (size_t)stored(entry);
    work->count++;
    if (entry->kind == FILE_ENTRY)
        work->bytes += entry->size;
    else if (entry->kind == SYMLINK_ENTRY)
        work->bytes += strlen(entry->target);
}

/* Owner and mode where they are not what making gave; the owner first, since chown takes set-ids away. */
static bool set_owner_and_mode(const struct work *work, int fd, const struct entry *entry)
{
    if ((entry->uid != work->uid || entry->gid != work->gid) && fchown(fd, entry->uid, entry->gid) != 0)
        return false;
    return !(entry->mode & work->fix) || fchmod(fd, entry->mode) == 0;
}

static bool make_symlink(const struct work *work, int parent, const struct entry *entry)
{
    const struct timespec times[2] = {{.tv_sec = (time_t)entry->mtime}, {.tv_sec = (time_t)entry->mtime}};

    if (symlinkat(entry->target, parent, entry->base) != 0)
        return false;
    if ((entry->uid != work->uid || entry->gid != work->gid)
        && fchownat(parent, entry->base, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW) != 0)
        return false;
    return utimensat(parent, entry->base, times, AT_SYMLINK_NOFOLLOW) == 0;
}

static bool make_file(const struct work *work, int parent, const struct entry *entry)
{
    const struct timespec times[2] = {{.tv_sec = (time_t)entry->mtime}, {.tv_sec = (time_t)entry->mtime}};
    const unsigned char *data = work->chunk + work->at + BLOCK;
    size_t left = (size_t)entry->size;
    bool whole;
    int fd;

    fd = openat(parent, entry->base, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, entry->mode & 0777);
    if (fd < 0)
        return false;
    while (left) {
        ssize_t written = write(fd, data, left);
        if (written <= 0)
            break;
        data += written;
        left -= (size_t)written;
    }
    whole = !left && set_owner_and_mode(work, fd, entry) && futimens(fd, times) == 0;
    return close(fd) == 0 && whole;
}

/* Make the entry at ``at``, which is no directory. */
static bool make(const struct work *work, int parent, const struct entry *entry)
{
    switch (entry->kind) {
    case FILE_ENTRY:
        return make_file(work, parent, entry);
    case SYMLINK_ENTRY:
        return make_symlink(work, parent, entry);
    case WHITEOUT_ENTRY:
        return mknodat(parent, entry->base, S_IFCHR, 0) == 0;
    default:
        return false;
    }
}

/* Make ``entry`` and what follows it in the same directory. True: ``entry`` is now one to go on with. */
static bool make_siblings(struct work *work, int parent, struct entry *entry)
{
    char head[LONGEST_NAME];
    size_t head_length = entry->head_length;

    memcpy(head, entry->path, head_length);
    do {
        if (!make(work, parent, entry))
            return false;
        made(work, entry);
        if (!next(work, entry))
            return false;
    } while (entry->kind != DIRECTORY_ENTRY && entry->head_length == head_length
             && memcmp(entry->path, head, head_length) == 0);
    return true;
}

/* A descriptor of the new directory; -1 if something failed. */
static int make_directory(const struct work *work, int parent, const struct entry *entry)
{
    int fd;

    if (mkdirat(parent, entry->base, entry->mode & 0777) != 0)
        return -1;
    fd = openat(parent, entry->base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && !set_owner_and_mode(work, fd, entry)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Note an open directory; NULL without memory. */
static struct directory *note(struct work *work, int fd, const char *path, size_t length)
{
    struct directory *noted;

    if (work->used == work->size) {
        size_t size = work->size * 2 + 8;
        struct directory *grown = realloc(work->directories, size * sizeof *grown);

        if (!grown)
            return NULL;
        work->directories = grown;
        work->size = size;
    }
    noted = &work->directories[work->used++];
    *noted = (struct directory){.length = length, .fd = fd};
    memcpy(noted->path, path, length);
    return noted;
}

/* The descriptor of the directory of ``entry`` that Python keeps; -1 if it keeps none, or what is made in it needs
 * care, -2 with an exception set. */
static int find_kept(PyObject *kept, const struct entry *entry)
{
    PyObject *path, *directory, *plain, *number = NULL;
    long fd = -1;

    path = PyBytes_FromStringAndSize(entry->path, (Py_ssize_t)entry->head_length);
    if (!path)
        return -2;
    directory = PyDict_GetItemWithError(kept, path);
    Py_DECREF(path);
    if (!directory)
        return PyErr_Occurred() ? -2 : -1;
    Py_INCREF(directory);
    plain = PyObject_GetAttrString(directory, "plain");
    if (plain == Py_True)
        number = PyObject_GetAttrString(directory, "fd");
    if (number)
        fd = PyLong_AsLong(number);
    Py_XDECREF(number);
    Py_XDECREF(plain);
    Py_DECREF(directory);
    if (PyErr_Occurred())
        return -2;
    return fd < 0 || fd > INT_MAX ? -1 : (int)fd;
}

/* The same, remembered for the call: to ask Python takes the interpreter lock, and to take it costs more than to
 * make a file when another thread has it. */
static int find_parent(struct work *work, const struct entry *entry)
{
    int fd;

    for (size_t at = work->used; at--;) {
        const struct directory *known = &work->directories[at];

        if (known->length == entry->head_length && memcmp(known->path, entry->path, known->length) == 0)
            return known->mode & S_ISGID ? -1 : known->fd;
    }
    PyEval_RestoreThread(work->state);
    fd = find_kept(work->kept, entry);
    if (fd >= 0 && !note(work, fd, entry->path, entry->head_length)) {
        PyErr_NoMemory();
        fd = -2;
    }
    work->state = PyEval_SaveThread();
    return fd;
}

/* Make ``entry`` and those that follow until one is not for us; false with an exception set. The caller has let go of
 * the interpreter lock. */
static bool make_plain(struct work *work, struct entry *entry)
{
    bool going = true;

    while (going) {
        int parent = find_parent(work, entry), fd;
        struct directory *noted;

        if (parent < 0)
            return parent == -1;
        if (entry->kind != DIRECTORY_ENTRY) {
            going = make_siblings(work, parent, entry);
            continue;
        }
        if (!work->room)
            break;
        noted = note(work, -1, entry->path, entry->path_length);
        if (!noted)
            break;
        fd = make_directory(work, parent, entry);
        if (fd < 0) {
            work->used--;
            break;
        }
        noted->fd = fd;
        noted->made = true;
        noted->mode = entry->mode;
        noted->mtime = entry->mtime;
        made(work, entry);
        work->room--;
        going = next(work, entry);
    }
    return true;
}

/* Close the directories that were made, which nobody will have. */
static void close_made(const struct work *work)
{
    for (size_t at = 0; at < work->used; at++)
        if (work->directories[at].made)
            close(work->directories[at].fd);
}

/* Give the directories that were made to ``adopt``, and note in ``waiting`` what is to be set on them at the end.
 * All are closed or given away, also when an exception is set. */
static bool hand_over(const struct work *work, PyObject *adopt, char *waiting)
{
    bool well = true;

    for (size_t at = 0; at < work->used; at++) {
        const struct directory *one = &work->directories[at];
        const int64_t time = (int64_t)one->mtime * NANOSECONDS;
        const struct waiting head = {.path_length = (uint32_t)one->length, .atime = time, .mtime = time};

        if (!one->made)
            continue;
        if (well) {
            PyObject *adopted = PyObject_CallFunction(adopt, "y#iO", one->path, (Py_ssize_t)one->length, one->fd,
                                                      one->mode & S_ISGID ? Py_True : Py_False);

            well = adopted != NULL;
            Py_XDECREF(adopted);
        }
        if (!well)
            close(one->fd);
        memcpy(waiting, &head, sizeof head);
        memcpy(waiting + sizeof head, one->path, one->length);
        waiting += sizeof head + one->length;
    }
    return well;
}

/* What extract() returns. */
static PyObject *outcome(const struct work *work, PyObject *adopt)
{
    struct entry entry;
    size_t length = 0;
    PyObject *waiting;

    for (size_t at = 0; at < work->used; at++)
        if (work->directories[at].made)
            length += sizeof(struct waiting) + work->directories[at].length;
    waiting = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!waiting) {
        close_made(work);
        return NULL;
    }
    if (!hand_over(work, adopt, PyBytes_AsString(waiting))) {
        Py_DECREF(waiting);
        return NULL;
    }
    if (!work->count)
        return Py_BuildValue("nnKON", (Py_ssize_t)work->at, (Py_ssize_t)0, 0ULL, Py_None, waiting);
    parse(work, work->chunk + work->last, &entry);
    return Py_BuildValue("nnKy#N", (Py_ssize_t)work->at, (Py_ssize_t)work->count, (unsigned long long)work->bytes,
                         entry.name, (Py_ssize_t)entry.name_length, waiting);
}

PyDoc_STRVAR(extract_doc,
    "extract(chunk, start, end, kept, adopt, room, most, longest, uid, gid, fix, whiteouts)\n\n"
    "Make the plain entries that lie whole between start and end in chunk, at most so many, with names no longer\n"
    "than that, and with room for so many directories. kept maps paths to directories, of which the attributes\n"
    "plain and fd are read; adopt(path, fd, setgid) is called for each new one. Returns where the next header\n"
    "lies, how many entries were made, what Applied.bytes counts of them, the name of the last one, and what is\n"
    "to be set on the directories at the end. The interpreter lock is free while system calls are made.");

static PyObject *extract(PyObject *module, PyObject *arguments)
{
    Py_buffer chunk;
    Py_ssize_t start, end, room, most, longest;
    PyObject *kept, *adopt, *result = NULL;
    unsigned uid, gid, fix;
    int whiteouts;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*nnO!OnnnIIIp", &chunk, &start, &end, &PyDict_Type, &kept, &adopt, &room,
                          &most, &longest, &uid, &gid, &fix, &whiteouts))
        return NULL;
    if (start < 0 || end < start || end > chunk.len || room < 0 || most < 0 || longest < 0) {
        PyErr_SetString(PyExc_ValueError, "no part of the chunk, or a negative limit");
    } else {
        struct work work = {.chunk = chunk.buf, .at = (size_t)start, .end = (size_t)end, .most = (size_t)most,
                            .longest = (size_t)longest, .room = (size_t)room, .uid = uid, .gid = gid, .fix = fix,
                            .whiteouts = whiteouts != 0, .kept = kept};
        struct entry first;
        bool well = true;

        if (next(&work, &first)) { /* or the lock is not worth the trouble */
            work.state = PyEval_SaveThread();
            well = make_plain(&work, &first);
            PyEval_RestoreThread(work.state);
        }
        if (well)
            result = outcome(&work, adopt);
        else
            close_made(&work);
        free(work.directories);
    }
    PyBuffer_Release(&chunk);
    return result;
}

/* Set the times of a directory; false if something is in the way that is not for us to judge. */
static bool set_directory_times(int root, const char *path, const struct waiting *head)
{
    const struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
                                 .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    const struct timespec times[2] = {
        {.tv_sec = (time_t)(head->atime / NANOSECONDS), .tv_nsec = (long)(head->atime % NANOSECONDS)},
        {.tv_sec = (time_t)(head->mtime / NANOSECONDS), .tv_nsec = (long)(head->mtime % NANOSECONDS)},
    };
    int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    bool set;

    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP; /* a later entry removed or replaced it */
    set = futimens(fd, times) == 0;
    return close(fd) == 0 && set;
}

PyDoc_STRVAR(set_times_doc,
    "set_times(root, records, start)\n\n"
    "Set the times of directories below the descriptor root, by the records that begin at start. Returns where\n"
    "the first begins that is not whole, or has more to it. The interpreter lock is free.");

static PyObject *set_times(PyObject *module, PyObject *arguments)
{
    Py_buffer records;
    Py_ssize_t start;
    struct waiting head;
    char path[PATH_MAX];
    size_t at;
    int root;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "iy*n", &root, &records, &start))
        return NULL;
    if (start < 0 || start > records.len) {
        PyBuffer_Release(&records);
        PyErr_SetString(PyExc_ValueError, "no part of the records");
        return NULL;
    }
    at = (size_t)start;
    Py_BEGIN_ALLOW_THREADS
    while ((size_t)records.len - at >= sizeof head) {
        memcpy(&head, (const char *)records.buf + at, sizeof head);
        if (head.acl_length || head.atime < 0 || head.mtime < 0 || head.path_length >= sizeof path
            || (size_t)records.len - at - sizeof head < head.path_length)
            break;
        memcpy(path, (const char *)records.buf + at + sizeof head, head.path_length);
        path[head.path_length] = 0;
        if (!set_directory_times(root, path, &head))
            break;
        at += sizeof head + head.path_length;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&records);
    return PyLong_FromSize_t(at);
}

static PyMethodDef methods[] = {
    {"extract", extract, METH_VARARGS, extract_doc},
    {"set_times", set_times, METH_VARARGS, set_times_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "The plain entries of a layer tar, made without the interpreter.",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
