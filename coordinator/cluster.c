// The description of a cluster that the planner is asked about.
#include "common/json.h"
#include "coordinator/simulate.h"

#include <jansson.h>

enum { MOST_DEVICES = 1024, MOST_THREADS = 4096 }; // of a node

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
        if (!read_count(entry, "devices", 1, MOST_DEVICES, &devices) || devices < 1) return "devices";
        if (!read_count(entry, "threads", 1, MOST_THREADS, &threads) || threads < 1) return "threads";
        if (!read_count(entry, "cores", devices * threads, MOST_DEVICES * MOST_THREADS, &cores) || cores < 1)
            return "cores";
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

// A misspelt field would be a default: no limit of memory, say.
static enum lvp_status check_fields(const char *path, const json_t *json)
{
    static const char *const fields[] = {"nodes", "link", "local_link", NULL};
    static const char *const of_node[] = {"count", "devices", "threads", "cores", "memory_bytes", NULL};
    const json_t *node = NULL;
    size_t i = 0;
    LVP_TRY(lvp_json_only("--cluster", path, json, fields));
    json_array_foreach(json_object_get(json, "nodes"), i, node)
        LVP_TRY(lvp_json_only("--cluster", path, node, of_node));
    return LVP_OK;
}

enum lvp_status lvp_cluster_read(const char *path, struct lvp_cluster *cluster)
{
    json_t *json = NULL;
    *cluster = (struct lvp_cluster){0};
    LVP_TRY(lvp_json_load_option("--cluster", path, &json));
    const json_t *link = json_object_get(json, "link"), *local = json_object_get(json, "local_link");
    const char *wrong = read_nodes(json_object_get(json, "nodes"), cluster);
    if (wrong == NULL && cluster->n_nodes > 1 && link == NULL) wrong = "link";
    enum lvp_status status = LVP_OK;
    if (wrong != NULL) status = lvp_fail(LVP_ERR_USAGE, "--cluster %s: '%s' is missing or out of range", path, wrong);
    if (status == LVP_OK) status = check_fields(path, json);
    if (status == LVP_OK && link != NULL) status = lvp_link_read("--cluster", path, link, "link", &cluster->link);
    if (status == LVP_OK && local != NULL)
        status = lvp_link_read("--cluster", path, local, "local_link", &cluster->local);
    json_decref(json);
    return status;
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
