// The description of a cluster that the planner is asked about.
#include "common/json.h"
#include "coordinator/simulate.h"

#include <jansson.h>
#include <math.h>

static bool read_link(const json_t *json, struct lvp_link *link)
{
    link->bytes = json_number_value(json_object_get(json, "bytes_per_second"));
    link->seconds = json_number_value(json_object_get(json, "latency_seconds"));
    return link->bytes > 0 && isfinite(link->bytes) && link->seconds >= 0 && isfinite(link->seconds);
}

static bool read_count(const json_t *json, const char *field, int64_t otherwise, int64_t most, int64_t *value)
{
    const json_t *found = json_object_get(json, field);
    *value = found != NULL ? json_integer_value(found) : otherwise;
    return (found == NULL || json_is_integer(found)) && *value >= 0 && *value <= most;
}

// The name of the field that is wrong; NULL: none.
static const char *read_nodes(const json_t *json, struct lvp_cluster *cluster)
{
    size_t i = 0;
    const json_t *entry = NULL;
    json_array_foreach(json, i, entry)
    {
        int64_t count = 0, devices = 0, threads = 0, cores = 0, memory = 0;
        if (!json_is_object(entry)) return "nodes";
        if (!read_count(entry, "count", 1, LVP_MAX_CLUSTER_NODES - cluster->n_nodes, &count)) return "count";
        if (!read_count(entry, "devices", 1, 1024, &devices) || devices < 1) return "devices";
        if (!read_count(entry, "threads", 1, 4096, &threads) || threads < 1) return "threads";
        if (!read_count(entry, "cores", devices * threads, 1 << 20, &cores) || cores < 1) return "cores";
        if (!read_count(entry, "memory_bytes", 0, INT64_MAX, &memory)) return "memory_bytes";
        const struct lvp_cluster_node *before = cluster->n_nodes > 0 ? &cluster->nodes[0] : NULL;
        bool same =
            before == NULL || (before->devices == devices && before->threads == threads && before->cores == cores);
        if (!same) return "nodes of different kinds: plan each kind by itself; nodes";
        for (int64_t n = 0; n < count; n++)
            cluster->nodes[cluster->n_nodes++] = (struct lvp_cluster_node){
                .devices = (int)devices, .threads = (int)threads, .cores = (int)cores, .memory = memory};
    }
    return cluster->n_nodes > 0 ? NULL : "nodes";
}

enum lvp_status lvp_cluster_read(const char *path, struct lvp_cluster *cluster)
{
    json_t *json = NULL;
    *cluster = (struct lvp_cluster){0};
    LVP_TRY(lvp_json_load_option("--cluster", path, &json));
    const json_t *link = json_object_get(json, "link"), *local = json_object_get(json, "local_link");
    const char *wrong = read_nodes(json_object_get(json, "nodes"), cluster);
    if (wrong == NULL && link != NULL && !read_link(link, &cluster->link)) wrong = "link";
    if (wrong == NULL && local != NULL && !read_link(local, &cluster->local)) wrong = "local_link";
    if (wrong == NULL && cluster->n_nodes > 1 && link == NULL) wrong = "link";
    json_decref(json);
    if (wrong == NULL) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "--cluster %s: '%s' is missing or out of range", path, wrong);
}

int lvp_cluster_devices(const struct lvp_cluster *cluster)
{
    int n = 0;
    for (int i = 0; i < cluster->n_nodes; i++) n += cluster->nodes[i].devices;
    return n;
}

int lvp_cluster_node_of(const struct lvp_cluster *cluster, int device)
{
    int node = 0;
    while (node + 1 < cluster->n_nodes && device >= cluster->nodes[node].devices)
        device -= cluster->nodes[node++].devices;
    return node;
}
