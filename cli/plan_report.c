#include "cli/plan_report.h"

#include <math.h>
#include <stdio.h>

// The figures of one stage, for all images.
struct stage_figures {
    int first, end;
    double flops, dense_flops; // prefill and decode
    int64_t weights, kv, dense_kv;
    struct lvp_block_cost cost, dense; // one request
    bool has_cut;
    double load; // share of the slowest stage's time
};

static struct stage_figures figures_of(const struct lvp_plan_report *report, int stage)
{
    const struct lvp_partition *p = &report->partition;
    struct lvp_workload dense = lvp_dense_workload(&report->workload);
    struct stage_figures f = {.first = p->first[stage], .end = p->first[stage + 1], .has_cut = stage + 1 < p->n_stages};
    f.cost = lvp_range_cost(&report->workload, f.first, f.end);
    f.dense = lvp_range_cost(&dense, f.first, f.end);
    f.flops = report->images * (f.cost.prefill_flops + f.cost.decode_flops);
    f.dense_flops = report->images * (f.dense.prefill_flops + f.dense.decode_flops);
    f.weights = f.cost.weight_bytes;
    f.kv = report->images * f.cost.kv_bytes;
    f.dense_kv = report->images * f.dense.kv_bytes;
    double slowest = 0;
    for (int s = 0; s < p->n_stages; s++)
        slowest = fmax(slowest, lvp_stage_seconds(&report->planner, s, p->first[s], p->first[s + 1]));
    f.load = lvp_stage_seconds(&report->planner, stage, f.first, f.end) / slowest;
    return f;
}

// TFLOPs, but GFLOPs where all images together take less than a tenth of one.
struct unit {
    const char *name;
    double size;
};

static struct unit flops_unit(const struct lvp_plan_report *report)
{
    struct lvp_block_cost all = lvp_range_cost(&report->workload, 0, lvp_block_count(report->workload.config));
    bool small = report->images * (all.prefill_flops + all.decode_flops) < 0.1e12;
    return small ? (struct unit){"GFLOPs", 1e9} : (struct unit){"TFLOPs", 1e12};
}

static int64_t decode_bytes(const struct lvp_plan_report *report, const struct lvp_block_cost *cost)
{
    return (int64_t)report->images * lvp_decode_steps(&report->workload) *
           (cost->decode_out.payload + cost->decode_out.framing);
}

static void print_head(const struct lvp_plan_report *report)
{
    const struct lvp_workload *w = &report->workload;
    int tokens = lvp_vision_tokens(w->config);
    (void)printf("%s, %s%s: %d blocks; %d image%s of %d tokens, each with %d text and %d new tokens\n", report->model,
                 lvp_dtype_name(w->dtype), w->weights == LVP_INT8 ? " with int8 weights" : "",
                 lvp_block_count(w->config), report->images, report->images == 1 ? "" : "s", tokens, w->text_tokens,
                 w->new_tokens);
    (void)printf("pruner %s", report->pruner);
    if (report->source == LVP_PRUNER_FROM_FILE) (void)printf(", inner width %d", w->pruner_width);
    if (report->source == LVP_PRUNER_ASSUMED) (void)printf(", inner width %d (assumed)", w->pruner_width);
    if (w->prune.n_points > 0) (void)printf(": %d tokens", tokens);
    for (int s = 0; s < w->prune.n_points; s++)
        (void)printf(", %d after layer %d", lvp_keep_count(&w->prune, s, tokens), w->prune.after[s]);
    (void)printf("\n\n");
}

static void print_stages(const struct lvp_plan_report *report)
{
    const struct unit unit = flops_unit(report);
    (void)printf("%5s  %-30s %6s %19s %11s %19s\n", "", "", "", unit.name, "weights", "KV MB");
    (void)printf("%5s  %-30s %6s %9s %9s %11s %9s %9s\n", "stage", "blocks", "load", "pruned", "dense", "MB", "pruned",
                 "dense");
    for (int s = 0; s < report->partition.n_stages; s++) {
        struct stage_figures f = figures_of(report, s);
        char first[LVP_BLOCK_NAME], last[LVP_BLOCK_NAME], blocks[80];
        (void)snprintf(blocks, sizeof blocks, "%d-%d %s..%s", f.first, f.end - 1,
                       lvp_block_name(report->workload.config, f.first, first),
                       lvp_block_name(report->workload.config, f.end - 1, last));
        (void)printf("%5d  %-30s %5.0f%% %9.3f %9.3f %11.1f %9.2f %9.2f\n", s, blocks, 100 * f.load,
                     f.flops / unit.size, f.dense_flops / unit.size, (double)f.weights / 1e6, (double)f.kv / 1e6,
                     (double)f.dense_kv / 1e6);
    }
}

static void print_cuts(const struct lvp_plan_report *report)
{
    if (report->partition.n_stages < 2) return;
    (void)printf("\n%22s %19s %23s %21s\n", "", "prefill rows", "prefill MB", "decode MB");
    (void)printf("%-22s %9s %9s %11s %11s %10s %10s\n", "cut before block", "pruned", "dense", "pruned", "dense",
                 "payload", "framing");
    for (int s = 0; s + 1 < report->partition.n_stages; s++) {
        struct stage_figures f = figures_of(report, s);
        double steps = (double)report->images * lvp_decode_steps(&report->workload);
        char name[LVP_BLOCK_NAME], block[LVP_BLOCK_NAME + 16];
        (void)snprintf(block, sizeof block, "%d %s", f.end, lvp_block_name(report->workload.config, f.end, name));
        (void)printf("%-22s %9lld %9lld %11.3f %11.3f %10.3f %10.3f\n", block,
                     (long long)(report->images * f.cost.rows_out), (long long)(report->images * f.dense.rows_out),
                     (double)(report->images * f.cost.prefill_out.payload) / 1e6,
                     (double)(report->images * f.dense.prefill_out.payload) / 1e6,
                     steps * (double)f.cost.decode_out.payload / 1e6, steps * (double)f.cost.decode_out.framing / 1e6);
    }
}

void lvp_plan_report_print(const struct lvp_plan_report *report)
{
    const struct lvp_workload *w = &report->workload;
    struct lvp_workload dense = lvp_dense_workload(w);
    int n = lvp_block_count(w->config);
    struct lvp_block_cost all = lvp_range_cost(w, 0, n), all_dense = lvp_range_cost(&dense, 0, n);
    double images = report->images;
    print_head(report);
    print_stages(report);
    print_cuts(report);
    (void)printf("\n%-34s %10s %10s\n", "total", "pruned", "dense");
    const struct unit unit = flops_unit(report);
    double scale = images / unit.size;
    (void)printf("prefill %s, %-18s %10.3f %10.3f\n", unit.name, "the paper's count", scale * lvp_paper_flops(w),
                 scale * lvp_paper_flops(&dense));
    (void)printf("prefill %s, %-18s %10.3f %10.3f\n", unit.name, "executed", scale * all.prefill_flops,
                 scale * all_dense.prefill_flops);
    (void)printf("decode %s, %-19s %10.3f %10.3f\n", unit.name, "executed", scale * all.decode_flops,
                 scale * all_dense.decode_flops);
    (void)printf("%-34s %10.2f %10.2f\n", "KV of the prompt, MB", images * (double)lvp_prompt_kv_bytes(w) / 1e6,
                 images * (double)lvp_prompt_kv_bytes(&dense) / 1e6);
    (void)printf("%-34s %10.2f %10.2f\n", "KV reserved (pages, answer), MB", images * (double)all.kv_bytes / 1e6,
                 images * (double)all_dense.kv_bytes / 1e6);
    (void)printf("%-34s %10.1f %10.1f\n", "weights, MB", (double)all.weight_bytes / 1e6,
                 (double)all_dense.weight_bytes / 1e6);
}

static json_t *stage_json(const struct lvp_plan_report *report, int stage)
{
    struct stage_figures f = figures_of(report, stage);
    char first[LVP_BLOCK_NAME], last[LVP_BLOCK_NAME];
    return json_pack("{s:i, s:i, s:i, s:s, s:s, s:f, s:f, s:f, s:I, s:I, s:I, s:f}", "stage", stage, "first_block",
                     f.first, "end_block", f.end, "first_name", lvp_block_name(report->workload.config, f.first, first),
                     "last_name", lvp_block_name(report->workload.config, f.end - 1, last), "prefill_flops",
                     report->images * f.cost.prefill_flops, "decode_flops", report->images * f.cost.decode_flops,
                     "dense_flops", f.dense_flops, "weight_bytes", (json_int_t)f.weights, "kv_bytes", (json_int_t)f.kv,
                     "dense_kv_bytes", (json_int_t)f.dense_kv, "load", f.load);
}

static json_t *cut_json(const struct lvp_plan_report *report, int stage)
{
    struct stage_figures f = figures_of(report, stage);
    json_int_t images = report->images, steps = images * lvp_decode_steps(&report->workload);
    return json_pack(
        "{s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "block", f.end, "prefill_rows", images * f.cost.rows_out,
        "dense_prefill_rows", images * f.dense.rows_out, "prefill_bytes", images * f.cost.prefill_out.payload,
        "dense_prefill_bytes", images * f.dense.prefill_out.payload, "prefill_framing_bytes",
        images * f.cost.prefill_out.framing, "decode_payload_bytes", steps * f.cost.decode_out.payload,
        "decode_framing_bytes", steps * f.cost.decode_out.framing, "bytes",
        images * (f.cost.prefill_out.payload + f.cost.prefill_out.framing) + decode_bytes(report, &f.cost),
        "dense_bytes",
        images * (f.dense.prefill_out.payload + f.dense.prefill_out.framing) + decode_bytes(report, &f.dense));
}

static json_t *totals_json(const struct lvp_workload *w, int images)
{
    struct lvp_block_cost all = lvp_range_cost(w, 0, lvp_block_count(w->config));
    return json_pack("{s:f, s:f, s:f, s:I, s:I, s:I}", "paper_tflops", images * lvp_paper_flops(w) / 1e12,
                     "prefill_tflops", images * all.prefill_flops / 1e12, "decode_tflops",
                     images * all.decode_flops / 1e12, "weight_bytes", (json_int_t)all.weight_bytes, "kv_bytes",
                     (json_int_t)(images * all.kv_bytes), "prompt_kv_bytes",
                     (json_int_t)(images * lvp_prompt_kv_bytes(w)));
}

static json_t *vision_tokens_json(const struct lvp_workload *w)
{
    int tokens = lvp_vision_tokens(w->config);
    json_t *list = json_array();
    (void)json_array_append_new(list, json_integer(tokens));
    for (int s = 0; s < w->prune.n_points; s++)
        (void)json_array_append_new(list, json_integer(lvp_keep_count(&w->prune, s, tokens)));
    return list;
}

json_t *lvp_plan_report_json(const struct lvp_plan_report *report)
{
    const struct lvp_workload *w = &report->workload;
    struct lvp_workload dense = lvp_dense_workload(w);
    json_t *after = json_array(), *partition = json_array(), *stages = json_array(), *cuts = json_array();
    for (int s = 0; s < w->prune.n_points; s++) (void)json_array_append_new(after, json_integer(w->prune.after[s]));
    for (int s = 0; s < report->partition.n_stages; s++) {
        (void)json_array_append_new(stages, stage_json(report, s));
        if (s + 1 == report->partition.n_stages) break;
        (void)json_array_append_new(partition, json_integer(report->partition.first[s + 1]));
        (void)json_array_append_new(cuts, cut_json(report, s));
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "model",
                     report->model, "dtype", lvp_dtype_name(w->dtype), "weights", lvp_dtype_name(w->weights), "pruner",
                     report->pruner, "pruner_width", w->pruner_width, "images", report->images, "text_tokens",
                     w->text_tokens, "new_tokens", w->new_tokens, "blocks", lvp_block_count(w->config), "prune_after",
                     after, "vision_tokens", vision_tokens_json(w), "partition", partition, "stages", stages, "cuts",
                     cuts, "total", totals_json(w, report->images), "dense_total", totals_json(&dense, report->images));
}
