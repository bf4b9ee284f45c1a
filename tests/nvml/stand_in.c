/* A libnvidia-ml.so.1 for tests: answers as healthy H100 SXM GPUs, with the differences that the file named by
 * NVML_STAND_IN says. One difference per line:  GPU KEY VALUE  (GPU * = all of them; the last fitting line holds).
 * KEY is a value below ("throttle"), a value of one link ("link3.active"), or the name of a function; then VALUE is
 * the nvmlReturn_t that it fails with. Only what the documentation of NVML says is relied on. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int ret;
typedef struct gpu *dev;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 25 };

static struct line { int gpu; char key[64]; char value[96]; } lines[512];
static int num_lines;

static void load(void)
{
    FILE *f;
    char text[256], gpu[8];
    num_lines = 0;
    if (!getenv("NVML_STAND_IN") || !(f = fopen(getenv("NVML_STAND_IN"), "r")))
        return;
    while (num_lines < 512 && fgets(text, sizeof text, f)) {
        struct line *l = &lines[num_lines];
        if (sscanf(text, "%7s %63s %95[^\n]", gpu, l->key, l->value) == 3) {
            l->gpu = gpu[0] == '*' ? -1 : atoi(gpu);
            num_lines++;
        }
    }
    fclose(f);
}

static const char *text_of(int gpu, const char *key, const char *otherwise)
{
    for (int i = num_lines - 1; i >= 0; i--)
        if ((lines[i].gpu == gpu || lines[i].gpu == -1) && !strcmp(lines[i].key, key))
            return lines[i].value;
    return otherwise;
}

static u64 number_of(int gpu, const char *key, u64 otherwise)
{
    const char *value = text_of(gpu, key, NULL);
    return value ? strtoull(value, NULL, 0) : otherwise;
}

/* A handle is the GPU's index plus one. */
static int index_of(dev d) { return (int)(intptr_t)d - 1; }
static ret refused(dev d, const char *function) { return (ret)number_of(index_of(d), function, SUCCESS); }
static u64 get(dev d, const char *key, u64 otherwise) { return number_of(index_of(d), key, otherwise); }

#define REFUSE(d) do { ret r_ = refused(d, __func__); if (r_) return r_; } while (0)
#define NUMBER(function, key, otherwise) \
    ret function(dev d, u32 *out) { REFUSE(d); *out = (u32)get(d, key, otherwise); return SUCCESS; }
#define NUMBER_OF(function, key, otherwise) /* with an argument that is not looked at */ \
    ret function(dev d, u32 which, u32 *out) { (void)which; REFUSE(d); *out = (u32)get(d, key, otherwise); return SUCCESS; }
#define TEXT(function, key, otherwise) \
    ret function(dev d, char *out, u32 length) { REFUSE(d); fill(d, key, otherwise, out, length); return SUCCESS; }

/* '#' stands for the index of the GPU. */
static void fill(dev d, const char *key, const char *otherwise, char *out, u32 length)
{
    snprintf(out, length, "%s", text_of(index_of(d), key, otherwise));
    for (; *out; out++)
        if (*out == '#')
            *out = (char)('0' + index_of(d));
}

ret nvmlInitWithFlags(u32 flags) { (void)flags; load(); return (ret)number_of(-1, __func__, SUCCESS); }
ret nvmlInit_v2(void) { load(); return SUCCESS; }
ret nvmlShutdown(void) { return SUCCESS; }
ret nvmlDeviceGetCount_v2(u32 *out) { *out = (u32)number_of(-1, "count", 8); return SUCCESS; }
ret nvmlSystemGetDriverVersion(char *out, u32 n) { snprintf(out, n, "%s", text_of(-1, "driver", "570.124.06")); return SUCCESS; }
ret nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = (int)number_of(-1, "cuda", 12080); return SUCCESS; }
ret nvmlSystemGetProcessName(u32 pid, char *out, u32 n) { (void)pid; snprintf(out, n, "/usr/bin/python3 train.py --token=hunter2"); return SUCCESS; }
const char *nvmlErrorString(ret r) { (void)r; return "an error"; }

ret nvmlDeviceGetHandleByIndex_v2(u32 index, dev *out)
{
    ret r = (ret)number_of((int)index, __func__, SUCCESS);
    *out = (dev)(intptr_t)(index + 1);
    return index >= number_of(-1, "count", 8) ? INVALID_ARGUMENT : r;
}

TEXT(nvmlDeviceGetName, "name", "NVIDIA H100 80GB HBM3")
TEXT(nvmlDeviceGetUUID, "uuid", "GPU-0000000#-1111-2222-3333-444444444444")
TEXT(nvmlDeviceGetSerial, "serial", "165132200000#")
NUMBER(nvmlDeviceGetMinorNumber, "minor", (u64)index_of(d))
NUMBER(nvmlDeviceGetPersistenceMode, "persistence", 1)
NUMBER(nvmlDeviceGetComputeMode, "compute_mode", 0)
NUMBER(nvmlDeviceGetDefaultEccMode, "ecc_default", 1)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pci_gen", 5)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pci_gen_max", 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pci_width", 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pci_width_max", 16)
NUMBER(nvmlDeviceGetPcieReplayCounter, "pci_replays", 0)
NUMBER(nvmlDeviceGetPerformanceState, "pstate", 0)
NUMBER(nvmlDeviceGetPowerUsage, "power", 114000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit", 700000)
NUMBER(nvmlDeviceGetPowerManagementLimit, "power_limit", 700000)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, "power_default", 700000)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, "retirement_pending", 0)
NUMBER_OF(nvmlDeviceGetTemperature, "temperature", 31)
NUMBER_OF(nvmlDeviceGetTemperatureThreshold, "slowdown", 87)

ret nvmlDeviceGetCurrentClocksEventReasons(dev d, u64 *out) { REFUSE(d); *out = get(d, "throttle", 1); return SUCCESS; }
ret nvmlDeviceGetCurrentClocksThrottleReasons(dev d, u64 *out) { REFUSE(d); *out = get(d, "throttle", 1); return SUCCESS; }
ret nvmlDeviceGetCudaComputeCapability(dev d, int *major, int *minor) { REFUSE(d); *major = 9; *minor = 0; return SUCCESS; }
ret nvmlDeviceGetEccMode(dev d, u32 *now, u32 *then) { REFUSE(d); *now = *then = (u32)get(d, "ecc", 1); return SUCCESS; }
ret nvmlDeviceGetMigMode(dev d, u32 *now, u32 *then) { REFUSE(d); *now = *then = (u32)get(d, "mig", 0); return SUCCESS; }

ret nvmlDeviceGetClockInfo(dev d, u32 which, u32 *out)
{
    REFUSE(d);
    *out = (u32)(which == 2 ? get(d, "memory_clock", 2619) : get(d, "sm_clock", 345));
    return SUCCESS;
}

ret nvmlDeviceGetMaxClockInfo(dev d, u32 which, u32 *out) { REFUSE(d); *out = which == 2 ? 2619 : 1980; return SUCCESS; }
NUMBER_OF(nvmlDeviceGetApplicationsClock, "app_clock", 1980)
NUMBER_OF(nvmlDeviceGetDefaultApplicationsClock, "app_clock_default", 1980)

ret nvmlDeviceGetUtilizationRates(dev d, u32 out[2])
{
    REFUSE(d);
    out[0] = (u32)get(d, "utilization", 0);
    out[1] = 0;
    return SUCCESS;
}

ret nvmlDeviceGetMemoryInfo(dev d, u64 out[3])
{
    REFUSE(d);
    out[0] = 85520809984ull;
    out[2] = get(d, "memory_used", 0);
    out[1] = out[0] - out[2];
    return SUCCESS;
}

struct pci { char legacy[16]; u32 domain, bus, device, device_id, subsystem_id; char bus_id[32]; };

ret nvmlDeviceGetPciInfo_v3(dev d, struct pci *out)
{
    static const u32 buses[8] = {0x1b, 0x29, 0x45, 0x4e, 0x9d, 0xab, 0xcd, 0xdb};
    REFUSE(d);
    memset(out, 0, sizeof *out);
    out->bus = buses[index_of(d) & 7];
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", out->bus);
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus);
    return SUCCESS;
}

struct process { u32 pid; u64 memory; u32 gpu_instance, compute_instance; };

ret nvmlDeviceGetComputeRunningProcesses_v3(dev d, u32 *count, struct process *out)
{
    REFUSE(d);
    u32 pid = (u32)get(d, "pid", 0), room = *count;
    *count = pid != 0;
    if (!pid)
        return SUCCESS;
    if (!out || room < 1)
        return INSUFFICIENT_SIZE;
    *out = (struct process){.pid = pid, .memory = get(d, "memory_used", 1 << 30)};
    return SUCCESS;
}

ret nvmlDeviceGetTotalEccErrors(dev d, u32 kind, u32 counter, u64 *out)
{
    static const char *keys[2][2] = {{"ecc_corrected", "ecc_corrected_aggregate"}, {"ecc_volatile", "ecc_aggregate"}};
    REFUSE(d);
    *out = get(d, keys[kind & 1][counter & 1], 0);
    return SUCCESS;
}

ret nvmlDeviceGetMemoryErrorCounter(dev d, u32 kind, u32 counter, u32 place, u64 *out)
{
    REFUSE(d);
    if (place != 2)
        return NOT_SUPPORTED;
    *out = get(d, kind && !counter ? "ecc_volatile" : kind ? "ecc_aggregate" : "ecc_corrected", 0);
    return SUCCESS;
}

ret nvmlDeviceGetRemappedRows(dev d, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed)
{
    REFUSE(d);
    *corrected = 0;
    *uncorrected = (u32)get(d, "remapped_rows", 0);
    *pending = (u32)get(d, "remap_pending", 0);
    *failed = (u32)get(d, "remap_failed", 0);
    return SUCCESS;
}

ret nvmlDeviceGetRetiredPages(dev d, u32 cause, u32 *count, u64 *pages) { (void)d, (void)cause, (void)count, (void)pages; return NOT_SUPPORTED; }

static u64 of_link(dev d, u32 link, const char *what, u64 otherwise)
{
    char key[64];
    snprintf(key, sizeof key, "link%u.%s", link, what);
    return get(d, key, get(d, what, otherwise));
}

#define LINK(d, link) do { REFUSE(d); if (link >= get(d, "links", 18)) return INVALID_ARGUMENT; } while (0)
ret nvmlDeviceGetNvLinkState(dev d, u32 link, u32 *out) { LINK(d, link); *out = (u32)of_link(d, link, "active", 1); return SUCCESS; }
ret nvmlDeviceGetNvLinkVersion(dev d, u32 link, u32 *out) { LINK(d, link); *out = 6; return SUCCESS; }
ret nvmlDeviceGetNvLinkCapability(dev d, u32 link, u32 what, u32 *out) { (void)what; LINK(d, link); *out = (u32)of_link(d, link, "valid", 1); return SUCCESS; }
ret nvmlDeviceGetNvLinkRemoteDeviceType(dev d, u32 link, u32 *out) { LINK(d, link); *out = 2; return SUCCESS; }
ret nvmlDeviceGetNvLinkErrorCounter(dev d, u32 link, u32 which, u64 *out)
{
    static const char *keys[5] = {"replay", "recovery", "crc_flit", "crc_data", "ecc_data"};
    LINK(d, link);
    if (which > 4)
        return INVALID_ARGUMENT;
    *out = of_link(d, link, keys[which], 0);
    return SUCCESS;
}

ret nvmlDeviceGetP2PStatus(dev a, dev b, u32 which, u32 *out) { (void)b, (void)which; REFUSE(a); *out = (u32)get(a, "p2p", 0); return SUCCESS; }

struct fabric { unsigned char cluster[16]; ret status; u32 clique, state, health; };

static void fabric(dev d, struct fabric *out)
{
    *out = (struct fabric){.status = (ret)get(d, "fabric_status", 0), .state = (u32)get(d, "fabric_state", 3)};
    out->health = (u32)get(d, "fabric_health", 0x1aa); /* every doubt answered with "no" */
}

struct fabric_v2 { u32 version; struct fabric info; };

ret nvmlDeviceGetGpuFabricInfoV(dev d, struct fabric_v2 *out)
{
    REFUSE(d);
    if (out->version >> 24 != 2)
        return VERSION_MISMATCH;
    fabric(d, &out->info);
    return SUCCESS;
}

ret nvmlDeviceGetGpuFabricInfo(dev d, void *out)
{
    struct fabric f;
    REFUSE(d);
    fabric(d, &f);
    memcpy(out, &f, sizeof f - sizeof f.health);
    return SUCCESS;
}

struct field { u32 id, scope; int64_t time, latency; u32 type; ret status; u64 value; };

ret nvmlDeviceGetFieldValues(dev d, int count, struct field *out)
{
    REFUSE(d);
    for (int i = 0; i < count; i++) {
        out[i].status = SUCCESS;
        out[i].type = 1; /* unsigned int */
        if (out[i].id == 82)
            out[i].value = get(d, "memory_temperature", 40);
        else if (out[i].id == 90 || out[i].id == 164)
            out[i].value = 26562;
        else if (out[i].id == 144)
            out[i].value = get(d, "remap_pending", 0);
        else if (out[i].id == 145)
            out[i].value = get(d, "remap_failed", 0);
        else if (out[i].id == 230)
            out[i].value = get(d, "recovery", 0);
        else
            out[i].status = NOT_SUPPORTED;
    }
    return SUCCESS;
}

ret nvmlDeviceGetMemoryAffinity(dev d, u32 size, u64 *out, u32 scope) { (void)scope; REFUSE(d); memset(out, 0, size * 8); out[0] = index_of(d) < 4 ? 1 : 2; return SUCCESS; }
ret nvmlDeviceGetCpuAffinity(dev d, u32 size, u64 *out) { REFUSE(d); memset(out, 0, size * 8); out[index_of(d) < 4 ? 0 : 1] = 0xffff; return SUCCESS; }
