#include "cli/plan_report.h"

#include <stdio.h>

static double largest_memory(const struct lvp_forecast *f)
{
    int64_t most = 0;
    for (int s = 0; s < f->n_stages; s++) most = f->memory[s] > most ? f->memory[s] : most;
    return (double)most;
}

void lvp_forecasts_print(const struct lvp_forecast_input *input, const struct lvp_forecast *forecasts, int n)
{
    const struct lvp_workload *w = input->workload;
    (void)printf("\n%d images on %d devices (%s), each with %d text and %d new tokens; simulated\n\n"
                 "%-18s %9s %12s %8s %12s %8s %8s %12s\n",
                 input->images, lvp_cluster_devices(input->cluster), input->profile->cpu, w->text_tokens, w->new_tokens,
                 "stages x replicas", "requests", "images/s", "bubble", "unpruned", "bubble", "ratio", "GB a device");
    for (int i = 0; i < n; i++) {
        const struct lvp_forecast *f = &forecasts[i];
        char layout[32];
        (void)snprintf(layout, sizeof layout, "%d x %d", f->n_stages, f->n_replicas);
        if (!f->fits) {
            (void)printf("%-18s does not fit the memory, or cannot be cut so\n", layout);
            continue;
        }
        (void)printf("%-18s %9d %12.3f %7.1f%% ", layout, f->concurrency, f->pruned.images_per_second,
                     100 * f->pruned.bubble_share);
        if (f->dense_fits)
            (void)printf("%12.3f %7.1f%% %8.3f", f->dense.images_per_second, 100 * f->dense.bubble_share,
                         f->pruned.images_per_second / f->dense.images_per_second);
        else
            (void)printf("%12s %8s %8s", "does not fit", "", "");
        (void)printf(" %12.2f\n", 1e-9 * largest_memory(f));
    }
    const struct lvp_forecast *best = &forecasts[0];
    if (n == 0 || !best->fits) return;
    (void)printf("\n%d x %d, first replica: %-12s %8s %14s %12s\n", best->n_stages, best->n_replicas, "blocks", "busy",
                 "MB over cut", "link busy");
    for (int s = 0; s < best->n_stages; s++) {
        char first[LVP_BLOCK_NAME], last[LVP_BLOCK_NAME], blocks[64];
        (void)snprintf(blocks, sizeof blocks, "%s..%s", lvp_block_name(w->config, best->partition.first[s], first),
                       lvp_block_name(w->config, best->partition.first[s + 1] - 1, last));
        (void)printf("    stage %-2d %-26s %7.1f%% %14.1f %11.1f%%\n", s, blocks,
                     100 * best->pruned.busy[s] / best->pruned.seconds, 1e-6 * best->pruned.cut_bytes[s],
                     100 * best->pruned.link_seconds[s] / best->pruned.seconds);
    }
}

static json_t *simulation_json(const struct lvp_simulation *simulation, int n_stages)
{
    json_t *busy = json_array(), *bytes = json_array(), *link = json_array();
    for (int s = 0; s < n_stages; s++) {
        (void)json_array_append_new(busy, json_real(simulation->busy[s]));
        (void)json_array_append_new(bytes, json_real(simulation->cut_bytes[s]));
        (void)json_array_append_new(link, json_real(simulation->link_seconds[s]));
    }
    return json_pack("{s:f, s:f, s:f, s:o, s:o, s:o}", "seconds", simulation->seconds, "images_per_second",
                     simulation->images_per_second, "bubble_share", simulation->bubble_share, "busy_seconds", busy,
                     "cut_bytes", bytes, "link_seconds", link);
}

json_t *lvp_forecasts_json(const struct lvp_forecast *forecasts, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        const struct lvp_forecast *f = &forecasts[i];
        json_t *first = json_array(), *memory = json_array();
        for (int s = 0; f->fits && s < f->n_stages; s++) {
            (void)json_array_append_new(first, json_integer(f->partition.first[s]));
            (void)json_array_append_new(memory, json_integer(f->memory[s]));
        }
        json_t *entry =
            json_pack("{s:i, s:i, s:i, s:b, s:o, s:o}", "stages", f->n_stages, "replicas", f->n_replicas, "concurrency",
                      f->concurrency, "fits", f->fits, "first_blocks", first, "memory_bytes", memory);
        if (entry != NULL && f->fits) {
            (void)json_object_set_new(entry, "pruned", simulation_json(&f->pruned, f->n_stages));
            (void)json_object_set_new(entry, "dense",
                                      f->dense_fits ? simulation_json(&f->dense, f->n_stages) : json_null());
        }
        (void)json_array_append_new(list, entry);
    }
    return list;
}
