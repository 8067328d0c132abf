// A run predicted: discrete events over stages, their two buffers per hop, links and shared cores, driven by the real
// scheduler. What is left out: reading images, rank 0's own time, the memory bandwidth and the clocks that the cores of
// a node share (beyond what the profile's own runs met), and the network card that its workers share.
//
// Time model: coordinator/profile.h. Threads of a node that outnumber its cores share them evenly.
#ifndef LVP_COORDINATOR_SIMULATE_H
#define LVP_COORDINATOR_SIMULATE_H

#include "coordinator/deployment.h"
#include "coordinator/profile.h"

enum { LVP_MAX_CLUSTER_NODES = 1024 };

// Nodes of one kind; their memory may differ. Devices fill the nodes in order; stages of a replica follow each other,
// replica by replica.
struct lvp_cluster {
    int n_nodes;
    struct lvp_cluster_node {
        int devices;    // workers
        int threads;    // of each
        int cores;      // of the node
        int64_t memory; // bytes; 0: no limit
    } nodes[LVP_MAX_CLUSTER_NODES];
    struct lvp_link link, local; // between nodes, inside one
};

// {"nodes": [{"count", "devices", "threads", "cores", "memory_bytes"}], "link": {"bytes_per_second",
// "latency_seconds"}, "local_link": the same}. LVP_ERR_USAGE naming file and field.
enum lvp_status lvp_cluster_read(const char *path, struct lvp_cluster *cluster) LVP_MUST_CHECK;
int lvp_cluster_devices(const struct lvp_cluster *cluster);
int lvp_cluster_node_of(const struct lvp_cluster *cluster, int device);

struct lvp_simulation_input {
    const struct lvp_workload *workload;
    const struct lvp_deployment *deployment; // planned
    const struct lvp_profile *profile;
    const struct lvp_cluster *cluster;
    int images; // of the whole run
};

struct lvp_simulation {
    double seconds, images_per_second;
    double bubble_share;                 // of the devices' time
    double busy[LVP_MAX_STAGES];         // seconds of each stage of the first replica
    double cut_bytes[LVP_MAX_STAGES];    // over the cut behind it
    double link_seconds[LVP_MAX_STAGES]; // in which that cut's link was busy
};

// LVP_ERR_USAGE where the cluster has too few devices.
enum lvp_status lvp_simulate(const struct lvp_simulation_input *input, struct lvp_simulation *result) LVP_MUST_CHECK;

#endif
